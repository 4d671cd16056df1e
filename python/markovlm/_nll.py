"""What likelihood training left to learn: loss against the model's own entropy (theory §6), and §4's information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ._bootstrap import Estimate, bootstrap_mean
from ._divergences import KL
from ._features import IGNORED_TARGET, Features
from ._softmax import SoftmaxStats, softmax_stats
from .typing import FloatArray, Progress

__all__ = ["NLL", "nll", "token_columns"]


@dataclass(frozen=True, repr=False)
class NLL:
    """Loss, entropy and their difference, pooled over tokens, in nats; intervals from a bootstrap over sequences."""

    nll: Estimate  # mean of -log p(target), over the contexts whose target is known
    entropy: Estimate  # mean entropy of the predictions, over the same contexts
    calibration: Estimate  # nll - entropy
    accuracy: Estimate  # share of targets that are the most likely token, ties counted for the target
    renyi: dict[float, Estimate]  # order -> mean Rényi entropy
    information: float  # I(H; W) = H(mean prediction) - mean entropy over all contexts, at most log n
    entropy_of_mean: float  # H(mean prediction)
    stats: SoftmaxStats  # the rows themselves

    def __repr__(self) -> str:
        return (
            f"NLL(nll={self.nll}, entropy={self.entropy}, calibration={self.calibration}, "
            f"information={self.information:.4f}, n={self.stats.entropy.shape[0]})"
        )


def nll(
    features: Features,
    *,
    orders: Sequence[float] = (),
    top_k: int = 0,
    level: float = 0.95,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> NLL:
    r"""Entropy calibration and state–prediction information of the final layer.

    .. math:: \mathrm{calibration} = \mathbb{E}[-\log p_x(w)] - \mathbb{E}\,H(p_x), \qquad
              I(H; W) = H(\bar p) - \mathbb{E}\,H(p_x)

    Calibration is 0 where the model is as uncertain as the text requires and positive where it is over-confident. The
    information is exact for the sampled contexts, in ``[0, log n]``.

    Parameters
    ----------
    features : Features
        Final states, head and targets.
    orders, top_k, num_threads, progress
        As in `softmax_stats`.
    level, seed
        Of the bootstrap over sequences (2,000 resamples).

    Returns
    -------
    NLL

    Notes
    -----
    One fused pass, ``2 n V d`` flops. Source: arXiv 2507.19247, Thm 5.1 and 5.2, Eq. 4.4; information: theory §4.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> rng = np.random.default_rng(0)
    >>> n = 200
    >>> features = mk.Features(
    ...     hidden=rng.normal(size=(n, 8)).astype("float32"), head=rng.normal(size=(50, 8)).astype("float32"),
    ...     targets=rng.integers(0, 50, n), token_ids=np.zeros(n, dtype=int),
    ...     sequence_ids=np.arange(n) // 20, positions=np.arange(n) % 20)
    >>> result = mk.nll(features)
    >>> result.calibration.value > 0  # random targets: the model is over-confident
    True
    """
    stats = softmax_stats(
        features.softmax_kernel(),
        features.targets,
        orders,
        top_k,
        mean=True,
        ignore_index=IGNORED_TARGET,
        num_threads=num_threads,
        progress=progress,
    )
    assert stats.mean is not None  # for the type checker: it was asked for
    entropy_of_mean = float(KL().entropy(stats.mean))
    columns = token_columns(stats, *stats.renyi.values())
    known = features.targets != IGNORED_TARGET
    estimates = bootstrap_mean(columns[known], features.sequence_ids[known], level=level, seed=seed)
    loss, entropy, calibration, accuracy, *renyi = estimates
    return NLL(
        nll=loss,
        entropy=entropy,
        calibration=calibration,
        accuracy=accuracy,
        renyi=dict(zip(stats.renyi, renyi, strict=True)),
        information=max(0.0, entropy_of_mean - float(stats.entropy.mean())),
        entropy_of_mean=entropy_of_mean,
        stats=stats,
    )


def token_columns(stats: SoftmaxStats, *more: FloatArray) -> FloatArray:
    """Per-token loss, entropy, their difference and accuracy, then ``more``, as columns: (n, 4 + len(more))."""
    assert stats.nll is not None  # for the type checker: targets were given
    assert stats.rank is not None
    return np.column_stack([stats.nll, stats.entropy, stats.nll - stats.entropy, stats.rank == 0, *more])
