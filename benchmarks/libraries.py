"""One network, built by this project and by the libraries that people use: who is compared, and on what.

Each builder gives a module from normalized images (B, 3, H, W) to logits (B, K), with CLS pooling, a linear head,
learned positions and no dropout. What a library still does otherwise is in `extra_parameters`, exactly. A library is
imported when its network is built, so that a fresh process pays for that one alone.
"""

import importlib.util
from collections.abc import Callable
from importlib import metadata

import torch
from torch import Tensor, nn

from vit.config import ViTConfig

# Presets, each with the batch it is measured at.
BATCHES = {
    "vit_micro_patch4_32": 128,
    "vit_mini_patch4_32": 64,
    "vit_small_patch4_32": 64,
    "vit_tiny_patch16_224": 16,
    "vit_small_patch16_224": 16,
}
OURS, EVERY_TOKEN = "vit", "vit_every_token"
VARIANTS = (OURS, EVERY_TOKEN)  # of this project


def config_of(preset: str) -> ViTConfig:
    return ViTConfig.preset(preset, head="linear")


class EveryToken(nn.Module):
    """This project without its shortcut: the last block also computes the patch tokens that the head never reads, as
    the other libraries do, so that the same operations are compared."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.model = _vit(config)

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(images))


class LogitsOf(nn.Module):
    """The logits out of what a model of transformers returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def _vit(config: ViTConfig) -> nn.Module:
    import vit

    return vit.VisionTransformer(config)


def _timm(config: ViTConfig) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=config.num_classes,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
    )


def _torchvision(config: ViTConfig) -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=config.image_size[0],
        patch_size=config.patch_size,
        num_layers=config.depth,
        num_heads=config.num_heads,
        hidden_dim=config.embed_dim,
        mlp_dim=config.mlp_dim,
        num_classes=config.num_classes,
    )


def _transformers(config: ViTConfig) -> nn.Module:
    from transformers import ViTConfig as TheirConfig
    from transformers import ViTForImageClassification

    theirs = TheirConfig(
        image_size=config.image_size[0],
        patch_size=config.patch_size,
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        num_labels=config.num_classes,
        attn_implementation="sdpa",
    )
    return LogitsOf(ViTForImageClassification(theirs))


def _vit_pytorch(config: ViTConfig) -> nn.Module:
    from vit_pytorch import ViT

    return ViT(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=config.num_classes,
        dim=config.embed_dim,
        depth=config.depth,
        heads=config.num_heads,
        dim_head=config.head_dim,
        mlp_dim=config.mlp_dim,
    )


LIBRARIES: dict[str, Callable[[ViTConfig], nn.Module]] = {
    OURS: _vit,
    EVERY_TOKEN: EveryToken,
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "vit_pytorch": _vit_pytorch,
}


def installed() -> list[str]:
    """The contenders whose library is here."""
    return [name for name in LIBRARIES if name in VARIANTS or importlib.util.find_spec(name)]


def versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in installed() if name not in VARIANTS)


def extra_parameters(library: str, config: ViTConfig) -> int:
    """How many parameters more than this project's a library's network has, fewer if negative."""
    D = config.embed_dim
    if library in VARIANTS:
        return 0
    extra = D  # a position for CLS too, which this project adds into CLS itself
    if library == "vit_pytorch":
        extra += 2 * config.in_chans * config.patch_size**2 + 2 * D  # LayerNorm before and after the patch embedding
        extra -= config.depth * 3 * D  # no bias in queries, keys and values
    return extra


def forward_operations(model: nn.Module, config: ViTConfig) -> int:
    """Floating-point operations of the matrix products for one image, counted by torch on the library's own forward;
    a multiply-add is two."""
    from torch.nn.attention import SDPBackend, sdpa_kernel  # here: importing them would take memory in every process
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, config.in_chans, *config.image_size, device=next(model.parameters()).device)
    # In training mode, since torchvision's fused inference kernel is not counted; and with plain attention, since some
    # releases of torch do not count the fused kernel of a CPU.
    was_training = model.training
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.train()(image)
    model.train(was_training)
    return counter.get_total_flops()
