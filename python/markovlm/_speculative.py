"""Speculative decoding as it is defined, one prompt at a time: what predictions of its accepted length are held to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _checks
from ._anatomy import evaluating, family, longest_context
from ._bootstrap import Estimate, bootstrap_mean
from ._drafting import DraftHead
from ._extract import loaded
from ._head import Head, as_float32
from ._verifier import Verifier
from .errors import DTypeError, ShapeError, UnsupportedModelError, ValueRangeError
from .typing import FloatArray, IntArray, Progress, SinglePrecisionArray

__all__ = ["Decoded", "acceptance", "residual", "speculative_decode"]


@dataclass(frozen=True, repr=False, eq=False)
class Decoded:
    """What speculative decoding gave, and how far its drafts went.

    A round is one pass of the model: a first token and the drafts after it that were accepted, 1 to K tokens.
    ``accepted_length`` is tokens per round, with an interval from resampled prompts, and is
    ``1 + sum(acceptance_by_step)``. The last round of a prompt is played to its end and counted whole, though tokens
    beyond ``num_tokens`` are not returned: to leave it out, or to count it cut, would favour short rounds.
    """

    tokens: tuple[IntArray, ...]  # of each prompt, without the prompt
    accepted_lengths: tuple[IntArray, ...]  # of each prompt, (rounds,) in 1 … K
    horizon: int  # K; 1 without drafts
    temperature: float
    accepted_length: Estimate  # mean over all rounds
    acceptance_by_step: tuple[Estimate, ...]  # (K − 1,) share of the rounds in which step k was reached and accepted
    num_forwards: int  # passes of the model: one for each prompt and each round; not those that tried head and cache
    cached: bool  # keys and values were kept; otherwise every pass ran over all tokens

    @property
    def num_rounds(self) -> int:
        """Of all prompts."""
        return sum(len(lengths) for lengths in self.accepted_lengths)

    def __repr__(self) -> str:
        prompts, count = len(self.tokens), sum(len(tokens) for tokens in self.tokens)
        return (
            f"Decoded({count} tokens after {prompts} prompt{'s' * (prompts != 1)}, {self.num_rounds} rounds: "
            f"{self.accepted_length:.2f} accepted of {self.horizon} in a round)"
        )


def speculative_decode(
    model: Any,
    draft: DraftHead | None,
    prompts: str | Sequence[Any],
    *,
    num_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    num_rounds: int | None = None,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> Decoded:
    r"""Continuations of ``prompts`` under the model's own law, drafted by a draft head and verified by the model.

    .. math:: \text{accept } d_k \sim q_k \text{ with probability } \min(1, p_{t+k}(d_k) / q_k(d_k)), \quad
              \text{else draw from } (p_{t+k} - q_k)_+ / \mathrm{TV}(p_{t+k}, q_k)

    A round starts from the last verified state ``h_t``, whose prediction is ``p_t``, and a token ``w_t``. The draft
    proposes ``d_1 … d_{K−1}`` one by one, ``q_k`` given ``h_t, w_t, d_1 … d_{k−1}``; one pass of the model over
    ``w_t, d_1 … d_{K−1}`` gives all ``p_{t+k}``. If every draft is accepted, the next round's ``w`` is drawn from
    the prediction of the last state. If ``d_k`` is the first to be rejected, the token drawn in its place *is* the next
    round's ``w``, and that round drafts from ``h_{t+k}``, the state after ``d_{k−1}``, whose prediction was
    ``p_{t+k}``. So a round has ``w_t`` and the accepted drafts for its tokens, and expects
    ``1 + Σ_k Π_{j≤k} α_j`` of them, the α conditional on what came before.

    Tokens have the model's law, whatever the draft. But given that a round starts at t, ``w_t`` has the law ``p_t``
    only in a prompt's first round and after a round without rejection; after a rejection it has the residual one. And
    rounds do not start at all positions alike, but more often where drafts fail. Hence acceptances averaged over *all*
    positions of a text predict ``num_rounds=1``, one round from each prompt; what a longer run accepts is an average
    over where its rounds start. That can be predicted from a text too: given the text, the drafts of a round are
    accepted independently, ``w_{t+k}`` with probability ``min(1, q_k(w_{t+k}) / p_{t+k}(w_{t+k}))``, and the first
    failure, or the end of the round, is where the next one starts.

    Parameters
    ----------
    model
        A loaded Transformers causal language model in float32, or a name or path as for :func:`extract`.
    draft : DraftHead, optional
        None for plain sampling: rounds of one token.
    prompts
        Strings, which are tokenised as the tokenizer does by default, or sequences of token ids. None may be empty.
    num_tokens
        To return after each prompt. Tokens that end a text are tokens like others.
    temperature
        τ in ``p^{1/τ}`` and ``q^{1/τ}``, normalised; 0 for greedy decoding, where a draft is accepted if and only if
        it is the model's most probable token.
    seed
        With it and its own number each prompt has random numbers of its own.
    num_rounds
        Rounds after each prompt at most; fewer tokens are returned where they do not suffice.
    tokenizer
        Needed for strings with a loaded model: an object, an id or a directory.
    progress
        Called as ``progress(tokens done, tokens in all)`` after each round; what it raises ends the work, and leaves no
        hooks.

    Returns
    -------
    Decoded
        A pass of the model and K products with the head for each round.

    Raises
    ------
    UnsupportedModelError
        Not a causal language model, or its logits cannot be rebuilt from its final states and head.
    ValueRangeError, ShapeError, DTypeError
        An argument that cannot be used: no prompt, an id that the model does not embed, a draft of another width, more
        tokens than the model can take at once. A last round may need K − 1 tokens more than are returned.

    Notes
    -----
    The model's cache is used if it is seen to give the same states, also after tokens were taken back. Logits are
    float32 products as the model's own; laws, ratios and residuals are float64. Greedy output is that without drafts as
    far as rounding does not decide between tokens. A token that the draft does not know (a padded row of the head) ends
    a draft. Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", Algorithm 1 and
    Appendix A.1; theory §7.

    Examples
    --------
    >>> import numpy as np, torch, transformers, markovlm as mk
    >>> _ = torch.manual_seed(0)
    >>> config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    >>> model = transformers.GPT2LMHeadModel(config)
    >>> features = mk.extract(model, texts=[range(50)], layers=None)
    >>> maps = tuple(np.zeros((1 + 16 + 16 * k, 16), np.float32) for k in (1, 2))  # the uniform law
    >>> draft = mk.DraftHead(maps, (1.0, 1.0), features.embedding, features.softmax_kernel())
    >>> decoded = mk.speculative_decode(model, draft, [[1, 2, 3], [4]], num_tokens=30)
    >>> [len(tokens) for tokens in decoded.tokens], decoded.horizon, decoded.accepted_length.value > 2
    ([30, 30], 3, True)
    """
    found = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, Iterable) else []
    if not found:
        raise ValueRangeError(f"prompts: expected a list of strings or of sequences of token ids, got {prompts!r}")
    if draft is not None and not isinstance(draft, DraftHead):
        raise DTypeError(f"draft: expected a DraftHead, or None to sample without, got {type(draft).__name__}")
    num_tokens = _checks.count("num_tokens", num_tokens, 1, 2**31)
    num_rounds = num_tokens if num_rounds is None else _checks.count("num_rounds", num_rounds, 1, 2**31)
    seed = _checks.count("seed", seed, 0, 2**63 - 1)
    temperature = 0.0 if temperature == 0 else _checks.positive("temperature", temperature)
    model, tokenizer = loaded(model, tokenizer, found, False, "cpu", custom=False)
    if not (hasattr(model, "config") and hasattr(model, "get_input_embeddings")):
        raise UnsupportedModelError(f"model: expected a Transformers model, got {type(model).__name__}")
    ids = [_prompt_ids(number, prompt, tokenizer, model) for number, prompt in enumerate(found)]
    horizon = 1 if draft is None else draft.horizon
    _check_length(model, max(map(len, ids)), min(num_tokens, num_rounds * horizon), horizon)

    tokens, lengths = [], []
    with evaluating(model):
        verifier = Verifier.of(model, ids[0])
        drafter = None if draft is None else _Drafter(draft, verifier.head, temperature)
        for number, prompt in enumerate(ids):
            decoder = _Decoder(verifier, drafter, temperature, Chance(seed, number))
            decoder.begin(prompt)
            while len(decoder.tokens) < num_tokens and len(decoder.lengths) < num_rounds:
                decoder.play_round()
                if progress is not None:
                    progress(number * num_tokens + min(len(decoder.tokens), num_tokens), len(ids) * num_tokens)
            if progress is not None and len(decoder.tokens) < num_tokens:
                progress((number + 1) * num_tokens, len(ids) * num_tokens)
            tokens.append(np.asarray(decoder.tokens[:num_tokens], np.int64))
            lengths.append(np.asarray(decoder.lengths, np.int64))

    counts = np.concatenate(lengths)
    columns = np.column_stack([counts, counts[:, None] > np.arange(1, horizon)]).astype(np.float64)
    mean, *steps = bootstrap_mean(columns, np.repeat(np.arange(len(ids)), [len(part) for part in lengths]), seed=seed)
    return Decoded(
        tokens=tuple(tokens),
        accepted_lengths=tuple(lengths),
        horizon=horizon,
        temperature=temperature,
        accepted_length=mean,
        acceptance_by_step=tuple(steps),
        num_forwards=len(ids) + len(counts),
        cached=verifier.caches,
    )


def acceptance(p: FloatArray, q: FloatArray) -> FloatArray:
    """(V,) ``min(1, p / q)``: how probably a token drafted from ``q`` is accepted; 0 where none is drafted."""
    return np.minimum(p, q) / np.where(q > 0, q, 1.0)


def residual(p: FloatArray, q: FloatArray) -> FloatArray:
    """(V,) ``(p − q)_+``, normalised: the law of the token in a rejected one's place.

    With it, ``q · acceptance + (1 − Σ q · acceptance) · residual = p``.
    """
    excess = np.maximum(p - q, 0.0)
    total = float(excess.sum())
    return excess / total if total > 0 else p  # no draft is rejected where nothing exceeds, except by rounding


class Chance:
    """Where a prompt's random decisions come from."""

    def __init__(self, seed: int, number: int) -> None:
        self._random = np.random.default_rng([seed, number])

    def choose(self, law: FloatArray) -> int:
        """A token."""
        cumulative = np.cumsum(law)
        return int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))

    def happens(self, probability: float) -> bool:
        """True so often."""
        return bool(self._random.random() < probability)


