"""What tokens alone tell about the next one: interpolated counts of words, from none up to some length."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from .typing import FloatArray, IntArray

__all__ = ["ngram_losses"]


def ngram_losses(sequences: Sequence[IntArray], contexts: IntArray, targets: IntArray, vocabulary: int) -> FloatArray:
    r"""(m,) ``-log q(target | context)`` in nats, of counts in some sequences, for contexts of j tokens (m, j).

    .. math:: q(w \mid c) = \frac{N(c w) + T(c)\, q(w \mid c')}{N(c) + T(c)}, \qquad q(w) = 1 / V \text{ at last}

    ``T(c)`` is the number of different tokens seen after ``c``, and ``c'`` is ``c`` without its first token (Witten and
    Bell, 1991, *The zero-frequency problem*, method C). Each is a distribution over all V tokens.
    """
    length = contexts.shape[1]
    counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(length + 1)]
    for sequence in sequences:
        tokens = sequence.tolist()
        for end, token in enumerate(tokens):
            for j in range(min(length, end) + 1):
                counts[j][tuple(tokens[end - j : end])][token] += 1
    totals = [{context: found.total() for context, found in table.items()} for table in counts]
    out = np.empty(len(targets))
    for i, (context, target) in enumerate(zip(contexts.tolist(), targets.tolist(), strict=True)):
        q = 1.0 / vocabulary
        for j in range(length + 1):
            key = tuple(context[length - j :])
            found = counts[j].get(key)
            if found is None:
                break
            q = (found[target] + len(found) * q) / (totals[j][key] + len(found))
        out[i] = -np.log(q)
    return out
