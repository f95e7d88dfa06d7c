"""Stopping between two steps instead of in the middle of one."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_on_interrupt(should_stop: Callable[[], bool] = lambda: False) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM within the block into a question, asked between two steps: should we stop?

    An interrupt in the middle of a step would leave weights and optimizer half updated. A second one stops at once.
    After SIGTERM the end of the block raises `SystemExit(143)`: whoever sent it wants the process to end, not to go on
    with what comes after the training. Outside the main thread, where Python delivers no signals, the answer is that
    of `should_stop` alone.

    Args:
        should_stop: another reason to stop; one yes is enough.
    """
    received: list[int] = []
    stop = threading.Event()

    def is_stopping() -> bool:
        if received or should_stop():
            stop.set()
        return stop.is_set()

    if threading.current_thread() is not threading.main_thread():
        yield is_stopping
        return

    def on_signal(signum: int, frame: Any) -> None:
        received.append(signum)
        if len(received) > 1:
            _leave(signum)

    previous = {signum: signal.signal(signum, on_signal) for signum in SIGNALS}
    try:
        yield is_stopping
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if signal.SIGTERM in received:
        _leave(signal.SIGTERM)


def _leave(signum: int) -> None:
    if signum == signal.SIGTERM:
        raise SystemExit(128 + signum)  # what shells report for a process that the signal ended
    raise KeyboardInterrupt