class _Drafter:
    """Proposals of a draft head, with the laws that they are drawn from, as wide as the model's."""

    def __init__(self, draft: DraftHead, head: Head, temperature: float) -> None:
        self.draft, self.temperature, self.size = draft, temperature, len(head.weight)
        model, d = draft.model, head.weight.shape[1]
        inputs = 1 + d * draft.uses_state + draft.embedding.shape[1]
        if model.head.shape[1] != d or len(model.head) > self.size or draft.maps[0].shape != (inputs, d):
            raise ShapeError(
                f"draft: expected states of width {d} and at most {self.size} tokens, those of the model, got "
                f"{model.head.shape[1]} and {len(model.head)}, and a first map of shape {draft.maps[0].shape}; fit it "
                "on features of this model"
            )
        self._head = Head(as_float32(model.head), model.bias, model.scale, model.softcap or None)

    def propose(self, state: SinglePrecisionArray, first: int, chance: Chance) -> tuple[list[int], list[FloatArray]]:
        """``d_1 … d_{K−1}`` and ``q_1 … q_{K−1}``."""
        tokens, laws = [first], []
        for step in range(1, self.draft.horizon):
            if tokens[-1] >= len(self.draft.embedding):
                break
            states = self.draft.states(step, state[None], [tokens])
            own = self.draft.model.temperature * self.draft.temperatures[step - 1]
            q = np.zeros(self.size)
            q[: len(self._head.weight)] = _laws(self._head, states, self.temperature, own)[0]
            laws.append(q)
            tokens.append(chance.choose(q))
        return tokens[1:], laws


