"""Long passes report, stop when they are told to, and let other Python threads run."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from markovlm import KL, SoftmaxKernel, TotalVariation, mean_prediction, normal_product, softmax_stats
from markovlm.typing import Progress


def kernel(n: int, V: int, d: int) -> SoftmaxKernel:
    rng = np.random.default_rng(0)
    return SoftmaxKernel(rng.standard_normal((n, d)), rng.standard_normal((V, d)))


# A pass over it takes half a minute, hundreds of times the interval at which the watch runs, unless it is stopped. Its
# rows are one row, which takes no memory.
LONG = SoftmaxKernel(np.broadcast_to(kernel(1, 1, 64).hidden, (1_000_000, 64)), kernel(1, 16000, 64).head)
SHORT = kernel(700, 300, 8)


def stats(P: SoftmaxKernel, progress: Progress | None) -> Any:
    return softmax_stats(P, progress=progress, num_threads=2)


def mean(P: SoftmaxKernel, progress: Progress | None) -> Any:
    return mean_prediction(P, progress=progress, num_threads=2)


def divergences(P: SoftmaxKernel, progress: Progress | None) -> Any:
    wanted = [KL(), TotalVariation()]
    return softmax_stats(P, reference=P[: P.shape[0] // 4], divergences=wanted, progress=progress, num_threads=2)


def panels(P: SoftmaxKernel, progress: Progress | None) -> Any:
    normalisers = np.full(P.shape[0], 99.0)
    return normal_product(P, np.ones((P.shape[1], 3)), log_normalizer=normalisers, progress=progress, num_threads=2)


PASSES = pytest.mark.parametrize("run", [stats, mean, divergences, panels])


@PASSES
@pytest.mark.parametrize("P", [SHORT, SHORT[:1], kernel(4000, 4000, 32)], ids=repr)
def test_progress_rises_to_n(run: Callable[..., Any], P: SoftmaxKernel) -> None:
    if run is divergences:
        P = P[: max(1, P.shape[0] // 4 * 4)]
        if P.shape[0] == 1:
            P = P[np.zeros(4, int)]
    calls: list[tuple[int, int]] = []
    thread = threading.get_ident()

    def progress(done: int, total: int) -> None:
        assert threading.get_ident() == thread
        calls.append((done, total))

    run(P, progress)
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {P.shape[0]}
    assert list(done) == sorted(done)
    assert done[-1] == P.shape[0]


class StopHere(Exception):  # noqa: N818
    pass


@PASSES
def test_an_exception_from_progress_stops_the_pass(run: Callable[..., Any]) -> None:
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        raise StopHere("enough")

    with pytest.raises(StopHere, match="enough"):
        run(LONG, progress)
    assert len(calls) == 1
    assert calls[0] < LONG.shape[0]  # it was not at the end


@PASSES
def test_an_interrupt_stops_the_pass(run: Callable[..., Any]) -> None:
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 2:  # as Ctrl-C would, in the middle of the pass
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(LONG, progress)
    finally:
        signal.signal(signal.SIGINT, before)
    assert max(calls) < LONG.shape[0]


def test_signals_are_seen_during_a_pass_without_progress() -> None:
    """Rings that come in one pass would be one ring if they were looked at when it is over."""
    rings = 0

    def ring(number: int, frame: object) -> None:
        nonlocal rings
        rings += 1
        if rings == 5:
            raise StopHere

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(StopHere):
            stats(LONG, None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_other_threads_run_during_a_pass() -> None:
    """No thread is made to hand over the interpreter here: the pass must have let go of it by itself."""
    count, stop = 0, threading.Event()

    def work() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(1e-4)

    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(count)
        if len(seen) == 6:
            raise StopHere

    thread = threading.Thread(target=work)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(600)
    try:
        thread.start()
        with pytest.raises(StopHere):
            stats(LONG, progress)
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    assert len(set(seen)) >= 4, f"the counter stood still between reports: {seen}"  # two may follow on each other


def test_an_interrupted_kernel_can_be_used_again() -> None:
    P = kernel(3000, 3000, 16)

    def progress(done: int, total: int) -> None:
        raise StopHere

    expected = softmax_stats(P).entropy
    with pytest.raises(StopHere):
        stats(P, progress)
    np.testing.assert_array_equal(stats(P, None).entropy, expected)
