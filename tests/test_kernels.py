"""The laws of theory §1, in every representation and mixtures of them; and each operation against its definition."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import assume, given
from hypothesis import strategies as st

import markovlm as mk
from kernel_cases import (
    MAKERS,
    Maker,
    assert_kernel,
    assert_same,
    dense,
    kernels,
    pipelines,
    rounding,
    sizes,
    sparse,
    states,
)
from markovlm.errors import DTypeError, NotStochasticError, ShapeError, ValueRangeError

# Operations against their definitions on dense matrices


@given(pipelines(2))
def test_composition(stages: list[mk.Kernel]) -> None:
    f, g = stages
    whole = f >> g
    bound = rounding(f, g)
    assert_same(whole, np.asarray(f) @ np.asarray(g), bound)
    assert_kernel(whole, bound)


@given(kernels(), kernels())
def test_tensor(f: mk.Kernel, g: mk.Kernel) -> None:
    side_by_side = f.tensor(g)
    assert_same(side_by_side, np.kron(f.matrix, g.matrix), rounding(f, g))
    assert_kernel(side_by_side, rounding(f, g))


@given(kernels(), st.data())
def test_rows(f: mk.Kernel, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, f.shape[0] - 1), max_size=5)), dtype=np.int64)
    assert_same(f[index], f.matrix[index], rounding(f))
    assert_same(f[1:], f.matrix[1:], rounding(f))


@given(sizes, sizes, sizes, st.data())
def test_marginals(n: int, x: int, y: int, data: st.DataObject) -> None:
    f = data.draw(kernels(n, x * y)).renamed(codomain=(x, y))
    joint = f.matrix.reshape(n, x, y)
    assert_same(f.marginal(0), joint.sum(axis=2), rounding(f))
    assert_same(f.marginal(1), joint.sum(axis=1), rounding(f))
    assert_same(f.marginal(1, 0), joint.transpose(0, 2, 1).reshape(n, -1), rounding(f))


def test_swap_copy_and_discard_are_what_they_say() -> None:
    swapped = np.zeros((6, 6))
    for i in range(2):
        for j in range(3):
            swapped[i * 3 + j, j * 2 + i] = 1.0
    assert_same(mk.swap(2, 3), swapped, 0.0)
    copied = np.zeros((3, 9))
    copied[[0, 1, 2], [0, 4, 8]] = 1.0
    assert_same(mk.copy(3), copied, 0.0)
    assert_same(mk.discard(3), np.ones((3, 1)), 0.0)
    assert_same(mk.identity(3), np.eye(3), 0.0)
    assert_same(mk.copy((2, 3)), np.asarray(mk.copy(6)), 0.0)


# Laws


@given(pipelines(3))
def test_associativity(stages: list[mk.Kernel]) -> None:
    f, g, h = stages
    bound = rounding(f, g, h)
    left, right = (f >> g).evaluate() >> h, f >> (g >> h).evaluate()
    assert_same(left, right, bound)
    assert_same(f >> g >> h, left, bound)


@given(kernels())
def test_units(f: mk.Kernel) -> None:
    n, m = f.shape
    assert_same(mk.identity(n) >> f, f, rounding(f))
    assert_same(f >> mk.identity(m), f, rounding(f))
    unit = mk.identity(())
    assert_same(f.tensor(unit), f, rounding(f))
    assert_same(unit.tensor(f), f, rounding(f))


@given(pipelines(2), pipelines(2))
def test_interchange(first: list[mk.Kernel], second: list[mk.Kernel]) -> None:
    (f, h), (g, k) = first, second
    assert_same(f.tensor(g) >> h.tensor(k), (f >> h).tensor(g >> k), rounding(f, g, h, k))


@given(kernels(), kernels(), kernels())
def test_tensor_is_associative(f: mk.Kernel, g: mk.Kernel, h: mk.Kernel) -> None:
    bound = rounding(f, g, h)
    assert_same(f.tensor(g).tensor(h), f.tensor(g.tensor(h)), bound)
    assert_same(f.tensor(g, h), f.tensor(g).tensor(h), bound)


@given(kernels(), kernels())
def test_swap_is_natural(f: mk.Kernel, g: mk.Kernel) -> None:
    (n, m), (k, r) = f.shape, g.shape
    assert_same(f.tensor(g) >> mk.swap(m, r), mk.swap(n, k) >> g.tensor(f), rounding(f, g))


@given(sizes, sizes)
def test_swap_undoes_itself(n: int, m: int) -> None:
    assert_same(mk.swap(n, m) >> mk.swap(m, n), np.eye(n * m), 0.0)


@given(sizes)
def test_comonoid_laws(n: int) -> None:
    copy, one, forget = mk.copy(n), mk.identity(n), mk.discard(n)
    assert_same(copy >> copy.tensor(one), copy >> one.tensor(copy), 0.0)  # coassociative
    assert_same(copy >> forget.tensor(one), np.eye(n), 0.0)  # counital
    assert_same(copy >> one.tensor(forget), np.eye(n), 0.0)
    assert_same(copy >> mk.swap(n, n), copy, 0.0)  # cocommutative


@given(sizes, sizes)
def test_copy_of_a_product(n: int, m: int) -> None:
    one_by_one = mk.copy(n).tensor(mk.copy(m)) >> mk.identity(n).tensor(mk.swap(n, m), mk.identity(m))
    assert_same(mk.copy((n, m)), one_by_one, 0.0)


@given(kernels())
def test_discarding_what_comes_out_is_discarding(f: mk.Kernel) -> None:
    n, m = f.shape
    assert_same(f >> mk.discard(m), mk.discard(n), rounding(f))


@given(kernels())
def test_deterministic_is_what_commutes_with_copying(f: mk.Kernel) -> None:
    n, m = f.shape
    copied, twice = f >> mk.copy(m), mk.copy(n) >> f.tensor(f)
    commutes = np.abs(copied.matrix - twice.matrix).max() <= rounding(f)
    # entries p and p - p² differ by p(1 - p): what is within rounding of a point mass counts as one
    assert f.is_deterministic(2 * f.shape[1] * rounding(f)) or not commutes
    assert commutes or not f.is_deterministic()


@given(sizes, st.data())
def test_bayes_is_the_posterior(n: int, data: st.DataObject) -> None:
    f, p = data.draw(kernels(n)), data.draw(states(n))
    back = f.bayes(p, zero_evidence="uniform")
    joint = p.matrix[0][:, None] * f.matrix
    evidence = joint.sum(axis=0)
    seen = evidence > 1e-150  # below, entries of the reference are subnormal
    posterior = (joint / np.where(evidence > 0, evidence, 1)).T
    assert_same(back.matrix[seen], posterior[seen], rounding(f, p))
    assert_same(back.matrix[evidence == 0], np.full((int((evidence == 0).sum()), n), 1 / n), 2**-52)
    assert_kernel(back, rounding(f, p))


@given(sizes, st.data())
def test_bayes_twice(n: int, data: st.DataObject) -> None:
    f, p = data.draw(kernels(n)), data.draw(states(n))
    q = p >> f
    twice = f.bayes(p, zero_evidence="uniform").bayes(q, zero_evidence="uniform")
    assume(np.all((q.matrix == 0) | (q.matrix > 1e-150)))
    assert mk.almost_surely_equal(twice, f, p, tolerance=rounding(f, p))
    given_ = p.matrix[0] > 1e-150
    assert_same(twice.matrix[given_], f.matrix[given_], rounding(f, p))


@given(sizes, sizes, sizes, st.data())
def test_disintegration(n: int, x: int, y: int, data: st.DataObject) -> None:
    f = data.draw(kernels(n, x * y)).renamed(codomain=(x, y))
    rest = f.conditional(0, zero_evidence="uniform")
    assert rest.shape == (n * x, y)
    assert_kernel(rest, rounding(f))
    marginal = f.marginal(0)
    # a ↦ (a, x) with x drawn, x copied, and y drawn from both
    again = (
        mk.copy(n)
        >> mk.identity(n).tensor(marginal)
        >> mk.identity(n).tensor(mk.copy(x))
        >> mk.swap(n, x).tensor(mk.identity(x))
        >> mk.identity(x).tensor(rest.renamed(domain=(n, x)))
    )
    assert_same(again, f.matrix, rounding(f))


# Zero evidence


@pytest.mark.parametrize("make", [dense, sparse])
def test_no_evidence_is_an_error_by_default_and_never_a_row_of_zeros(make: object) -> None:
    matrix = np.array([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    f = mk.Kernel(matrix if make is dense else sp.csr_array(matrix), codomain={"y": ["a", "b", "c"]})
    with pytest.raises(ValueRangeError, match=r"zero_evidence.*1 of 3 rows.*the first is b;"):
        f.bayes([0.5, 0.5])
    assert_same(f.bayes([0.5, 0.5], zero_evidence="uniform").matrix[1], np.array([0.5, 0.5]), 0.0)
    assert_same(f.bayes([0.5, 0.5], zero_evidence=[0.25, 0.75]).matrix[1], np.array([0.25, 0.75]), 0.0)
    assert_same(f.bayes([0.5, 0.5], zero_evidence=mk.state([0.0, 1.0])).matrix[1], np.array([0.0, 1.0]), 0.0)
    with pytest.raises(DTypeError, match="zero_evidence"):
        f.bayes([0.5, 0.5], zero_evidence="nothing")
    joint = mk.Kernel([[0.0, 0.0, 0.5, 0.5]], codomain=(2, 2))
    with pytest.raises(ValueRangeError, match="zero_evidence"):
        joint.conditional(0)
    assert_kernel(joint.conditional(0, zero_evidence="uniform"), 2**-52)


def test_evidence_of_subnormal_size_still_gives_a_kernel() -> None:
    f = mk.Kernel([[1 - 1e-300, 1e-300], [1.0, 0.0]])
    back = f.bayes([1e-15, 1.0 - 1e-15])
    assert_kernel(back, 2**-50)
    assert_same(back.matrix[1], np.array([1.0, 0.0]), 0.0)


# Input


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        ([[0.5, 0.5], [0.5, 0.6]], NotStochasticError, r"matrix.*row 1 sums to 1\.1"),
        ([[0.5, 0.5], [0.2, 0.2], [0.5, 0.6]], NotStochasticError, r"row 1 sums to 0\.4"),
        ([[1.5, -0.5]], NotStochasticError, r"-0\.5 at row 0, column 1"),
        ([[0.5, 0.5], [np.nan, 1.0]], NotStochasticError, r"nan at row 1, column 0"),
        ([[np.inf, 0.0]], NotStochasticError, r"inf at row 0, column 0"),
        ([0.5, 0.5], ShapeError, r"mk\.state"),
        ([[0.5 + 0j, 0.5]], DTypeError, "complex"),
        (np.zeros((2, 0)), NotStochasticError, "sums to 0"),
    ],
)
def test_what_is_no_kernel_is_refused_by_name(matrix: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mk.Kernel(matrix)
    if np.ndim(matrix) == 2 and np.asarray(matrix).shape[1] and np.asarray(matrix).dtype.kind != "c":
        with pytest.raises(error, match=message):
            mk.Kernel(sp.csr_array(np.array(matrix)))


@pytest.mark.parametrize("V", [10, 50_257, 256_000])
@pytest.mark.parametrize("dtype", ["float32", "float64 from float32", "float16", "bfloat16"])
def test_softmax_rows_of_short_types_are_accepted(V: int, dtype: str) -> None:
    import torch  # in the test extra; what makes such rows in practice

    z = torch.from_numpy(np.random.default_rng(0).normal(size=(3, V)).astype(np.float32)) * 5
    kinds = {"float64 from float32": torch.float32}
    p = torch.softmax(z.to(kinds.get(dtype) or getattr(torch, dtype)), dim=-1)
    k = mk.Kernel(p.double() if dtype.startswith("float64") else p)
    assert k.shape == (3, V)


def test_nothing_is_renormalised() -> None:
    rows = np.array([[0.25, 0.75], [1 / 3, 2 / 3]], np.float32)
    assert np.array_equal(mk.Kernel(rows).matrix, rows.astype(np.float64))
    with pytest.raises(ValueError, match="read-only"):
        mk.Kernel(rows).matrix[0, 0] = 1.0


def test_sets_that_do_not_meet_are_both_named() -> None:
    f = mk.Kernel(np.full((2, 3), 1 / 3), codomain={"sky": ["sun", "rain", "snow"]})
    with pytest.raises(ShapeError, match=r"3 elements.*sky\[sun, rain, snow\].*2 on the right, day\[mon, tue\]"):
        f >> mk.identity({"day": ["mon", "tue"]})
    with pytest.raises(ShapeError, match="'sky' on the left and 'day' on the right"):
        f >> mk.identity({"day": ["sun", "rain", "snow"]})
    with pytest.raises(ShapeError, match=r"element 1: 'rain' and 'hail'"):
        f >> mk.identity({"sky": ["sun", "hail", "snow"]})
    with pytest.raises(ShapeError, match="the same factors"):
        mk.uniform({"a": 2, "b": 3}) >> mk.identity({"b": 3, "a": 2})
    with pytest.raises(ShapeError, match=r"'sun' twice"):
        mk.Axis(["sun", "sun"], "sky")
    with pytest.raises(ShapeError, match=r"expected 3 elements.*got 2"):
        mk.Kernel(np.full((2, 3), 1 / 3), codomain=2)


def test_names_survive() -> None:
    sky = mk.state({"dry": 0.8, "wet": 0.2}, "sky")
    look = mk.Kernel([[0.9, 0.1], [0.3, 0.7]], codomain={"forecast": ["fair", "foul"]})
    joint = sky >> mk.copy(2) >> mk.identity(2).tensor(look)
    assert [axis.name for axis in joint.codomain] == ["sky", "forecast"]
    assert joint.codomain[0].labels == ("dry", "wet")
    assert [axis.name for axis in (joint >> mk.swap(2, 2)).codomain] == ["forecast", "sky"]
    assert joint.marginal("forecast").codomain == look.codomain
    assert joint.conditional("forecast").domain == look.codomain
    assert (mk.swap(2, 2) >> look.renamed(domain={"a": 2}).tensor(look.renamed(domain={"b": 2}))).domain[0].name == "b"
    assert (sky.tensor(sky) >> mk.identity(4)).codomain == sky.codomain * 2
    assert [axis.name for axis in look[[1]].renamed(domain={"sky": ["wet"]}).domain] == ["sky"]
    assert sky.codomain[0].label(1) == "wet"
    assert look.renamed(domain=sky.codomain)[[1]].domain[0].labels == ("wet",)


def test_looks() -> None:
    f = mk.Kernel([[0.9, 0.1], [0.3, 0.7]], {"sky": ["dry", "wet"]}, {"forecast": ["fair", "foul"]})
    assert repr(f) == (
        "Kernel(sky[dry, wet] -> forecast[fair, foul], dense)\n         fair    foul\n  dry  0.9000  0.1000\n"
        "  wet  0.3000  0.7000"
    )
    html = (f >> mk.identity({"forecast": ["fair", "foul"]})).evaluate()._repr_html_()
    assert "<th>fair</th>" in html
    assert ">0.3000</td>" in html
    assert "0.8400" in repr(f >> f.renamed({"forecast": ["fair", "foul"]}))  # small ones are made to be shown
    assert "chain" in repr(mk.uniform(300) >> mk.identity(300))
    assert "&lt;b&gt;" in mk.state({"<b>": 1.0}, "x")._repr_html_()
    assert repr(mk.joint([0.5, 0.5], f)).splitlines()[2:] == ["  dry  0.4500  0.0500", "  wet  0.1500  0.3500"]
    assert np.array_equal(f["wet"].matrix, f.matrix[1:])
    with pytest.raises(ShapeError, match=r"labels of sky\[dry, wet\], got 'fog'"):
        f["fog"]
    assert repr(mk.uniform(300)) == "Kernel(⋆ -> 300, dense)"
    assert repr(mk.Axis(range(9), "digit")) == "Axis([0, 1, 2, 3, 4, 5, ...], 'digit')"


def test_constructors_refuse() -> None:
    with pytest.raises(ValueRangeError, match=r"index.*got 3 at index 1"):
        mk.deterministic([0, 3], 3)
    with pytest.raises(DTypeError, match="index"):
        mk.deterministic([0.5], 3)
    with pytest.raises(ShapeError, match="at least one element"):
        mk.uniform(0)
    with pytest.raises(DTypeError, match="codomain"):
        mk.state({"a": 1.0}, 1)
    with pytest.raises(NotStochasticError, match=r"p: expected probabilities"):
        mk.state([1.5, -0.5])
    with pytest.raises(DTypeError, match=r"rows.*write k\[\[1\]\]"):
        mk.uniform(2)[1]
    with pytest.raises(TypeError):
        mk.uniform(2) >> np.eye(2)
    with pytest.raises(ShapeError, match="marginal"):
        mk.uniform({"a": 2}).marginal("b")
    with pytest.raises(ShapeError, match=r"p: expected a state"):
        mk.identity(2).bayes(mk.identity(2))


def test_almost_sure_equality_looks_at_rows_that_have_mass() -> None:
    f = mk.Kernel([[0.5, 0.5], [1.0, 0.0]])
    g = mk.Kernel([[0.5, 0.5], [0.0, 1.0]])
    assert mk.almost_surely_equal(f, g, [1.0, 0.0])
    assert not mk.almost_surely_equal(f, g, [1.0 - 2**-40, 2**-40])
    assert not mk.almost_surely_equal(f, g)
    assert mk.almost_surely_equal(f, mk.Kernel(f.matrix * (1 + 2**-53)), [0.5, 0.5])


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_kernels_can_be_pickled(maker: Maker) -> None:
    k = maker(np.random.default_rng(0), 3, 4)
    again = pickle.loads(pickle.dumps(k))
    assert type(again) is type(k)
    assert (again.domain, again.codomain) == (k.domain, k.codomain)
    assert_same(again, k, 0.0)