class _Decoder:
    """Rounds after one prompt."""

    def __init__(self, verifier: Verifier, drafter: _Drafter | None, temperature: float, chance: Chance) -> None:
        self.verifier, self.drafter, self.temperature, self.chance = verifier, drafter, temperature, chance
        self.tokens: list[int] = []
        self.lengths: list[int] = []

    def begin(self, prompt: list[int]) -> None:
        self.verifier.begin()
        self.state = self.verifier.feed(prompt)[-1]  # the last verified one, (d,)
        # Of the next round's first token: the state's prediction, or what a rejection left of it.
        self.law = _laws(self.verifier.head, self.state[None], self.temperature)[0]

    def play_round(self) -> None:
        first = self.chance.choose(self.law)
        drafts, proposals = ([], []) if self.drafter is None else self.drafter.propose(self.state, first, self.chance)
        states = self.verifier.feed([first, *drafts])
        predictions = _laws(self.verifier.head, states, self.temperature)
        accepted = 0
        self.law = predictions[-1]
        for p, q, token in zip(predictions, proposals, drafts, strict=False):  # the last has nothing to verify
            if not self.chance.happens(acceptance(p, q)[token]):
                self.law = residual(p, q)
                break
            accepted += 1
        self.verifier.take_back(len(drafts) - accepted)
        self.state = states[accepted]
        self.tokens += [first, *drafts[:accepted]]
        self.lengths.append(1 + accepted)


