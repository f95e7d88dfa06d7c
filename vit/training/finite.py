"""Whether the loss and the gradient of every step are finite, without making a GPU wait for the answer.

A CPU knows at once, so a step that is not finite is never taken. To ask a GPU is to wait until it has done all that it
was given, and to leave it idle meanwhile. So its answers are copied beside the computation and read some steps later:
a bad step has then been taken, but nothing is saved before the answers of all steps have been read.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Steps that may be begun before the answer to one is read, by the kind of device; 0 where it is not named.
LAG = {"cuda": 4}


class Step(NamedTuple):
    """What a message tells of a step: its number in the epoch, its rate, and its batch, or None to draw that again."""

    number: int
    learning_rate: float
    batch: tuple[Tensor, ...] | None


class FiniteCheck:
    """Raises FloatingPointError for the first step whose loss or gradient is not finite.

    Args:
        lag: how many later steps may be begun before the answer is read; 0 reads it before the step is taken.
        describe: (loss, gradient_norm, step) to the message.
    """

    def __init__(self, lag: int, describe: Callable[[Tensor, Tensor, Step], str]) -> None:
        self.lag, self.describe = lag, describe
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, Step]] = deque()

    def look(self, loss: Tensor, gradient_norm: Tensor, step: Step) -> None:
        """Takes note of a step and of its two scalars, and reads the answers that are due."""
        if not self.lag:
            if not torch.isfinite(loss + gradient_norm):
                raise FloatingPointError(self.describe(loss, gradient_norm, step))
            return
        values, copied = torch.stack([loss, gradient_norm]), None  # (2,)
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)  # into pinned memory
            copied = torch.cuda.Event(blocking=True)
            copied.record()
        self._pending.append((values, copied, step))
        while len(self._pending) > self.lag:
            self._read()

    def finish(self) -> None:
        """Reads what is left. Nothing may be saved before."""
        while self._pending:
            self._read()

    def _read(self) -> None:
        values, copied, step = self._pending.popleft()
        if copied is not None:
            copied.synchronize()
        if not torch.isfinite(values.sum()):
            raise FloatingPointError(self.describe(*values, step))
