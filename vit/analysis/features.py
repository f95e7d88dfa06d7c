"""What a network knows of an image, as one vector: the input of its head.

With them come two ways to see how good they are without training the network: nearest neighbors and a linear probe
(probes.py). It reads this library's models and timm's.
"""

import hashlib
import math
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vit.analysis.inputs import Images, images_at_once, num_images, prepared_parts
from vit.files import replacing
from vit.modules import eval_mode, unwrap
from vit.progress import progress_bar

_SILENT = 20  # batches without a progress bar
_PROBE = 4  # images whose features are computed anew to see whether a stored file is still right


def features(model: nn.Module, images: Images, *, cache: str | Path | None = None) -> Tensor:
    """What the head reads of every image, on the CPU in float32: CLS or the mean of the patches, (B, D), or a pair of
    tokens side by side, (B, 2*D).

    Args:
        images: a uint8 or normalized batch (B, C, H, W), or pictures, as `prepare_images` takes them.
        cache: a folder that keeps the features, so that the same weights never see the same images twice; needs a
            batch. A file is used only if it still agrees with the model on the first images.

    Raises:
        TypeError: a model without a `head`, or one that pools no tokens for it; or pictures with `cache`.
        RuntimeError: the head has read more or fewer than these images, as when another thread runs the same model.
    """
    model = unwrap(model)
    if not isinstance(getattr(model, "head", None), nn.Module):
        raise TypeError(f"{type(model).__name__} has no module `head` whose input could be read")
    if cache is None:
        return _compute(model, images)
    if not isinstance(images, Tensor):
        raise TypeError(f"cache={str(cache)!r} needs images as a tensor (B, C, H, W), got {type(images).__name__}")
    path = Path(cache).expanduser() / f"features-{_fingerprint(model, images)}.npy"
    if (stored := _read(path)) is not None and len(stored) == len(images):
        first = _compute(model, images[:_PROBE])
        if torch.allclose(stored[:_PROBE], first, rtol=1e-4, atol=1e-5):
            return stored
    computed = _compute(model, images)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, computed.numpy(), allow_pickle=False)
    return computed


def _read(path: Path) -> Tensor | None:
    """Stored features (B, D), or None where there is no file, or none that can be read."""
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None


@torch.no_grad()
def _compute(model: nn.Module, images: Images) -> Tensor:
    heads = [model.head]
    if isinstance(getattr(model, "head_dist", None), nn.Module):
        heads.append(model.head_dist)  # timm's distilled models read a second token with a second head
    readings = [[] for _ in heads]
    # One compiled in place would run code that no hook can see; else the model's own hooks belong to it.
    call = model.forward if getattr(model, "_compiled_call_impl", None) else model
    parts = prepared_parts(model, images)
    count = math.ceil(num_images(images) / images_at_once(model))
    if count > _SILENT:
        parts = progress_bar(parts, total=count, desc="features")
    with eval_mode(model), ExitStack() as stack:
        for head, of_head in zip(heads, readings, strict=True):
            hook = head.register_forward_pre_hook(lambda _, args, seen=of_head: seen.append(args[0].float().cpu()))
            stack.callback(hook.remove)
        for part in parts:
            call(part)
    found = torch.cat([torch.cat(of_head) for of_head in readings], dim=-1)
    if found.ndim != 2:
        raise TypeError(
            f"the head of {type(model).__name__} reads {tuple(found.shape[1:])} numbers an image, not one vector: "
            'build it with a pooling, such as global_pool="token"'
        )
    if len(found) != num_images(images):
        raise RuntimeError(
            f"the head of {type(model).__name__} has read {len(found)} images in place of {num_images(images)}: if "
            "another thread runs the same model, give it a copy.deepcopy(model)"
        )
    return found  # (B, D), or (B, 2*D)


def _fingerprint(model: nn.Module, images: Tensor) -> str:
    """Of the weights and the images; what else decides the features, `features` checks on the first images."""
    digest = hashlib.sha256(f"{images.dtype} {tuple(images.shape)}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    digest.update(_bytes(images))
    return digest.hexdigest()[:32]


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
