"""Where to compute, and in what precision."""

import torch

from vit.config import TrainConfig


def resolve_device(device: str = "auto") -> torch.device:
    """The device a name stands for; "auto" is a GPU if there is one."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name in available if available[name])
    if device not in available:
        raise ValueError(f"device={device!r} is not a choice; allowed: auto, {', '.join(available)}")
    if not available[device]:
        raise ValueError(f"device={device!r} is not available on this machine; use 'auto' or 'cpu'")
    return torch.device(device)


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """bfloat16 where the config, or "auto" on CUDA, asks for it; float32 elsewhere."""
    is_bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=is_bf16)


def wait_for_device() -> None:
    """Returns once the GPU, if there is one, has done all that it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
