"""Agreement with SciPy, and what its conventions are where they differ.

A difference of convention stands in the docstring of its test, and the test fails if it is not as described. Where a
peer loses digits, ours is held to mpmath instead, and the docstring says what the peer gives, which is not asserted.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from scipy.spatial.distance import jensenshannon

import markovlm as mk
import reference
from peer_cases import (
    BIT,
    EPS,
    INF,
    P,
    Pair,
    Q,
    assert_near,
    by_definition,
    exact_law,
    logs,
    pairs,
    quiet,
    rounding,
)


def test_the_helpers_tell_right_from_wrong() -> None:
    """Of P and Q above, by hand; a difference of 1e-12 is seen."""
    limit = rounding(2, logs(P, Q))
    assert_near(by_definition(mk.KL(), P, Q), math.log(4 / 3) / 2, EPS)
    assert_near(by_definition(mk.KL(), Q, P), math.log(27 / 16) / 4, EPS)
    with pytest.raises(AssertionError, match="is not"):
        assert_near(mk.KL()(P, Q) + 1e-12, math.log(4 / 3) / 2, limit)
    with pytest.raises(AssertionError, match="is not"):
        assert_near(INF, -INF, limit)


def test_peers_leave_numpy_as_it_was() -> None:
    """``import dit`` runs ``np.seterr(all="ignore")``, after which no RuntimeWarning fails any test of the process."""
    assert np.geterr()["divide"] == np.geterr()["invalid"] == np.geterr()["over"] == "warn"


# SciPy


@given(pair=pairs())
def test_scipy_entropy(pair: Pair) -> None:
    """SciPy works in nats as we do, and in bits with ``base=2``."""
    p, q = pair
    limit = rounding(p.size, logs(p, q))
    assert_near(mk.KL().entropy(p), scipy.stats.entropy(p), limit)
    assert_near(mk.KL().entropy(p) / BIT, scipy.stats.entropy(p, base=2), 2 * limit)
    assert_near(mk.KL().entropy(p), scipy.special.entr(p).sum(), limit)
    assert_near(mk.KL()(p, q), scipy.stats.entropy(p, q), limit)
    assert_near(mk.KL(reverse=True)(p, q), scipy.stats.entropy(q, p), rounding(p.size, logs(q, p)))
    assert_near(mk.KL()(p, q), scipy.special.rel_entr(p, q).sum(), limit)


def test_scipy_reads_columns_and_normalises() -> None:
    """SciPy's laws are columns unless ``axis=1``, ours rows; it divides by a sum that is not 1, we refuse."""
    rows = np.array([P, Q, [0.0, 1.0]])
    limit = rounding(3, 1.0)
    assert_near(mk.KL().entropy(rows), scipy.stats.entropy(rows, axis=1), limit)
    assert scipy.stats.entropy(rows).shape == (2,)
    assert_near(mk.KL().entropy(P), scipy.stats.entropy([3.0, 3.0]), limit)
    with pytest.raises(mk.errors.NotStochasticError):
        mk.KL().entropy([3.0, 3.0])


@given(pair=pairs())
def test_scipy_jensenshannon_is_the_root(pair: Pair) -> None:
    """``scipy.spatial.distance.jensenshannon`` is the distance, the root of the divergence; nats, or bits by base."""
    p, q = pair
    with quiet():  # of a root of a sum that rounding made negative, where p and q are the same or nearly
        theirs, in_bits = np.nan_to_num([jensenshannon(p, q), jensenshannon(p, q, base=2)])
    limit = rounding(p.size, 1.0)
    assert_near(mk.JensenShannon()(p, q), theirs**2, limit)
    assert_near(mk.JensenShannon()(p, q) / BIT, in_bits**2, 2 * limit)


def test_scipy_jensenshannon_of_disjoint_laws() -> None:
    """The largest value: log 2, so that SciPy gives the root of it, 0.8326."""
    assert mk.JensenShannon()([1.0, 0.0], [0.0, 1.0]) == math.log(2)
    assert_near(jensenshannon([1.0, 0.0], [0.0, 1.0]), math.sqrt(math.log(2)), EPS)


