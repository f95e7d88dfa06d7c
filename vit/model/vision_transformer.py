"""The Vision Transformer: cut into patches, embed, add positions, prepend CLS, encode, pool, classify.

Positions are added before the CLS token joins, so the table covers the patches only; a paper-style table, with a
slot for CLS, is the same function once that slot is added to `cls_token`.
Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.1 and Eq. 1-4.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor, nn

from vit.config import ViTConfig
from vit.model.head import build_head
from vit.model.initialization import init_weights
from vit.model.patch_embed import PatchDrop, PatchEmbed
from vit.model.pos_embed import resample_pos_embed, rope2d_table, sincos2d_table
from vit.model.transformer import DropPath, Encoder
from vit.modules import unwrap

# The methods by which images become logits.
_COMPUTING = (
    *("__call__", "forward", "forward_features", "forward_head", "embed", "_pool", "_add_positions"),
    *("build_positions", "_fixed_tables"),
)
_ROUNDING = 2**-8  # what a fixed table, whose values are sines and cosines, may have lost in bfloat16


class VisionTransformer(nn.Module):
    """A Vision Transformer for image classification.

    Args:
        config: every size and option; see `ViTConfig`.

    Attributes:
        metadata: plain facts that travel with the weights (mean, std, class_names, accuracy, ...).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        if not isinstance(config, ViTConfig):
            raise TypeError(f"config={config!r} must be a ViTConfig, such as ViTConfig.preset('vit_nano_patch4_32')")
        self.config = config
        self.metadata: dict = {}
        D = config.embed_dim
        self.patch_embed = PatchEmbed(
            config.image_size,
            config.patch_size,
            config.in_chans,
            D,
            bias=not config.pre_norm,
            norm_eps=config.norm_eps if config.patch_norm else None,
        )
        self.build_positions()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D)) if config.pool != "mean" else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, D)) if config.num_registers else None
        self.pos_drop = nn.Dropout(config.drop_rate)
        self.patch_drop = PatchDrop()
        self.norm_pre = nn.LayerNorm(D, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.encoder = Encoder(
            D,
            config.depth,
            config.num_heads,
            config.mlp_dim,
            qkv_bias=config.qkv_bias,
            qk_norm=config.qk_norm,
            norm_eps=config.norm_eps,
            act=config.act,
            layer_scale=config.layer_scale,
            drop=config.drop_rate,
            attn_drop=config.attn_drop_rate,
            drop_path=config.drop_path_rate,
            final_norm=not config.fc_norm,
        )
        self.fc_norm = nn.LayerNorm(D, eps=config.norm_eps) if config.fc_norm else nn.Identity()
        self.head = build_head(config)
        init_weights(self)

    def build_positions(self) -> None:
        """Makes the table that is learned, or the fixed ones, which are in no file of weights."""
        config = self.config
        shape = (1, config.num_patches, config.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(shape)) if config.pos_embed == "learned" else None
        for name, table in self._fixed_tables().items():
            self.register_buffer(name, table, persistent=False)

    def _fixed_tables(self) -> dict[str, Tensor]:
        config = self.config
        if config.pos_embed == "sincos2d":
            return {"pos_table": sincos2d_table(config.grid_size, config.embed_dim)}
        if config.pos_embed == "rope":
            return {"rope": rope2d_table(config.grid_size, config.head_dim)}
        return {}

    def to_empty(self, *, device: torch.device | str | int | None, recurse: bool = True) -> Self:
        """As any module's, but with the fixed tables filled in, since no file of weights brings them."""
        super().to_empty(device=device, recurse=recurse)
        self._fill_tables()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As any module's; where a network around this one gets its memory, that is all that is called of this one."""
        had_memory = not any(table.is_meta for table in self.buffers(recurse=False))
        super()._apply(fn, recurse)
        if not had_memory:
            self._fill_tables()
        return self

    def _fill_tables(self) -> None:
        with torch.device("cpu"):  # this may be called where new tensors have no memory
            for name, table in self._fixed_tables().items():
                getattr(self, name).copy_(table)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (B, C, H, W) to logits (B, num_classes)."""
        tokens, rope = self.embed(images)  # (B, T, D)
        # Where only prefix tokens are pooled, nobody reads the last block's patches: the same logits for less work.
        num_outputs = {"cls": 1, "cls_register": 2}.get(self.config.pool)
        tokens = self.encoder(tokens, rope, num_outputs=num_outputs)  # (B, T, D), or (B, num_outputs, D)
        return self.forward_head(tokens)  # (B, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalized images (B, C, H, W) to encoded tokens (B, T, D): CLS, registers, patches."""
        tokens, rope = self.embed(images)  # (B, T, D)
        return self.encoder(tokens, rope)  # (B, T, D)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Encoded tokens (B, T, D), of which those that are not pooled may be missing, to logits (B, num_classes)."""
        pooled = self.fc_norm(self._pool(tokens))  # (B, D)
        return self.head(pooled)  # (B, num_classes)

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.config.pool == "cls":
            return tokens[:, 0]  # (B, D)
        if self.config.pool == "cls_register":
            return tokens[:, :2].flatten(1)  # (B, 2*D)
        mean = tokens[:, self.config.num_prefix_tokens :].mean(dim=1)  # (B, D)
        return mean if self.config.pool == "mean" else torch.cat([tokens[:, 0], mean], dim=1)  # (B, 2*D)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalized images (B, C, H, W) to the encoder's input: tokens (B, T, D), and for rotary positions
        the angles of the patches, up to (B, N, h, d), or None."""
        x = self.patch_embed(images)  # (B, N, D)
        x = self._add_positions(x)  # (B, N, D)
        x, rope = self.patch_drop(x, self.rope if self.config.pos_embed == "rope" else None)  # (B, N, D)
        if rope is not None and rope.device.type == "cpu":
            # Long rows, since short ones that repeat for every head are slow there.
            rope = rope.repeat_interleave(self.config.num_heads, dim=-2)  # (N, h, d), or (B, N, h, d)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*prefix, x], dim=1) if prefix else x  # (B, T, D)
        return self.norm_pre(self.pos_drop(x)), rope

    def _add_positions(self, x: Tensor) -> Tensor:
        if self.config.pos_embed == "learned":
            return x + self.pos_embed
        if self.config.pos_embed == "sincos2d":
            return x + self.pos_table
        # As the others do: under autocast the tokens begin in the weights' precision, whatever made the patches.
        return x.to(self.patch_embed.proj.weight.dtype)

    def get_intermediate_layers(
        self, images: Tensor, layers: int | Sequence[int] = 1, *, norm: bool = True, reshape: bool = False
    ) -> tuple[Tensor, ...]:
        """The tokens after some blocks, for probes, segmentation or detection on top.

        Args:
            layers: an integer n for the last n blocks, or a sequence of block indices, 0 the first and -1 the last.
                (To `vit.analysis.attention_maps`, `layers=1` is the second block.)
            norm: whether to apply the encoder's final LayerNorm to each; with `fc_norm` it has none.
            reshape: return only the patches, as maps (B, D, rows, columns), instead of all tokens (B, T, D).

        Raises:
            ValueError: layers that the model does not have, or reshape=True while patches are dropped.
        """
        depth = self.config.depth
        is_count = isinstance(layers, Integral)  # also one of numpy
        wanted = range(depth - layers, depth) if is_count else list(layers) if isinstance(layers, Iterable) else []
        are_known = all(isinstance(i, Integral) and -depth <= i < depth for i in wanted)
        if not wanted or not are_known or (is_count and layers > depth):
            raise ValueError(
                f"layers={layers!r} must be a count in 1..{depth}, or indices in 0..{depth - 1}, -1 being the last"
            )
        if reshape and self.patch_drop.training and self.patch_drop.rate:
            raise ValueError(
                f"reshape=True needs all patches, and patch_drop.rate={self.patch_drop.rate} hides some in training: "
                "call model.eval() first, or set model.patch_drop.rate = 0"
            )
        outputs = self.encoder.block_outputs(*self.embed(images))
        chosen = [self.encoder.norm(outputs[i]) if norm else outputs[i] for i in wanted]  # (B, T, D)
        if reshape:
            prefix, grid = self.config.num_prefix_tokens, self.config.grid_size
            chosen = [x[:, prefix:].transpose(1, 2).unflatten(2, grid) for x in chosen]  # (B, D, h, w)
        return tuple(chosen)

    def resized(self, image_size: int | tuple[int, int]) -> "VisionTransformer":
        """A copy for another image size: the same weights, frozen and in training mode where these are, and learned
        positions resampled to the new grid."""
        check_plain(self)
        config = replace(self.config, image_size=image_size)
        state = self.state_dict()
        if self.pos_embed is not None:
            grids = self.config.grid_size, config.grid_size
            state["pos_embed"] = resample_pos_embed(state["pos_embed"], *grids, config.pos_resampling)
        state = {name: tensor.clone() for name, tensor in state.items()}
        return filled_like(self, blank_model(config), state)


def blank_model(config: ViTConfig, kind: type[VisionTransformer] = VisionTransformer) -> VisionTransformer:
    """A model whose weights take neither memory nor time yet; `load_state_dict(..., assign=True)` brings them."""
    with torch.device("meta"):
        model = kind(config)
    model.build_positions()
    return model


def filled_like(model: VisionTransformer, blank: VisionTransformer, state: Mapping[str, Tensor]) -> VisionTransformer:
    """A blank model with the weights of `state`, and else as `model` is: its device and precision, what is frozen and
    what is in training mode, and its metadata."""
    blank.load_state_dict(state, assign=True)
    blank.to(model.patch_embed.proj.weight)  # the fixed tables too
    blank.metadata = dict(model.metadata)
    # By name, since a part may stand in several places.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        blank.get_parameter(name).requires_grad_(parameter.requires_grad)
    blank.train(model.training)
    for name, part in model.named_modules(remove_duplicate=False):
        own = blank.get_submodule(name)
        if type(own) is type(part):  # not what stands in for a dropout
            own.training = part.training
    return blank


def check_own(model: nn.Module) -> VisionTransformer:
    """The model, without the wrapper of `torch.compile`. Raises TypeError for one of another class."""
    model = unwrap(model)
    if not isinstance(model, VisionTransformer):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"  # timm's class has the same name
        remedy = (
            "one of another library becomes one by vit.pretrained.load_weights(None, model); "
            "one of your own is kept by torch.save(model.state_dict(), 'model.pt')"
        )
        parts = model.named_modules() if isinstance(model, nn.Module) else ()
        if inner := next((name for name, part in parts if isinstance(part, VisionTransformer)), None):
            is_path = all(name.isidentifier() for name in inner.split("."))  # not that of a list
            remedy = f"pass its .{inner}" if is_path else f"pass model.get_submodule({inner!r})"
            remedy += "; all of it is kept by torch.save(model.state_dict(), path)"
        raise TypeError(f"model must be a VisionTransformer of this library, got {kind}; {remedy}")
    return model


def check_plain(model: VisionTransformer, *, except_head: bool = False) -> None:
    """Raises ValueError for a network that computes what its config does not say, by a part such as LoRA, prompts or
    another activation, by another fixed table, or by a class of its own: it cannot be saved, converted, resized, or
    built again in any other way. `except_head` takes any head."""
    blank = blank_model(model.config)
    expected, found = _described(blank), _described(model)
    odd = [name for name in expected | found if expected.get(name) != found.get(name)]
    odd += [name for name, table in blank.named_buffers() if not _same_table(getattr(model, name, None), table)]
    if except_head:
        odd = [name for name in odd if name != "head" and not name.startswith("head.")]
    kind = type(model)
    overridden = [name for name in _COMPUTING if getattr(kind, name) is not getattr(VisionTransformer, name)]
    if odd or overridden:
        by_state = "is kept by torch.save(model.state_dict(), path) only"
        remedy = f"its layers were changed after it was built, so that it {by_state}"
        if any(name.endswith((".A", ".B")) for name in found):
            remedy = "merge LoRA first: vit.tasks.lora.merge(model)"
        elif "encoder.gate" in found:
            remedy = f"a model with prompts {by_state}"
        elif overridden:
            odd = [f"{kind.__name__}.{name}" for name in overridden]
            remedy = f"a model with methods of its own {by_state}"
        elif all(name.split(".")[0] == "head" for name in odd):
            remedy = (
                f"a model whose head was changed after it was built {by_state}; in a copy by "
                "vit.tasks.fine_tuning.with_new_head(model, data), the config has changed with the head"
            )
        raise ValueError(
            f"the model is not what its config says, by which it would be built again; {remedy}. "
            f"Not as the config says: {', '.join(odd[:4])}{', ...' if len(odd) > 4 else ''}"
        )


def _same_table(own: Tensor | None, table: Tensor) -> bool:
    """Whether a model's own table is the one of its config, in whatever precision it has been."""
    if own is None or own.shape != table.shape:
        return False
    return own.is_meta or torch.allclose(own.float(), table.to(own.device).float(), rtol=0, atol=_ROUNDING)


def _described(model: nn.Module) -> dict[str, Any]:
    """The shape of every weight, and the kind and settings of every part but what does nothing in evaluation mode."""
    silent = (nn.Identity, nn.Dropout, DropPath)
    parts = [(name, part) for name, part in model.named_modules(remove_duplicate=False) if name]
    return {name: tensor.shape for name, tensor in model.state_dict().items()} | {
        name: (type(part), part.extra_repr()) for name, part in parts if type(part) not in silent
    }
