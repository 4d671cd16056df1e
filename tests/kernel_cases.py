"""Random kernels of every representation, zeros and point masses included, and what rounding may make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from hypothesis import strategies as st

import markovlm as mk
from markovlm.typing import FloatArray


def random_rows(rng: np.random.Generator, n: int, m: int) -> FloatArray:
    """Rows of all kinds: spread out, concentrated, with zeros, point masses; tiny entries too."""
    rows = rng.dirichlet(np.full(m, rng.choice([0.05, 0.5, 1.0, 20.0])), n) if m else np.zeros((n, 0))
    kinds = rng.integers(0, 4, n)
    for x in range(n):
        if kinds[x] == 1:  # zeros
            rows[x] *= rng.random(m) < 0.5
        elif kinds[x] == 2:  # a point mass
            rows[x] = 0.0
        elif kinds[x] == 3 and m > 1:  # a tiny entry
            rows[x, rng.integers(m)] = 10.0 ** -rng.integers(5, 70)  # four times as small is no underflow
        if rows[x].sum() == 0:
            rows[x, rng.integers(m)] = 1.0
    return rows / rows.sum(axis=1, keepdims=True)


def dense(rng: np.random.Generator, n: int, m: int) -> mk.Kernel:
    return mk.Kernel(random_rows(rng, n, m))


def sparse(rng: np.random.Generator, n: int, m: int) -> mk.Kernel:
    return mk.Kernel(sp.csr_array(random_rows(rng, n, m)))


def function(rng: np.random.Generator, n: int, m: int) -> mk.Kernel:
    return mk.deterministic(rng.integers(0, m, n), m)


def softmax(rng: np.random.Generator, n: int, m: int) -> mk.Kernel:
    bias = rng.normal(size=m)
    bias[rng.random(m) < 0.3] = -np.inf
    bias[rng.integers(m)] = 0.0
    return mk.SoftmaxKernel(rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) * rng.choice([0.1, 1.0, 4.0]), bias)


def chain(rng: np.random.Generator, n: int, m: int) -> mk.Kernel:
    k = int(rng.integers(1, 5))
    return dense(rng, n, k) >> sparse(rng, k, m)


def tensor(rng: np.random.Generator, n: int, m: int) -> mk.Kernel:
    a = next(i for i in range(int(rng.integers(1, n + 1)), 0, -1) if n % i == 0)
    b = next(i for i in range(int(rng.integers(1, m + 1)), 0, -1) if m % i == 0)
    made = dense(rng, a, b).tensor(function(rng, n // a, m // b))
    return made.renamed(n, m)


def rearranged(rng: np.random.Generator, n: int, m: int) -> mk.Kernel:
    """Something that only rearranges, and then a function to the size that is wanted."""
    if m == n:
        return mk.identity(n)
    if m == 1:
        return mk.discard(n)
    return (mk.copy(n) >> mk.identity(n).tensor(mk.discard(n)) >> function(rng, n, m)).renamed(n, m)


Maker = Callable[[np.random.Generator, int, int], mk.Kernel]
MAKERS: tuple[Maker, ...] = (dense, sparse, function, softmax, chain, tensor, rearranged)
STATES: tuple[Maker, ...] = (dense, sparse, function)
sizes = st.integers(1, 6)


@st.composite
def kernels(draw: st.DrawFn, n: int | None = None, m: int | None = None, makers: Sequence[Maker] = MAKERS) -> mk.Kernel:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, m = draw(sizes) if n is None else n, draw(sizes) if m is None else m
    return draw(st.sampled_from(makers))(rng, n, m)


@st.composite
def pipelines(draw: st.DrawFn, length: int) -> list[mk.Kernel]:
    """Kernels one after another."""
    between = [draw(sizes) for _ in range(length + 1)]
    return [draw(kernels(n, m)) for n, m in pairwise(between)]


def states(n: int) -> st.SearchStrategy[mk.Kernel]:
    return kernels(1, n, STATES).map(lambda k: k.renamed(domain=()))


def rounding(*kernels: mk.Kernel, results: int = 4) -> float:
    """How far entries may be off after some products of these kernels.

    An entry is a sum of at most ``size`` products of entries, each relatively off by ``results`` times the rounding of
    what it was made from: (size + 64) eps, 64 of them for a softmax kernel's logits (|z| <= 40, d = 3) and exponential.
    """
    eps = max(part.eps for k in kernels for part in k._parts)
    size = max(max(k.shape) for k in kernels)
    return results * (size + 64) * eps


def assert_same(left: mk.Kernel | FloatArray, right: mk.Kernel | FloatArray, bound: float) -> None:
    a, b = np.asarray(left), np.asarray(right)
    assert a.shape == b.shape
    worst = float(np.abs(a - b).max(initial=0.0))
    assert worst <= bound, f"off by {worst}, allowed {bound}"


def assert_kernel(k: mk.Kernel, bound: float) -> None:
    matrix = k.matrix
    assert matrix.shape == k.shape
    assert np.all(matrix >= 0)
    assert np.all(np.abs(matrix.sum(axis=1) - 1) <= bound)