@settings(max_examples=25)
@given(pair=pairs(zeros=False))
def test_scipy_power_divergence(pair: Pair) -> None:
    """Cressie and Read's family: the statistic of observed p where q is expected, ``2 Σ p ((p/q)^λ − 1) / (λ (λ+1))``.

    λ = 1 is χ², 0 twice KL, −1/2 eight times the squared Hellinger distance, −1 twice the reverse of KL, −2 the
    reverse of χ², and any λ a function of Rényi's of order λ + 1.
    """
    p, q = pair
    size = float(((p / q) ** 2 * q + (q / p) ** 2 * p).sum()) + logs(p, q) + logs(q, p)
    for power, ours in (
        ("pearson", mk.ChiSquared()(p, q)),
        ("log-likelihood", 2 * mk.KL()(p, q)),
        ("freeman-tukey", 8 * mk.SquaredHellinger()(p, q)),
        ("mod-log-likelihood", 2 * mk.KL(reverse=True)(p, q)),
        ("neyman", mk.ChiSquared(reverse=True)(p, q)),
        ("cressie-read", 9 / 5 * math.expm1(2 / 3 * mk.Renyi(5 / 3)(p, q))),
    ):
        theirs = scipy.stats.power_divergence(p, q, lambda_=power).statistic
        assert_near(ours, theirs, 8 * rounding(p.size, size), power)


@pytest.mark.parametrize("seed", range(5))
def test_scipy_contingency(seed: int) -> None:
    """Of a table of N counts SciPy's statistic is N times ours, for G twice that; no correction of Yates'."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 60, (2 + seed % 3, 4))
    total, joint = counts.sum(), counts / counts.sum()
    for power, factor, D in (
        ("pearson", 1.0, mk.ChiSquared()),
        ("log-likelihood", 2.0, mk.KL()),
        ("freeman-tukey", 8.0, mk.SquaredHellinger()),
        ("neyman", 1.0, mk.ChiSquared(reverse=True)),
    ):
        theirs = scipy.stats.chi2_contingency(counts, correction=False, lambda_=power).statistic
        assert_near(factor * mk.mutual_information(joint, D), theirs / total, 8 * rounding(joint.size, 8.0), power)


@pytest.mark.parametrize("seed", range(3))
def test_scipy_softmax(seed: int) -> None:
    """Logits that float32 holds exactly, so that the bounds of the pass on its own rounding are all there is."""
    rng = np.random.default_rng(seed)
    K = mk.SoftmaxKernel(rng.integers(-2, 3, (7, 5)) / 2, rng.integers(-2, 3, (90, 5)) / 4, rng.integers(-8, 9, 90) / 8)
    z = reference.kernel_logits(K)
    bounds, theirs = reference.Bounds(z, np.zeros(7)), scipy.special.softmax(z, axis=1)
    found = mk.softmax_stats(K)
    assert_near(found.log_normalizer, scipy.special.logsumexp(z, axis=1), bounds.log_normalizer + rounding(90, 5.0))
    assert_near(found.entropy, scipy.stats.entropy(theirs, axis=1), bounds.entropy + rounding(90, 5.0))
    assert_near(mk.categorical_entropy(K, mk.KL()), found.entropy, np.zeros(7))
    log_p = np.log(K.matrix)
    assert_near(log_p, scipy.special.log_softmax(z, axis=1), bounds.nll[:, None] + reference.SUM + rounding(90, 5.0))


CLOSE = (mk.KL(), mk.JensenShannon(), mk.SquaredHellinger(), mk.ChiSquared(), mk.Renyi(0.5), mk.Renyi(2))


@pytest.mark.parametrize("shift", [2.0**-20, 2.0**-30, 2.0**-40])
def test_divergences_of_close_laws_keep_their_digits(shift: float) -> None:
    """Ours against mpmath, relatively: terms of one sign, and differences of close numbers are exact.

    All peers sum terms of both signs. At a shift of 2^-40 KL is 3e-21, and JS and H² are 8e-22. SciPy comes within 3e-8
    of these (``kl_div`` gives −1e-19); dit gives 0, 1.5e-16 and 0; markov-entropy gives −1e-17 for KL, and 2e-16 for
    Rényi's of order ½.
    """
    rng = np.random.default_rng(0)
    p = exact_law(rng, 6)
    q = p.copy()
    q[[0, 1, 2, 3]] += np.array([shift, -shift, 2 * shift, -2 * shift])
    for D in CLOSE:
        expected = by_definition(D, p, q)
        assert 0 < expected < 1e-8
        # As many roundings as `rounding` allows one side, of terms that are all positive, and a square of a difference
        # quotient that is exact to three: an error of the sum relative to the sum.
        assert_near(D(p, q) / expected, 1.0, rounding(6) / 2, repr(D))
