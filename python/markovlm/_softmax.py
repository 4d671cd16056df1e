"""The softmax kernel of a head, never formed as a matrix, and the fused passes over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import _checks
from ._axes import as_space
from ._divergences import Divergence, Request, as_divergence
from ._ext import core
from ._kernels import Kernel, SpaceInput
from ._rows import SINGLE, Rows
from .errors import ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, IntArray, ModelArray, Progress, SinglePrecisionArray

__all__ = ["SoftmaxKernel", "SoftmaxRows", "SoftmaxStats", "mean_prediction", "softmax_of", "softmax_stats"]

TOKENS_AT_A_TIME = 8192  # whose rows of the head are widened, where logits are formed


class SoftmaxKernel(Kernel):
    r"""The Markov kernel from ``n`` contexts to ``V`` tokens that a head gives: row ``x`` is ``softmax(z(h_x))``.

    .. math:: z(h) = \begin{cases} \mathrm{scale} \cdot (W h + b) / T \\
              c \tanh\bigl(\mathrm{scale} \cdot (W h + b) / c\bigr) / T & \text{with soft-capping at } c \end{cases}

    Parameters
    ----------
    hidden : (n, d) floating point
        Final hidden states, after the last norm. float32, bfloat16 and float16 are used where they lie (row strides
        allowed, PyTorch's memory included); other floating types are rounded to a float32 copy.
    head : (V, d) floating point
        Likewise.
    bias : (V,) floating point, optional
        Added to ``W h``; ``-inf`` removes a token, also under soft-capping.
    temperature, scale : float in [1e-18, 1e18]
    softcap : float in [1e-18, 1e18], optional
    domain, codomain : optional
        Names or labels of contexts and tokens, as in `Kernel`.

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError
        NaN or infinite states are named by row and column.

    Notes
    -----
    Creation reads ``hidden`` and ``head`` once to see that they are finite; nothing of size ``n × V`` ever exists. The
    arrays are not copied: do not change them while the kernel is in use. Source: "A Markov Categorical Framework for
    Language Modeling" (arXiv 2507.19247), the head kernel of Eq. 1.2.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel(np.eye(2), np.zeros((4, 2)))
    >>> P.shape
    (2, 4)
    >>> mk.softmax_stats(P).entropy / np.log(4)
    array([1., 1.])
    """

    __slots__ = ("bias", "head", "hidden", "scale", "softcap", "temperature")

    def __init__(
        self,
        hidden: ArrayInput,
        head: ArrayInput,
        bias: ArrayInput | None = None,
        temperature: float = 1.0,
        scale: float = 1.0,
        softcap: float | None = None,
        *,
        domain: SpaceInput | None = None,
        codomain: SpaceInput | None = None,
    ) -> None:
        self.hidden: ModelArray = _checks.model_matrix("hidden", hidden, "(n, d)")
        self.head: ModelArray = _checks.model_matrix("head", head, "(V, d)")
        if self.hidden.shape[1] != self.head.shape[1]:
            raise ShapeError(
                f"hidden: expected width {self.head.shape[1]}, that of head {self.head.shape}, got shape "
                f"{self.hidden.shape}; pass final states, as (n, d), and the head as (V, d)"
            )
        if self.head.shape[0] == 0:
            raise ShapeError(f"head: expected at least one token, got shape {self.head.shape}")
        self.bias: SinglePrecisionArray | None = _checks.logit_bias(bias, self.head.shape[0])
        self.temperature: float = _checks.positive("temperature", temperature)
        self.scale: float = _checks.positive("scale", scale)
        self.softcap: float = _checks.positive("softcap", softcap, optional=True)  # 0: none
        self.domain = as_space("domain", domain, self.hidden.shape[0])
        self.codomain = as_space("codomain", codomain, self.head.shape[0])
        self._origins = (None,) * len(self.codomain)

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, V)``."""
        return self.hidden.shape[0], self.head.shape[0]

    @property
    def _parts(self) -> tuple[Rows, ...]:  # type: ignore[override]
        return (SoftmaxRows(self),)

    def __repr__(self) -> str:
        n, vocabulary = self.shape
        parts = [f"{n} contexts -> {vocabulary} tokens", f"d={self.hidden.shape[1]}"]
        parts += ["bias"] if self.bias is not None else []
        parts += [f"{name}={getattr(self, name):g}" for name in ("scale", "temperature") if getattr(self, name) != 1.0]
        parts += [f"softcap={self.softcap:g}"] if self.softcap else []
        return f"SoftmaxKernel({', '.join(parts)})"

    def __getitem__(self, rows: slice | IntArray | Sequence[int]) -> SoftmaxKernel:
        """The kernel on some of the contexts, with the same head."""
        index = _checks.row_numbers("rows", rows, self.shape[0])
        hidden = self.hidden[rows if isinstance(rows, slice) else index]  # a slice is no copy
        part = object.__new__(SoftmaxKernel)
        part.__setstate__({**self.__getstate__(), "hidden": hidden, "domain": self._domain_of(index)})
        return part

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*self.__slots__, "domain", "codomain", "_origins")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def logits(self) -> FloatArray:
        """The ``(n, V)`` logits in float64, formed: the plain definition, for few rows. Cost ``16 n V`` bytes."""
        hidden = self.hidden.astype(np.float64)
        z = np.empty(self.shape)
        for first in range(0, z.shape[1], TOKENS_AT_A_TIME):
            some = slice(first, first + TOKENS_AT_A_TIME)
            z[:, some] = hidden @ self.head[some].astype(np.float64).T
        if self.bias is not None:
            z += self.bias
        z *= self.scale
        if self.softcap:
            capped = self.softcap * np.tanh(z / self.softcap)
            z = np.where(np.isneginf(z), z, capped)
        return np.asarray(z / self.temperature)

    def _head_arguments(self) -> tuple[ModelArray, SinglePrecisionArray | None, float, float, float]:
        return self.head, self.bias, self.scale, self.softcap, self.temperature


