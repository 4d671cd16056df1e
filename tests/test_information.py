"""Information of joint states, of channels, and of a state about what follows it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import markovlm as mk
from kernel_cases import MAKERS, assert_same, kernels, random_rows, rounding, sizes, states
from markovlm._divergences import Divergence
from markovlm.errors import ConvergenceError, ShapeError, ValueRangeError
from markovlm.typing import FloatArray

KINDS: tuple[Divergence, ...] = (
    mk.KL(),
    mk.KL(reverse=True),
    mk.TotalVariation(),
    mk.SquaredHellinger(),
    mk.ChiSquared(),
    mk.JensenShannon(),
    mk.Renyi(0.5),
    mk.Renyi(2.0),
    mk.Renyi(math.inf),
)


def tensors(seed: int, *shape: int) -> FloatArray:
    return random_rows(np.random.default_rng(seed), 1, math.prod(shape)).reshape(shape)


seeds = st.integers(0, 2**32 - 1)


@given(sizes, st.data())
def test_joint_is_copy_and_then_the_kernel(n: int, data: st.DataObject) -> None:
    p, k = data.draw(states(n)), data.draw(kernels(n))
    k = k.renamed(codomain=k.shape[1])
    both = mk.joint(p, k)
    assert_same(both, p >> mk.copy(n) >> mk.identity(n).tensor(k), rounding(p, k))
    assert_same(both.marginal(0), p, rounding(p, k))
    assert_same(both.marginal(1), p >> k, rounding(p, k))


@pytest.mark.parametrize("D", KINDS, ids=str)
@given(seed=seeds, n=sizes, m=sizes)
def test_mutual_information_is_the_divergence_from_independence(D: Divergence, seed: int, n: int, m: int) -> None:
    joint = tensors(seed, n, m)
    independent = joint.sum(axis=1)[:, None] * joint.sum(axis=0)
    plain = float(D(joint.reshape(-1), independent.reshape(-1)))
    for given_ in (joint, mk.state(joint), mk.Kernel(sp.csr_array(joint.reshape(1, -1))).renamed((), (n, m))):
        found = mk.mutual_information(given_, D)
        if math.isinf(plain):
            assert found == plain
        else:
            assert abs(found - plain) <= 64 * (n * m + 64) * 2**-52 * (1 + plain) ** 2


@given(seeds)
def test_conditional_information_by_slices(seed: int) -> None:
    joint = tensors(seed, 3, 2, 4)
    for D in KINDS:
        found = mk.conditional_mutual_information(joint, 0, 2, given=1, D=D)
        by_slices = 0.0
        for z in range(2):
            mass = joint[:, z].sum()
            if mass > 0:
                by_slices += mass * mk.mutual_information(joint[:, z] / mass, D)
        if math.isinf(by_slices):
            assert found == by_slices
        else:
            assert abs(found - by_slices) <= 64 * 88 * 2**-52 * (1 + by_slices) ** 2


@given(seeds)
def test_chain_rule(seed: int) -> None:
    joint = mk.state(tensors(seed, 3, 2, 4), {"x": 3, "y": 2, "z": 4})
    whole = mk.mutual_information(joint, between=("x", ["y", "z"]))
    first = mk.mutual_information(joint, between=("x", "z"))
    rest = mk.conditional_mutual_information(joint, "x", "y", given="z")
    assert abs(whole - first - rest) <= 64 * 88 * 2**-52
    assert whole >= 0 <= rest


@given(seeds)
def test_information_and_entropies(seed: int) -> None:
    """I(X; Y) = H(Y) − H(Y | X)."""
    rng = np.random.default_rng(seed)
    p, k = rng.dirichlet(np.ones(3)), mk.Kernel(random_rows(rng, 3, 4))
    found = mk.mutual_information(mk.joint(p, k))
    by_entropies = mk.KL().entropy((mk.state(p) >> k).matrix[0]) - mk.average_categorical_entropy(k, mk.KL(), p)
    assert abs(found - by_entropies) <= 64 * 76 * 2**-52
    assert abs(mk.state_prediction_information(k, p) - found) <= 64 * 76 * 2**-52


@given(sizes, st.data())
def test_state_prediction_information(n: int, data: st.DataObject) -> None:
    k, p = data.draw(kernels(n)), data.draw(states(n))
    found = mk.state_prediction_information(k, p)
    dense = mk.Kernel(k.matrix)
    exact = mk.mutual_information(mk.joint(p, dense))
    assert abs(found - exact) <= 16 * rounding(k, p)
    assert 0 <= found <= math.log(n) + rounding(k, p)


def test_representation_divergence() -> None:
    rng = np.random.default_rng(0)
    P = mk.SoftmaxKernel(rng.normal(size=(10, 3)), rng.normal(size=(50, 3)))
    rows = P.matrix
    first, second = np.arange(10) < 4, [4, 5, 9]
    for D in KINDS:
        exact = D(rows[first].mean(axis=0), rows[second].mean(axis=0))
        found = mk.representation_divergence(P, first, second, D)
        assert found == pytest.approx(exact, rel=1e-4)  # float32 means, of which it is the difference
        back = mk.representation_divergence(P, first, second, D, reverse=True)
        assert back == mk.representation_divergence(P, second, first, D)
    with pytest.raises(ValueRangeError, match="second: expected at least one context"):
        mk.representation_divergence(P, [1], np.zeros(10, bool))


def test_joint_states_that_are_none() -> None:
    with pytest.raises(ShapeError, match="two factors"):
        mk.mutual_information([0.5, 0.5])
    with pytest.raises(ShapeError, match=r"mk\.joint"):
        mk.mutual_information(mk.identity(2))
    with pytest.raises(ShapeError, match="different factors"):
        mk.conditional_mutual_information(np.full((2, 2), 0.25), 0, 1, given=1)


# Channels


def binary_entropy(e: float) -> float:
    return -e * math.log(e) - (1 - e) * math.log(1 - e)


def test_capacities_that_are_known() -> None:
    e = 0.11
    cases: list[tuple[object, float]] = [
        ([[1 - e, e], [e, 1 - e]], math.log(2) - binary_entropy(e)),  # symmetric
        ([[1 - e, e, 0], [0, e, 1 - e]], (1 - e) * math.log(2)),  # erasure
        ([[1.0, 0.0], [e, 1 - e]], math.log(1 + (1 - e) * e ** (e / (1 - e)))),  # Z
        (np.eye(7), math.log(7)),
        (np.full((3, 4), 0.25), 0.0),  # nothing
        (sp.csr_array(np.eye(5)), math.log(5)),
        ([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.3, 0.7]], math.log(2)),  # two inputs say the same
        ([[1 - 1e-7, 1e-7], [1, 0], [0, 1.0]], math.log(2)),  # two almost
    ]
    for matrix, capacity in cases:
        found = mk.channel_capacity(mk.Kernel(matrix), tolerance=1e-10)
        assert found.lower - 1e-15 * 8 <= capacity <= found.upper + 1e-15 * 8
        assert found.upper - found.lower <= 1e-10
        assert found.lower <= found.value <= found.upper


@given(seeds, sizes, sizes)
def test_capacity_is_certified(seed: int, n: int, m: int) -> None:
    k = mk.Kernel(random_rows(np.random.default_rng(seed), n, m))
    found = mk.channel_capacity(k, tolerance=1e-6)
    reached = mk.mutual_information(mk.joint(found.input, k))
    assert abs(reached - found.lower) <= 64 * (n + m + 64) * 2**-52
    # no law of inputs does better than the upper bound
    for p in np.random.default_rng(seed).dirichlet(np.ones(n), 20):
        assert mk.state_prediction_information(k, p) <= found.upper + 64 * 76 * 2**-52


def test_capacity_that_takes_too_long_keeps_what_it_has() -> None:
    rng = np.random.default_rng(0)
    k = mk.Kernel(rng.dirichlet(np.ones(20), 20))
    with pytest.raises(ConvergenceError, match=r"gap of at most 1e-12.*after 3 iterations") as caught:
        mk.channel_capacity(k, 1e-12, max_iterations=3)
    partial = caught.value.partial
    assert isinstance(partial, mk.Capacity)
    assert partial.lower < mk.channel_capacity(k, 1e-6).value < partial.upper
    with pytest.raises(ValueRangeError, match="tolerance"):
        mk.channel_capacity(k, 0.0)
    steps: list[int] = []
    mk.channel_capacity(k, 1e-3, progress=lambda done, total: steps.append(done))
    assert steps == list(range(1, len(steps) + 1))


@given(seeds, sizes, sizes, sizes)
def test_what_is_made_by_garbling_is_found_to_be(seed: int, n: int, m: int, r: int) -> None:
    rng = np.random.default_rng(seed)
    f, w = mk.Kernel(random_rows(rng, n, m)), mk.Kernel(random_rows(rng, m, r))
    found = mk.garbling(f, f >> w)
    assert found
    assert_same(f >> found.witness, f >> w, 2 * found.tolerance)
    assert found.witness.matrix.min() >= 0


@given(seeds, sizes, sizes, sizes)
def test_blackwell_order_is_data_processing(seed: int, n: int, m: int, r: int) -> None:
    """Distances of rows shrink under garbling, but for what it cannot imitate."""
    rng = np.random.default_rng(seed)
    f, g = mk.Kernel(random_rows(rng, n, m)), mk.Kernel(random_rows(rng, n, r))
    found = mk.garbling(f, g)
    assert 0 <= found.deficiency <= 1
    for x, y in itertools.combinations(range(n), 2):
        near, far = (float(mk.TotalVariation()(k.matrix[x], k.matrix[y])) for k in (g, f))
        assert near <= far + 2 * found.deficiency + 64 * (m + r) * 2**-52  # of sums of m and r terms


def test_deficiency_of_known_channels() -> None:
    nothing = mk.Kernel([[0.5, 0.5], [0.5, 0.5]])
    noisy, clear = (mk.Kernel([[1 - e, e], [e, 1 - e]]) for e in (0.3, 0.1))
    assert mk.garbling(clear, noisy).exists
    assert not mk.garbling(noisy, clear).exists
    solved = 10 * 1e-10  # what the program's constraints may be missed by, some of which add up
    assert mk.garbling(noisy, clear).deficiency == pytest.approx(0.2, abs=solved)  # the best guess is to do nothing
    assert mk.garbling(nothing, mk.identity(2)).deficiency == pytest.approx(0.5, abs=solved)
    assert bool(mk.garbling(mk.identity(2), noisy))
    with pytest.raises(ShapeError, match="g: domain"):
        mk.garbling(clear, mk.identity(3))


def test_made_of_all_representations() -> None:
    rng = np.random.default_rng(1)
    for maker in MAKERS:
        k = maker(rng, 4, 3)
        if k._rows.kind != "softmax":
            assert mk.channel_capacity(k, 1e-6).upper <= math.log(3) + 1e-6
        assert mk.garbling(k, k)
