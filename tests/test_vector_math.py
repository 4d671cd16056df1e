"""The core's vector functions, on every build, against mpmath: their worst errors in units of the last place."""

from __future__ import annotations

from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest

import reference
from markovlm.typing import SinglePrecisionArray

SMALLEST, LARGEST = -87.0, 88.0  # where exp begins to be zero, and to be e^88


def points(low: float, high: float, tiny: bool) -> SinglePrecisionArray:
    """Evenly spread, at random, next to the edges of the range reduction, and tiny."""
    rng = np.random.default_rng(0)
    halves = (np.arange(np.ceil(low / np.log(2)), high / np.log(2)) + 0.5) * np.log(2)
    parts = [
        np.linspace(low, high, 500),
        rng.uniform(low, high, 1000),
        halves,
        halves * (1 + 1e-7),
        rng.normal(size=500),
    ]
    if tiny:
        parts += [sign * np.geomspace(1e-37, 1, 500) for sign in (-1, 1)]
    x = np.concatenate(parts).astype(np.float32)
    return x[(x >= low) & (x <= high)]


def worst_ulp(result: SinglePrecisionArray, x: SinglePrecisionArray, exact: Any) -> float:
    """Largest distance from the exact values, in units of the last place of these."""
    worst = 0.0
    with mpmath.workdps(40):
        for got, at in zip(result.tolist(), x.tolist(), strict=True):
            truth = exact(mpmath.mpf(at))
            ulp = float(np.spacing(np.float32(abs(float(truth)))))
            worst = max(worst, float(abs(got - truth)) / ulp)
    return worst


@pytest.mark.parametrize(
    ("name", "low", "high", "bound"),
    [
        ("exp", SMALLEST, LARGEST, reference.EXP_ULP),
        ("expm1", -20.0, LARGEST, reference.EXPM1_ULP),
        ("expm1_minus", -20.0, LARGEST, reference.EXPM1_MINUS_ULP),
        ("log1p_of_fraction", 0.0, 1.0, reference.LOG1P_ULP),
        ("tanh", -9.0, 9.0, reference.TANH_ULP),
    ],
)
def test_error_in_units_of_the_last_place(core: Any, name: str, low: float, high: float, bound: float) -> None:
    x = points(low, high, tiny=True)
    exact = {"expm1_minus": lambda t: mpmath.expm1(t) - t, "log1p_of_fraction": mpmath.log1p}.get(name)
    error = worst_ulp(getattr(core, f"vector_{name}")(x), x, exact or getattr(mpmath, name))
    print(f"{name}: {error:.2f} ulp")
    assert error <= bound


@pytest.mark.parametrize(
    ("name", "at", "expected"),
    [
        ("exp", [-np.inf, -1e30, -87.5, 0.0, -0.0], [0.0, 0.0, 0.0, 1.0, 1.0]),
        ("expm1", [-np.inf, -100.0, 0.0, -0.0], [-1.0, -1.0, 0.0, 0.0]),
        ("tanh", [-np.inf, -11.0, 0.0, 11.0, np.inf], [-1.0, -1.0, 0.0, 1.0, 1.0]),
    ],
)
def test_limits(core: Any, name: str, at: list[float], expected: list[float]) -> None:
    assert getattr(core, f"vector_{name}")(np.array(at, np.float32)).tolist() == expected


def test_beyond_the_range_exponentials_stay_finite(core: Any) -> None:
    for name in ("exp", "expm1"):
        result = getattr(core, f"vector_{name}")(np.array([LARGEST, 89.0, np.inf], np.float32))
        assert np.isfinite(result).all()
        assert (result == result[0]).all()


@pytest.mark.parametrize("name", ["exp", "expm1", "tanh"])
def test_nan_stays_in_its_lane(core: Any, name: str) -> None:
    x = np.linspace(-1, 1, 37, dtype=np.float32)  # no multiple of any width
    x[5] = np.nan
    assert np.flatnonzero(np.isnan(getattr(core, f"vector_{name}")(x))).tolist() == [5]


def test_the_measure_of_error_sees_two_ulp() -> None:
    x = np.array([0.3, 1.7], np.float32)
    result = np.exp(x.astype(np.float64)).astype(np.float32)
    assert worst_ulp(result, x, mpmath.exp) <= 0.5 + 1e-6  # correctly rounded
    result[1] += 2 * np.spacing(result[1])
    assert worst_ulp(result, x, mpmath.exp) > 1.5
