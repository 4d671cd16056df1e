"""Information surplus of a finite belief state, each term a sum over its own definition (theory §7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import entr, kl_div

from . import _checks
from .errors import ValueRangeError
from .typing import FloatArray

__all__ = ["SurplusTerms", "surplus_terms"]

MOST_ENTRIES = 2**24  # of a table (states, continuations)
MOST_WORK = 2**32  # pairs (belief, continuation), each a logarithm: a minute or so
BLOCK = 2**20  # entries of a block of such pairs


@dataclass(frozen=True)
class SurplusTerms:
    r"""What a belief state :math:`H_t` says of the next ``K`` tokens, in nats; :math:`F = W_{t+1:t+K-1}`.

    Each is a sum over its own definition. Hence ``joint_information = next_token_information + surplus`` (Eq. 4.1) and
    ``surplus = future_entropy - future_entropy_given_state`` hold by mathematics, up to rounding, not by construction.
    """

    joint_information: float  # I(H_t; W_{t:t+K-1})
    next_token_information: float  # I(H_t; W_t)
    surplus: float  # I(H_t; F | W_t)
    future_entropy: float  # H(F | W_t)
    future_entropy_given_state: float  # H(F | W_t, H_t)


def surplus_terms(
    transition: FloatArray, emission: FloatArray, law: FloatArray, beliefs: FloatArray, horizon: int
) -> SurplusTerms:
    """All terms for (n, S) beliefs with the (n,) probabilities ``law``. Cost ``O(n V^K S)``."""
    horizon = _checks.count("horizon", horizon, 1, 2**20)
    S, V = emission.shape
    if math.log(S) + horizon * math.log(V) > math.log(MOST_ENTRIES):
        raise ValueRangeError(
            f"horizon: {V}**{horizon} continuations of {S} states are more than {MOST_ENTRIES} entries; take a shorter "
            "horizon"
        )
    if len(law) * V**horizon > MOST_WORK:
        raise ValueRangeError(
            f"context_length: {len(law)} words times {V}**{horizon} continuations are more than {MOST_WORK}; take a "
            "shorter context or horizon"
        )
    joint, _, _ = _what_is_said(law, beliefs, _continuations(transition, emission, horizon))
    next_token, _, _ = _what_is_said(law, beliefs, emission)
    future = _continuations(transition, emission, horizon - 1)
    given_token = np.zeros(3)
    for emits in emission.T:
        weighted = beliefs * emits
        p = weighted.sum(axis=1)
        possible = p > 0
        if possible.any():
            both = law[possible] * p[possible]  # P(H_t = h, W_t = w)
            moved = (weighted[possible] / p[possible, None]) @ transition
            given_token += both.sum() * np.array(_what_is_said(both / both.sum(), moved, future))
    surplus, entropy, left = given_token.tolist()
    return SurplusTerms(joint, next_token, surplus, entropy, left)


def _continuations(transition: FloatArray, emission: FloatArray, length: int) -> FloatArray:
    """(S, V ** length) probabilities of each word from each state; the first token counts slowest."""
    found = np.ones((len(emission), 1))
    for _ in range(length):
        found = (emission[:, :, None] * (transition @ found)[:, None, :]).reshape(len(emission), -1)
    return found


def _what_is_said(weights: FloatArray, beliefs: FloatArray, outcomes: FloatArray) -> tuple[float, float, float]:
    """I(H; Y), H(Y) and H(Y | H), where Y has law ``H @ outcomes`` and H is one of ``beliefs``, by ``weights``."""
    mean = (weights @ beliefs) @ outcomes
    information = left = 0.0
    step = max(1, BLOCK // outcomes.shape[1])
    for first in range(0, len(weights), step):
        rows = slice(first, first + step)
        law = beliefs[rows] @ outcomes
        # p log(p/q) − p + q: the same sum as KL's, of terms that are not negative
        information += float(weights[rows] @ kl_div(law, mean).sum(axis=1))
        left += float(weights[rows] @ entr(law).sum(axis=1))
    return max(information, 0.0), float(entr(mean).sum()), left
