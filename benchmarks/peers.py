"""Six plain ViTs that others train on CIFAR-10: one model that can be each of them, and their recipes as numbers.

The numbers are those of the named repositories; the code is not theirs. Where it favors anybody, it is the peers:
queries, keys and values are one matrix product and patches another, which some of them split or convolve. Chosen here
for all: learning rates follow the step, since a run of minutes may end within an epoch, and CLS has a position.
Everything that is said of others stands in this one file, long for that, so that it can be checked in one reading.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms

from vit.data.augment import random_erase, random_flips
from vit.data.auto_augment import rand_augment
from vit.model.patch_embed import patchify
from vit.model.transformer import DropPath
from vit.training.optim import learning_rate_factor


@dataclass(frozen=True, kw_only=True)
class PeerModel:
    """A plain ViT with CLS, learned positions and LayerNorm before each branch. Sizes mean what they do in `ViTConfig`.

    Args:
        mlp_dim: hidden width of the MLP.
        scale_by_width: scores are divided by the root of `embed_dim` instead of that of a head's width.
        gelu: "none" is the exact GELU, "tanh" its approximation.
        gelu_after_fc2: a second GELU at the end of the MLP.
        norm_at_end, hidden_head: a LayerNorm before the head; a tanh layer in it.
        drop_embed, drop_attn, drop_proj, drop_hidden, drop_mlp: dropout on the tokens, on the probabilities, after the
            projection of attention, inside the MLP and after it.
        drop_path: stochastic depth, the same in every block.
        init: "torch" (every layer's own), "normal" (deviation 0.02), "xavier" (normal) or "torch_xavier" (attention
            as in `nn.MultiheadAttention`, every other layer's own).
        token_std: deviation of CLS and positions at the start.
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    image_size: tuple[int, int] = (32, 32)
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 10
    qkv_bias: bool = True
    scale_by_width: bool = False
    gelu: str = "none"
    gelu_after_fc2: bool = False
    norm_at_end: bool = True
    hidden_head: bool = False
    drop_embed: float = 0.0
    drop_attn: float = 0.0
    drop_proj: float = 0.0
    drop_hidden: float = 0.0
    drop_mlp: float = 0.0
    drop_path: float = 0.0
    init: str = "torch"
    token_std: float = 1.0


class PlainAttention(nn.Module):
    """Self-attention written out, as all six compute it: the (T, T) probabilities are made and kept."""

    def __init__(self, config: PeerModel) -> None:
        super().__init__()
        D = config.embed_dim
        self.num_heads = config.num_heads
        self.scale = (D if config.scale_by_width else D // config.num_heads) ** -0.5
        self.qkv = nn.Linear(D, 3 * D, bias=config.qkv_bias)
        self.attn_drop = nn.Dropout(config.drop_attn)
        self.proj = nn.Linear(D, D)
        self.proj_drop = nn.Dropout(config.drop_proj)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, D // self.num_heads)  # (B, T, 3, h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, h, T, d)
        attn = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)  # (B, h, T, T)
        x = (self.attn_drop(attn) @ v).transpose(1, 2).flatten(2)  # (B, T, D)
        return self.proj_drop(self.proj(x))


class PlainBlock(nn.Module):
    """Attention, then MLP, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, config: PeerModel) -> None:
        super().__init__()
        D = config.embed_dim
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn = PlainAttention(config)
        self.fc1, self.fc2 = nn.Linear(D, config.mlp_dim), nn.Linear(config.mlp_dim, D)
        self.act = nn.GELU(config.gelu)
        self.act2 = nn.GELU(config.gelu) if config.gelu_after_fc2 else nn.Identity()
        self.hidden_drop, self.mlp_drop = nn.Dropout(config.drop_hidden), nn.Dropout(config.drop_mlp)
        self.drop_path = DropPath(config.drop_path) if config.drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))  # (B, T, D)
        hidden = self.hidden_drop(self.act(self.fc1(self.norm2(x))))  # (B, T, hidden)
        return x + self.drop_path(self.mlp_drop(self.act2(self.fc2(hidden))))  # (B, T, D)


class PlainViT(nn.Module):
    """Normalized images (B, C, H, W) to logits (B, num_classes)."""

    def __init__(self, config: PeerModel) -> None:
        super().__init__()
        self.config = config
        D, p = config.embed_dim, config.patch_size
        num_patches = (config.image_size[0] // p) * (config.image_size[1] // p)
        self.patch_embed = nn.Linear(config.in_chans * p * p, D)
        self.cls_token = nn.Parameter(torch.randn(1, 1, D) * config.token_std)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + num_patches, D) * config.token_std)
        self.embed_drop = nn.Dropout(config.drop_embed)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(D) if config.norm_at_end else nn.Identity()
        hidden = [nn.Linear(D, D), nn.Tanh()] if config.hidden_head else []
        self.head = nn.Sequential(*hidden, nn.Linear(D, config.num_classes))
        self._init_weights()

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(patchify(images, self.config.patch_size))  # (B, N, D)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, T, D)
        x = self.embed_drop(x + self.pos_embed)  # (B, T, D)
        for block in self.blocks:
            x = block(x)  # (B, T, D)
        return self.head(self.norm(x[:, 0]))  # (B, num_classes)

    @torch.no_grad()
    def _init_weights(self) -> None:
        if self.config.init == "torch_xavier":
            for block in self.blocks:
                nn.init.xavier_uniform_(block.attn.qkv.weight)
                nn.init.zeros_(block.attn.qkv.bias)
                nn.init.zeros_(block.attn.proj.bias)
        elif self.config.init != "torch":
            fill = {"normal": partial(nn.init.normal_, std=0.02), "xavier": nn.init.xavier_normal_}[self.config.init]
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    fill(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)


def crop_windows(images: Tensor, windows: Tensor) -> Tensor:
    """Cuts a window from each image and enlarges it to the image's size, bilinearly.

    Args:
        images: uint8 (B, C, H, W).
        windows: (B, 4), top, left, height, width of each, as shares of the image's sides.
    Returns: uint8 (B, C, H, W).
    """
    top, left, height, width = windows.unbind(1)
    none = torch.zeros_like(top)
    rows = torch.stack([none, height, 2 * top + height - 1], dim=1)
    columns = torch.stack([width, none, 2 * left + width - 1], dim=1)
    grid = F.affine_grid(torch.stack([columns, rows], dim=1), list(images.shape), align_corners=False)
    cut = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)  # (B, C, H, W)
    return cut.round_().to(torch.uint8)


def resized_crop(images: Tensor, generator: torch.Generator, *, ratio: tuple[float, float]) -> Tensor:
    """`RandomResizedCrop` with a draw for each image: 80 to 100 % of its area, width to height within `ratio`."""
    area, shape, top, left = torch.rand(4, len(images), generator=generator)
    low, high = torch.tensor(ratio).log()
    area, shape = 0.8 + 0.2 * area, (low + (high - low) * shape).exp()
    height, width = (area / shape).sqrt().clamp(max=1), (area * shape).sqrt().clamp(max=1)
    return crop_windows(images, torch.stack([top * (1 - height), left * (1 - width), height, width], dim=1))


def padded_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """`RandomCrop` with a draw for each image: moved by up to 4 pixels each way, black where nothing was."""
    (B, _, H, W), padded = images.shape, F.pad(images, [4] * 4)
    rows = torch.arange(H) + torch.randint(9, (B, 1), generator=generator)  # (B, H)
    columns = torch.arange(W) + torch.randint(9, (B, 1), generator=generator)  # (B, W)
    moved = padded.permute(0, 2, 3, 1)[torch.arange(B)[:, None, None], rows[:, :, None], columns[:, None]]
    return moved.permute(0, 3, 1, 2)  # (B, C, H, W)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """`RandomHorizontalFlip` with a draw for each image."""
    return torch.where(random_flips(images, generator)[:, None, None, None], images.flip(3), images)


def erase(images: Tensor, generator: torch.Generator, *, fill: tuple[float, ...]) -> Tensor:
    """One image in four loses a square of the mean area that `RandomErasing` takes, 21 %, less where it overhangs."""
    chosen = torch.rand(len(images), generator=generator) < 0.25  # (B,)
    return random_erase(images, 15, generator, fill).where(chosen[:, None, None, None], images)


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
RATIO_3_4, RATIO_9_10 = (3 / 4, 4 / 3), (0.9, 1.1)
# What an augmentation is for one picture and for a batch. AutoAugment has no form for batches. Its policy for CIFAR-10
# changes an image 1.06 times on average, at 0.66 of the ranges that RandAugment has too: one operation of RandAugment
# at that strength stands in for it, which moves or bends an image in a third of the cases, the policy in a fifth, and
# leaves black outside, the policy gray. Where torchvision's draw of a window does not fit it draws again, where ours is
# cut to the image: as large in the mean, a little more oblong.
AUGMENTATIONS = {
    "flip": (transforms.RandomHorizontalFlip(), flip),
    "crop": (transforms.RandomCrop(32, padding=4), padded_crop),
    "resized_crop_3_4": (transforms.RandomResizedCrop(32, (0.8, 1), RATIO_3_4), partial(resized_crop, ratio=RATIO_3_4)),
    "resized_crop_9_10": (
        transforms.RandomResizedCrop(32, (0.8, 1), RATIO_9_10),
        partial(resized_crop, ratio=RATIO_9_10),
    ),
    "rand_augment_9": (transforms.RandAugment(2, 9), rand_augment),
    "rand_augment_14": (transforms.RandAugment(2, 14), partial(rand_augment, magnitude=14)),
    "auto_augment": (
        transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10, fill=[128.0] * 3),
        partial(rand_augment, num_ops=1, magnitude=20),
    ),
    # Published with the mean as the value after normalizing, which is a brighter gray before it.
    "erase": (
        transforms.RandomErasing(0.25, (0.02, 0.4), (0.3, 1 / 0.3), value=MEAN),
        partial(erase, fill=tuple(m + m * s for m, s in zip(MEAN, STD, strict=True))),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A published recipe.

    Args:
        source: repository and commit that the numbers are of.
        published: test accuracy as the authors state it, and the passes over the training images that it took.
        augment: names in AUGMENTATIONS, "to_tensor" and "normalize", in the published order.
        mean, std: per channel, what pixels are normalized with.
        workers: processes that load pictures.
        optimizer: "adam" (its decay is added to the gradient) or "adamw".
        schedule: "cosine", "constant" or "multistep": a tenth of the rate from each of the `milestones` on.
        warmup, milestones: shares of the run.
        final_rate: where a cosine ends, as a share of the peak.
        mixes: CutMix or MixUp, either with probability one half and with Beta(1, 1), in half of the batches.
    """

    source: str
    published: str
    model: PeerModel
    augment: tuple[str, ...]
    workers: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    batch_size: int
    schedule: str
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()
    final_rate: float = 0.0
    label_smoothing: float = 0.0
    mixes: bool = False

    def rate_factor(self, step: int, total_steps: int) -> float:
        """The share of its peak that the learning rate has in a step, counted from 0."""
        if self.schedule == "multistep":
            return 0.1 ** sum(step >= milestone * total_steps for milestone in self.milestones)
        warmup_steps = self.warmup * total_steps
        factor = learning_rate_factor(step, total_steps=total_steps, warmup_steps=warmup_steps, schedule=self.schedule)
        return factor if step < warmup_steps else self.final_rate + (1 - self.final_rate) * factor

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """torch's own with its default betas, which all six leave alone, and one group for every parameter."""
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.optimizer]
        return kind(model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def transform(self) -> Callable:
        """One picture to a normalized tensor (C, H, W)."""
        steps = {"to_tensor": transforms.ToTensor(), "normalize": transforms.Normalize(self.mean, self.std)}
        steps |= {name: of_picture for name, (of_picture, _) in AUGMENTATIONS.items()}
        return transforms.Compose([steps[name] for name in self.augment])

    def batch_augment(self) -> Callable[..., Tensor]:
        """The same for a batch of our loader, before it normalizes."""
        steps = [AUGMENTATIONS[name][1] for name in self.augment if name in AUGMENTATIONS]

        def augment(images: Tensor, sample_idx: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
            for step in steps:
                images = step(images, generator)
            return images

        return augment


# fmt: off
PEERS = {
    # The decay is in its train.py, the pictures' pipeline (on tensors) in its data.py.
    "tintn": Peer(
        source="https://github.com/tintn/vision-transformer-from-scratch @52c59c6", published="75.5 % after 100",
        model=PeerModel(embed_dim=48, depth=4, num_heads=4, mlp_dim=192, gelu="tanh", norm_at_end=False,
                        init="normal", token_std=0.02),
        augment=("to_tensor", "flip", "resized_crop_3_4", "normalize"), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        workers=2, batch_size=256, optimizer="adamw", learning_rate=1e-2, weight_decay=1e-2, schedule="constant",
    ),
    # The decay, 1e-3, and the end of its cosine, 1e-5, are in its solver.py.
    "s-chh": Peer(
        source="https://github.com/s-chh/PyTorch-Scratch-Vision-Transformer-ViT @5d66670", published="86.3 % after 200",
        model=PeerModel(embed_dim=128, depth=6, num_heads=4, mlp_dim=256, hidden_head=True,
                        drop_embed=0.1, drop_proj=0.1, drop_mlp=0.1, init="normal", token_std=0.02),
        augment=("crop", "flip", "rand_augment_9", "to_tensor", "normalize"),
        workers=4, batch_size=128, optimizer="adamw", learning_rate=5e-4, weight_decay=1e-3,
        schedule="cosine", warmup=10 / 200, final_rate=1e-5 / 5e-4,
    ),
    # Names no decay, so it has torch's. Reports the epoch that is best on 5,000 validation images.
    "uva15": Peer(
        source="https://github.com/phlippe/uvadlc_notebooks tutorial 15 @0da8037", published="75.6 % after 180",
        model=PeerModel(embed_dim=256, depth=6, num_heads=8, mlp_dim=512, init="torch_xavier",
                        drop_embed=0.2, drop_attn=0.2, drop_hidden=0.2, drop_mlp=0.2),
        augment=("flip", "resized_crop_9_10", "to_tensor", "normalize"),
        workers=4, batch_size=128, optimizer="adamw", learning_rate=3e-4, weight_decay=1e-2,
        schedule="multistep", milestones=(100 / 180, 150 / 180),
    ),
    # Its smoothing gives 0.1 to the nine wrong classes; torch's, which shares with the right one, has to give 1/9.
    "omihub777": Peer(
        source="https://github.com/omihub777/ViT-CIFAR @ab9043e", published="90.9 % after 200",
        model=PeerModel(embed_dim=384, depth=7, num_heads=12, mlp_dim=384, scale_by_width=True, gelu_after_fc2=True),
        augment=("crop", "flip", "auto_augment", "to_tensor", "normalize"),
        workers=8, batch_size=128, optimizer="adam", learning_rate=1e-3, weight_decay=5e-5,
        schedule="cosine", warmup=5 / 200, final_rate=1e-5 / 1e-3, label_smoothing=0.1 * 10 / 9,
    ),
    # Its RandAugment(2, 14) has operations of its own, which move a fifth of its pictures out of sight; torchvision's,
    # which is milder, stands for it. Reports the best epoch on test.
    "kentaroy47": Peer(
        source="https://github.com/kentaroy47/vision-transformers-cifar10 --net vit @5bb83d3",
        published="80 % after 200",
        model=PeerModel(embed_dim=512, depth=6, num_heads=8, mlp_dim=512, qkv_bias=False,
                        drop_embed=0.1, drop_proj=0.1, drop_hidden=0.1, drop_mlp=0.1),
        augment=("rand_augment_14", "crop", "flip", "to_tensor", "normalize"), std=(0.2023, 0.1994, 0.2010),
        workers=8, batch_size=512, optimizer="adam", learning_rate=1e-4, weight_decay=0.0, schedule="cosine",
    ),
    # Its "100 epochs" are 300 passes. The end of its cosine, 1e-6, was read in a copy. Reports the best epoch on test.
    "spt_lsa": Peer(
        source="https://github.com/aanna0701/SPT_LSA_ViT --model vit @54bd796", published="93.6 % after 300",
        model=PeerModel(embed_dim=192, depth=9, num_heads=12, mlp_dim=384, qkv_bias=False, drop_path=0.1,
                        init="xavier"),
        augment=("flip", "crop", "auto_augment", "to_tensor", "normalize", "erase"),
        workers=4, batch_size=128, optimizer="adamw", learning_rate=1e-3, weight_decay=0.05,
        schedule="cosine", warmup=10 / 100, final_rate=1e-6 / 1e-3, label_smoothing=0.1, mixes=True,
    ),
}
