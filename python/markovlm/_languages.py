"""Ready-made hidden Markov languages, from those whose next token tells all to those that hold much back."""

from __future__ import annotations

from itertools import product

import numpy as np

from . import _checks
from ._hidden_markov import HiddenMarkovLanguage
from .errors import ValueRangeError
from .typing import ArrayInput, FloatArray

__all__ = [
    "copy_language",
    "cycle",
    "echo",
    "even_process",
    "golden_mean",
    "markov_chain",
    "memoryless",
    "mess3",
    "periodic",
    "random_language",
    "ready_made",
]

MOST_STATES = 4096  # whose transitions take 128 MB


def memoryless(p: ArrayInput) -> HiddenMarkovLanguage:
    """Independent tokens with law ``p``: there is nothing to know, and every surplus is 0.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.synthetic.memoryless([0.5, 0.3, 0.2]).exact_surplus(2, 3)
    0.0
    """
    law, _ = _checks.stochastic("p", p, ndim=1)
    return HiddenMarkovLanguage([1.0], [[1.0]], law[None, :])


def cycle(num_tokens: int) -> HiddenMarkovLanguage:
    """``0 1 2 … 0 1 2 …`` from a random token on: ``log n`` nats of information, all in the next token; surplus 0.

    Examples
    --------
    >>> import markovlm as mk
    >>> terms = mk.synthetic.cycle(4).surplus_terms(context_length=1, horizon=3)
    >>> round(terms.next_token_information, 6), terms.surplus  # log 4
    (1.386294, 0.0)
    """
    return periodic(np.arange(_checks.count("num_tokens", num_tokens, 1, MOST_STATES)))


def periodic(word: ArrayInput) -> HiddenMarkovLanguage:
    r"""One word over and over, from a random place on: the next token leaves open at which of its places it stands.

    Once the context tells the place, and if ``horizon`` tokens do too, the surplus is
    :math:`\sum_w (n_w / n) \log n_w`, where token ``w`` stands at ``n_w`` of the ``n`` places.

    Examples
    --------
    >>> import markovlm as mk
    >>> round(mk.synthetic.periodic([0, 0, 1]).exact_surplus(context_length=2, horizon=2), 6)  # 2/3 log 2
    0.462098
    """
    ids = _checks.function_index("word", word, None)
    _checks.count("len(word)", len(ids), 1, MOST_STATES)
    V = _checks.count("max(word) + 1", int(ids.max()) + 1, 1, 2**20)
    n = len(ids)
    emission = np.zeros((n, V))
    emission[np.arange(n), ids] = 1.0
    return HiddenMarkovLanguage(np.full(n, 1 / n), np.roll(np.eye(n), 1, axis=1), emission)


def markov_chain(transition: ArrayInput, initial: ArrayInput | None = None) -> HiddenMarkovLanguage:
    """Tokens that are the states: all that is known of the future is in the next token, and every surplus is 0.

    ``initial`` is, unless given, the stationary law that the uniform one leads to.

    Examples
    --------
    >>> import markovlm as mk
    >>> terms = mk.synthetic.markov_chain([[0.9, 0.1], [0.5, 0.5]]).surplus_terms(context_length=2, horizon=3)
    >>> terms.next_token_information > 0.05, abs(terms.surplus) < 1e-12
    (True, True)
    """
    rows, _ = _checks.stochastic("transition", transition)
    S = rows.shape[1]
    law = np.full(S, 1 / max(S, 1)) if initial is None else initial
    language = HiddenMarkovLanguage(law, rows, np.eye(S))
    return language.stationary() if initial is None else language


def golden_mean(p: float = 0.5) -> HiddenMarkovLanguage:
    r"""No two ones in a row; after a zero, a one with probability ``p``: a visible chain, so surplus 0.

    Its entropy rate is :math:`h(p) / (1 + p)`.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.synthetic.golden_mean(0.5).words(3)[0].tolist()
    [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 1]]
    """
    p = _probability("p", p)
    return markov_chain([[1 - p, p], [1.0, 0.0]])


