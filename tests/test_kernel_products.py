"""Products of kernels that are too large to form, their order, progress, and what float32 passes could lose."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import markovlm as mk
from kernel_cases import assert_kernel, assert_same, dense, function, rounding, sparse
from markovlm.errors import ValueRangeError


def test_a_vocabulary_is_copied_swapped_and_coarse_grained_without_being_formed() -> None:
    V, n = 256_000, 6
    rng = np.random.default_rng(0)
    P = mk.SoftmaxKernel(rng.normal(size=(n, 8)), rng.normal(size=(V, 8)))
    first, second = (mk.coarse_grain(rng.integers(0, size, V)) for size in (3, 5))
    assert mk.copy(V).shape == (V, V * V)
    together = P >> mk.copy(V) >> first.tensor(second)
    exact = np.stack([np.bincount(first._rows.index * 5 + second._rows.index, row, minlength=15) for row in P.matrix])
    bound = rounding(mk.SoftmaxKernel(P.hidden, P.head[:64]))
    assert_same(together, exact, bound)
    assert_same(P >> mk.copy(V) >> mk.swap(V, V) >> second.tensor(first) >> mk.swap(5, 3), exact, bound)
    assert (P >> mk.copy(V) >> mk.identity(V).tensor(mk.discard(V))).evaluate().representation == "softmax"
    assert_same(mk.uniform(n) >> P >> first, exact.reshape(n, 3, 5).sum(axis=2).mean(axis=0)[None], bound)
    assert_same((P >> first).bayes(mk.uniform(n)).matrix.sum(axis=1), np.ones(3), bound)
    with pytest.raises(ValueRangeError, match="entries"):
        np.asarray(mk.SoftmaxKernel(np.zeros((20_000, 1)), np.zeros((V, 1))).tensor(mk.uniform(1)))


def test_a_chain_is_multiplied_in_the_cheap_order() -> None:
    """A row vector on the left: every product is one of a vector, whatever the order in which it was written."""
    n = 1500
    rng = np.random.default_rng(0)
    f, g = dense(rng, n, n), dense(rng, n, n)
    made: list[tuple[tuple[int, int], tuple[int, int]]] = []
    from markovlm import _chain

    original = _chain.product
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chain, "product", lambda a, b, work: made.append((a.shape, b.shape)) or original(a, b, work))
        (mk.uniform(n) >> (f >> g >> f)).evaluate()
    assert made == [((1, n), (n, n))] * 3


def test_many_stages() -> None:
    step = mk.Kernel([[0.9, 0.1], [0.2, 0.8]])
    walk = step
    for _ in range(199):
        walk = walk >> step
    assert_same(walk, np.linalg.matrix_power(step.matrix, 200), rounding(step, results=200))


@pytest.mark.parametrize("spread", [0.0, 1.0, 40.0, 400.0])
@pytest.mark.parametrize("masks", [False, True])
def test_normalisers_need_not_be_known(spread: float, masks: bool) -> None:
    """Rows whose mass lies where no sample of tokens looks, however far from the rest, are found and made again."""
    rng = np.random.default_rng(0)
    n, V = 40, 5000
    head = rng.normal(size=(V, 2)).astype(np.float32)
    head[7] = (spread, 0.0)  # one token that the first coordinate decides about
    bias = np.where(rng.random(V) < 0.9, -np.inf, 0.0) if masks else None
    if bias is not None:
        bias[7] = 0.0
    P = mk.SoftmaxKernel(np.stack([np.linspace(-3, 3, n), np.ones(n)], axis=1), head, bias)
    grain = function(rng, V, 3)
    bound = rounding(mk.SoftmaxKernel(P.hidden, P.head[:64]), results=4 + int(spread))  # of logits of that size
    assert_same(P >> grain, P.matrix @ grain.matrix, bound)
    wide = dense(rng, V, 1500)  # more columns than a pass takes
    assert_same(P >> wide, P.matrix @ wide.matrix, bound)


def test_what_is_improbable_does_not_become_impossible() -> None:
    """Passes make exponentials in float32, where e^-88 is 0; what is less keeps its digits."""
    rng = np.random.default_rng(0)
    n, V = 12, 400
    head = rng.normal(size=(V, 2))
    head[:50, 0] = -np.linspace(20, 200, 50)  # tokens of a class that gets ever less likely
    P = mk.SoftmaxKernel(np.stack([np.linspace(0, 3, n), np.ones(n)], axis=1), head)
    rows = P.matrix
    grain = mk.deterministic(np.r_[np.zeros(50, int), rng.integers(1, 3, V - 50)], 3)
    classes = (P >> grain).matrix
    assert 0 < classes[:, 0].min() < 1e-20
    assert np.abs(classes / (rows @ grain.matrix) - 1).max() <= rounding(P)
    assert np.all(np.isfinite(mk.divergence(P[:1] >> grain, P[-1:] >> grain, mk.KL())))
    laws = rng.dirichlet(np.full(n, 0.1), 3)
    laws[2] = np.eye(n)[-1]
    for some in (laws, laws[2:]):  # by panels, and by the mean
        found = (mk.Kernel(some) >> P).matrix
        assert np.abs(found / (some @ rows) - 1).max() <= rounding(P, results=40)  # logits here are up to 600
    tiny = mk.Kernel(np.stack([np.full(V, 1e-100), np.full(V, 1 - 1e-100)], axis=1))
    assert np.abs((P >> tiny).matrix[:, 0] / 1e-100 - 1).max() <= rounding(P)


def test_progress_is_shown_and_stops() -> None:
    rng = np.random.default_rng(0)
    P = mk.SoftmaxKernel(rng.normal(size=(300, 4)), rng.normal(size=(500, 4)))
    seen: list[tuple[int, int]] = []
    (P >> function(rng, 500, 3)).evaluate(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (300, 300)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    k = P >> function(rng, 500, 3)
    with pytest.raises(KeyboardInterrupt):
        k.evaluate(progress=stop)
    assert_kernel(k, rounding(P))  # nothing was lost
    with pytest.raises(KeyboardInterrupt):
        (sparse(rng, 300, 300) >> sparse(rng, 300, 300)).evaluate(progress=stop)


WIDE = 2**40


def wide(places: list[int]) -> mk.Kernel:
    """One row on 2^40 elements."""
    n = len(places)
    return mk.Kernel(sp.csr_array((np.full(n, 1 / n), np.array(places), np.array([0, n])), (1, WIDE)))


def test_what_is_wide_is_never_filled_with_zeros() -> None:
    row = wide([3, WIDE - 1])
    assert (mk.uniform(1) >> row).representation == "chain"
    assert (mk.uniform(1) >> row).evaluate().representation == "sparse"
    assert mk.audit(row)
    with pytest.raises(ValueRangeError, match="entries"):
        row.bayes([1.0])
    V = 100_000
    grain = mk.coarse_grain(np.arange(V) % 5)
    assert mk.audit(mk.copy(V), deterministic=[0])
    assert grain.tensor(grain).is_deterministic()
    both = mk.state(np.full(V, 1 / V)) >> mk.copy(V)
    both.evaluate()  # V entries on V² elements
    pairs = both >> grain.tensor(grain)
    assert_same(pairs.matrix.reshape(5, 5), np.eye(5) / 5, V * 2**-52)
    assert_same(both.marginal(1), np.full((1, V), 1 / V), 2**-52)
    assert np.array_equal(grain.tensor(grain)[[0, V + 1, V * V - 1]].matrix.argmax(axis=1), [0, 6, 24])


def test_rows_by_numbers_masks_and_slices() -> None:
    rng = np.random.default_rng(0)
    for k in (dense(rng, 4, 3), sparse(rng, 4, 3), function(rng, 4, 3), mk.SoftmaxKernel(np.eye(4), np.eye(4)[:3])):
        for rows in ([0, -1], np.array([True, False, True, False]), slice(None, None, -1), slice(-2, None)):
            assert_same(k[rows], k.matrix[rows], 2**-52)
        with pytest.raises(ValueRangeError, match=r"rows: expected row numbers in \[-4, 4\), got 4 at index 1"):
            k[[0, 4]]
        with pytest.raises(ValueError, match=r"rows: expected a mask of shape \(4,\)"):
            k[np.array([True])]


def test_a_kernel_cannot_be_changed_from_outside() -> None:
    given = np.array([[0.5, 0.5]])
    k, s = mk.Kernel(given), mk.Kernel(sp.csr_array(given))
    given[0] = [1.0, 0.0]
    assert k.matrix[0, 0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        s.sparse.data[0] = 1.0
    copied = np.array(k)
    copied[0] = [1.0, 0.0]
    assert k.matrix[0, 0] == 0.5
