"""Array types of the public interface; the letters n, V, d, b, k mean the same everywhere (docs, code, errors)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArrayInput", "BoolArray", "FloatArray", "IntArray", "ModelArray", "Progress", "SinglePrecisionArray"]

ArrayInput: TypeAlias = Any
"""Anything with ``__array__``, the buffer protocol or ``__dlpack__``; checked by the callee."""

FloatArray: TypeAlias = NDArray[np.float64]
SinglePrecisionArray: TypeAlias = NDArray[np.float32]
ModelArray: TypeAlias = NDArray[Any]
"""float32, float16, or bfloat16 as the package ml_dtypes defines it for NumPy."""
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]

Progress: TypeAlias = Callable[[int, int], object]
"""Called as ``progress(done, total)`` from the calling thread; an exception that it raises stops the work."""
