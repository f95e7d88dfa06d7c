"""Weights, gradients and moments in parts, one a process, for networks that are too large to be copied: FSDP2.

Each process holds its part of every matrix; the whole of a block exists only while it computes. `fit` trains such a
model as any other, and its states on disk are those of a whole model, so each kind goes on from the other's.
Source: Zhao et al., "PyTorch FSDP", VLDB 2023.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vit.config import TrainConfig


def shard_model(model: nn.Module) -> nn.Module:
    """Shares the weights of `model` out over the processes, in place: each of its `blocks` as a unit, then the rest.

    To be called by all processes within `distributed.processes()`, with the model on its device, before `fit`. The
    weights become those of the first process.

    Raises:
        RuntimeError: there are no other processes.
        ValueError: the model has no list of modules named `blocks`.
    """
    if not dist.is_initialized():
        raise RuntimeError("shard_model needs several processes: call it within vit.training.distributed.processes()")
    from torch.distributed.fsdp import fully_shard

    lists = [m for name, m in model.named_modules() if name.endswith("blocks") and isinstance(m, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of modules named `blocks`, the units to share out")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, 0)
    for blocks in lists:
        for block in blocks:
            fully_shard(block)
    # Also the rest is put away after a forward pass, so that between two steps all parameters are parts.
    return fully_shard(model, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    return any(hasattr(p, "full_tensor") for p in model.parameters())


def check_sharded(config: TrainConfig) -> None:
    """Raises a ValueError for what needs whole weights."""
    if config.optimizer == "muon":
        raise ValueError(
            'optimizer="muon" orthogonalizes whole matrices, of which each process holds a part: use optimizer="adamw"'
        )
    if config.ema_decay:
        raise ValueError(f"ema_decay={config.ema_decay} needs a copy of the whole model: use 0 with a sharded one")


def whole(value: Any) -> Any:
    """Dicts and lists of parts of tensors as those of the whole ones, on the CPU. All processes must call this."""
    if hasattr(value, "full_tensor"):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {name: whole(part) for name, part in value.items()}
    return [whole(part) for part in value] if isinstance(value, list) else value


def part_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor that belongs to `parameter`; the tensor itself if that is whole too."""
    if not hasattr(parameter, "full_tensor") or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def parts_of_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer of whole weights, as one of `optimizer`, whose weights may be parts."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {name: part_like(t, parameters[number]) if torch.is_tensor(t) else t for name, t in entries.items()}
        for number, entries in state["state"].items()
    }
    return {**state, "state": moments}
