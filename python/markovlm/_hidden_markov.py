"""Hidden Markov languages: everything that is estimated of a language model is a finite sum here (theory §6, §7)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import entr

from . import _checks
from ._exact_surplus import SurplusTerms, surplus_terms
from ._features import Features
from ._kernels import Kernel
from ._sampling import draw_tokens
from .errors import ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, IntArray

__all__ = ["HiddenMarkovLanguage"]

MOST_WORDS = 2**20  # enumerated at once
LEAST_LOG = -60.0  # of a probability in `features`, where float32 has no logarithm of 0


@dataclass(frozen=True, init=False, repr=False, eq=False)
class HiddenMarkovLanguage:
    r"""A language whose next word depends on a hidden state: a state emits a token, then moves.

    .. math:: P(w_{1:T}) = \sum_{s_{1:T}} \iota[s_1] \prod_t e[s_t, w_t]\, \tau[s_t, s_{t+1}]

    The *belief state* after ``t`` tokens is the law of the hidden state that emits the next one,
    :math:`h[s] = P(S_{t+1} = s \mid w_{1:t})`. The next token's law given all tokens so far is :math:`h\, e`, linear in
    it: the belief plays the part that a hidden state plays in a language model.

    Parameters
    ----------
    initial : (S,) probabilities
        ι, of the state that emits the first token.
    transition : (S, S) row-stochastic
        τ, ``transition[s, s']``: of the state after ``s``.
    emission : (S, V) row-stochastic
        e, ``emission[s, w]``.

    Raises
    ------
    NotStochasticError, ShapeError, DTypeError
        The message names the argument.

    Notes
    -----
    All in float64. Rows are divided by their sums, which takes the rounding of float32 rows away. Where words are
    enumerated, those of positive probability are, up to 2**20 of them. Source: theory §6, §7.

    Examples
    --------
    >>> import markovlm as mk
    >>> language = mk.synthetic.HiddenMarkovLanguage([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], [[0.8, 0.2], [0.2, 0.8]])
    >>> language
    HiddenMarkovLanguage(2 states, 2 tokens)
    >>> language.beliefs([0, 0]).round(3)  # before the first token, between the two, after them
    array([[0.5  , 0.5  ],
           [0.74 , 0.26 ],
           [0.835, 0.165]])
    >>> round(language.exact_surplus(context_length=4, horizon=3), 4)
    0.0276
    """

    initial: FloatArray  # (S,)
    transition: FloatArray  # (S, S)
    emission: FloatArray  # (S, V)

    def __init__(self, initial: ArrayInput, transition: ArrayInput, emission: ArrayInput) -> None:
        law = _laws("initial", initial, 1)
        moves, emits = _laws("transition", transition), _laws("emission", emission)
        S = len(law)
        if moves.shape != (S, S):
            raise ShapeError(f"transition: expected shape ({S}, {S}), a row for each of initial, got {moves.shape}")
        if emits.shape[0] != S:
            raise ShapeError(f"emission: expected shape ({S}, V), a row for each of initial, got {emits.shape}")
        for name, value in (("initial", law), ("transition", moves), ("emission", emits)):
            object.__setattr__(self, name, value)

    @property
    def num_states(self) -> int:
        """Number of hidden states, S."""
        return int(self.emission.shape[0])

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, V."""
        return int(self.emission.shape[1])

    def __repr__(self) -> str:
        return f"HiddenMarkovLanguage({self.num_states} states, {self.vocabulary_size} tokens)"

    def stationary(self) -> HiddenMarkovLanguage:
        """The same language in the long run: started from the state's law averaged over all times.

        That law is stationary. Of several, it is the one that ``initial`` leads to.

        Examples
        --------
        >>> import markovlm as mk
        >>> mk.synthetic.HiddenMarkovLanguage([1, 0], [[0.9, 0.1], [0.3, 0.7]], [[1, 0], [0, 1]]).stationary().initial
        array([0.75, 0.25])
        """
        moved = (np.eye(self.num_states) + self.transition) / 2  # staying now and then forgets phases, and no more
        for _ in range(64):  # 2**64 steps
            moved = moved @ moved
            moved /= moved.sum(axis=1, keepdims=True)
        return HiddenMarkovLanguage(self.initial @ moved, self.transition, self.emission)

    # Beliefs, and what follows from them

    def beliefs(self, tokens: ArrayInput, initial: ArrayInput | None = None) -> FloatArray:
        """Belief states before the first token, between tokens, and after the last.

        Parameters
        ----------
        tokens : (T,) or (n, T) int
            Token ids.
        initial : (S,) probabilities, optional
            In the place of the language's own.

        Returns
        -------
        (T + 1, S) or (n, T + 1, S) float64
            ``[..., t, :]`` is the state from which token ``t`` (from 0) is predicted, given those before it. Cost
            ``O(n T S²)``.

        Raises
        ------
        ValueRangeError
            A token is not in the vocabulary, or impossible after those before it; names the place.
        """
        ids = _checks.token_sequences("tokens", tokens, self.vocabulary_size)
        found = self._beliefs("tokens", ids, self._initial(initial))
        return found if ids.ndim == 2 else found[0]

    def next_token(self, beliefs: ArrayInput) -> FloatArray:
        """(m, V) exact laws of the next token, for (m, S) belief states; (V,) for one of shape (S,)."""
        array = _checks.as_numpy("beliefs", beliefs)
        rows, _ = _checks.stochastic("beliefs", array, ndim=min(array.ndim, 2) or 1)
        if rows.shape[-1] != self.num_states:
            raise ShapeError(f"beliefs: expected {self.num_states} columns, one per state, got shape {array.shape}")
        return np.asarray(rows @ self.emission)

    def next_token_kernel(self, words: ArrayInput, *, every_prefix: bool = False) -> Kernel:
        r"""The data kernel :math:`k_{data}`: from each word, as a context, to the next token.

        Parameters
        ----------
        words : (T,) or (n, T) int
            Token ids.
        every_prefix : bool
            One row for each prefix but the empty one, ``n T`` in all: the contexts that `extract` and `features` have
            of these words, in their order.

        Raises
        ------
        ValueRangeError
            A word is impossible; names the place.

        Examples
        --------
        >>> import markovlm as mk
        >>> mk.synthetic.golden_mean(0.25).next_token_kernel([[0, 0], [0, 1]]).matrix
        array([[0.75, 0.25],
               [1.  , 0.  ]])
        """
        ids = _checks.token_sequences("words", words, self.vocabulary_size)
        beliefs = self._beliefs("words", ids, self.initial)
        contexts = beliefs[:, 1:].reshape(-1, self.num_states) if every_prefix else beliefs[:, -1]
        return _data_kernel(contexts @ self.emission)

    # Words and their entropies

    def words(self, length: int) -> tuple[IntArray, FloatArray]:
        """All words of positive probability, (n, length) in lexicographic order, and their probabilities, (n,).

        Raises
        ------
        ValueRangeError
            There are more than 2**20.

        Examples
        --------
        >>> import markovlm as mk
        >>> words, probabilities = mk.synthetic.cycle(3).words(2)
        >>> words.tolist(), probabilities.round(3).tolist()
        ([[0, 1], [1, 2], [2, 0]], [0.333, 0.333, 0.333])
        """
        words, probabilities, _ = self._enumerate(length)
        return words, probabilities

    def word_probabilities(self, words: ArrayInput) -> FloatArray:
        """(n,) probabilities that the language begins with these (n, T) words; 0 for impossible ones."""
        ids = np.atleast_2d(_checks.token_sequences("words", words, self.vocabulary_size))
        found = np.ones(len(ids))
        for factor, _ in self._read(ids, np.broadcast_to(self.initial, (len(ids), self.num_states))):
            found *= factor
        return found

    def entropy(self, length: int) -> float:
        r""":math:`H(W_{1:\mathrm{length}})` in nats, over all words."""
        return float(entr(self._enumerate(length)[1]).sum())

    def conditional_entropy(self, context_length: int) -> float:
        r""":math:`H(W_{T+1} \mid W_{1:T})` in nats: of the next token, after all words of ``context_length`` tokens."""
        _, probabilities, beliefs = self._enumerate(context_length, "context_length")
        return float(probabilities @ entr(beliefs @ self.emission).sum(axis=1))

    def entropy_rate_bounds(self, context_length: int) -> tuple[float, float]:
        r"""Bounds of the entropy rate in nats per token, closer the longer the context.

        .. math:: H(W_{T+1} \mid W_{1:T}, S_1) \le \lim_{n} \tfrac1n H(W_{1:n}) \le H(W_{T+1} \mid W_{1:T})

        both for the stationary language. Source: Cover and Thomas, Elements of Information Theory, Thm 4.5.1.

        Examples
        --------
        >>> import markovlm as mk
        >>> low, high = mk.synthetic.even_process(0.5).entropy_rate_bounds(10)
        >>> round(low, 4), round(high, 4)  # 2/3 log 2 = 0.4621
        (0.4621, 0.4675)
        """
        running = self.stationary()
        started = (HiddenMarkovLanguage(one, self.transition, self.emission) for one in np.eye(self.num_states))
        known = [
            p * language.conditional_entropy(context_length) if p > 0 else 0.0
            for p, language in zip(running.initial, started, strict=True)
        ]
        return math.fsum(known), running.conditional_entropy(context_length)

    # What a belief says of the future

    def exact_surplus(self, context_length: int, horizon: int) -> float:
        r"""Information surplus :math:`I(H_t; W_{t+1:t+K-1} \mid W_t)` in nats (Eq. 4.2); see `surplus_terms`.

        Examples
        --------
        >>> import math, markovlm as mk
        >>> language = mk.synthetic.copy_language(3, alphabet=2)  # three letters, then the same three
        >>> round(language.exact_surplus(context_length=3, horizon=3) / math.log(2), 6)
        2.0
        """
        return self.surplus_terms(context_length, horizon).surplus

    def surplus_terms(self, context_length: int, horizon: int) -> SurplusTerms:
        r"""What the belief state after ``context_length`` tokens says of the next ``horizon`` tokens, term by term.

        .. math:: I(H_t; W_{t:t+K-1}) = I(H_t; W_t) + I(H_t; F \mid W_t), \qquad F = W_{t+1:t+K-1}

        :math:`H_t` is the belief after :math:`W_{1:T}`, ``T = context_length``: the state from which :math:`W_t`,
        ``t = T + 1``, is predicted.

        Parameters
        ----------
        context_length : int >= 0
            T, tokens that the belief knows.
        horizon : int >= 1
            K. With 1 there is no future beyond the next token, and no surplus.

        Returns
        -------
        SurplusTerms
            ``0 <= surplus <= future_entropy <= (K - 1) log V``.

        Raises
        ------
        ValueRangeError
            Too many words or continuations to be enumerated.

        Notes
        -----
        Cost ``O(n V^K S)`` for ``n`` words. Source: arXiv 2507.19247, Eq. 4.1–4.2; theory §7.
        """
        _, law, beliefs = self._enumerate(context_length, "context_length")
        return surplus_terms(self.transition, self.emission, law, beliefs, horizon)

    # Text

    def sample(self, num_sequences: int, length: int, seed: int = 0) -> IntArray:
        """(num_sequences, length) int64 token ids, independent sequences. Cost ``O(n T (S + V))``."""
        n = _checks.count("num_sequences", num_sequences, 0, 2**40)
        rng = np.random.default_rng(_checks.count("seed", seed, 0, 2**63 - 1))
        return self._sample(rng, n, _checks.count("length", length, 0, 2**40))

    def features(self, num_sequences: int, length: int, seed: int = 0) -> Features:
        r"""What `extract` would give for a model that knows this language: belief states, and a head that reads them.

        Row by row ``hidden = [log next-token law (V), belief state (S)]`` and ``head = [identity, 0]``, so that softmax
        gives the exact next-token law, within the rounding of float32. Logarithms are floored at -60: what cannot
        follow has probability 1e-26 in the softmax kernel, not 0.

        Parameters
        ----------
        num_sequences, length : int
            So many contexts in each of so many sequences; one more token is drawn, as the last target.
        seed : int
            As in `sample`, of the ``(num_sequences, length + 1)`` tokens.

        Examples
        --------
        >>> import markovlm as mk
        >>> features = mk.synthetic.mess3().features(num_sequences=50, length=40)
        >>> features
        Features(HiddenMarkovLanguage(3 states, 3 tokens): 2000 contexts in 50 sequences, vocabulary 3, hidden size 6,
        no layers)
        >>> low, high = mk.nll(features).calibration.interval
        >>> low < 0 < high
        True
        """
        n = _checks.count("num_sequences", num_sequences, 1, 2**40)
        T = _checks.count("length", length, 1, 2**40)
        S, V = self.num_states, self.vocabulary_size
        tokens = self.sample(n, T + 1, seed)
        beliefs = self.beliefs(tokens[:, :-1])[:, 1:].reshape(n * T, S)
        with np.errstate(divide="ignore"):
            logs = np.maximum(np.log(beliefs @ self.emission), LEAST_LOG)
        sequence_ids = np.repeat(np.arange(n, dtype=np.int64), T)
        fields: dict[str, Any] = {
            "hidden": np.hstack([logs, beliefs]).astype(np.float32),
            "head": np.eye(V, V + S, dtype=np.float32),
            "embedding": np.eye(V, dtype=np.float32),
            "targets": tokens[:, 1:].reshape(-1),
            "token_ids": tokens[:, :-1].reshape(-1),
            "sequence_ids": sequence_ids,
            "positions": np.tile(np.arange(T, dtype=np.int64), n),
            "text_ids": sequence_ids,
            "vocabulary": tuple(map(str, range(V))),
            "provenance": {"model": repr(self), "sequences": n, "tokens": n * T, "context_length": T, "seed": seed},
        }
        return Features(**fields)

    # How

    def _initial(self, given: ArrayInput | None) -> FloatArray:
        if given is None:
            return self.initial
        law = _laws("initial", given, 1)
        if law.shape != (self.num_states,):
            raise ShapeError(f"initial: expected shape ({self.num_states},), one per state, got {law.shape}")
        return law

    def _read(self, rows: IntArray, belief: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Of each token of (n, T) rows: (n,) its probability given those before it, and (n, S) beliefs after it."""
        for ids in rows.T:
            weighted = belief * self.emission.T[ids]
            factor = weighted.sum(axis=1)
            belief = (weighted / np.where(factor > 0, factor, 1.0)[:, None]) @ self.transition
            yield factor, belief

    def _beliefs(self, name: str, ids: IntArray, initial: FloatArray) -> FloatArray:
        """(n, T + 1, S) beliefs; impossible words are refused under the name of the argument."""
        rows = np.atleast_2d(ids)
        found = np.empty((rows.shape[0], rows.shape[1] + 1, self.num_states))
        found[:, 0] = initial
        for t, (factor, belief) in enumerate(self._read(rows, found[:, 0])):
            impossible = np.flatnonzero(factor <= 0)
            if impossible.size:
                row = int(impossible[0])
                place = (row, t) if ids.ndim == 2 else (t,)
                raise ValueRangeError(
                    f"{name}: expected words of this language, but token {rows[row, t]} at index {place} cannot come "
                    "after those before it"
                )
            found[:, t + 1] = belief
        return found

    def _enumerate(self, length: int, name: str = "length") -> tuple[IntArray, FloatArray, FloatArray]:
        """All words of positive probability, their probabilities, and the beliefs after them."""
        length = _checks.count(name, length, 0, 4096)
        words, law, beliefs = np.zeros((1, 0), np.int64), np.ones(1), self.initial[None, :]
        for t in range(length):
            following = beliefs @ self.emission
            before, token = np.nonzero(following > 0)
            if len(token) > MOST_WORDS:
                raise ValueRangeError(
                    f"{name}: expected at most {MOST_WORDS} words, but there are {len(token)} of {t + 1} tokens "
                    f"already, of {length}; take a shorter length"
                )
            p = following[before, token]
            beliefs = (beliefs[before] * self.emission.T[token] / p[:, None]) @ self.transition
            law = law[before] * p
            words = np.column_stack([words[before], token])
        return words, law, beliefs

    def _sample(self, rng: np.random.Generator, n: int, length: int) -> IntArray:
        return draw_tokens(rng, self.initial, self.transition, self.emission, n, length)


def _laws(name: str, value: ArrayInput, ndim: int = 2) -> FloatArray:
    """Read-only probability vectors that sum to 1 in float64, of at least one element."""
    rows, _ = _checks.stochastic(name, value, ndim)
    if rows.shape[-1] == 0:
        raise ShapeError(f"{name}: expected at least one element, got shape {rows.shape}")
    exact: FloatArray = rows / rows.sum(axis=-1, keepdims=True)
    exact.flags.writeable = False
    return exact


def _data_kernel(matrix: FloatArray) -> Kernel:
    return Kernel(matrix, domain={"context": matrix.shape[0]}, codomain={"token": matrix.shape[1]})
