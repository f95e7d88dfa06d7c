"""Stopping between two steps instead of in the middle of one."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_on_interrupt(should_stop: Callable[[], bool] = lambda: False) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C within the block into a question, asked between two steps: should we stop?

    An interrupt in the middle of a step would leave weights and optimizer half updated. A second one raises as ever.
    Outside the main thread, where Python delivers no signals, the answer is that of `should_stop` alone.

    Args:
        should_stop: another reason to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield should_stop
        return
    interrupted = threading.Event()
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(signum: int, frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: interrupted.is_set() or should_stop()
    finally:
        signal.signal(signal.SIGINT, previous)