@dataclass(frozen=True, eq=False)
class SoftmaxRows(Rows):
    """The representation of a softmax kernel: its entries exist while a block of rows is looked at."""

    kind = "softmax"
    eps = SINGLE  # of what passes give
    kernel: SoftmaxKernel

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.kernel.shape

    @property
    def width(self) -> int:
        """What an entry costs to make."""
        return int(self.kernel.hidden.shape[1])

    @property
    def per_row(self) -> float:
        return float(self.shape[1])

    def take(self, index: IntArray) -> SoftmaxRows:
        return SoftmaxRows(self.kernel[index])

    def part(self, rows: slice) -> SoftmaxRows:
        return SoftmaxRows(self.kernel[rows])

    def dense(self) -> FloatArray:
        z = self.kernel.logits()
        z -= z.max(axis=1, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(axis=1, keepdims=True)
        return z


@dataclass(frozen=True, repr=False)
class SoftmaxStats:
    """What one fused pass found for each of ``n`` rows, in nats; arrays that were not asked for are None."""

    log_normalizer: FloatArray  # (n,) log Z
    entropy: FloatArray  # (n,) Shannon entropy, in [0, log V]
    nll: FloatArray | None = None  # (n,) -log p(target); NaN where the target is ignored
    rank: IntArray | None = None  # (n,) tokens with a strictly larger logit than the target; -1 where ignored
    renyi: dict[float, FloatArray] = field(default_factory=dict)  # order -> (n,)
    jensen_shannon: FloatArray | None = None  # (n,) Jensen–Shannon categorical entropy, in [0, log 2]
    top_ids: IntArray | None = None  # (n, k) by falling probability, ties by rising id; -1 where fewer are unmasked
    top_log_probs: FloatArray | None = None  # (n, k)
    log_probs: FloatArray | None = None  # (n, K) of the chosen tokens
    divergences: dict[Divergence, FloatArray] = field(default_factory=dict)  # D -> (n,) D(reference row || row)
    mean: FloatArray | None = None  # (V,) mean of the rows' probabilities; (n / m, V) with a reference of m rows

    def __repr__(self) -> str:
        n = self.entropy.shape[0]
        names = [name for name, value in vars(self).items() if value is not None and not isinstance(value, dict)]
        orders = f", renyi orders {tuple(self.renyi)}" if self.renyi else ""
        divergences = f", divergences {list(self.divergences)}" if self.divergences else ""
        return f"SoftmaxStats({n} rows: {', '.join(names)}{orders}{divergences})"


def softmax_stats(
    P: SoftmaxKernel,
    targets: ArrayInput | None = None,
    orders: Sequence[float] = (),
    top_k: int = 0,
    token_ids: ArrayInput | None = None,
    *,
    jensen_shannon: bool = False,
    reference: SoftmaxKernel | None = None,
    divergences: Sequence[Divergence] = (),
    mean: bool = False,
    weights: ArrayInput | None = None,
    ignore_index: int = -100,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> SoftmaxStats:
    r"""Normalisers, entropies, losses, ranks and more of every row, in one fused pass over ``H Wᵀ``.

    .. math:: \log Z = m + \log s, \quad H = \log s - t / s, \qquad
              s = \sum_w e^{z_w - m}, \; t = \sum_w (z_w - m) e^{z_w - m}

    .. math:: H_a = \frac{\log \sum_{w :\, p_w > 0} p_w^a}{1 - a}, \quad
              H_{JS} = \log 2 - \tfrac12 \sum_w \bigl[ p_w (1 + p_w) \log(1 + p_w) - p_w^2 \log p_w \bigr]

    Parameters
    ----------
    P : SoftmaxKernel
        ``n`` contexts, ``V`` tokens.
    targets : (n,) integers, optional
        Gives ``nll`` and ``rank``. Rows whose target is ``ignore_index`` get NaN and -1.
    orders : sequence of float in [-inf, inf], optional
        Rényi orders ``a``; each gives an entry of ``renyi``. Exact limits at 0, 1 and ±infinity, no loss of digits near
        1. Values are in [0, log V] from order 0 on; below 0 they are in [log V, inf) for V unmasked tokens, thousands
        of nats where logits differ by as much.
    top_k : int
        How many of the most likely tokens to return.
    token_ids : (K,) or (n, K) integers, optional
        Tokens whose log-probabilities are wanted.
    ignore_index : int
        Target that stands for "not known".
    jensen_shannon : bool
        Whether to give the Jensen–Shannon categorical entropy, in [0, log 2].
    reference : SoftmaxKernel of m contexts, optional
        Rows to compare with, ``n`` being a multiple of ``m``: several readouts of the same contexts, stacked.
    divergences : sequence of divergences such as ``mk.KL()``, optional
        Each gives an entry of ``divergences``: ``D(reference[i mod m] ‖ P[i])``, as in `divergence`.
    mean : bool
        Whether to give the mean prediction ``Σ μ(x) p_x``; with a reference, that of each ``m`` rows. Every probability
        is written and read once more for it, no product is made again.
    weights : (n,) floats >= 0, optional
        The law μ over contexts for ``mean``, normalised here; (m,) with a reference. Default: uniform.
    max_memory : int, optional
        Bytes for the blocks of rows that the pass works on. Default: 64 MiB, or what the smallest block takes if that
        is more. With little memory blocks are small, and the pass is slower.
    num_threads : int, optional
        Default: ``OMP_NUM_THREADS``, or all that this process may run on, affinity and a container's quota considered.
        The result is the same, bit for bit, for any number.
    progress : callable, optional
        ``progress(rows_done, n)``; Ctrl-C and exceptions from it stop the pass.

    Returns
    -------
    SoftmaxStats

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError
        Also where a logit overflows float32, naming the row. One below its range is -inf: probability 0, and entropies
        of orders below 0 are infinite, unless the token is masked.

    Notes
    -----
    ``2 n V d`` flops, one exponential per logit, two per Rényi order within 1/2 of 1 and one per other order;
    ``jensen_shannon`` costs about as much as an order near 1. Working memory does not grow with ``n``: for each of up
    to 1024 rows ``4 d`` bytes and 8 kB for sums, 2 kB more per order and 18 kB more with ``jensen_shannon``; with
    ``mean`` or a reference, whose rows wait for their normalisers, ``4 V`` bytes more and as many rows as
    ``max_memory`` allows, but at least 32, or 64 with a reference (half of that without AVX-512, a quarter without
    AVX). Each thread has 0.6 MiB of its own.
    Logits are float32 sums of d products in runs of 96; exponentials are good to about 1 ulp, sums are kept in
    float64. States and heads of bfloat16 are multiplied by the CPU's own instructions for that type where it has them
    (`build_info`): in runs of 192, exact but for subnormal values, which count as zero.
    Sums of an order below 0 are relative to the least likely unmasked token, so that nothing overflows. However large
    ``|a|`` is, rounding puts such an entropy off by at most ``(20 + 3 log V) 2^-24``, or 2^-50 of itself: errors of
    exponents grow with these, but only terms near the largest count. ``jensen_shannon`` keeps its digits in rows that
    are all but certain: rounding puts it off by at most ``7 (20 + g) 2^-24`` of itself, ``g`` being how far the logits
    of all tokens but the likeliest are beneath that on average. Errors of logits come on top.
    Entropy is the KL categorical entropy of the paper (arXiv 2507.19247, Prop. 4.2), how far a row is from being
    deterministic; the Rényi entropy of order ``2 − α`` is its Rényi-``α`` one, so that ``α > 2`` needs orders below 0
    (Perrone, arXiv 2212.11719).

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel(np.array([[np.log(3.0)]]), np.array([[0.0], [1.0]]))  # p = (1/4, 3/4)
    >>> s = mk.softmax_stats(P, targets=[0], orders=[2.0], top_k=1)
    >>> print(f"{s.entropy[0]:.4f} {s.nll[0]:.4f} {s.rank[0]} {s.renyi[2.0][0]:.4f} {s.top_ids[0]}")
    0.5623 1.3863 1 0.4700 [1]
    >>> s = mk.softmax_stats(P, orders=[-1.0, -np.inf], jensen_shannon=True)  # log(4 + 4/3) / 2 and log 4
    >>> print(f"{s.renyi[-1.0][0]:.4f} {s.renyi[-np.inf][0]:.4f} {s.jensen_shannon[0]:.4f}")
    0.8370 1.3863 0.1668
    """
    n, vocabulary = P.shape
    order_list = _checks.renyi_orders("orders", orders, -np.inf)
    wanted = [as_divergence(D) for D in divergences]
    requests = [_request_of(D) for D in wanted]
    if reference is None and wanted:
        raise ValueRangeError("reference: divergences are from a reference, and none was given; pass reference=")
    if reference is not None:
        m = reference.shape[0]
        if reference.shape[1] != vocabulary:
            raise ShapeError(f"reference: expected {vocabulary} tokens, as P has, got {reference.shape[1]}")
        if (n % m if m else n) != 0:
            raise ShapeError(f"reference: expected a number of rows that divides {n}, the rows of P, got {m}")
    contexts = n if reference is None else reference.shape[0]
    if mean and contexts == 0:
        raise ShapeError("P: expected at least one context to average over, got none")
    result = core.softmax_stats(
        P.hidden,
        P._head_arguments(),
        None if targets is None else _checks.target_ids(targets, n, vocabulary, ignore_index),
        order_list,
        jensen_shannon,
        _checks.count("top_k", top_k, 0, vocabulary),
        None if token_ids is None else _checks.chosen_ids(token_ids, n, vocabulary),
        None if reference is None else (reference.hidden, reference._head_arguments()),
        requests,
        mean,
        None if weights is None else _checks.row_weights(weights, contexts),
        _checks.memory(max_memory),
        _checks.threads(num_threads),
        progress,
    )
    bad = np.flatnonzero(~np.isfinite(result["log_normalizer"]))
    if bad.size:
        raise ValueRangeError(
            f"hidden: expected logits within the range of float32, got an overflow at row {bad[0]}; "
            "scale the states or the head down"
        )
    found = result.pop("divergences", np.zeros((n, 0)))
    if reference is not None:
        bad = np.flatnonzero(np.isnan(found).any(axis=1))
        if bad.size:
            raise ValueRangeError(
                "reference: expected logits within the range of float32, got an overflow at row "
                f"{bad[0] % reference.shape[0]}; scale its states or its head down"
            )
    renyi = result.pop("renyi")
    if mean and reference is None:
        result["mean"] = result["mean"][0]
    if not top_k:
        del result["top_ids"], result["top_log_probs"]
    return SoftmaxStats(
        renyi={order: np.ascontiguousarray(renyi[:, q]) for q, order in enumerate(order_list)},
        divergences={D: D._value(np.ascontiguousarray(found[:, i])) for i, D in enumerate(wanted)},
        **result,
    )


def softmax_of(k: Kernel) -> SoftmaxKernel | None:
    """The softmax kernel that a kernel is, if it is one: passes can be made over it."""
    rows = k._rows
    return rows.kernel if isinstance(rows, SoftmaxRows) else None


def _request_of(D: Divergence) -> Request:
    request = D._request()
    if request is None:
        raise ValueRangeError(f"divergences: {D} has no fused pass; mk.divergence(P, Q, D) forms blocks of rows for it")
    return request


def mean_prediction(
    P: SoftmaxKernel,
    weights: ArrayInput | None = None,
    *,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    r"""The mean next-token distribution :math:`\bar p = \sum_x \mu(x)\, p_x`, without forming the rows.

    Parameters
    ----------
    P : SoftmaxKernel
        ``n`` contexts, ``V`` tokens.
    weights : (n,) floats >= 0, optional
        The law over contexts, normalised here; default uniform.
    max_memory, num_threads, progress
        As in `softmax_stats`.

    Returns
    -------
    (V,) float64
        Sums to 1 within the rounding of float32 probabilities.

    Notes
    -----
    `softmax_stats` with ``mean=True`` gives it along with all else; this is the same pass.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel(np.array([[0.0], [np.log(3.0)]]), np.array([[0.0], [1.0]]))
    >>> mk.mean_prediction(P).round(6)  # of (1/2, 1/2) and (1/4, 3/4)
    array([0.375, 0.625])
    """
    found = softmax_stats(
        P, mean=True, weights=weights, max_memory=max_memory, num_threads=num_threads, progress=progress
    ).mean
    assert found is not None  # for the type checker
    return found
