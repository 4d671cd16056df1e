"""A quadratic that bounds the loss from above, and the linear maps that make it smallest (theory §11)."""

from __future__ import annotations

import math
import warnings

import numpy as np

from . import _checks
from ._bootstrap import bootstrap_mean, require_level
from ._divergences import KL
from ._enclosing_ball import smallest_enclosing_ball, squared_distances
from ._ext import build_info
from ._features import IGNORED_TARGET, Features, evenly_spread
from ._linear_maps import Gathered, covariance, eigenvalues, generalized, mean_of, rank_of, rounding_of, total_variance
from ._panels import prototypes
from ._softmax import SoftmaxKernel, softmax_stats
from ._surrogate_result import Assumptions, LinearMaps, Surrogate
from .errors import SampleWarning, ShapeError, ValueRangeError
from .typing import ArrayInput, BoolArray, FloatArray, IntArray, ModelArray, Progress

__all__ = ["quadratic_surrogate"]

EPS = float(np.finfo(np.float64).eps)
SPLITS = 20  # of the sequences into halves
ROWS_PER_DIRECTION = 4  # with less, what states and rows have in common is mostly chance
SAMPLED_ROWS = 4  # of the head for each of its dimensions, which tell its rank unless that is deficient


def quadratic_surrogate(
    features: Features,
    layer: int = -1,
    *,
    reference: ArrayInput | None = None,
    ranks: tuple[int, ...] = (16, 64),
    tol: float = 1e-3,
    level: float = 0.95,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Surrogate:
    r"""The quadratic that bounds the loss of a linear head from above, how loose it is, and what minimises it.

    With :math:`A(h) = \log Z(h) = \log \sum_w e^{\langle g_w, h \rangle + b_w}`, a reference :math:`h_0` and
    :math:`\bar g_0 = \mathbb{E}_{p_{h_0}} g = \nabla A(h_0)`,

    .. math:: -\log p_h(w) = A(h) - \langle g_w, h \rangle - b_w \;\le\; A(h_0) + \langle \bar g_0, h - h_0 \rangle
              + \tfrac{\beta}{2} \|h - h_0\|^2 - \langle g_w, h \rangle - b_w

    for every h once :math:`\beta \ge R^2`, R the radius of a ball that holds all :math:`g_w`: the Hessian of A is the
    covariance of g under :math:`p_h`, and no law in a ball of radius R has more variance than :math:`R^2` in any
    direction. The calibrated β is the smallest for which it holds at every context,
    :math:`\max_x 2\,KL(p_{h_0} \| p_{h_x}) / \|h_x - h_0\|^2`, since A less its tangent at :math:`h_0` is that
    divergence.

    Parameters
    ----------
    features : Features
        With a head without soft-capping. For a temperature T: ``dataclasses.replace(features, scale=features.scale /
        T)``.
    layer : int
        As in `Features.softmax_kernel`.
    reference : (d,) floating point, optional
        h₀, rounded to float32; default the mean state.
    ranks : sequence of int >= 1
        At which linear maps are reported; the full rank always is, larger ones are left out.
    tol : float
        Of the radius, as in `smallest_enclosing_ball`.
    level, seed
        Of the bootstrap over sequences (2,000 resamples; β and linear maps stay as they are), and of 20 splits of the
        sequences into halves.
    num_threads, progress
        As in `softmax_stats`; two passes over the contexts are counted.

    Returns
    -------
    Surrogate

    Raises
    ------
    ValueRangeError
        A soft-capped head, whose logits are not linear in h; states that are all the same; fewer than two contexts.
    ShapeError, DTypeError
        A reference that is no state.

    Warns
    -----
    SampleWarning
        Fewer than 4 contexts per direction of the states: what these and the rows have in common is then mostly chance
        (compare ``null``), and all of it where n ≤ d. A single sequence, which gives no intervals. A head whose rows
        do not span all directions. The messages are kept in ``warnings``.

    Notes
    -----
    *Linear maps* (ours). Let φ be centred whitened states, ``E φ = 0``, ``E φ φᵀ = I``, and ``h = h₀ + B φ`` for a B of
    rank ≤ r. Then ``E ⟨ḡ₀, B φ⟩ = 0`` and the expected surrogate is, with ``C_gφ = E g φᵀ`` and the same labels w,

    .. math:: \mathbb{E}\,[A(h_0) - \langle g_w, h_0 \rangle - b_w] - \langle B, C_{g\varphi} \rangle
              + \tfrac{\beta}{2} \|B\|_F^2 = \mathrm{const} + \tfrac{\beta}{2} \|B - C_{g\varphi} / \beta\|_F^2
              - \tfrac{1}{2\beta} \|C_{g\varphi}\|_F^2 ,

    smallest, by Eckart and Young, for the r leading singular triplets of ``C_gφ / β``, where it has fallen by
    ``Σ_{i ≤ r} θ_i / 2β``. With ``φ = C_hh^{-1/2} (h − E h)`` the squared singular values θ are the generalised
    eigenvalues of ``C_hg C_gh v = θ C_hh v``, and φ's leading directions are its eigenvectors: the leading subspace
    does not depend on β. ``text_maps`` have the row of the token that follows for g, ``model_maps`` the mean row
    ``ḡ_x = Σ_w p_x(w) g_w``, with labels drawn by the model. Both are in sample; ``held_out`` is what maps fitted
    on half of the sequences give on the other. The model's own centred states are such a map, ``B = C_hh^{1/2}`` at
    full rank; ``reached`` and ``scaled`` compare it with the best. With the calibrated β the quadratic bounds the
    loss at the sampled states, not at those that other maps would give; with R² at all.

    *Rounding.* Divergences are of sums of terms of one sign and good to some 1e-6 of themselves (`divergence`); β is
    rounded upwards, so that with the calibrated one no computed gap is below 0. With R² only a head of all but two
    tokens could be so tight that it shows.

    Cost: `smallest_enclosing_ball`; one fused pass with a reference, ``4 n V d`` flops; one for ``ḡ``; ``O(n d² +
    d³)``. Memory ``8 n d`` bytes for ``ḡ``. Source: theory §11; the conditional spectral result of arXiv
    2507.19247.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> rng = np.random.default_rng(0)
    >>> n = 400
    >>> features = mk.Features(
    ...     hidden=rng.normal(size=(n, 4)).astype("float32"), head=rng.normal(size=(50, 4)).astype("float32"),
    ...     targets=rng.integers(0, 50, n), token_ids=np.zeros(n, dtype=int),
    ...     sequence_ids=np.arange(n) // 20, positions=np.arange(n) % 20)
    >>> found = mk.quadratic_surrogate(features, ranks=(1,))
    >>> found.nll.value < found.surrogate_calibrated.value < found.surrogate_ball.value
    True
    >>> bool(found.beta_calibrated <= found.beta_ball), found.violations, found.model_maps.ranks
    (True, (0, 0), array([1, 4]))
    """
    P = features.softmax_kernel(layer)
    if P.softcap:
        raise ValueRangeError(
            f"features: expected a head whose logits are linear in the states, got soft-capping at {P.softcap:g}, "
            "with which log Z less its tangent is no divergence and the bound does not hold; replace softcap by None "
            "to look at the head without it"
        )
    wanted = [_checks.count("ranks", rank, 1, 2**31) for rank in ranks]
    require_level(level)
    n, d = P.shape[0], P.hidden.shape[1]
    rows = np.arange(n) if n == features.num_contexts or features.layer_rows is None else features.layer_rows
    targets = _checks.target_ids(features.targets, features.num_contexts, P.shape[1], IGNORED_TARGET)[rows]
    groups = np.asarray(features.sequence_ids)[rows]
    if n < 2:
        raise ValueRangeError(f"features: expected at least two contexts in this layer, got {n}; take more text")
    mean, variances = mean_of(P.hidden), eigenvalues(covariance(P.hidden, P.hidden))
    if variances.sum() <= 2.0**-48 * float(mean @ mean):  # entries were rounded to float32
        raise ValueRangeError(
            "features: expected states that differ, got all contexts with the same one; there is nothing to calibrate "
            "on, and nothing for linear maps to act on"
        )
    h_0 = _reference(reference, mean)
    repeated = np.broadcast_to(h_0, (n, d))  # a pass wants a row for each, and is slow where it has to repeat one
    at = SoftmaxKernel(repeated, P.head, P.bias, P.temperature, P.scale)

    factor, unmasked = P.scale / P.temperature, None if P.bias is None else P.bias > -np.inf
    ball = smallest_enclosing_ball(
        P.head, mask=unmasked, tol=tol, progress=None if progress is None else lambda *_: progress(0, 2 * n)
    )
    if not ball.radius > 0:
        raise ValueRangeError("features: expected a head with rows that differ, got tokens that all have the same one")
    stats = softmax_stats(
        P,
        targets,
        reference=at,
        divergences=[KL(), KL(reverse=True)],
        ignore_index=-1,
        num_threads=num_threads,
        progress=None if progress is None else lambda done, _: progress(done, 2 * n),
    )
    assert stats.nll is not None  # for the type checker
    bregman, distances = stats.divergences[KL()], squared_distances(P.hidden, h_0.astype(np.float64))
    away = distances > 0
    ratios = np.where(away, 2 * bregman / np.where(away, distances, 1.0), 0.0)
    upwards = 1 + 4 * EPS  # more than the roundings of a gap: it is never below 0 for what β was made from
    betas = np.array([(factor * ball.radius) ** 2, ratios.max()]) * upwards
    gaps = 0.5 * betas * distances[:, None] - bregman[:, None]

    known = targets >= 0
    columns = np.column_stack([stats.nll, stats.nll[:, None] + gaps, gaps])[known]
    nll, *surrogates = bootstrap_mean(columns, groups[known], level=level, seed=seed)

    mean_rows = prototypes(
        P,
        log_normalizer=stats.log_normalizer,
        num_threads=num_threads,
        progress=None if progress is None else lambda done, _: progress(n + done, 2 * n),
    )
    rng = np.random.default_rng(seed)
    constant = float((stats.divergences[KL(reverse=True)] + stats.entropy).mean())
    model_maps = _linear_maps(P.hidden, mean_rows, groups, factor, constant, betas, wanted, rng)
    text_maps = None
    if known.sum() > 1 and np.ptp(P.hidden[known], axis=0).any():
        z = at[:1].logits()[0]
        loss = z.max() + math.log(np.exp(z - z.max()).sum()) - z[targets[known]]
        of_text = Gathered(P.head, targets[known])
        text_maps = _linear_maps(
            P.hidden[known], of_text, groups[known], factor, float(loss.mean()), betas, wanted, rng
        )

    assumptions = _assumptions(P, variances, stats.log_normalizer, unmasked)
    held_out = _held_out(ratios, groups, rng)
    sequences = len(np.unique(groups))
    doubts = _doubts(n, len(model_maps.eigenvalues), d, sequences, assumptions.head_rank)
    for message in doubts:
        warnings.warn(message, SampleWarning, stacklevel=2)
    provenance = {**(features.provenance or {}), "core": build_info()["isa"], "surrogate_seed": seed}
    return Surrogate(
        model=str(provenance.get("model") or "unnamed model"),
        layer=layer + features.num_layers + 1 if layer < 0 else layer,
        nll=nll,
        surrogate_ball=surrogates[0],
        surrogate_calibrated=surrogates[1],
        gap_ball=surrogates[2],
        gap_calibrated=surrogates[3],
        beta_ball=float(betas[0]),
        beta_calibrated=float(betas[1]),
        radius_lower=factor * ball.lower,
        ball_passes=ball.num_passes,
        support=ball.support,
        violations=(int((gaps[:, 0] < 0).sum()), int((gaps[:, 1] < 0).sum())),
        held_out_violations=held_out and held_out[0],
        held_out_factor=held_out and held_out[1],
        assumptions=assumptions,
        text_maps=text_maps,
        model_maps=model_maps,
        reference=h_0.astype(np.float64),
        rows=np.asarray(rows),
        sequence_ids=groups,
        row_nll=stats.nll,
        bregman=bregman,
        squared_distances=distances,
        warnings=doubts,
        provenance=provenance,
    )


def _reference(given: ArrayInput | None, mean: FloatArray) -> ModelArray:
    """(d,) float32."""
    if given is None:
        return mean.astype(np.float32)
    array = _checks.as_numpy("reference", given)
    if array.shape != mean.shape:
        raise ShapeError(f"reference: expected shape {mean.shape}, a state, got {array.shape}")
    return np.asarray(_checks.model_matrix("reference", array[None], "(d,)")[0], np.float32)


def _linear_maps(
    states: ModelArray,
    g: ModelArray | Gathered,
    groups: IntArray,
    factor: float,
    constant: float,
    betas: FloatArray,
    wanted: list[int],
    rng: np.random.Generator,
) -> LinearMaps:
    """Of the surrogate that has ``factor`` times g for rows."""
    n, C_hh, C_hg = len(states), covariance(states, states), factor * covariance(states, g)
    theta, directions = generalized(C_hg, C_hh)
    k = len(theta)
    ranks = np.array([*sorted({rank for rank in wanted if rank < k}), k])
    own, best = directions.T @ C_hh, directions.T @ C_hg  # (k, d): of C_hφ and C_gφ, what each direction has
    common, length, most = (np.cumsum(x)[ranks - 1] for x in ((own * best).sum(axis=1), (own * own).sum(axis=1), theta))
    with np.errstate(invalid="ignore", divide="ignore"):  # rows that have nothing in common with states: NaN
        decrease = most / (2 * betas[:, None])
        reached = (common - 0.5 * betas[:, None] * length) / decrease
        scaled = np.maximum(common, 0.0) ** 2 / (length * most)
    return LinearMaps(
        eigenvalues=theta,
        directions=np.ascontiguousarray(directions[:, : ranks[:-1].max(initial=1)]),
        ranks=ranks,
        constant=constant,
        minimum=constant - decrease,
        reached=reached,
        scaled=scaled,
        null=k * factor * factor * total_variance(g) / (n - 1),
        held_out=_held_out_maps(states, g, groups, factor, ranks, rng),
    )


def _held_out_maps(
    states: ModelArray,
    g: ModelArray | Gathered,
    groups: IntArray,
    factor: float,
    ranks: IntArray,
    rng: np.random.Generator,
) -> FloatArray:
    """(m,) what maps fitted on half of the sequences take off on the other, in units of θ; a mean over both ways."""
    numbers = np.unique(groups)
    if len(numbers) < 2:
        return np.full(len(ranks), np.nan)
    first = np.isin(groups, rng.permutation(numbers)[: len(numbers) // 2])
    halves = []
    for rows in map(np.flatnonzero, (first, ~first)):
        part, of_g = Gathered(states, rows), Gathered(g, rows)
        halves.append((factor * covariance(part, of_g), covariance(part, part)))
    found = np.zeros(len(ranks))
    for (C_hg, C_hh), (other_hg, other_hh) in (halves, halves[::-1]):
        theta, V = generalized(C_hg, C_hh)
        each = 2 * ((V.T @ C_hg) * (V.T @ other_hg)).sum(axis=1) - theta * ((other_hh @ V) * V).sum(axis=0)
        found += np.concatenate([[0.0], np.cumsum(each)])[np.minimum(ranks, len(each))] / 2
    return found


def _assumptions(
    P: SoftmaxKernel, variances: FloatArray, log_normalizer: FloatArray, unmasked: BoolArray | None
) -> Assumptions:
    norms = np.sqrt(squared_distances(P.head, np.zeros(P.head.shape[1]))) * (P.scale / P.temperature)
    norms = norms if unmasked is None else norms[unmasked]
    kept = variances[variances > rounding_of(variances)]
    shares = kept / kept.sum()
    return Assumptions(
        norm_mean=float(norms.mean()),
        norm_std=float(norms.std()),
        norm_min=float(norms.min()),
        norm_max=float(norms.max()),
        head_rank=_rank_of_differences(P.head, unmasked),
        variances=variances,
        condition_number=float(kept[0] / kept[-1]),
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
        whiteness=float(np.abs(variances / variances.mean() - 1).max()),
        log_normalizer_mean=float(log_normalizer.mean()),
        log_normalizer_std=float(log_normalizer.std()),
        log_normalizer_min=float(log_normalizer.min()),
        log_normalizer_max=float(log_normalizer.max()),
    )


def _rank_of_differences(head: ModelArray, unmasked: BoolArray | None) -> int:
    """Of some rows, and of all only where these do not have the full one."""
    tokens = np.arange(len(head)) if unmasked is None else np.flatnonzero(unmasked)
    some = tokens[evenly_spread(len(tokens), SAMPLED_ROWS * head.shape[1] + 1)]
    found = rank_of(covariance(Gathered(head, some), Gathered(head, some)))
    if found < min(head.shape[1], len(tokens) - 1) and len(some) < len(tokens):
        found = rank_of(covariance(Gathered(head, tokens), Gathered(head, tokens)))
    return found


def _held_out(ratios: FloatArray, groups: IntArray, rng: np.random.Generator) -> tuple[float, float] | None:
    """Share of contexts beyond the β of the other half, and the factor by which; means over splits and halves."""
    numbers = np.unique(groups)
    if len(numbers) < 2:
        return None
    found = []
    for _ in range(SPLITS):
        first = np.isin(groups, rng.permutation(numbers)[: len(numbers) // 2])
        for half in (first, ~first):
            beta, other = ratios[half].max(), ratios[~half]
            found.append((float((other > beta).mean()), max(1.0, float(other.max() / beta)) if beta > 0 else math.inf))
    share, factor = np.mean(found, axis=0).tolist()
    return share, factor


def _doubts(n: int, rank: int, d: int, sequences: int, head_rank: int) -> tuple[str, ...]:
    found = []
    if n < ROWS_PER_DIRECTION * rank or n <= d:
        found.append(
            f"surrogate: linear maps of states with {rank} directions were found on {n} contexts; with fewer than "
            f"{ROWS_PER_DIRECTION} for each, most of what they reach is chance (compare null): take more text"
        )
    if sequences < 2:
        found.append("surrogate: a single sequence gives no intervals and nothing held out; take more text")
    if head_rank < d:
        found.append(
            f"surrogate: differences of the head's rows span {head_rank} of {d} directions; states count in the "
            "quadratic by all of them, in the loss by these alone, so that its gap is wider than it need be"
        )
    return tuple(found)