def even_process(p: float = 0.5) -> HiddenMarkovLanguage:
    """Ones come in runs of even length; where a run may end, it goes on with probability ``p``.

    Whether a one is the first or the second of a pair is hidden for as long as the run lasts, so a one alone tells
    little of what follows: the surplus is positive, though the golden mean's, with as many words, is 0.

    Examples
    --------
    >>> import markovlm as mk
    >>> round(mk.synthetic.even_process(0.5).exact_surplus(context_length=6, horizon=2), 3)
    0.126
    """
    p = _probability("p", p)
    outside = [1 - p, p, 0.0]  # a zero, or the first one of a pair
    return HiddenMarkovLanguage([1.0, 0.0, 0.0], [outside, [0.0, 0.0, 1.0], outside], np.eye(2)[[0, 1, 1]]).stationary()


def mess3(x: float = 0.05, a: float = 0.85) -> HiddenMarkovLanguage:
    """Three states that stay with probability ``1 - 2x`` and say their name with probability ``a``.

    The beliefs that words lead to are a fractal in the triangle of laws. The surplus is positive but small: the next
    token speaks of the same state as those after it. Source: Marzen and Crutchfield, Entropy 2017.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.synthetic.mess3()
    HiddenMarkovLanguage(3 states, 3 tokens)
    """
    x, a = _probability("x", x, 0.5), _probability("a", a)
    moves = np.full((3, 3), x) + np.eye(3) * (1 - 3 * x)
    emits = np.full((3, 3), (1 - a) / 2) + np.eye(3) * (a - (1 - a) / 2)
    return HiddenMarkovLanguage(np.full(3, 1 / 3), moves, emits)


def echo(delay: int, alphabet: int = 2, noise: float = 0.0) -> HiddenMarkovLanguage:
    r"""Each token repeats the one ``delay`` places before, but for a share ``noise`` of them, which are drawn anew.

    The state holds the next ``delay`` tokens up to noise, and the next of them says nothing of the others. With ``r``
    the law of a repeated token, the surplus is :math:`(K - 1)(\log a - H(r))` for ``K <= delay`` and contexts of at
    least ``delay`` tokens: as large as it can be without noise.

    Examples
    --------
    >>> import math, markovlm as mk
    >>> round(mk.synthetic.echo(3).exact_surplus(context_length=4, horizon=3) / math.log(2), 6)
    2.0
    """
    delay = _checks.count("delay", delay, 1, 12)
    a = _checks.count("alphabet", alphabet, 1, MOST_STATES)
    noise = _probability("noise", noise)
    states = list(product(range(a), repeat=delay)) if a**delay <= MOST_STATES else []
    if not states:
        raise ValueRangeError(f"delay: {a}**{delay} states are more than {MOST_STATES}; take a shorter delay")
    number = {upcoming: i for i, upcoming in enumerate(states)}
    moves = np.zeros((len(states), len(states)))
    for upcoming, i in number.items():
        for token in range(a):
            moves[i, number[(*upcoming[1:], token)]] += noise / a + (1 - noise) * (token == upcoming[0])
    emits = np.eye(a)[[upcoming[0] for upcoming in states]]
    return HiddenMarkovLanguage(np.full(len(states), 1 / len(states)), moves, emits)


