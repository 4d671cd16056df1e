"""Agreement with DisCoPy, and what its conventions are where they differ.

A difference of convention stands in the docstring of its test, and the test fails if it is not as described. Where a
peer loses digits, ours is held to mpmath instead, and the docstring says what the peer gives, which is not asserted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from discopy import markov, matrix, tensor  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from markov_entropy.adapters import DiscopyAdapter  # type: ignore[import-untyped]

import markovlm as mk
from markovlm.typing import FloatArray
from peer_cases import (
    EPS,
    P,
    Q,
    assert_near,
    channels,
    rounding,
)
from test_peers_markov_entropy import me_channel, pair_rounding

# DisCoPy


def floats(array: Any, dom: Any, cod: Any) -> Any:
    return tensor.Tensor[float](array, dom, cod)


@settings(max_examples=25)
@given(data=st.data(), sizes=st.tuples(*[st.integers(2, 3)] * 4))
def test_discopy_tensors(data: st.DataObject, sizes: tuple[int, ...]) -> None:
    """Rows are the domain, ``>>`` is *f, then g*, and the last factor counts fastest: nothing to convert.

    An array there has an axis for each factor, of the domain and then of the codomain.
    """
    Dim = tensor.Dim
    a, b, c, d = sizes
    f, g, h = (data.draw(channels(*shape)) for shape in ((a, b), (b, c), (c, d)))
    first, second, third = floats(f, Dim(a), Dim(b)), floats(g, Dim(b), Dim(c)), floats(h, Dim(c), Dim(d))
    F, G, H = map(mk.Kernel, (f, g, h))

    def as_matrix(found: Any) -> FloatArray:
        return np.reshape(found.array, (math.prod(found.dom.inside), math.prod(found.cod.inside)))

    assert_near((F >> G).matrix, as_matrix(first >> second), rounding(3))
    assert_near(F.tensor(H).matrix, as_matrix(first @ third), 2 * EPS)
    assert_near(F.tensor(G, H).matrix, as_matrix(first @ second @ third), 4 * EPS)
    assert_near(mk.swap(a, b).matrix, as_matrix(floats(1, Dim(1), Dim(1)).swap(Dim(a), Dim(b))), 0.0)
    assert_near(mk.copy(a).matrix, as_matrix(tensor.Tensor[float].copy(Dim(a), 2)), 0.0)
    assert_near(mk.copy((a, b)).matrix, as_matrix(tensor.Tensor[float].copy(Dim(a, b), 2)), 0.0)
    assert_near(mk.discard((a, b)).matrix, as_matrix(tensor.Tensor[float].discard(Dim(a, b))), 0.0)
    assert_near(mk.identity((a, b)).matrix, as_matrix(tensor.Tensor[float].id(Dim(a, b))), 0.0)


def test_discopy_matrices_add() -> None:
    """``@`` of `discopy.matrix.Matrix` is the direct sum, of the sizes 2 and 3 here 5, and no product of kernels.

    The class for Markov kernels is its subclass `Tensor`. (The copy of a Matrix is meant to belong to the direct sum
    too; that of 1.2.2 has rows of zeros for three elements.)
    """
    f, g = np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    first, second = matrix.Matrix[float](f, 2, 2), matrix.Matrix[float](g, 3, 3)
    assert (first @ second).array.shape == (5, 5)
    assert mk.Kernel(f).tensor(mk.Kernel(g)).shape == (6, 6)
    assert_near((mk.Kernel(f) >> mk.Kernel(f)).matrix, (first >> first).array, 2 * EPS)
    assert_near(matrix.Matrix[float].swap(1, 1).array, [[0.0, 1.0], [1.0, 0.0]], 0.0)
    assert mk.swap(1, 1).shape == (1, 1)


def test_discopy_forgets_factors_of_one_element() -> None:
    """``Dim(1)`` is the unit, so that ``Dim(2, 1, 3)`` has two factors; a set of one element of ours stays a factor."""
    assert len(tensor.Dim(2, 1, 3)) == 2
    assert len(mk.identity((2, 1, 3)).codomain) == 3


def test_discopy_functors_take_integers() -> None:
    """A `tensor.Functor` without ``dtype=float`` cuts probabilities down to 0, in silence."""
    x = markov.Ty("x")
    box = markov.Box("f", x, x)
    values = {
        dtype: tensor.Functor({x: tensor.Dim(2)}, {box: np.array([P, Q])}, dom=markov.Category(), dtype=dtype)(box)
        for dtype in (int, float)
    }
    assert_near(values[float].array, mk.Kernel([P, Q]).matrix, 0.0)
    assert not values[int].array.any()


@st.composite
def diagrams(draw: st.DrawFn) -> tuple[Any, mk.Kernel, int, dict[Any, FloatArray]]:
    """A string diagram, the same of our kernels, how many layers it has, and the matrices of its boxes."""
    types = {size: markov.Ty(str(size)) for size in (2, 3)}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def wired(sizes: list[int]) -> Any:
        return markov.Ty().tensor(*(types[size] for size in sizes)) if sizes else markov.Ty()

    wires = draw(st.lists(st.sampled_from([2, 3]), min_size=1, max_size=3))
    diagram, kernel = markov.Id(wired(wires)), mk.identity(tuple(wires))
    boxes: dict[Any, FloatArray] = {}
    layers = draw(st.integers(1, 6))
    for layer in range(layers):
        place = draw(st.integers(0, len(wires)))
        room = len(wires) - place
        kinds = ["box"] + ["copy"] * (room > 0 and len(wires) < 4) + ["discard"] * (room > 0) + ["swap"] * (room > 1)
        kind = draw(st.sampled_from(kinds))
        taken = {"box": draw(st.integers(0, min(2, room))), "copy": 1, "discard": 1, "swap": 2}[kind]
        left, used, right = wires[:place], wires[place : place + taken], wires[place + taken :]
        step: mk.Kernel
        if kind == "box":
            made = draw(st.lists(st.sampled_from([2, 3]), max_size=max(0, min(2, 4 - len(left) - len(right)))))
            array = rng.dirichlet(np.ones(math.prod(made)), math.prod(used))
            array[rng.random(array.shape) < 0.3] = 0.0
            if draw(st.booleans()) or not array.any(axis=1).all():
                array = np.eye(math.prod(made))[rng.integers(0, math.prod(made), math.prod(used))]
            array /= array.sum(axis=1, keepdims=True)
            step = mk.Kernel(array, tuple(used), tuple(made))
            drawn = markov.Box(f"f{layer}", wired(used), wired(made))
            boxes[drawn] = array
        elif kind == "copy":
            made, step, drawn = used * 2, mk.copy(used[0]), markov.Copy(wired(used))
        elif kind == "discard":
            made, step, drawn = [], mk.discard(used[0]), markov.Copy(wired(used), 0)
        else:
            made, step, drawn = used[::-1], mk.swap(*used), markov.Swap(types[used[0]], types[used[1]])
        diagram = diagram >> markov.Id(wired(left)) @ drawn @ markov.Id(wired(right))
        kernel = kernel >> mk.identity(tuple(left)).tensor(step, mk.identity(tuple(right)))
        wires = left + made + right
    return diagram, kernel, layers, boxes


@given(case=diagrams())
def test_discopy_string_diagrams(case: tuple[Any, mk.Kernel, int, dict[Any, FloatArray]]) -> None:
    """Boxes, copies, discards and swaps, side by side and one after another, through DisCoPy's functor."""
    diagram, kernel, layers, boxes = case
    objects = {markov.Ty(str(size)): tensor.Dim(size) for size in (2, 3)}
    functor = tensor.Functor(objects, boxes, dom=markov.Category(), dtype=float)
    assert_near(kernel.matrix, np.reshape(functor(diagram).array, kernel.shape), layers * rounding(81))


