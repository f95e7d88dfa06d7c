"""Visual prompts: a frozen network is told what to do by a few learned tokens in front of its patches.

They join as registers do, so that attention maps, layouts and features know them, and head and blocks stay as they are.
Each has a gate, the weight of its exp(score) in every softmax: 0 hides the token, 1 makes it one like any other. All
start at 0, so the first forward is that of the frozen network.
Sources: Jia et al., "Visual Prompt Tuning", ECCV 2022 (prompts of the first layer, "shallow"); Zhang et al.,
"LLaMA-Adapter", ICLR 2024, section 3.2 (gates that start at zero).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.arguments import as_integer
from vit.model import Encoder
from vit.model.vision_transformer import VisionTransformer, check_own, check_plain

_CLOSED = 1e-12  # a gate's start: nothing in float32, and yet its logarithm has a slope


class PromptedEncoder(Encoder):
    """The blocks of an encoder, which see the prompts through their gates.

    Args:
        first, num_prompts: the prompts are the tokens first..first+num_prompts-1.
    """

    def __init__(self, encoder: Encoder, first: int, num_prompts: int) -> None:
        nn.Module.__init__(self)
        self.blocks, self.norm = encoder.blocks, encoder.norm
        self.first = first
        self.gate = nn.Parameter(torch.full((num_prompts,), _CLOSED))

    def forward(self, x: Tensor, rope: Tensor | None = None, *, num_outputs: int | None = None) -> Tensor:
        return super().forward(x, rope, self._mask(x), num_outputs)

    def block_outputs(self, x: Tensor, rope: Tensor | None = None) -> list[Tensor]:
        return super().block_outputs(x, rope, self._mask(x))

    def _mask(self, x: Tensor) -> Tensor:
        # An optimizer may push a gate below 0, where it shows the token as much as above.
        behind = x.shape[1] - self.first - len(self.gate)
        return F.pad(self.gate.abs().log(), (self.first, behind)).to(x.dtype)[None, None, None]  # (1, 1, 1, T)


def add(model: VisionTransformer, num_prompts: int = 8) -> VisionTransformer:
    """A copy of the model in which only the prompts, their gates and the head are to be trained.

    The copy cannot be saved by `vit.save`, or resized: resize first. Registers that the model has already are trained
    along.

    Args:
        num_prompts: learned tokens, 1 or more; they follow CLS and registers.
    """
    num_prompts = as_integer("num_prompts", num_prompts, 1, remedy="; try 8")
    model = check_own(model)
    if isinstance(model.encoder, PromptedEncoder):
        raise ValueError("the model has prompts already: add them to the network they were made from")
    check_plain(model)
    first = model.config.num_prefix_tokens
    reference = next(model.parameters())
    prompted = VisionTransformer(replace(model.config, num_registers=model.config.num_registers + num_prompts))
    prompted = prompted.to(reference)
    prompts = prompted.reg_token[:, -num_prompts:]  # (1, P, D), as large as a patch token
    registers = [token for token in (model.reg_token, prompts) if token is not None]
    prompted.load_state_dict(model.state_dict() | {"reg_token": torch.cat(registers, dim=1)})
    prompted.metadata = dict(model.metadata)
    prompted.requires_grad_(False)
    prompted.encoder = PromptedEncoder(prompted.encoder, first, num_prompts)
    for trained in (prompted.reg_token, prompted.head):
        trained.requires_grad_(True)
    return prompted.to(reference).train(model.training)
