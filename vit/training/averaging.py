"""An exponential moving average of the weights, which forgets its start and never makes a GPU wait."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class AveragedWeights(AveragedModel):
    """A copy of the model with averaged weights: d times their average plus (1 - d) times the new ones.

    After n averages d is the decay, but at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage: the
    average reaches back over a ninth of the run at most, else that of a short run would hold its first weights.

    Differs from torch's `AveragedModel`, whose state and interface it has: that one sends its counter of updates to the
    weights' device in every step, and waits for the GPU to do so.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Averages in the weights of `model`, which are on the same device; the first are taken as they are."""
        averaged, current = list(self.module.parameters()), list(model.parameters())
        if (count := int(self.n_averaged)) == 0:  # on the CPU
            torch._foreach_copy_(averaged, current)
        else:
            torch._foreach_lerp_(averaged, current, 1 - min(self.decay, (1 + count) / (10 + count)))
        for own, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(buffer)
        self.n_averaged += 1
