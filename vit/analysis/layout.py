"""Where the tokens of a Vision Transformer come from: its patches, its prefix and its attention layers.

Everything in this room that must know a patch from a CLS token asks here, and nothing guesses a grid from a number of
tokens. It reads this library's models and timm's, which name the same things alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

from torch import Tensor, nn

from vit.modules import unwrap

POOLS = ("cls", "mean", "cls_mean", "cls_register")


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one model, in order: the prefix (CLS first, if there is one), then the patches row by row."""

    image_size: tuple[int, int]  # (height, width) in pixels
    grid_size: tuple[int, int]  # (rows, columns) of patches
    patch_size: tuple[int, int]  # (height, width) in pixels
    num_prefix_tokens: int  # CLS and registers
    has_cls: bool
    # What the head reads, as in `ViTConfig.pool`: "cls", "mean" of the patches, or one of the pairs. Other kinds of
    # timm's keep their names, such as "max" or "map"; whatever asks what the head looks at refuses those.
    pool: str

    @property
    def num_patches(self) -> int:
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_tokens(self) -> int:
        return self.num_prefix_tokens + self.num_patches

    def token_idx(self, query: str | int | tuple[int, int]) -> int:
        """The index of a token: "cls", a patch (row, column), or an index from 0, which is only checked."""
        rows, columns = self.grid_size
        if query == "cls":
            if not self.has_cls:
                raise ValueError('query="cls": this model has no CLS token; ask for a patch (row, column)')
            return 0
        if isinstance(query, tuple):
            if len(query) != 2 or query[0] not in range(rows) or query[1] not in range(columns):
                raise ValueError(f"query={query} is outside the {rows}x{columns} patches: (row, column) from (0, 0)")
            return self.num_prefix_tokens + int(query[0]) * columns + int(query[1])
        if not isinstance(query, Integral) or not 0 <= query < self.num_tokens:
            raise ValueError(f'query={query!r} must be "cls", a patch (row, column), or 0..{self.num_tokens - 1}')
        return int(query)

    def to_grid(self, values: Tensor) -> Tensor:
        """Values of all tokens (..., T), or of the patches alone (..., N), as maps (..., rows, columns)."""
        if values.shape[-1] == self.num_tokens:
            values = values[..., self.num_prefix_tokens :]  # (..., N)
        if values.shape[-1] != self.num_patches:
            raise ValueError(
                f"values of shape {tuple(values.shape)} are neither {self.num_tokens} tokens nor {self.num_patches} "
                "patches in their last dimension"
            )
        return values.unflatten(-1, self.grid_size)


def token_layout(model: nn.Module) -> TokenLayout:
    """The layout of a Vision Transformer of this library or of timm."""
    model = unwrap(model)
    patch_embed, config = getattr(model, "patch_embed", None), getattr(model, "config", None)
    is_ours = hasattr(model, "encoder") and hasattr(config, "grid_size")  # others have encoders too
    if patch_embed is None or not (is_ours or hasattr(model, "num_prefix_tokens")):
        lacks = "patch_embed" if patch_embed is None else "num_prefix_tokens"
        raise TypeError(
            f"{type(model).__name__} has no {lacks}: no plain Vision Transformer of this library or of timm"
        )
    if is_ours:
        patch, has_cls = (config.patch_size, config.patch_size), config.pool != "mean"
        return TokenLayout(config.image_size, config.grid_size, patch, config.num_prefix_tokens, has_cls, config.pool)
    return TokenLayout(
        tuple(patch_embed.img_size),
        tuple(patch_embed.grid_size),
        tuple(patch_embed.patch_size),
        model.num_prefix_tokens,
        getattr(model, "cls_token", None) is not None,
        _pool_of(model),
    )


def _pool_of(model: nn.Module) -> str:
    """What the head of a model of timm reads, in the words of `ViTConfig.pool`; timm's own where there are none."""
    pool = getattr(model, "global_pool", "avg")
    if getattr(model, "head_dist", None) is not None:
        return "cls_register"
    if pool == "avg" and getattr(model, "pool_include_prefix", False) and model.num_prefix_tokens:
        return "avg with prefix"
    return {"token": "cls", "avg": "mean"}.get(pool, pool or "nothing")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The encoder blocks of a Vision Transformer of this library or of timm, or of an encoder alone."""
    model = unwrap(model)
    blocks = getattr(getattr(model, "encoder", model), "blocks", None)
    if not blocks or not all(hasattr(block, "attn") for block in blocks):
        raise TypeError(f"{type(model).__name__} has no blocks with an attention `attn`: nothing to look into")
    return list(blocks)


def layer_indices(layers: int | Sequence[int] | None, depth: int, name: str = "layers") -> list[int]:
    """Which of `depth` layers are meant: None is all; -1 is the last, as in a list."""
    if layers is None:
        return list(range(depth))
    wanted = list(layers) if isinstance(layers, Iterable) else [layers]
    if not wanted or any(not isinstance(i, Integral) or not -depth <= i < depth for i in wanted):
        raise ValueError(f"{name}={layers!r} must be among 0..{depth - 1}, or -1 for the last, -2 for the one before")
    return [int(i) % depth for i in wanted]


def check_maps(maps: Tensor, *, min_images: int = 0) -> None:
    """Raises ValueError unless these are maps (L, B, h, T, T), B at least `min_images` and the others at least 1."""
    if not isinstance(maps, Tensor) or maps.ndim != 5 or maps.shape[-1] != maps.shape[-2]:
        got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(f"maps must be a tensor (L, B, h, T, T), as attention_maps gives them, got {got}")
    L, B, h, T, _ = maps.shape
    if 0 in (L, h, T) or min_images > B:
        raise ValueError(f"maps of shape {tuple(maps.shape)} are empty: there is nothing to look at")


def pooled_row(maps: Tensor, layout: TokenLayout) -> Tensor:
    """What the head looks at, a row (..., T) of maps (..., T, T): that of CLS, the mean row of the patches, or where it
    reads a pair, the mean of both rows.

    Raises:
        TypeError: the head reads something else.
    """
    if layout.pool not in POOLS:
        raise TypeError(
            f"the head of this model reads global_pool={layout.pool!r}, which is not supported here, only "
            f"{', '.join(POOLS)}: ask what single tokens look at, such as query=(row, column)"
        )
    if layout.pool == "cls":
        return maps[..., 0, :]
    if layout.pool == "cls_register":
        return maps[..., :2, :].mean(dim=-2)
    patches = maps[..., layout.num_prefix_tokens :, :].mean(dim=-2)  # (..., T)
    return patches if layout.pool == "mean" else (maps[..., 0, :] + patches) / 2