def _laws(head: Head, states: SinglePrecisionArray, temperature: float, own: float = 1.0) -> FloatArray:
    """(r, V) laws of states (r, d) at a temperature, besides that which the head has anyway; one-hot ones at 0."""
    # In float32, as the model does: in float64 each round would take longer for the head than for the model.
    products = (states @ head.weight.T).astype(np.float64)
    if head.bias is not None:
        products += head.bias
    z = np.where(np.isneginf(products), -np.inf, head.logits(products))  # soft-capping would make -inf finite
    if temperature == 0:
        return np.asarray(np.arange(z.shape[1]) == z.argmax(axis=1)[:, None], np.float64)
    z -= z.max(axis=1, keepdims=True)
    weights = np.exp(z / (temperature * own))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _prompt_ids(number: int, prompt: Any, tokenizer: Any, model: Any) -> list[int]:
    name = f"prompts[{number}]"
    if isinstance(prompt, str):
        if tokenizer is None:
            raise DTypeError(f"{name}: expected token ids as in the prompts before, got a string")
        prompt = tokenizer(prompt)["input_ids"]
    ids = _checks.integers(name, list(prompt) if isinstance(prompt, range) else prompt)
    if ids.ndim != 1 or not len(ids):
        raise ShapeError(f"{name}: expected one axis of at least one token id, got shape {ids.shape}")
    size = model.get_input_embeddings().weight.shape[0]
    if ids.min() < 0 or ids.max() >= size:
        raise ValueRangeError(
            f"{name}: token ids must lie in 0 ... {size - 1}, got {ids.min()} ... {ids.max()}; {family(model)} embeds "
            "no more"
        )
    found: list[int] = ids.tolist()
    return found


def _check_length(model: Any, prompt: int, tokens: int, horizon: int) -> None:
    most, needed = longest_context(model), prompt + tokens + horizon - 1
    if most is not None and needed > most:
        more = f" and {horizon - 1} that a last round may draft beyond them" * (horizon > 1)
        raise ValueRangeError(
            f"num_tokens: a prompt of {prompt} tokens, {tokens} after it{more} make {needed}, {family(model)} takes "
            f"{most}; shorten the prompt or num_tokens"
        )
