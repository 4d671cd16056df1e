"""Inner products in 16-bit fixed point: within what rounding can take from them, in every build."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import BUILDS
from markovlm._ext import core
from markovlm._factors import slices
from markovlm.typing import FloatArray, SinglePrecisionArray

SLAB = 2048
U32 = 2.0**-24


def rows(rng: np.random.Generator, count: int, length: int) -> SinglePrecisionArray:
    """Of very different lengths, some with one entry that is nearly all, one of zeros."""
    found = rng.standard_normal((count, length)) * 10.0 ** rng.uniform(-30, 12, (count, 1))
    found[::3, rng.integers(length)] *= 1e4
    found[count // 2] = 0.0
    return found.astype(np.float32)


def lost(x: SinglePrecisionArray, y: SinglePrecisionArray) -> tuple[FloatArray, FloatArray]:
    """What rounding takes from ``x yᵀ``: at most, and the root of its mean square."""
    most, squares = np.zeros((2, len(x), len(y)))
    for some in slices(x.shape[1], SLAB):
        (a, step_a), (b, step_b) = ((part, step(part)) for part in (x[:, some], y[:, some]))
        lengths = [np.linalg.norm(part, axis=1) for part in (a, b)]
        sums = [np.abs(part).sum(axis=1) for part in (a, b)]
        both = a.shape[1] * np.outer(step_a, step_b)
        most += (np.outer(step_a, sums[1]) + np.outer(sums[0], step_b)) / 2 + both / 4
        squares += (np.outer(step_a, lengths[1]) ** 2 + np.outer(lengths[0], step_b) ** 2) / 12 + both**2 / 144
        most += 16 * U32 * np.outer(*lengths) + 2.0**-149  # steps, scaled rows and sums of slabs are floats
    return most, np.sqrt(squares)


def step(part: SinglePrecisionArray) -> FloatArray:
    wide = part.astype(np.float64)
    return np.asarray(np.maximum(np.abs(wide).max(axis=1) / 32767, np.linalg.norm(wide, axis=1) / 46000))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("length", [*range(1, 12), SLAB - 1, SLAB, SLAB + 1, 3 * SLAB + 5])
def test_products_are_within_what_rounding_takes(build: str, length: int) -> None:
    core = importlib.import_module(f"markovlm._ext._core_{build}")
    rng = np.random.default_rng(length)
    for count, others in ((1, 1), (3, 40), (17, 33), (300, 2)):
        x, y = rows(rng, count, length), rows(rng, others, length)
        got = core.inner_products(core.fixed_point(x, 2), y, 2)
        assert np.all(np.abs(got - x.astype(np.float64) @ y.astype(np.float64).T) <= lost(x, y)[0])


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 5000), threads=st.integers(1, 3))
def test_a_centered_gram_matrix_is_too(seed: int, length: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rows(rng, 20, length) + 1).astype(np.float32)
    gram = np.zeros((20, 20), np.float32)
    core.add_centered_gram(x, gram, threads)
    centered = x - x.mean(axis=0, dtype=np.float64).astype(np.float32)
    exact = centered.astype(np.float64) @ centered.astype(np.float64).T
    slack = lost(centered, centered)[0] + 2 * U32 * np.abs(x.mean(axis=0)).max() * np.abs(centered).sum(axis=1).max()
    assert np.all(np.abs(gram - np.tril(exact))[np.tril_indices(20)] <= slack[np.tril_indices(20)])
    assert not np.triu(gram, 1).any()
    again = np.zeros_like(gram)
    core.add_centered_gram(x, again, 1)
    assert np.array_equal(gram, again)  # on any number of threads


def test_what_is_lost_at_random_is_as_small_as_it_is_said_to_be() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 3000), dtype=np.float32), rng.standard_normal((100, 3000), dtype=np.float32)
    error = core.inner_products(core.fixed_point(x, 2), y, 2) - x.astype(np.float64) @ y.astype(np.float64).T
    shares = error / lost(x, y)[1]
    assert 0.9 < np.sqrt((shares**2).mean()) < 1.1
    assert abs(shares.mean()) < 0.05
    assert np.all(lost(x, y)[1] <= 1.3e-5 * np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)))


def test_no_sum_leaves_its_range() -> None:
    """Rows of one sign, as long in steps as there are, and rows of one entry, as large."""
    for x in (
        np.ones((2, 2 * SLAB)),
        np.full((2, SLAB), 1e-18),
        np.full((2, SLAB), 1e17),
        np.eye(1, 2 * SLAB, 7).repeat(2, axis=0),
        np.full((2, 1), -5.0),
    ):
        x = x.astype(np.float32)
        squares = (x.astype(np.float64) ** 2).sum(axis=1)
        assert core.inner_products(core.fixed_point(x, 1), x, 1)[0, 1] == pytest.approx(squares[0], rel=1e-3)


@pytest.mark.parametrize("size", [1e-37, 1e-25, 1e25])
def test_rows_whose_squares_are_no_floats_are_right(size: float) -> None:
    x, y = np.full((1, SLAB), size, np.float32), np.ones((1, SLAB), np.float32)
    assert core.inner_products(core.fixed_point(x, 1), y, 1)[0, 0] == pytest.approx(SLAB * size, rel=1e-3)


def test_what_is_not_finite_is_seen() -> None:
    x = np.ones((3, 5), np.float32)
    x[1, 2], x[2, 4] = np.nan, np.inf
    assert np.isnan(core.inner_products(core.fixed_point(x, 1), np.ones((1, 5), np.float32), 1))[:, 0].tolist() == [
        False,
        True,
        True,
    ]


def test_other_things_are_refused() -> None:
    x = np.ones((3, 5), np.float32)
    with pytest.raises(ValueError, match="differ in length"):
        core.inner_products(core.fixed_point(x, 1), np.ones((1, 6), np.float32), 1)
    with pytest.raises(ValueError, match="all pairs of rows"):
        core.add_centered_gram(x, np.zeros((3, 4), np.float32), 1)
