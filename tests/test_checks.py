"""What is refused, by which error and in which words; what is accepted, and where it keeps its memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from markovlm import (
    KL,
    Renyi,
    SoftmaxKernel,
    adjoint_product,
    divergence,
    mean_prediction,
    normal_product,
    panel_product,
    softmax_stats,
)
from markovlm.errors import DTypeError, MarkovLMError, ShapeError, ValueRangeError

NAN, INF = float("nan"), float("inf")
H, W = np.ones((3, 2), np.float32), np.zeros((4, 2), np.float32)
# Their arguments are wrong on purpose, in type too.
kernel: Any = SoftmaxKernel
stats: Any = softmax_stats
mean: Any = mean_prediction
P = kernel(H, W)


def changed(array: NDArray[Any], place: tuple[int, ...], value: float) -> NDArray[Any]:
    copy = array.copy()
    copy[place] = value
    return copy


class OnlyDLPack:
    """An array of a library that knows nothing of NumPy."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


# What the message says (argument, what was expected, what came), and the call.
WRONG_VALUES: dict[str, Callable[[], object]] = {
    r"hidden: expected finite .* got nan at row 2, column 1": lambda: kernel(changed(H, (2, 1), NAN), W),
    r"hidden: .* got -inf at row 1, column 0": lambda: kernel(changed(H, (1, 0), -INF), W),
    r"head: .* got inf at row 3, column 1": lambda: kernel(H, changed(W, (3, 1), INF)),
    r"hidden: .* got inf at row 0, column 1": lambda: kernel(changed(H.astype(float), (0, 1), 1e300), W),
    r"bias: .* got nan for token 1": lambda: kernel(H, W, [0.0, NAN, 0.0, 0.0]),
    r"bias: .* got inf for token 3": lambda: kernel(H, W, [0.0, 0.0, 0.0, INF]),
    r"bias: .* got -1e\+300 for token 2": lambda: kernel(H, W, [0.0, 0.0, -1e300, 0.0]),
    r"bias: expected at least one token that is not masked": lambda: kernel(H, W, [-INF] * 4),
    r"targets: expected token ids in \[0, 4\) or ignore_index = -100, got 4 at index \(1,\)": lambda: stats(
        P, [0, 4, 0]
    ),
    r"targets: .* got -1 at index \(2,\)": lambda: stats(P, [0, -100, -1]),
    r"targets: .* below 2\*\*63": lambda: stats(P, np.full(3, 2**64 - 1, np.uint64)),
    r"token_ids: expected token ids in \[0, 4\), got -1 at index": lambda: stats(P, token_ids=[0, -1]),
    r"token_ids: .* got 9 at index \(2, 0\)": lambda: stats(P, token_ids=[[0], [1], [9]]),
    r"top_k: expected an integer in \[0, 4\], got 5": lambda: stats(P, top_k=5),
    r"top_k: .* got -1": lambda: stats(P, top_k=-1),
    r"orders: expected Rényi orders in \[-inf, inf\], got nan": lambda: stats(P, orders=[-INF, NAN]),
    r"power: expected a number > 0 .*, got 0": lambda: panel_product(P, W, 0),
    r"X: expected finite float32 values, got nan at row 3": lambda: panel_product(P, changed(W, (3, 1), NAN)),
    r"weights: .* got -1.0 at index 0": lambda: normal_product(P, W, weights=[-1, 1, 1]),
    r"log_normalizer: .* got nan at row 1": lambda: panel_product(P, W, log_normalizer=np.array([0, NAN, 0])),
    r"reference: .* none was given": lambda: stats(P, divergences=[KL()]),
    r"alpha: expected Rényi orders in \[0, inf\], got -1.0": lambda: Renyi(-1),
    r"alpha: .* got nan": lambda: Renyi(NAN),
    r"num_threads: .* got 0": lambda: stats(P, num_threads=0),
    r"max_memory: .* got 0": lambda: stats(P, max_memory=0),
    r"max_memory: expected at least \d+ bytes, .* got 100$": lambda: stats(P, max_memory=100),
    r"max_memory: expected at least \d+ bytes, .* got 10$": lambda: normal_product(P, W, max_memory=10),
    r"weights: expected finite values >= 0, got -2.0 at index 1": lambda: mean(P, [1, -2.0, 1]),
    r"weights: .* got nan at index 0": lambda: mean(P, [NAN, 1, 1]),
    r"weights: .* got inf at index 2": lambda: mean(P, [1, 1, INF]),
    r"weights: expected at least one positive value": lambda: mean(P, [0, 0, 0]),
}
WRONG_SHAPES: dict[str, Callable[[], object]] = {
    r"hidden: expected width 2, that of head \(4, 2\), got shape \(3, 5\)": lambda: kernel(np.ones((3, 5)), W),
    r"hidden: expected 2 axes \(n, d\), got shape \(6,\)": lambda: kernel(H.ravel(), W),
    r"head: expected 2 axes \(V, d\), got shape \(1, 4, 2\)": lambda: kernel(H, W[None]),
    r"head: expected at least one token, got shape \(0, 2\)": lambda: kernel(H, W[:0]),
    r"hidden: expected an array of numbers, .* inhomogeneous": lambda: kernel([[1.0], [1.0, 2.0]], W),
    r"bias: expected shape \(4,\), .* got \(3,\)": lambda: kernel(H, W, np.zeros(3)),
    r"targets: expected shape \(3,\), .* got \(2,\)": lambda: stats(P, [0, 1]),
    r"targets: .* got \(3, 1\)": lambda: stats(P, [[0], [1], [2]]),
    r"token_ids: expected shape \(K,\) or \(3, K\), got \(2, 1\)": lambda: stats(P, token_ids=[[0], [1]]),
    r"token_ids: .* got \(\)": lambda: stats(P, token_ids=2),
    r"reference: expected 4 tokens, as P has, got 3": lambda: stats(P, reference=kernel(H, W[:3])),
    r"reference: .* divides 3, the rows of P, got 2": lambda: stats(P, reference=P[:2]),
    r"reference: .* divides 3, the rows of P, got 0": lambda: stats(P, reference=P[:0]),
    r"X: expected 4 rows, one per V of the kernel, got shape \(3, 1\)": lambda: panel_product(P, np.ones((3, 1))),
    r"Y: expected 3 rows, one per n of the kernel, got shape \(4, 1\)": lambda: adjoint_product(P, np.ones((4, 1))),
    r"X: expected 2 axes \(V, b\), got shape \(4,\)": lambda: normal_product(P, np.ones(4)),
    r"log_normalizer: expected shape \(3,\), .* got \(2,\)": lambda: panel_product(P, W, log_normalizer=[0.0, 0.0]),
    r"Q: domain: expected sets of one size, got 3 elements on the left": lambda: divergence(P, P[:2], KL()),
    r"weights: expected shape \(3,\), .* got \(4,\)": lambda: mean(P, [1] * 4),
    r"P: expected at least one context": lambda: mean(P[:0]),
}
WRONG_TYPES: dict[str, Callable[[], object]] = {
    r"hidden: expected floating-point values, got int64": lambda: kernel(H.astype(np.int64), W),
    r"hidden: .* got complex64": lambda: kernel(H.astype(np.complex64), W),
    r"hidden: .* got bool": lambda: kernel(H > 0, W),
    r"head: expected an array of numbers, got ndarray": lambda: kernel(H, W.astype(object)),
    r"head: expected an array of numbers, got NoneType": lambda: kernel(H, None),
    r"hidden: .* got <U1": lambda: kernel([["a", "b"]], W),
    r"bias: .* got int64": lambda: kernel(H, W, np.zeros(4, np.int64)),
    r"rows: expected a slice or an index array, got 1": lambda: P[1],
    r"targets: expected integers, got float64": lambda: stats(P, np.zeros(3)),
    r"targets: expected integers, got bool": lambda: stats(P, [True, False, True]),
    r"token_ids: expected integers, got float64": lambda: stats(P, token_ids=[0.5]),
    r"top_k: expected an integer, got True": lambda: stats(P, top_k=True),
    r"top_k: expected an integer, got 1.0": lambda: stats(P, top_k=1.0),
    r"orders: expected a sequence of numbers, got 2.0": lambda: stats(P, orders=2.0),
    r"D: expected a divergence such as mk.KL\(\) .*, got 'kl'": lambda: divergence(P, P, "kl"),  # type: ignore[arg-type]
    r"X: expected floating-point values, got int64": lambda: panel_product(P, np.ones((4, 1), int)),
    r"log_normalizer: .* got int64": lambda: panel_product(P, W, log_normalizer=np.array([0, 0, 0])),
    r"D: Renyi needs its arguments": lambda: divergence(P, P, Renyi),  # type: ignore[arg-type]
    r"alpha: .* got \['a'\]": lambda: Renyi("a"),  # type: ignore[arg-type]
    r"num_threads: .* got 2.0": lambda: mean(P, num_threads=2.0),
    r"max_memory: .* got '64 MiB'": lambda: mean(P, max_memory="64 MiB"),
    r"weights: expected real numbers, got bool": lambda: mean(P, [True] * 3),
}
REFUSED = [
    pytest.param(error, message, call, id=message)
    for error, calls in ((ValueRangeError, WRONG_VALUES), (ShapeError, WRONG_SHAPES), (DTypeError, WRONG_TYPES))
    for message, call in calls.items()
]


