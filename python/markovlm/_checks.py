"""The only place where shapes, dtypes and values of arguments are checked. The C++ core trusts what passes here."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ._ext import core
from .errors import DTypeError, NotStochasticError, ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, IntArray, ModelArray, SinglePrecisionArray


def as_numpy(name: str, value: ArrayInput) -> NDArray[Any]:
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # a PyTorch tensor, recognised without importing torch
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has no such type; the bits are handed over as they lie
            import ml_dtypes

            return np.asarray(value.view(sys.modules["torch"].int16).numpy().view(ml_dtypes.bfloat16))
        return np.asarray(value.numpy())
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return np.from_dlpack(value)
    try:
        array = np.asarray(value)
    except ValueError as error:  # nested lists of unequal lengths
        raise ShapeError(f"{name}: expected an array of numbers, got something that is none: {error}") from None
    if array.dtype == object:
        raise DTypeError(
            f"{name}: expected an array of numbers, got {type(value).__name__}; pass a NumPy array or a tensor"
        )
    return array


def _is_floating(array: NDArray[Any]) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def require_ndim(name: str, array: NDArray[Any], ndim: int, axes: str) -> None:
    if array.ndim != ndim:
        raise ShapeError(f"{name}: expected {ndim} axes {axes}, got shape {array.shape}")


def model_matrix(name: str, value: ArrayInput, axes: str) -> ModelArray:
    """A finite matrix with contiguous rows, of float32, bfloat16 or float16, which keep their memory.

    Other floating types are copied to float32.
    """
    array = as_numpy(name, value)
    if not _is_floating(array):
        raise DTypeError(
            f"{name}: expected floating-point values, got {array.dtype}; convert with {name}.astype('float32')"
        )
    require_ndim(name, array, 2, axes)
    if not array.dtype.isnative or array.dtype.name not in ("float32", "bfloat16", "float16"):
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    rows_contiguous = array.shape[1] <= 1 or array.strides[1] == array.itemsize
    if not (rows_contiguous and array.flags.aligned and array.strides[0] % array.itemsize == 0):
        array = array.copy(order="C")
    found = core.first_non_finite(array)
    if found is not None:
        row, column = found
        raise ValueRangeError(
            f"{name}: expected finite {array.dtype} values, got {array[row, column]} at row {row}, column {column}; "
            "drop or repair the rows that hold NaN or infinity"
        )
    return array


def logit_bias(value: ArrayInput | None, vocabulary: int) -> SinglePrecisionArray | None:
    """(V,) float32 or None; -inf removes a token, and at least one must stay."""
    if value is None:
        return None
    array = as_numpy("bias", value)
    if not _is_floating(array):
        raise DTypeError(
            f"bias: expected floating-point values, got {array.dtype}; convert with bias.astype('float32')"
        )
    if array.shape != (vocabulary,):
        raise ShapeError(f"bias: expected shape ({vocabulary},), one per row of head, got {array.shape}")
    given = array
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(array) & ~np.isneginf(given))
    if bad.size:
        raise ValueRangeError(f"bias: expected finite float32 values or -inf, got {given[bad[0]]} for token {bad[0]}")
    if vocabulary and not np.any(array > -np.inf):
        raise ValueRangeError("bias: expected at least one token that is not masked by -inf, got none")
    return array


def row_numbers(name: str, value: Any, n: int) -> IntArray:
    """Numbers of rows in [0, n), from a slice, numbers that may count from the end, or a mask of n."""
    if isinstance(value, slice):
        return np.arange(*value.indices(n), dtype=np.int64)
    array = as_numpy(name, value)
    if array.dtype == bool:
        if array.shape != (n,):
            raise ShapeError(f"{name}: expected a mask of shape ({n},), one for each row, got shape {array.shape}")
        return np.flatnonzero(array)
    index = integers(name, array)
    if index.ndim == 0:
        raise DTypeError(f"{name}: expected a slice or an index array, got {value!r}; write k[[{value}]]")
    require_ndim(name, index, 1, "(rows,)")
    bad = np.flatnonzero((index < -n) | (index >= n))
    if bad.size:
        raise ValueRangeError(f"{name}: expected row numbers in [{-n}, {n}), got {index[bad[0]]} at index {bad[0]}")
    return np.where(index < 0, index + n, index)


def positive(name: str, value: float | None, *, optional: bool = False) -> float:
    """A number > 0 and of a size that quotients of two such are float32; None gives 0.0 where optional."""
    if value is None and optional:
        return 0.0
    try:
        number = math.nan if isinstance(value, (str, bool)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number) and not isinstance(value, (float, np.floating)):
        raise DTypeError(f"{name}: expected a number > 0, got {value!r}")
    if not 1e-18 <= number <= 1e18:
        raise ValueRangeError(f"{name}: expected a number > 0 (between 1e-18 and 1e18), got {value!r}")
    return number


def integers(name: str, value: ArrayInput) -> IntArray:
    """A contiguous int64 array of any shape; booleans and floats are refused."""
    array = as_numpy(name, value)
    if array.size == 0 and array.dtype == np.float64:  # what an empty list becomes
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{name}: expected integers, got {array.dtype}; convert with {name}.astype('int64')")
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueRangeError(f"{name}: expected values below 2**63, got {array.max()}")
    return np.asarray(array, dtype=np.int64, order="C")


def _require_tokens(name: str, ids: IntArray, vocabulary: int, also: str = "") -> None:
    bad = np.argwhere((ids < 0) | (ids >= vocabulary))
    if bad.size:
        place = tuple(int(i) for i in bad[0])
        raise ValueRangeError(
            f"{name}: expected token ids in [0, {vocabulary}){also}, got {ids[place]} at index {place}"
        )


def token_sequences(name: str, value: ArrayInput, vocabulary: int) -> IntArray:
    """(T,) or (n, T) token ids in [0, V)."""
    ids = integers(name, value)
    if ids.ndim not in (1, 2):
        raise ShapeError(f"{name}: expected token ids of shape (T,) or (n, T), got shape {ids.shape}")
    _require_tokens(name, ids, vocabulary)
    return ids


def target_ids(value: ArrayInput, n: int, vocabulary: int, ignore_index: int) -> IntArray:
    """(n,) int64 with every ignored target as -1."""
    ids = integers("targets", value)
    if ids.shape != (n,):
        raise ShapeError(f"targets: expected shape ({n},), one per row of hidden, got {ids.shape}")
    ignored = ids == ignore_index
    _require_tokens("targets", np.where(ignored, 0, ids), max(vocabulary, 1), f" or ignore_index = {ignore_index}")
    return np.where(ignored, -1, ids)


def chosen_ids(value: ArrayInput, n: int, vocabulary: int) -> IntArray:
    """(1, K) for the same tokens in every row, or (n, K)."""
    ids = integers("token_ids", value)
    if ids.ndim == 1:
        ids = ids[None, :]
    elif ids.ndim != 2 or ids.shape[0] != n:
        raise ShapeError(f"token_ids: expected shape (K,) or ({n}, K), got {ids.shape}")
    _require_tokens("token_ids", ids, vocabulary)
    return ids


def renyi_orders(name: str, orders: Sequence[float], low: float) -> list[float]:
    """Orders in [low, inf]: of entropies any, of divergences none below 0."""
    try:
        values = [float(order) for order in orders]
    except (TypeError, ValueError):
        raise DTypeError(f"{name}: expected a sequence of numbers, got {orders!r}") from None
    for value in values:
        if not value >= low:
            raise ValueRangeError(f"{name}: expected Rényi orders in [{low:g}, inf], got {value}")
    return values


def count(name: str, value: int, low: int, high: int) -> int:
    """An integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DTypeError(f"{name}: expected an integer, got {value!r}")
    if not low <= value <= high:
        raise ValueRangeError(f"{name}: expected an integer in [{low}, {high}], got {value}")
    return int(value)


