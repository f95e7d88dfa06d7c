"""An exponential moving average of the weights, without a wait of the GPU for it."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class AveragedWeights(AveragedModel):
    """A copy of the model with averaged weights: decay times their average plus (1 - decay) times the new ones.

    Differs from torch's `AveragedModel`, whose state and interface it has: that one sends its counter of updates to the
    weights' device in every step, for which a GPU is waited for.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Averages in the weights of `model`, which are on the same device; the first are taken as they are."""
        averaged, current = list(self.module.parameters()), list(model.parameters())
        if int(self.n_averaged) == 0:  # on the CPU
            torch._foreach_copy_(averaged, current)
        else:
            self.multi_avg_fn(averaged, current, self.n_averaged)
        for own, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(buffer)
        self.n_averaged += 1
