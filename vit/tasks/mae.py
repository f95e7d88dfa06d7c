"""Masked autoencoders: a network learns from images without labels by painting in the patches it is not shown.

The encoder sees a random quarter of the patches; a light decoder gets its tokens, a learned one in the place of every
hidden patch, and paints those. Trained with `fit(..., loss_fn=reconstruction_loss)`; `to_classifier` hands the encoder
on to fine-tuning. Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, section 3.
Differs: hidden patches alone are painted, since the loss counts no others; positions are those of the encoder's config.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from vit.arguments import as_integer
from vit.config import ViTConfig
from vit.model import Encoder, VisionTransformer, patchify
from vit.model.initialization import init_linear_layers
from vit.model.patch_embed import take_angles, take_patches
from vit.model.pos_embed import sincos2d_table
from vit.modules import unwrap

# What a classifier may have otherwise than the encoder it takes its weights from.
FREE_FOR_CLASSIFIER = ("num_classes", "head", "patch_init", "drop_rate", "attn_drop_rate", "drop_path_rate")


class MaskedAutoencoder(nn.Module):
    """An encoder for images, and a decoder that paints what the encoder was not shown.

    Args:
        config: the encoder; its `num_classes` and `head` are not used, and its dropouts are best 0.
        mask_rate: share of the patches that are hidden, in (0, 1).
        decoder_dim, decoder_depth, decoder_heads: token width (a multiple of 4 and of the heads), blocks and heads of
            the decoder, each 1 or more.

    Attributes:
        vit: the encoder, a `VisionTransformer` without a head.
        metadata: that of the encoder, to which `fit` adds how images were normalized.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        mask_rate: float = 0.75,
        decoder_dim: int = 192,
        decoder_depth: int = 2,
        decoder_heads: int = 3,
    ) -> None:
        super().__init__()
        self.vit = VisionTransformer(replace(config, num_classes=0, head="linear"))
        N = config.num_patches
        if not 0 < mask_rate < 1 or not 0 < round(N * mask_rate) < N:
            raise ValueError(
                f"mask_rate={mask_rate} must be in (0, 1) and leave a patch of {N} to show and one to paint; try 0.75"
            )
        self.num_kept = N - round(N * mask_rate)
        decoder_dim = as_integer("decoder_dim", decoder_dim, 4)
        decoder_depth = as_integer("decoder_depth", decoder_depth, 1)
        decoder_heads = as_integer("decoder_heads", decoder_heads, 1)
        if decoder_dim % 4 or decoder_dim % decoder_heads:
            raise ValueError(
                f"decoder_dim={decoder_dim} must be a multiple of 4 and of decoder_heads={decoder_heads}; try 192 and 3"
            )
        self.decoder_embed = nn.Linear(config.embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.register_buffer("decoder_pos", sincos2d_table(config.grid_size, decoder_dim), persistent=False)
        self.decoder = Encoder(decoder_dim, decoder_depth, decoder_heads, 4 * decoder_dim, norm_eps=config.norm_eps)
        self.decoder_pred = nn.Linear(decoder_dim, config.in_chans * config.patch_size**2)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in (self.decoder_embed, self.decoder, self.decoder_pred):
            init_linear_layers(module)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As any module's, but with the decoder's positions, which no file of weights brings, where memory is made."""
        had_memory = not self.decoder_pos.is_meta
        super()._apply(fn, recurse)
        if not had_memory:
            with torch.device("cpu"):  # this may be called where new tensors have no memory
                table = sincos2d_table(self.vit.config.grid_size, self.decoder_pos.shape[-1])
            self.decoder_pos.copy_(table)
        return self

    @property
    def metadata(self) -> dict:
        return self.vit.metadata

    @metadata.setter
    def metadata(self, facts: dict) -> None:
        self.vit.metadata = facts

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized images (B, C, H, W) to painted patches (B, M, C*p*p), normalized each for itself, and their places
        (B, M), which are drawn anew for every image."""
        shown, hidden = self.draw_places(images)  # (B, K), (B, M)
        tokens = self.decoder_embed(self.encode(images, shown))  # (B, P+K, D')
        tokens = self.decoder(self._with_hidden(tokens, shown))  # (B, P+N, D')
        patches = tokens[:, self.vit.config.num_prefix_tokens :]  # (B, N, D')
        return self.decoder_pred(take_patches(patches, hidden)), hidden  # (B, M, C*p*p)

    def draw_places(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Which patches of each image the encoder is shown, (B, K), and which not, (B, M), each in order."""
        order = torch.rand(len(images), self.vit.config.num_patches, device=images.device).argsort(dim=1)  # (B, N)
        shown, hidden = order[:, : self.num_kept], order[:, self.num_kept :]
        return shown.sort(dim=1).values, hidden.sort(dim=1).values

    def encode(self, images: Tensor, shown: Tensor) -> Tensor:
        """Encoded tokens (B, P+K, D): CLS and registers, if there are any, and the patches at the places `shown`."""
        tokens, rope = self.vit.embed(images)  # (B, P+N, D)
        P = self.vit.config.num_prefix_tokens
        tokens = torch.cat([tokens[:, :P], take_patches(tokens[:, P:], shown)], dim=1)  # (B, P+K, D)
        return self.vit.encoder(tokens, take_angles(rope, shown))

    def _with_hidden(self, tokens: Tensor, shown: Tensor) -> Tensor:
        """Tokens (B, P+K, D') to (B, P+N, D'): all patches in their places, the hidden ones as the mask token."""
        P, (B, _, D) = self.vit.config.num_prefix_tokens, tokens.shape
        places = self.mask_token.to(tokens.dtype).expand(B, self.vit.config.num_patches, D)  # (B, N, D')
        patches = places.scatter(1, shown[..., None].expand(-1, -1, D), tokens[:, P:])  # (B, N, D')
        return torch.cat([tokens[:, :P], patches + self.decoder_pos], dim=1)  # (B, P+N, D')


def reconstruction_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the painted patches, for `fit`; labels are not looked at.

    Every patch is to be painted with its own mean taken off and divided by its own standard deviation, which makes the
    encoder learn more than brightness (He et al., Table 1d).
    """
    images = batch[0]
    painted, hidden = model(images)  # (B, M, C*p*p), (B, M)
    config = unwrap(model).vit.config
    targets = take_patches(patchify(images, config.patch_size), hidden)  # (B, M, C*p*p)
    variance, mean = torch.var_mean(targets, dim=-1, keepdim=True)  # (B, M, 1)
    targets = (targets - mean) * (variance + 1e-6).rsqrt()
    return (painted - targets).square().mean(), {}


def to_classifier(autoencoder: MaskedAutoencoder, config: ViTConfig) -> VisionTransformer:
    """A network of `config` with a copy of the encoder's weights and a fresh head, on the encoder's device.

    Raises:
        ValueError: `config` differs from the encoder's in more than `FREE_FOR_CLASSIFIER`.
    """
    encoder = autoencoder.vit
    ours, theirs = encoder.config.to_dict(), config.to_dict()
    if odd := [name for name in ours if name not in FREE_FOR_CLASSIFIER and ours[name] != theirs[name]]:
        differences = "; ".join(f"{name}: {ours[name]!r} in the encoder, {theirs[name]!r} in config" for name in odd)
        raise ValueError(f"the encoder's weights do not fit: {differences}; only the head and dropouts may differ")
    model = VisionTransformer(config).to(next(encoder.parameters()))
    model.load_state_dict(encoder.state_dict() | model.head.state_dict(prefix="head."))
    model.metadata = dict(encoder.metadata)
    return model
