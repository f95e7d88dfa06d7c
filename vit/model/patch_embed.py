"""Images into patch tokens: the paper's first step, and the pure functions under it.

`patchify` and `unpatchify` are exact inverses. A patch is flattened channel by channel, row by row, which is the
order of a convolution kernel, so one matrix serves as both.
Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, Eq. 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cuts images (B, C, H, W) into patches (B, N, C*p*p), row by row from the top left."""
    B, C, H, W = images.shape
    p = patch_size
    if H % p or W % p:
        raise ValueError(f"images of {H}x{W} pixels cannot be cut into patches of patch_size={p}: crop or resize them")
    x = images.reshape(B, C, H // p, p, W // p, p)  # (B, C, h, p, w, p)
    x = x.permute(0, 2, 4, 1, 3, 5)  # (B, h, w, C, p, p)
    return x.reshape(B, (H // p) * (W // p), C * p * p)  # (B, N, C*p*p)


def unpatchify(patches: Tensor, grid_size: tuple[int, int], patch_size: int) -> Tensor:
    """The inverse of `patchify`: patches (B, N, C*p*p) back to images (B, C, H, W)."""
    B, N, length = patches.shape
    h, w = grid_size
    p = patch_size
    if h * w != N or length % (p * p):
        raise ValueError(f"patches of shape {tuple(patches.shape)} do not fill grid_size={grid_size} at patch_size={p}")
    x = patches.reshape(B, h, w, length // (p * p), p, p)  # (B, h, w, C, p, p)
    x = x.permute(0, 3, 1, 4, 2, 5)  # (B, C, h, p, w, p)
    return x.reshape(B, length // (p * p), h * p, w * p)  # (B, C, H, W)


def take_patches(patches: Tensor, places: Tensor) -> Tensor:
    """The patches (B, N, L) at the places (B, K): (B, K, L)."""
    return patches.gather(1, places[..., None].expand(-1, -1, patches.shape[2]))


def take_angles(rope: Tensor | None, places: Tensor) -> Tensor | None:
    """Rotary angles (N, 1, d) at the places (B, K): (B, K, 1, d)."""
    return None if rope is None else rope[places]


class PatchEmbed(nn.Module):
    """One linear map for every patch: images (B, C, H, W) to tokens (B, N, D).

    Args:
        image_size: (height, width) in pixels, both multiples of `patch_size`.
        patch_size: side of a patch in pixels.
        bias: whether the linear map has one.
        norm_eps: a LayerNorm of this eps before and after the linear map (Kumar et al., "Dual PatchNorm", TMLR 2023);
            None leaves both out.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        *,
        bias: bool = True,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.patch_size = patch_size
        self.in_chans = in_chans
        # A convolution holds the weights, as in every published checkpoint. `forward` uses them as a matrix, since
        # non-overlapping patches need no more and a matrix product is faster on a CPU.
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size, bias=bias)
        patch_dim = in_chans * patch_size**2
        self.norm_in = nn.Identity() if norm_eps is None else nn.LayerNorm(patch_dim, eps=norm_eps)
        self.norm_out = nn.Identity() if norm_eps is None else nn.LayerNorm(embed_dim, eps=norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        patches = self.norm_in(patchify(images, self.patch_size))  # (B, N, C*p*p)
        return self.norm_out(F.linear(patches, self.proj.weight.flatten(1), self.proj.bias))  # (B, N, D)

    def check_images(self, images: Tensor) -> None:
        """Raises TypeError or ValueError, with the remedy, for what would fail later or, worse, would not.

        Looks at type, shape and device only, never at pixels, so it costs a GPU no wait.
        """
        weight = self.proj.weight
        expected = f"(batch, {self.in_chans}, {self.image_size[0]}, {self.image_size[1]})"
        if not isinstance(images, torch.Tensor):
            raise TypeError(
                f"the model takes a tensor of shape {expected}, got {type(images).__name__}; "
                "vit.predict(model, images) takes arrays, PIL images and paths"
            )
        shape = tuple(images.shape)
        if images.ndim != 4:
            remedy = "add the batch axis with images[None]" if images.ndim == 3 else "reshape them"
            raise ValueError(f"images must have shape {expected}, got {shape}: {remedy}")
        if shape[1] != self.in_chans:
            if shape[3] == self.in_chans:
                remedy = "the channels come last; use images.permute(0, 3, 1, 2)"
            else:
                mode = {1: "; for gray use image.convert('L')", 3: "; for RGB use image.convert('RGB')"}
                remedy = f"the model was built for in_chans={self.in_chans}{mode.get(self.in_chans, '')}"
            raise ValueError(f"images must have shape {expected}, got {shape}: {remedy}")
        if shape[2] < self.patch_size or shape[3] < self.patch_size:
            raise ValueError(
                f"images of {shape[2]}x{shape[3]} pixels are smaller than one patch of patch_size={self.patch_size}"
            )
        if shape[2:] != tuple(self.image_size):
            raise ValueError(
                f"images are {shape[2]}x{shape[3]} pixels, the model was built for {self.image_size[0]}x"
                f"{self.image_size[1]}: resize the images, or the positions with model.resized({shape[2:]})"
            )
        if images.dtype == torch.uint8:
            raise TypeError(
                "images are uint8; the model takes floats: vit.data.normalize(images, mean, std), "
                "or vit.predict(model, images), which does so itself"
            )
        # Under autocast the matrix product casts by itself.
        if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
            raise TypeError(
                f"images are {images.dtype}, the model's weights {weight.dtype}: use images.to({weight.dtype})"
            )
        if images.device != weight.device:
            raise ValueError(
                f"images are on {images.device}, the model on {weight.device}: use images.to({str(weight.device)!r})"
            )


class PatchDrop(nn.Module):
    """In training, hides a random share of the patches of every image from the encoder, whose cost falls with them.

    `rate` is the share, in [0, 1); the training loop sets it, since it may change during a run.
    Source: Liu et al., "PatchDropout", WACV 2023.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def num_kept(self, num_patches: int) -> int:
        return max(1, round(num_patches * (1 - self.rate)))

    def forward(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Patch tokens (B, N, D) with their positions, and rotary angles (N, 1, d), to the K kept, in order."""
        if not self.training or not self.rate:
            return x, rope
        B, N, _ = x.shape
        kept = torch.rand(B, N, device=x.device).topk(self.num_kept(N), dim=1).indices.sort(dim=1).values  # (B, K)
        return take_patches(x, kept), take_angles(rope, kept)  # (B, K, D), (B, K, 1, d)
