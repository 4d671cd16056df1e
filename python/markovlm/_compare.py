"""Models or checkpoints side by side on one text: `compare`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _checks
from ._bootstrap import Estimate, bootstrap_mean, require_level
from ._characters import nll_per_character
from ._comparison import Comparison, Quantity
from ._modes import Modes
from ._profile import Profile
from ._quantities import SETTINGS, Results, depth_curves, estimates_of
from ._surplus_result import Surplus
from .errors import DTypeError, SampleWarning, ShapeError, ValueRangeError
from .typing import ArrayInput, BoolArray, FloatArray

__all__ = ["compare", "text_hashes"]

PAIRED = ("nll", "entropy", "calibration", "accuracy")  # whose tokens a profile keeps


def compare(
    profiles: Sequence[Profile],
    *,
    names: Sequence[str] | None = None,
    steps: ArrayInput | None = None,
    surplus: Sequence[Surplus | None] | None = None,
    alignment: Sequence[Any] | None = None,
    modes: Sequence[Modes | None] | None = None,
    geometry: Sequence[Any] | None = None,
    baseline: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    r"""Several models, or checkpoints of one, on the same text: their numbers, and differences token by token.

    .. math:: \Delta = \frac1n \sum_t \left( -\log p^B_t(w_t) + \log p^A_t(w_t) \right)

    and likewise for entropies, calibrations and accuracies. What makes a text hard is hard for both models and drops
    out of Δ, so that its interval, over the same resampled sequences, is much narrower than those of the two losses.

    Parameters
    ----------
    profiles : sequence of Profile
        Two or more, of the same texts (by their SHA-256, where it is known).
    names : sequence of str, optional
        All different. Default: the models' names, or the steps where those are the same.
    steps : (models,) rising numbers, optional
        Steps of training, or sizes: numbers become curves along them.
    surplus, alignment, modes, geometry : sequence, optional
        Results of `surplus`, ``alignment``, `modes`, ``geometry`` for each profile; None where there is none.
    baseline : int
        The profile that others are compared with.
    level, seed
        Of the bootstrap of differences; other intervals are those of the results.

    Returns
    -------
    Comparison
        ``quantities[name]`` has ``estimates`` and ``differences``, one for each model. Print it for a table;
        ``to_html`` for a page.

    Raises
    ------
    ShapeError
        Fewer than two profiles, or a sequence of another length.
    ValueRangeError
        Profiles of different texts, naming these; names that are not all different; steps that do not rise.
    DTypeError
        Something else than a Profile.

    Notes
    -----
    Tokens are paired where two profiles have the same targets in the same sequences. Where tokenizers differ they have
    not; a `SampleWarning` says so, there is no difference, and ``quantities["nll_per_character"]`` is the number to
    compare: the loss summed over the stretch of text that all models scored, over its characters, in nats. (Its
    probabilities are those of the tokens that the tokenizer chose; other ways to write the same text are not counted.)
    Tokens where a model gives probability 0 are left out of differences, which is said.

    The state–prediction information is at most log n: it is to be compared at equal n only.

    Cost: a bootstrap of four columns for each profile, ``O(n + 2000 sequences)``. Theory §6; differences are ours.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> rng = np.random.default_rng(0)
    >>> head = rng.normal(size=(50, 8)).astype("float32")
    >>> targets = rng.integers(0, 50, 200)
    >>> def profile_of(sharpness, name):  # the head's row of the target, and noise
    ...     hidden = (sharpness * head[targets] + rng.normal(size=(200, 8))).astype("float32")
    ...     place = np.arange(200)
    ...     return mk.profile(mk.Features(hidden, head, targets, 0 * place, place // 20, place % 20,
    ...                                   provenance={"model": name}))
    >>> found = mk.compare([profile_of(0.2, "early"), profile_of(0.5, "late")])
    >>> change = found.quantities["nll"].differences[1]
    >>> change.value < 0, change.interval[1] < 0  # lower loss, outside noise
    (True, True)
    """
    given = tuple(profiles)
    for i, profile in enumerate(given):
        if not isinstance(profile, Profile):
            raise DTypeError(f"profiles[{i}]: expected a Profile, got {type(profile).__name__}; see markovlm.profile")
    if len(given) < 2:
        raise ShapeError(f"profiles: expected two or more, got {len(given)}")
    require_level(level)
    baseline = _checks.count("baseline", baseline, 0, len(given) - 1)
    times = None if steps is None else _rising(steps, len(given))
    called = _names(given, names, times)
    extra = {
        name: _of_each(name, value, len(given))
        for name, value in (("surplus", surplus), ("alignment", alignment), ("modes", modes), ("geometry", geometry))
    }
    results = [Results(profile, **{name: part[i] for name, part in extra.items()}) for i, profile in enumerate(given)]
    paired = tuple(_same_tokens(given, called, baseline, i) for i in range(len(given)))
    _require_same_texts(results, called)
    doubts = _doubts(results, called, level)

    rows = estimates_of(results)
    differences: dict[str, list[Estimate | None]] = {name: [None] * len(given) for name in rows}
    for i, profile in enumerate(given):
        if i == baseline or not paired[i]:
            continue
        estimates, left_out = _differences(given[baseline], profile, level, seed)
        for name, estimate in zip(PAIRED, estimates, strict=True):
            differences[name][i] = estimate
        if left_out:
            tokens = "1 token" if left_out == 1 else f"{left_out} tokens"
            doubts.append(
                f"{tokens} had probability 0 under {called[i]!r} or {called[baseline]!r}; differences leave "
                f"{'it' if left_out == 1 else 'them'} out"
            )
    if not all(paired):
        other = ", ".join(repr(name) for name, same in zip(called, paired, strict=True) if not same)
        doubts.append(
            f"the tokens of {other} are not those of {called[baseline]!r} (another tokenizer, or another cut of the "
            "text), so losses per token are of different things; compare NLL per character, over the text that all "
            "models scored"
        )
        per_character = nll_per_character(given, level=level, seed=seed)
        rows = {"nll_per_character": ("NLL per character", "nats/character", per_character), **rows}
    messages = tuple(f"compare: {doubt}" for doubt in doubts)
    for message in messages:
        warnings.warn(message, SampleWarning, stacklevel=2)
    nothing = [None] * len(given)
    return Comparison(
        profiles=given,
        names=called,
        baseline=baseline,
        steps=times,
        paired=paired,
        quantities={
            name: Quantity(title, unit, each, tuple(differences.get(name, nothing)))
            for name, (title, unit, each) in rows.items()
        },
        curves=depth_curves(results),
        warnings=messages,
        level=float(level),
    )


def text_hashes(provenance: dict[str, Any] | None) -> tuple[str, ...] | None:
    """SHA-256 of the texts, in order; None unless all are known."""
    texts = (provenance or {}).get("texts") or []
    found = [text.get("sha256") for text in texts if isinstance(text, dict)]
    return tuple(map(str, found)) if found and all(found) else None


def _rising(steps: ArrayInput, count: int) -> FloatArray:
    found = _checks.as_numpy("steps", steps)
    if found.shape != (count,):
        raise ShapeError(f"steps: expected shape ({count},), one for each profile, got {found.shape}")
    if found.dtype.kind not in "iuf" or not np.isfinite(found).all() or not (np.diff(found) > 0).all():
        raise ValueRangeError(f"steps: expected finite numbers that rise, got {found.tolist()}; sort the profiles")
    return np.asarray(found, dtype=np.float64)


def _names(profiles: Sequence[Profile], names: Sequence[str] | None, steps: FloatArray | None) -> tuple[str, ...]:
    if names is None:
        found = [profile.model for profile in profiles]
        if len(set(found)) < len(found) and steps is not None:
            found = [f"step {step:g}" for step in steps]
        if len(set(found)) < len(found):
            found = [f"{name} ({i + 1})" for i, name in enumerate(found)]
        return tuple(found)
    found = [str(name) for name in names]
    if len(found) != len(profiles):
        raise ShapeError(f"names: expected {len(profiles)}, one for each profile, got {len(found)}")
    if len(set(found)) < len(found):
        raise ValueRangeError(f"names: expected names that are all different, got {found}")
    return tuple(found)


def _of_each(name: str, value: Sequence[Any] | None, count: int) -> list[Any]:
    if value is None:
        return [None] * count
    if len(value) != count:
        raise ShapeError(f"{name}: expected {count}, one for each profile (None where there is none), got {len(value)}")
    return list(value)


def _same_tokens(profiles: Sequence[Profile], names: Sequence[str], baseline: int, i: int) -> bool:
    """Whether tokens can be paired. Texts that have nothing in common are an error."""
    first, other = profiles[baseline], profiles[i]
    same = np.array_equal(first.tokens.target, other.tokens.target) and np.array_equal(
        first.tokens.sequence_id, other.tokens.sequence_id
    )
    hashes, others = text_hashes(first.provenance), text_hashes(other.provenance)
    if hashes is None or others is None:
        if not same:
            raise ValueRangeError(
                f"profiles[{i}] ({names[i]!r}): expected the tokens of profiles[{baseline}] ({names[baseline]!r}), "
                "since nothing says which texts these are, got others; profile both on the same text"
            )
    elif not set(hashes) & set(others):
        raise ValueRangeError(
            f"profiles[{i}] ({names[i]!r}): expected the text of profiles[{baseline}] ({names[baseline]!r}), "
            f"{_described(first.provenance)}, got {_described(other.provenance)}; profile both on the same text"
        )
    return same


def _require_same_texts(results: Sequence[Results], names: Sequence[str]) -> None:
    """A result of some other text does not belong beside a profile."""
    for i, each in enumerate(results):
        known = text_hashes(each.profile.provenance)
        for part in ("surplus", "alignment", "modes", "geometry"):
            found = text_hashes(getattr(getattr(each, part), "provenance", None))
            if known is not None and found is not None and not set(known) & set(found):
                raise ValueRangeError(
                    f"{part}[{i}]: expected a result of the text of profiles[{i}] ({names[i]!r}), "
                    f"{_described(each.profile.provenance)}, got {_described(getattr(each, part).provenance)}"
                )


def _described(provenance: dict[str, Any], most: int = 3) -> str:
    texts = provenance["texts"]
    shown = [f"{text.get('name') or 'unnamed'} (sha256 {str(text['sha256'])[:12]}…)" for text in texts[:most]]
    return ", ".join(shown) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _doubts(results: Sequence[Results], names: Sequence[str], level: float) -> list[str]:
    """What must be the same for numbers to be comparable, and is not."""
    doubts = []

    def differ(values: dict[str, Any], what: str) -> None:
        if len({str(value) for value in values.values()}) > 1:
            shown = ", ".join(f"{name!r} {value}" for name, value in values.items())
            doubts.append(f"{what}: {shown}")

    number_of_contexts = {name: each.profile.num_tokens for name, each in zip(names, results, strict=True)}
    differ(number_of_contexts, "the state-prediction information is at most log n, and n differs")
    for part, field in SETTINGS:
        values = {
            name: getattr(getattr(each, part), field)
            for name, each in zip(names, results, strict=True)
            if hasattr(getattr(each, part), field)
        }
        differ(values, f"{part} is not comparable, {field.replace('_', ' ')} differs")
    levels = {name: each.profile.nll.level for name, each in zip(names, results, strict=True)}
    if any(value != level for value in levels.values()):
        shown = ", ".join(f"{name!r} {100 * value:g} %" for name, value in levels.items())
        doubts.append(f"intervals of differences are at {100 * level:g} %, those of the profiles not: {shown}")
    return doubts


def _differences(first: Profile, other: Profile, level: float, seed: int) -> tuple[list[Estimate], int]:
    """Of NLL, entropy, calibration and accuracy, and how many tokens had an infinite loss."""

    def columns(profile: Profile) -> FloatArray:
        tokens = profile.tokens
        return np.column_stack([tokens.nll, tokens.entropy, tokens.surprise, tokens.rank == 0])

    a, b = columns(first), columns(other)
    known: BoolArray = (first.tokens.rank >= 0) & (other.tokens.rank >= 0)
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    rows = known & finite
    found = bootstrap_mean(b[rows] - a[rows], first.tokens.sequence_id[rows], level=level, seed=seed)
    return found, int((known & ~finite).sum())
