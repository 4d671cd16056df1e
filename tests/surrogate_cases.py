"""Features for quadratic surrogates, and the same in plain float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import markovlm as mk
import reference
from markovlm.typing import FloatArray
from reference import Bounds
from test_divergences import log_ratio_rounding

EPS = float(np.finfo(np.float64).eps)


def features(
    n: int, V: int, d: int, *, sharpness: float = 1.0, sequences: int = 5, seed: int = 0, **more: Any
) -> mk.Features:
    """Random states around one that is not 0; targets that the model itself samples."""
    rng = np.random.default_rng(seed)
    states, rows = rng.standard_normal((n, d)) * np.geomspace(1, 0.3, d) + 0.5, rng.standard_normal((V, d)) + 0.2
    hidden = more.pop("hidden", states).astype(np.float32)
    head = more.pop("head", sharpness * rows).astype(np.float32)
    z = reference.logits(hidden, head, more.get("bias"), scale=more.get("scale", 1.0))
    fields = {
        "targets": (z + rng.gumbel(size=z.shape)).argmax(axis=1),
        "token_ids": np.zeros(n, np.int64),
        "sequence_ids": np.arange(n) * sequences // n,
        "positions": np.arange(n),
    }
    return mk.Features(hidden, head, **{**fields, **more})


@dataclasses.dataclass
class Plain:
    """The same in float64, with bounds on how far a pass may be from it."""

    z: FloatArray
    z_0: FloatArray
    g: FloatArray  # (V, d) effective rows
    bregman: FloatArray  # (n,) by the definition: A(h) − A(h₀) − ⟨ḡ₀, h − h₀⟩
    bregman_error: FloatArray
    loss_error: FloatArray

    @classmethod
    def of(cls, f: mk.Features, h_0: FloatArray) -> Plain:
        P = f.softmax_kernel()
        z, z_0 = (reference.logits(h, f.head, f.bias, scale=f.scale) for h in (f.hidden, h_0[None]))
        g = f.scale * f.head.astype(np.float64)
        tangent = np.exp(reference.log_softmax(z_0)) @ g @ (f.hidden - h_0).T
        bregman = reference.log_normalizer(z) - reference.log_normalizer(z_0) - tangent[0]
        between = mk.SoftmaxKernel(f.hidden - h_0, f.head.astype(np.float64), scale=f.scale)
        repeated = np.repeat(z_0, len(z), axis=0)
        eta = 1.1 * reference.logit_error(between) + log_ratio_rounding(repeated, z)
        delta = np.full(len(z), reference.logit_error(mk.SoftmaxKernel(h_0[None], f.head, f.bias, 1.0, f.scale))[0])
        error = reference.divergence_bound(mk.KL(), repeated, z, eta, delta)
        own = 64 * EPS * (1 + np.abs(np.where(np.isfinite(z), z, 0)).max(axis=1) + np.abs(tangent[0]))
        return cls(z, z_0, g, bregman, error + own, Bounds(z, reference.logit_error(P)).nll)

    def surrogate(self, f: mk.Features, h_0: FloatArray, beta: float) -> FloatArray:
        """(n,) as it is defined."""
        away = f.hidden - h_0
        g_0 = np.exp(reference.log_softmax(self.z_0))[0] @ self.g
        at_targets = self.z[np.arange(len(self.z)), f.targets]  # ⟨g_w, h⟩ + b_w
        quadratic = reference.log_normalizer(self.z_0) + away @ g_0 + beta / 2 * (away**2).sum(axis=1)
        return np.asarray(quadratic - at_targets)
