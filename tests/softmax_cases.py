"""Random softmax kernels of any shape, layout and type, with every option of a head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from markovlm import SoftmaxKernel
from markovlm.typing import FloatArray
from reference import logit_error


@dataclass
class Case:
    """A kernel, the bound on the error of its logits, and random numbers for the rest of a test."""

    P: SoftmaxKernel
    delta: FloatArray
    rng: np.random.Generator

    def __repr__(self) -> str:
        return f"Case({self.P!r}, logits within {self.delta.max(initial=0.0):.1e})"


LAYOUTS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "as it is": lambda x: x,
    "strided rows": lambda x: np.hstack([x, np.full((len(x), 5), np.nan, x.dtype)])[:, : x.shape[1]],
    "every other row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "reversed rows": lambda x: x[::-1].copy()[::-1],
    "columns first": lambda x: np.asfortranarray(x),
}


@st.composite
def cases(draw: st.DrawFn, max_rows: int = 70) -> Case:
    """Kernels of any shape, layout and dtype, with every option of a head.

    On a grid, logits are multiples of 1/16 that float32 holds and sums exactly: ties, and no error before the softmax.
    """
    n, V, d = draw(st.integers(0, max_rows)), draw(st.integers(1, 300)), draw(st.integers(0, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]))
    layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    bias_kind = draw(st.sampled_from(["none", "finite", "masks"]))
    on_grid = draw(st.booleans())
    if on_grid:
        hidden, head = rng.integers(-2, 3, (n, d)) / 2, rng.integers(-2, 3, (V, d)) / 4
        bias = rng.integers(-8, 9, V) / 8
        options: dict[str, Any] = {
            "scale": draw(st.sampled_from([0.5, 1.0])),
            "temperature": draw(st.sampled_from([1.0, 2.0])),
        }
    else:
        spread = draw(st.sampled_from([0.0, 1e-3, 1.0, 8.0]))
        hidden, head = rng.standard_normal((n, d)), spread / np.sqrt(max(d, 1)) * rng.standard_normal((V, d))
        bias = rng.standard_normal(V)
        options = {
            "scale": draw(st.sampled_from([1.0, 0.3])),
            "temperature": draw(st.sampled_from([1.0, 0.7, 5.0])),
            "softcap": draw(st.sampled_from([None, 0.5, 30.0])),
        }
    if bias_kind == "masks":
        bias[rng.random(V) < rng.random()] = -np.inf
        bias[rng.integers(V)] = 0.5
    P = SoftmaxKernel(
        layout(hidden.astype(dtype)), layout(head.astype(dtype)), None if bias_kind == "none" else bias, **options
    )
    return Case(P, np.zeros(n) if on_grid else logit_error(P), rng)
