"""Where a patch sits in the image: fixed tables, rotary angles, and resampling a learned table to another grid.

Additive kinds ("learned", "sincos2d") change the patch tokens once. The rotary kind gives angles once per
forward, and every attention turns its queries and keys by them. Grids are (rows, columns), counted row by row.
Sources: Vaswani et al., "Attention Is All You Need", 2017, section 3.5 (sine and cosine); Beyer et al.,
"Better plain ViT baselines for ImageNet-1k", 2022 (in 2-D, for ViTs); Su et al., "RoFormer", 2021 (rotary);
Heo et al., "Rotary Position Embedding for Vision Transformer", 2024 (axial, base 100); Dosovitskiy et al., 2021,
section 3.2 (resampling for another resolution).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.arguments import check_choice

# Tables are computed once, where there is float64: on the CPU, also within `with torch.device("mps")`.
_EXACT = {"dtype": torch.float64, "device": "cpu"}


def grid_positions(grid_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column of each patch, both (N,), counted row by row."""
    rows, columns = torch.meshgrid(
        torch.arange(grid_size[0], **_EXACT),
        torch.arange(grid_size[1], **_EXACT),
        indexing="ij",
    )
    return rows.flatten(), columns.flatten()


def sincos2d_table(grid_size: tuple[int, int], embed_dim: int, temperature: float = 10_000.0) -> Tensor:
    """A fixed table (1, N, D): quarters sin(column), cos(column), sin(row), cos(row), at D/4 wavelengths."""
    if embed_dim % 4:
        raise ValueError(f"embed_dim={embed_dim} must be a multiple of 4: rows and columns each take sines and cosines")
    rows, columns = grid_positions(grid_size)
    # Not torch.linspace: transformers replaces it for a while, after which it ignores `with torch.device(...)`.
    exponents = torch.arange(embed_dim // 4, **_EXACT) / max(embed_dim // 4 - 1, 1)
    frequencies = temperature**-exponents  # (D/4,)
    column_angles = columns[:, None] * frequencies  # (N, D/4)
    row_angles = rows[:, None] * frequencies  # (N, D/4)
    table = torch.cat([column_angles.sin(), column_angles.cos(), row_angles.sin(), row_angles.cos()], dim=1)
    return table[None].float().to(torch.get_default_device())  # (1, N, D)


def rope2d_table(grid_size: tuple[int, int], head_dim: int, temperature: float = 100.0) -> Tensor:
    """Cosine and sine of every patch's rotary angles in turns, (N, 1, d), the same for all heads. Half of the channel
    pairs turn with the row, half with the column."""
    if head_dim % 4:
        raise ValueError(f"head_dim={head_dim} must be a multiple of 4: rows and columns each turn pairs of channels")
    rows, columns = grid_positions(grid_size)
    frequencies = temperature ** -(torch.arange(head_dim // 4, **_EXACT) / (head_dim // 4))
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=1)  # (N, d/2)
    table = torch.stack([angles.cos(), angles.sin()], dim=2)  # (N, d/2, 2)
    return table.flatten(1)[:, None].float().to(torch.get_default_device())  # (N, 1, d)


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Turns the last N tokens of x (B, T, h, d) by their angles, and leaves the T - N prefix tokens as they are.

    Channels 2i and 2i + 1 are a complex number, times cos + i sin (Su et al., Eq. 13).

    Args:
        rope: of `rope2d_table`, (N, 1, d), or for each image and head, up to (B, N, h, d).
    """
    num_prefix = x.shape[-3] - rope.shape[-3]
    if num_prefix < 0:
        raise ValueError(
            f"rope is a table of {rope.shape[-3]} patches and x has {x.shape[-3]} tokens: it must have one row for "
            "each patch, so at most as many as tokens; make it with rope2d_table(grid_size, head_dim)"
        )
    pairs = x[..., num_prefix:, :, :].unflatten(-1, (-1, 2))  # (B, N, h, d/2, 2)
    turn = rope.to(x.dtype).unflatten(-1, (-1, 2))  # (N, 1, d/2, 2)
    has_complex = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if has_complex and not torch.compiler.is_compiling() and len(x):  # an exported graph must not ask for the length
        # One pass over the memory. Compilers cannot fuse complex numbers, and there are none of half precision.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn))
    else:
        (a, b), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)  # (B, N, h, d/2), (N, 1, d/2)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    turned = turned.flatten(-2)  # (B, N, h, d)
    return torch.cat([x[..., :num_prefix, :, :], turned], dim=-3) if num_prefix else turned  # (B, T, h, d)


# Every library resamples in its own way, and the results differ: a table should be resampled as its own did.
RESAMPLINGS = {
    "bicubic_antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},  # timm, DINOv2 with registers
    "bicubic": {"mode": "bicubic", "align_corners": False},  # transformers
    "bicubic_offset": {"mode": "bicubic", "align_corners": False},  # DINO, DINOv2: scaled by (new + 0.1) / old
    "bicubic_corners": {"mode": "bicubic", "align_corners": True},  # torchvision
    "bilinear_corners": {"mode": "bilinear", "align_corners": True},  # Google
}


def resample_pos_embed(
    table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], resampling: str = "bicubic_antialias"
) -> Tensor:
    """A learned table (1, N, D) of one grid, resampled to another; itself if they agree.

    The table holds patches only. A model works at a new resolution right away, but only fine-tuning makes it good.

    Args:
        resampling: a name in `RESAMPLINGS`.
    """
    if table.ndim != 3 or table.shape[1] != old_grid[0] * old_grid[1]:
        raise ValueError(f"a position table of shape {tuple(table.shape)} does not fill old_grid={old_grid}")
    check_choice("resampling", resampling, RESAMPLINGS)
    if tuple(old_grid) == tuple(new_grid):
        return table
    grid = table.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    if resampling == "bicubic_offset":
        target = {"scale_factor": tuple((new + 0.1) / old for new, old in zip(new_grid, old_grid, strict=True))}
    else:
        target = {"size": tuple(new_grid)}
    grid = grid if grid.dtype == torch.float64 else grid.float()
    grid = F.interpolate(grid, **target, **RESAMPLINGS[resampling])
    return grid.flatten(2).transpose(1, 2).to(table.dtype)  # (1, N', D)