@settings(max_examples=25)
@given(data=st.data(), n=st.integers(2, 4), m=st.integers(2, 4))
def test_the_diagrams_of_entropy(data: st.DataObject, n: int, m: int) -> None:
    """All three: markov-entropy draws both sides of Definition 2.5, DisCoPy evaluates them, we compare with ours."""
    k = data.draw(channels(n, m))
    channel = me_channel(k)
    names = {channel.domain: "X", channel.codomain: "Y"}
    drawn = DiscopyAdapter(names).channel_entropy_diagrams(channel)
    objects = {markov.Ty("X"): tensor.Dim(n), markov.Ty("Y"): tensor.Dim(m)}
    box = DiscopyAdapter(names).channel_box(channel)
    functor = tensor.Functor(objects, {box: k}, dom=markov.Category(), dtype=float)
    copied, twice = (mk.Kernel(np.reshape(functor(side).array, (n, m * m))) for side in (drawn.actual, drawn.reference))
    assert_near((mk.Kernel(k) >> mk.copy(m)).matrix, copied.matrix, EPS)
    assert_near((mk.copy(n) >> mk.Kernel(k).tensor(mk.Kernel(k))).matrix, twice.matrix, 4 * EPS)
    for D in (mk.KL(), mk.TotalVariation(), mk.SquaredHellinger(), mk.ChiSquared(), mk.JensenShannon(), mk.Renyi(0.5)):
        size = 1e10 if isinstance(D, mk.ChiSquared) else 0.0  # terms of p²/p²: no matter, but 1/p of a rounded p²
        limit = pair_rounding(k, 0.5) + EPS * size
        assert_near(mk.categorical_entropy(mk.Kernel(k), D), mk.divergence(copied, twice, D), limit, repr(D))