def row_weights(value: ArrayInput, n: int) -> FloatArray:
    """(n,) float64, non-negative, normalised to sum 1."""
    array = as_numpy("weights", value)
    if array.dtype.kind not in "iu" and not _is_floating(array):
        raise DTypeError(f"weights: expected real numbers, got {array.dtype}")
    if array.shape != (n,):
        raise ShapeError(f"weights: expected shape ({n},), one per context, got {array.shape}")
    array = np.ascontiguousarray(array, dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if bad.size:
        raise ValueRangeError(f"weights: expected finite values >= 0, got {array[bad[0]]} at index {bad[0]}")
    if not n:
        return array
    largest = array.max()
    if not largest > 0:
        raise ValueRangeError("weights: expected at least one positive value, got none")
    relative: FloatArray = array / largest  # first, because the sum might overflow
    return relative / float(relative.sum())


def _row_sum_tolerance(dtype: np.dtype[Any], length: int) -> float:
    """How far rounding may take a sum of probabilities from 1: that of each entry to its type, of which half a unit is
    left on average, and that of the sum which they were divided by, made in float32 or better and in any order.
    """
    wide = np.finfo(np.float64 if dtype == np.float64 else np.float32).eps
    if dtype.name in ("float64", "float32"):
        return float(wide * (64 + 4 * np.sqrt(length)))
    import ml_dtypes

    narrow = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(narrow.eps + wide * (64 + 4 * np.sqrt(length)) + length * float(narrow.smallest_subnormal) / 2)


def _require_stochastic(
    name: str,
    entries: FloatArray,
    totals: FloatArray,
    dtype: np.dtype[Any],
    length: int,
    place: Callable[[int], str],
    rows: bool = True,
) -> float:
    """Rounding of the entries; an error names an entry that no probability is, or the row that is farthest from 1."""
    bad = np.flatnonzero(~(np.isfinite(entries) & (entries >= 0)).reshape(-1))
    if bad.size:
        raise NotStochasticError(
            f"{name}: expected probabilities, got {entries.reshape(-1)[bad[0]]} at {place(int(bad[0]))}; drop or "
            "repair rows with negative, NaN or infinite entries"
        )
    off = np.abs(totals - 1.0)
    worst = int(np.argmax(off)) if off.size else 0
    if dtype == np.float64 and off.size and off[worst] > _row_sum_tolerance(dtype, length):
        dtype = np.dtype(np.float32)  # float64 by conversion, or made by a pass over a softmax kernel
    tolerance = _row_sum_tolerance(dtype, length)
    if off.size and off[worst] > tolerance:
        which = f"row {worst} sums" if rows else "they sum"
        raise NotStochasticError(
            f"{name}: expected probabilities that sum to 1 within {tolerance:.1e}, but {which} to {totals[worst]:.9g}; "
            "if these are counts or weights, divide by the sum"
        )
    return float(np.finfo(dtype).eps if dtype.name != "bfloat16" else 2.0**-7)


def stochastic(name: str, value: ArrayInput, ndim: int = 2) -> tuple[FloatArray, float]:
    """Probability vectors as float64, and the rounding of the type that they came in."""
    array = as_numpy(name, value)
    if array.dtype.kind not in "iub" and not _is_floating(array):
        raise DTypeError(f"{name}: expected real numbers, got {array.dtype}")
    if ndim == 2 and array.ndim == 1:
        raise ShapeError(f"{name}: expected 2 axes (n, m), got shape {array.shape}; a single law is mk.state(p)")
    require_ndim(name, array, ndim, "(n, m)" if ndim == 2 else "(m,)")
    dtype = array.dtype if _is_floating(array) else np.dtype(np.float64)
    if dtype.itemsize > 8:  # long double is rounded
        dtype = np.dtype(np.float64)
    rows = np.array(array, dtype=np.float64, order="C", ndmin=2)
    m = rows.shape[1]

    def place(i: int) -> str:
        return f"row {i // m}, column {i % m}" if ndim == 2 else f"element {i}"

    eps = _require_stochastic(name, rows, rows.sum(axis=1), dtype.newbyteorder("="), m, place, ndim == 2)
    return (rows if ndim == 2 else rows[0]), eps


def stochastic_sparse(name: str, value: Any) -> tuple[sparse.csr_array, float]:
    """Likewise a SciPy sparse matrix, by rows, with positive entries alone, sorted, each once."""
    if value.ndim != 2:
        raise ShapeError(f"{name}: expected 2 axes (n, m), got shape {value.shape}")
    if value.dtype.kind not in "iubf":
        raise DTypeError(f"{name}: expected real numbers, got {value.dtype}")
    dtype = value.dtype if value.dtype.kind == "f" and value.dtype.itemsize <= 8 else np.dtype(np.float64)
    csr = sparse.csr_array(value, dtype=np.float64, copy=True)
    csr.sum_duplicates()

    def place(i: int) -> str:
        return f"row {int(np.searchsorted(csr.indptr, i, side='right')) - 1}, column {csr.indices[i]}"

    totals = np.asarray(csr.sum(axis=1)).reshape(-1)
    eps = _require_stochastic(name, csr.data, totals, dtype.newbyteorder("="), csr.shape[1], place)
    csr.eliminate_zeros()
    return csr, eps


def function_index(name: str, value: ArrayInput, size: int | None) -> IntArray:
    """(n,) int64 in [0, size)."""
    index = integers(name, value)
    require_ndim(name, index, 1, "(n,)")
    if size is not None:
        size = count("size", size, 0, 2**62)
    bad = np.flatnonzero((index < 0) | (index >= (np.iinfo(np.int64).max if size is None else size)))
    if bad.size:
        limit = "" if size is None else f" and < {size}"
        raise ValueRangeError(f"{name}: expected numbers >= 0{limit}, got {index[bad[0]]} at index {bad[0]}")
    return index


def log_normalizers(value: ArrayInput, n: int) -> FloatArray:
    """(n,) finite float64, as an earlier pass gave them."""
    array = as_numpy("log_normalizer", value)
    if array.dtype.kind != "f":
        raise DTypeError(f"log_normalizer: expected floating-point values, got {array.dtype}")
    if array.shape != (n,):
        raise ShapeError(f"log_normalizer: expected shape ({n},), one per row of hidden, got {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueRangeError(f"log_normalizer: expected finite values, got {array[bad[0]]} at row {bad[0]}")
    return np.ascontiguousarray(array, dtype=np.float64)


def panel(name: str, value: ArrayInput, length: int, axis: str) -> ModelArray:
    """A finite (length, b) matrix."""
    array = model_matrix(name, value, f"({axis}, b)")
    if array.shape[0] != length:
        raise ShapeError(f"{name}: expected {length} rows, one per {axis} of the kernel, got shape {array.shape}")
    return array


def columns(name: str, value: ArrayInput, length: int, axis: str) -> FloatArray:
    """A finite float64 array of shape (length,) or (length, b)."""
    array = as_numpy(name, value)
    if array.dtype.kind not in "iu" and not _is_floating(array):
        raise DTypeError(f"{name}: expected real numbers, got {array.dtype}")
    if array.ndim not in (1, 2) or array.shape[0] != length:
        raise ShapeError(f"{name}: expected shape ({length},) or ({length}, b), one row per {axis}, got {array.shape}")
    array = np.asarray(array, dtype=np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        place = tuple(int(i) for i in bad[0])
        where = f"row {place[0]}" + (f", column {place[1]}" if len(place) == 2 else "")
        raise ValueRangeError(f"{name}: expected finite values, got {array[place]} at {where}")
    return array


def choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueRangeError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def memory(value: int | None) -> int:
    """Bytes that a pass may take; 0 stands for its default."""
    return 0 if value is None else count("max_memory", value, 1, 2**62)


def threads(value: int | None) -> int:
    """Threads to use: unless told otherwise OMP_NUM_THREADS, or all that this process may run on."""
    if value is not None:
        return count("num_threads", value, 1, 4096)
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isdecimal() and int(wanted) > 0:
        return min(int(wanted), 4096)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cpu_quota())))


def _cpu_quota(root: Path = Path("/")) -> float:
    """CPUs' worth of time that this process gets, as containers limit it by control groups; inf without a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf8").splitlines()
    except OSError:  # not Linux
        return math.inf
    least = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")  # version 1, or 2
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                least = min(least, _quota_of(folder))
    return least


def _quota_of(group: Path) -> float:
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = (word for file in files for word in (group / file).read_text("ascii").split())
            if float(quota) > 0:  # version 1 says -1 for none
                return float(quota) / float(period)
        except (OSError, ValueError, ZeroDivisionError):  # version 2 says max for none
            continue
    return math.inf
