"""How far the fused passes over the metric may be from `reference.metrics`."""

from __future__ import annotations

import numpy as np

import reference
from markovlm import SoftmaxKernel
from markovlm.typing import FloatArray
from reference import EXP_ULP, SUM, TANH_ULP, UNIT

ROWS = 256  # tokens whose products are added in one run of float32 (metric_context.hpp)
LARGEST_GAP = 87.0  # from the likeliest logit: what is farther counts as 0


def exponent_error(P: SoftmaxKernel) -> FloatArray:
    """(n,) of ``z − max z`` and its exponential: of both logits, of the difference, of the exponential."""
    return 2 * reference.logit_error(P) + (LARGEST_GAP + 2 * EXP_ULP) * UNIT


def weight_error(P: SoftmaxKernel) -> FloatArray:
    """(n,) relative, of any ``vᵀ g* v``, a minimum over c of ``Σ e (u − c)² / Σ e``, by errors of e alone."""
    return np.expm1(2 * exponent_error(P) + 2 * SUM)


def slope_error(P: SoftmaxKernel) -> FloatArray:
    """(n,) relative, of ``D``: ``|d log sech²(a)/da| <= 2``, and of its exponential and four operations."""
    if not P.softcap:
        return np.full(P.shape[0], 2 * UNIT)
    raw = SoftmaxKernel(P.hidden, P.head, P.bias, scale=P.scale)
    return 2 * reference.logit_error(raw) / P.softcap + (2 * EXP_ULP + TANH_ULP + 8) * UNIT


def sizes(P: SoftmaxKernel) -> FloatArray:
    """(n,) the largest ``|D g_w|`` of a token that is there: what rows are rounded relative to."""
    lengths = np.linalg.norm(P.head.astype(np.float64), axis=1)
    there = np.ones(P.shape[1], bool) if P.bias is None else P.bias > -np.inf
    return np.asarray((reference.slopes(P) * lengths)[:, there].max(axis=1))


def metric_error(P: SoftmaxKernel, exact: FloatArray) -> FloatArray:
    r"""(n,) of the spectral norm of the metric, whose rows ``x_w`` are off by at most r.

    ``‖Σ p (x + e)(x + e)ᵀ − Σ p x xᵀ‖ <= 2 r √trace + r²``. A product ``x_w · u`` adds d terms, a sum over tokens
    ROWS in a run; each side rounds at the size of ``D g``, and m at twice that. First order, doubled for the rest.
    """
    trace = np.trace(exact, axis1=1, axis2=2)
    terms = P.hidden.shape[1] + ROWS + 8
    rows = (terms * UNIT + slope_error(P)) * 3 * sizes(P)
    return np.asarray(2 * (weight_error(P) * trace + 2 * rows * np.sqrt(trace) + rows**2) + np.exp(-LARGEST_GAP))
