"""What every build of the compiled core offers. There is no module of this name: one of ``_core_*`` is loaded."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..typing import FloatArray, IntArray, ModelArray, Progress, SinglePrecisionArray

Head: TypeAlias = tuple[ModelArray, SinglePrecisionArray | None, float, float, float]
Indices: TypeAlias = NDArray[np.int32] | NDArray[np.int64]

def build_info() -> dict[str, Any]: ...
def softmax_stats(
    hidden: ModelArray,
    head: Head,
    targets: IntArray | None,
    orders: list[float],
    jensen_shannon: bool,
    top_k: int,
    token_ids: IntArray | None,
    reference: tuple[ModelArray, Head] | None,
    divergences: list[tuple[str, float, bool]],
    mean: bool,
    weights: FloatArray | None,
    max_memory: int,
    num_threads: int,
    progress: Progress | None,
) -> dict[str, Any]: ...
def panel_product(
    hidden: ModelArray,
    head: Head,
    log_normalizer: FloatArray,
    power: float,
    of_tokens: ModelArray | None,
    of_rows: ModelArray | None,
    weights: FloatArray | None,
    want_rows: bool,
    want_tokens: bool,
    store: SinglePrecisionArray | None,
    max_memory: int,
    num_threads: int,
    progress: Progress | None,
) -> tuple[FloatArray | None, FloatArray | None]: ...
def fill_store(
    hidden: ModelArray,
    head: Head,
    log_normalizer: FloatArray,
    power: float,
    store: SinglePrecisionArray,
    max_memory: int,
    num_threads: int,
    progress: Progress | None,
) -> FloatArray: ...
def power_gram(
    hidden: ModelArray,
    head: Head,
    log_normalizer: FloatArray,
    power: float,
    pairs: FloatArray,
    num_threads: int,
    progress: Progress | None,
) -> FloatArray: ...
def gram_bytes(n: int, width: int) -> int: ...
def round_trip_bytes(n: int, width: int, vocabulary: int, columns: int) -> int: ...
def store_size(n: int, vocabulary: int) -> int: ...
def sparse_product(
    a_indptr: Indices,
    a_indices: Indices,
    a_data: FloatArray,
    b_indptr: Indices,
    b_indices: Indices,
    b_data: FloatArray,
    columns: int,
    num_threads: int,
    progress: Progress | None,
) -> tuple[Indices, Indices, FloatArray]: ...
def jensen_shannon_pairs(p: SinglePrecisionArray, q: SinglePrecisionArray, num_threads: int) -> FloatArray: ...
def fixed_point(rows: SinglePrecisionArray, num_threads: int) -> object: ...
def inner_products(rows: object, others: SinglePrecisionArray, num_threads: int) -> SinglePrecisionArray: ...
def add_centered_gram(rows: SinglePrecisionArray, gram: SinglePrecisionArray, num_threads: int) -> None: ...
def eigsh(
    apply: Callable[[FloatArray], FloatArray],
    draw: Callable[[int], FloatArray],
    n: int,
    k: int,
    block_size: int,
    tolerance: float,
    largest_asymmetry: float,
    max_applies: int,
    num_threads: int,
    progress: Progress | None,
) -> dict[str, Any]: ...
def fisher_metric(
    hidden: ModelArray,
    head: Head,
    k: int,
    tolerance: float,
    max_rounds: int,
    weights: FloatArray | None,
    seed: int,
    max_memory: int,
    num_threads: int,
    progress: Progress | None,
) -> dict[str, Any]: ...
def metric_forms(
    hidden: ModelArray,
    head: Head,
    derivatives: FloatArray | None,
    directions: ModelArray | None,
    max_memory: int,
    num_threads: int,
    progress: Progress | None,
) -> FloatArray: ...
def path_lengths(
    hidden: ModelArray,
    to: ModelArray,
    head: Head,
    tolerance: float,
    max_memory: int,
    num_threads: int,
    progress: Progress | None,
) -> tuple[FloatArray, FloatArray]: ...
def first_non_finite(array: ModelArray) -> tuple[int, int] | None: ...

jensen_shannon_series: list[float]

def vector_exp(x: SinglePrecisionArray) -> SinglePrecisionArray: ...
def vector_expm1(x: SinglePrecisionArray) -> SinglePrecisionArray: ...
def vector_expm1_minus(x: SinglePrecisionArray) -> SinglePrecisionArray: ...
def vector_log1p_of_fraction(x: SinglePrecisionArray) -> SinglePrecisionArray: ...
def vector_tanh(x: SinglePrecisionArray) -> SinglePrecisionArray: ...