def copy_language(length: int, alphabet: int = 2) -> HiddenMarkovLanguage:
    r"""A word of ``length`` letters is drawn, then said once more; then the next one is drawn.

    Where the copy begins (contexts of ``length`` tokens), the state holds the whole word: ``log a`` nats of information
    in the next token, and a surplus of :math:`(\min(K, \mathrm{length}) - 1) \log a`.

    Examples
    --------
    >>> import markovlm as mk
    >>> round(mk.synthetic.copy_language(2, alphabet=3).exact_surplus(context_length=2, horizon=2), 6)  # log 3
    1.098612
    """
    L = _checks.count("length", length, 1, 12)
    a = _checks.count("alphabet", alphabet, 1, MOST_STATES)
    if 2 * sum(a**j for j in range(1, L + 1)) > MOST_STATES:
        raise ValueRangeError(f"length: {a}**{L} words need more than {MOST_STATES} states; take a shorter length")
    parts = [letters for j in range(1, L + 1) for letters in product(range(a), repeat=j)]
    drawn = {letters: i for i, letters in enumerate(parts)}  # so far, the last letter being said
    left = {letters: i + len(parts) for i, letters in enumerate(parts)}  # of the copy, the first letter being said
    moves = np.zeros((2 * len(parts), 2 * len(parts)))
    first = [drawn[(letter,)] for letter in range(a)]
    for letters in parts:
        if len(letters) < L:
            moves[drawn[letters], [drawn[(*letters, letter)] for letter in range(a)]] = 1 / a
        else:
            moves[drawn[letters], left[letters]] = 1.0
        moves[left[letters], first if len(letters) == 1 else left[letters[1:]]] = 1 / a if len(letters) == 1 else 1.0
    initial = np.zeros(2 * len(parts))
    initial[first] = 1 / a
    said = [letters[-1] for letters in parts] + [letters[0] for letters in parts]
    return HiddenMarkovLanguage(initial, moves, np.eye(a)[said])


def random_language(
    num_states: int, vocabulary_size: int, seed: int = 0, concentration: float = 1.0
) -> HiddenMarkovLanguage:
    """Rows drawn from Dirichlet laws, begun in the stationary law; surplus next to none where they are near uniform.

    It grows as ``concentration`` falls and states come to differ, until so little is random that nothing is left open.

    Examples
    --------
    >>> import markovlm as mk
    >>> [round(mk.synthetic.random_language(4, 5, 0, c).exact_surplus(4, 3), 3) for c in (10.0, 1.0, 0.1)]
    [0.0, 0.0, 0.137]
    """
    S = _checks.count("num_states", num_states, 1, MOST_STATES)
    V = _checks.count("vocabulary_size", vocabulary_size, 1, 2**20)
    concentration = _checks.positive("concentration", concentration)
    rng = np.random.default_rng(seed)
    moves, emits = (rng.dirichlet(np.full(size, concentration), S) for size in (S, V))
    return HiddenMarkovLanguage(np.full(S, 1 / S), moves, emits).stationary()


def ready_made() -> dict[str, HiddenMarkovLanguage]:
    """One small language of each kind, by name: what a test of any estimator can run over.

    Examples
    --------
    >>> import markovlm as mk
    >>> {name: round(language.exact_surplus(4, 3), 2) for name, language in mk.synthetic.ready_made().items()}
    {'memoryless': 0.0, 'cycle': 0.0, 'markov_chain': 0.0, 'golden_mean': 0.0, 'mess3': 0.08, 'random': 0.02,
    'even_process': 0.17, 'periodic': 0.66, 'noisy_echo': 0.99, 'echo': 1.39, 'copy': 1.1}
    """
    chain: FloatArray = np.array([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]])
    return {
        "memoryless": memoryless([0.5, 0.3, 0.2]),
        "cycle": cycle(4),
        "markov_chain": markov_chain(chain),
        "golden_mean": golden_mean(),
        "mess3": mess3(),
        "random": random_language(4, 5, seed=0, concentration=0.2),
        "even_process": even_process(),
        "periodic": periodic([0, 0, 1, 0, 1]),
        "noisy_echo": echo(3, alphabet=2, noise=0.1),
        "echo": echo(3, alphabet=2),
        "copy": copy_language(3, alphabet=3),
    }


def _probability(name: str, value: float, largest: float = 1.0) -> float:
    if not 0 <= float(value) <= largest:
        raise ValueRangeError(f"{name}: expected a number in [0, {largest:g}], got {value!r}")
    return float(value)