@pytest.mark.parametrize(("error", "message", "call"), REFUSED)
def test_refused(error: type[MarkovLMError], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["temperature", "scale", "softcap"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        *((value, ValueRangeError) for value in (0.0, -1.0, NAN, INF, 1e40, 1e-40, 0)),
        *((value, DTypeError) for value in ("hot", "2", 1j, True, [1.0, 2.0])),
    ],
)
def test_numbers_that_are_not_positive(name: str, value: object, error: type[MarkovLMError]) -> None:
    with pytest.raises(error, match=rf"{name}: expected a number > 0.*, got {re.escape(repr(value))}"):
        kernel(H, W, **{name: value})


def test_no_contexts_are_no_error() -> None:
    s = softmax_stats(P[:0], [], [0.5], 2, np.zeros((0, 3), int), reference=P[:0])
    assert s.entropy.shape == (0,)
    assert s.log_probs is not None
    assert s.log_probs.shape == (0, 3)
    assert s.top_ids is not None
    assert s.top_ids.shape == (0, 2)


STATES = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
ACCEPTED: dict[str, tuple[Any, bool]] = {  # and whether the memory is kept
    "float32": (STATES, True),
    "strided rows": (np.hstack([STATES, STATES])[:, :6], True),
    "every other row": (np.repeat(STATES, 2, axis=0)[::2], True),
    "reversed rows": (STATES[::-1].copy()[::-1], True),
    "one row, repeated": (np.broadcast_to(STATES[:1], (7, 6)), True),
    "read only": (np.frombuffer(STATES.tobytes(), np.float32).reshape(7, 6), True),
    "columns first": (np.asfortranarray(STATES), False),
    "every other column": (np.repeat(STATES, 2, axis=1)[:, ::2], False),
    "unaligned": (np.frombuffer(b"x" + STATES.tobytes(), np.float32, offset=1).reshape(7, 6), False),
    "foreign byte order": (STATES.astype(">f4"), False),
    "float16, foreign byte order": (STATES.astype("f2").astype(">f2"), False),
    "float64": (STATES.astype(np.float64), False),
    "list": (STATES.tolist(), False),
    "tensor": (torch.from_numpy(STATES), True),
    "tensor with gradient": (torch.from_numpy(STATES.copy()).requires_grad_(), True),
    "dlpack": (OnlyDLPack(STATES), True),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_and_left_as_it_was(name: str) -> None:
    given, kept = ACCEPTED[name]
    head = STATES[:5].copy()
    memory = given.detach().numpy() if isinstance(given, torch.Tensor) else getattr(given, "array", np.asarray(given))
    before = memory.copy()
    Q = SoftmaxKernel(given, head)
    assert np.shares_memory(Q.hidden, memory) == kept
    assert np.shares_memory(Q.head, head)
    expected = STATES[:1].repeat(7, axis=0) if name == "one row, repeated" else STATES
    expected = expected.astype("f2").astype("f4") if name.startswith("float16") else expected
    result = softmax_stats(Q, orders=[0.5], top_k=2, targets=[0] * 7).entropy
    np.testing.assert_array_equal(result, softmax_stats(SoftmaxKernel(expected, head)).entropy)
    np.testing.assert_array_equal(memory, before)
    assert np.shares_memory(Q[1:3].hidden, Q.hidden)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("columns", [slice(None), slice(1, 5), slice(None, None, 2)], ids=str)
def test_tensors_of_other_types(dtype: torch.dtype, columns: slice) -> None:
    """Halves keep their memory and are widened as they are read, with the same results; doubles are rounded once."""
    tensor = torch.from_numpy(STATES).to(dtype)[:, columns]
    Q = SoftmaxKernel(tensor, tensor[:5], bias=tensor[:5, 0])
    assert str(Q.hidden.dtype) == ("float32" if dtype == torch.float64 else str(dtype).removeprefix("torch."))
    np.testing.assert_array_equal(Q.hidden.astype(np.float32), tensor.float().numpy())
    shared = dtype != torch.float64 and columns.step is None
    assert (Q.hidden.__array_interface__["data"][0] == tensor.data_ptr()) == shared
    assert Q.bias is not None
    np.testing.assert_array_equal(Q.bias, tensor[:5, 0].float().numpy())
    R = SoftmaxKernel(tensor.float(), tensor[:5].float(), bias=tensor[:5, 0])
    np.testing.assert_array_equal(divergence(Q, R, KL()), divergence(R, Q, KL()))
    for mixed in (Q, SoftmaxKernel(tensor.float(), tensor[:5], Q.bias), SoftmaxKernel(tensor, R.head, Q.bias)):
        np.testing.assert_array_equal(softmax_stats(mixed).entropy, softmax_stats(R).entropy)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
def test_every_finite_value_of_a_type_is_read_exactly(core: Any, dtype: Any) -> None:
    """As logits: each of the 2^16 halves, subnormal ones too, and as many float32."""
    bits = np.arange(2**16, dtype=np.uint16)
    values = bits.view(dtype) if dtype != np.float32 else (bits.astype(np.uint32) << 16 | bits).view(np.float32)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(values.astype(np.float32))
    for row, value in enumerate(values):
        if not finite[row] and row % 97 == 0:
            assert core.first_non_finite(np.array([[0, value]], dtype)) == (0, 1)
    exact = values[finite][:, None]
    assert core.first_non_finite(exact) is None
    one = SoftmaxKernel(np.ones((1, 1), dtype), exact)
    logits = softmax_stats(one, token_ids=np.arange(len(exact))[None])
    assert logits.log_probs is not None
    wide = exact[:, 0].astype(np.float64)
    np.testing.assert_array_equal(logits.log_probs[0] + logits.log_normalizer, wide - wide.max() + wide.max())


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=str)
def test_halves_that_are_not_finite(value: float, dtype: Any) -> None:
    with pytest.raises(
        ValueRangeError, match=rf"hidden: expected finite {np.dtype(dtype).name} values, got .* at row 2"
    ):
        kernel(changed(H, (2, 1), value).astype(dtype), W)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint64, ">i4"])
def test_integers_of_any_type(dtype: str) -> None:
    targets = np.array([3, 0, 1]).astype(dtype)
    np.testing.assert_array_equal(softmax_stats(P, targets).nll, softmax_stats(P, torch.tensor([3, 0, 1])).nll)
    np.testing.assert_array_equal(targets, [3, 0, 1])


@pytest.mark.parametrize("size", [1, 15, 16, 17, 40])
def test_every_place_is_looked_at(core: Any, size: int) -> None:
    for column in range(size):
        states = np.zeros((2, size + 3), np.float32)[:, :size]
        states[1, column] = NAN
        assert core.first_non_finite(states) == (1, column)
    beside = np.full((2, size + 3), NAN, np.float32)
    beside[:, :size] = 0
    assert core.first_non_finite(beside[:, :size]) is None


def test_weights_and_orders_are_left_as_they_were() -> None:
    weights, orders = np.array([1.0, 2.0, 5.0]), [2.0, 0.5]
    mean_prediction(P, weights)
    assert list(softmax_stats(P, orders=orders).renyi) == orders == [2.0, 0.5]
    np.testing.assert_array_equal(weights, [1.0, 2.0, 5.0])
