"""Where to compute, and in what precision."""

import functools
from contextlib import AbstractContextManager

import torch

from vit.arguments import check_choice
from vit.config import TrainConfig


def resolve_device(device: torch.device | str = "auto") -> torch.device:
    """The device a name stands for, also with a number, as "cuda:1"; "auto" is a GPU if there is one."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = str(device)
    kind, _, number = device.partition(":")
    if device == "auto":
        kind = next(name for name in available if available[name])
    if kind not in available:
        check_choice("device", device, ("auto", *available))
    if not available[kind]:
        why = "is not available on this machine"
        if kind == "cuda" and torch.version.cuda is torch.version.hip is None:
            why = f"is nothing for this torch ({torch.__version__}), which was built without it: install another build"
        raise ValueError(f"device={device!r} {why}; use 'auto' or 'cpu'")
    return torch.device(f"{kind}:{number}" if number else kind)


@functools.cache  # it is asked for in every step
def has_bf16(device: torch.device) -> bool:
    """Whether it is a GPU that computes in bfloat16; NVIDIA's before Ampere only imitate it, slower than float32."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision a name stands for, "bf16" or "fp32"; "auto" is bf16 on a GPU that computes in it."""
    if precision == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return precision


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The precision of the config on this device: products in bfloat16, or everything in float32."""
    is_bf16 = resolve_precision(config.precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=is_bf16)


def forked_random(device: torch.device, *, enabled: bool = True) -> AbstractContextManager[None]:
    """Puts torch's random numbers of the CPU and the device back at its end, whatever was drawn meanwhile."""
    is_gpu = device.type in ("cuda", "mps")
    return torch.random.fork_rng(
        [device] if is_gpu else [], enabled=enabled, device_type=device.type if is_gpu else "cpu"
    )


def wait_for_device() -> None:
    """Returns once the GPU, if there is one, has done all that it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
