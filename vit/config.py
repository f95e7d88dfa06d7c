"""Every choice a user makes, in two frozen dataclasses that check themselves.

`ViTConfig` is all that is needed to rebuild a network and load its weights; `TrainConfig` is how it is optimized.
A field that could differ between two runs of the same network belongs to `TrainConfig`. Change one with
`dataclasses.replace(config, field=value)`; store one with `to_dict` and read it back with `from_dict`.
`recipe` gives one of each that go together. All live in this one file, long for the documentation of its fields, so
that all there is to tweak is in one place.
Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, Table 1 (the paper's model sizes).
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import FrozenInstanceError, asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

from vit.arguments import as_integer, check_choice, did_you_mean, is_integer, is_number, nearest


def _check_named(kind: str, name: str, named: Collection[str]) -> None:
    if name not in named:
        raise ValueError(f"unknown {kind} {name!r}; {did_you_mean(name, named)}choose from: {', '.join(named)}")


def _check_fields(owner: str, names: Iterable[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{owner} has no field {name!r}; {did_you_mean(name, known)}fields: {', '.join(known)}")


class _Config:
    """What both configurations share: unknown names are refused, and presets are complete sets of values."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __new__(cls, /, *unnamed: Any, **values: Any) -> Self:
        # Runs before the generated __init__, whose own messages suggest nothing.
        if unnamed:
            first = fields(cls)[0].name
            raise TypeError(f"{cls.__name__} takes its values by name, such as {cls.__name__}({first}={unnamed[0]!r})")
        _check_fields(cls.__name__, values, [field.name for field in fields(cls)])
        return super().__new__(cls)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The named preset, with any field changed. `list_presets()` gives the names."""
        _check_named("preset", name, cls.PRESETS)
        return cls(**(cls.PRESETS[name] | changes))

    @classmethod
    def list_presets(cls) -> list[str]:
        return list(cls.PRESETS)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; lists, which JSON makes of tuples, become tuples again."""
        if not isinstance(values, dict):
            raise ValueError(f"{cls.__name__}.from_dict takes a dict, got {type(values).__name__}: {values!r}")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _fail(self, name: str, rule: str) -> None:
        raise ValueError(f"{type(self).__name__}.{name}={getattr(self, name)!r} {rule}")

    def _check_int(self, name: str, low: int) -> None:
        value = as_integer(f"{type(self).__name__}.{name}", getattr(self, name), low)
        object.__setattr__(self, name, value)  # numpy's numbers are stored as Python's

    def _check_float(
        self, name: str, low: float, high: float = math.inf, *, open_start: bool = False, open_end: bool = True
    ) -> None:
        value = getattr(self, name)
        is_end = (value == low and open_start) or (value == high and open_end)
        if not is_number(value) or not low <= value <= high or is_end:
            start, end = "(" if open_start else "[", ")" if open_end else "]"
            self._fail(name, f"must be a number in {start}{low}, {high}{end}")
        object.__setattr__(self, name, int(value) if is_integer(value) else float(value))

    def _check_bool(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            self._fail(name, "must be True or False")

    def _check_choices(self) -> None:
        for name, choices in self.CHOICES.items():
            check_choice(f"{type(self).__name__}.{name}", getattr(self, name), choices)
            object.__setattr__(self, name, str(getattr(self, name)))  # numpy's texts are stored as Python's


def _sizes(*sizes: int, **more: Any) -> dict[str, Any]:
    names = ("image_size", "patch_size", "embed_dim", "depth", "num_heads")
    return dict(zip(names, sizes, strict=True)) | more


# For minutes on a CPU. Rotary positions make every step longer: they lose in five minutes and gain in twenty. Whitened
# patches cost no time; they too gain in twenty, and in five nothing that was seen.
_FAST_OPTIONS = {"mlp_ratio": 2.0, "pool": "mean", "head": "linear", "pos_embed": "sincos2d"}
_LONGER_OPTIONS = _FAST_OPTIONS | {"pos_embed": "rope"}

# Without CLS the tokens are a multiple of 64, which fused attention likes.
_GPU_OPTIONS = {
    "pool": "mean",
    "head": "linear",
    "pos_embed": "rope",
    "qk_norm": True,
    "qkv_bias": False,
    "drop_path_rate": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig(_Config):
    """A Vision Transformer, complete: the same config always builds the same network.

    Args:
        image_size: pixels, one number for a square or (height, width); stored as (height, width).
        patch_size: side of a square patch in pixels; must divide both image sides.
        in_chans: image channels, 3 for RGB.
        num_classes: size of the output; 0 leaves the head out and returns the pooled features.
        embed_dim, depth, num_heads: token width D, number of blocks, attention heads; heads must divide D.
        mlp_ratio: hidden width of each block's MLP as a multiple of `embed_dim`.
        pool: what the head reads: "cls", a learned CLS token (the paper); "mean", the average of the patch tokens,
            without CLS; "cls_mean", both side by side (DINOv2's classifier); "cls_register", CLS and the first register
            side by side (DeiT, whose distillation token is that register).
        head: "mlp" is the paper's pre-training head (one tanh hidden layer), "linear" its fine-tuning head.
        pos_embed: "learned" (the paper), "sincos2d" (fixed), "rope" (rotary, in every block) or "none".
        num_registers: more learned tokens, which only pool="cls_register" reads at the end (Darcet et al., "Vision
            Transformers Need Registers", ICLR 2024).
        act: between the layers of an MLP: "gelu", "gelu_tanh" (GELU as approximated in JAX), "quick_gelu" (OpenAI's
            CLIP) or "swiglu" (gated, with twice as wide a first layer; DINOv2's largest).
        norm_eps: what LayerNorm adds to the variance.
        pre_norm: LayerNorm on the tokens in front of the first block, and no bias of the patches (CLIP).
        patch_norm: LayerNorm before and after the patches' linear map (Kumar et al., "Dual PatchNorm", TMLR 2023).
        fc_norm: the final LayerNorm after the average of pool="mean", not before it.
        pos_resampling: how learned positions go to another grid: "bicubic_antialias" (timm), "bicubic"
            (transformers), "bicubic_offset" (DINO), "bicubic_corners" (torchvision) or "bilinear_corners" (Google).
        patch_init: how the patches' linear map starts: "xavier", drawn at random (the paper's code), or "whitened",
            filters that take the redundancy out of natural images, see `init_whitened_patches`.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: LayerNorm on each head's queries and keys (Dehghani et al., "Scaling Vision Transformers to 22
            Billion Parameters", ICML 2023).
        layer_scale: start value of LayerScale, for example 1e-4; None leaves it out (Touvron et al., "Going deeper
            with Image Transformers", ICCV 2021).
        drop_rate, attn_drop_rate, drop_path_rate: dropout after every projection, on the attention
            probabilities, and stochastic depth (rising linearly to this value in the last block); in [0, 1).
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "pool": ("cls", "mean", "cls_mean", "cls_register"),
        "head": ("mlp", "linear"),
        "pos_embed": ("learned", "sincos2d", "rope", "none"),
        "patch_init": ("xavier", "whitened"),
        "act": ("gelu", "gelu_tanh", "quick_gelu", "swiglu"),
        "pos_resampling": ("bicubic_antialias", "bicubic", "bicubic_offset", "bicubic_corners", "bilinear_corners"),
    }
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "vit_pico_patch8_32": _sizes(32, 8, 64, 4, 4),
        "vit_nano_patch4_32": _sizes(32, 4, 96, 6, 3, mlp_ratio=2.0),
        # Four blocks for five minutes on a CPU, six for twenty, six wider ones for two hours.
        "vit_fast_patch4_32": _sizes(32, 4, 96, 4, 3, **_FAST_OPTIONS),
        "vit_fast6_patch4_32": _sizes(32, 4, 96, 6, 3, **_LONGER_OPTIONS, patch_init="whitened"),
        "vit_fast6_wide_patch4_32": _sizes(32, 4, 128, 6, 4, **_LONGER_OPTIONS),
        "vit_micro_patch4_32": _sizes(32, 4, 128, 6, 4),
        "vit_mini_patch4_32": _sizes(32, 4, 192, 9, 3),
        "vit_small_patch4_32": _sizes(32, 4, 384, 6, 6),
        # To be trained on a GPU, see TrainConfig's "gpu_10min". Starting points: no result has been measured yet.
        "vit_gpu_patch4_32": _sizes(32, 4, 384, 12, 6, **_GPU_OPTIONS),
        "vit_gpu_patch2_32": _sizes(32, 2, 384, 8, 6, **_GPU_OPTIONS),
        "vit_tiny_patch16_224": _sizes(224, 16, 192, 12, 3, num_classes=1000, head="linear"),
        "vit_small_patch16_224": _sizes(224, 16, 384, 12, 6, num_classes=1000, head="linear"),
        "vit_base_patch16_224": _sizes(224, 16, 768, 12, 12, num_classes=1000, head="linear"),
        "vit_large_patch16_224": _sizes(224, 16, 1024, 24, 16, num_classes=1000, head="linear"),
        "vit_huge_patch14_224": _sizes(224, 14, 1280, 32, 16, num_classes=1000, head="linear"),
    }

    image_size: int | tuple[int, int] = 32
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 10
    embed_dim: int = 96
    depth: int = 6
    num_heads: int = 3
    mlp_ratio: float = 4.0
    pool: str = "cls"
    head: str = "mlp"
    pos_embed: str = "learned"
    num_registers: int = 0
    act: str = "gelu"
    norm_eps: float = 1e-6
    pre_norm: bool = False
    patch_norm: bool = False
    fc_norm: bool = False
    pos_resampling: str = "bicubic_antialias"
    patch_init: str = "xavier"
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("patch_size", "in_chans", "embed_dim", "depth", "num_heads"):
            self._check_int(name, 1)
        for name in ("num_classes", "num_registers"):
            self._check_int(name, 0)
        for name in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
            self._check_float(name, 0.0, 1.0)
        for name in ("qkv_bias", "qk_norm", "pre_norm", "patch_norm", "fc_norm"):
            self._check_bool(name)
        self._check_choices()
        if self.pool == "cls_register" and not self.num_registers:
            self._fail("pool", "needs num_registers of 1 or more")
        if self.fc_norm and self.pool != "mean":
            self._fail("fc_norm", 'is for pool="mean"')
        self._check_float("norm_eps", 0.0, 1.0)
        if self.layer_scale is not None:
            self._check_float("layer_scale", 0.0)
        self._check_float("mlp_ratio", 0.0)
        if self.mlp_dim < 1:
            self._fail("mlp_ratio", f"leaves the MLP no hidden unit at embed_dim={self.embed_dim}")
        self._check_image_size()
        self._check_heads()

    def _check_image_size(self) -> None:
        size = self.image_size
        if not isinstance(size, (tuple, list)):  # a list, as JSON has it
            size = (size, size)
        if not all(map(is_integer, size)) or len(size) != 2 or min(size) < 1:
            self._fail("image_size", "must be a positive integer or a tuple (height, width) of two")
        size = tuple(map(int, size))
        for side in size:
            if side < self.patch_size:
                self._fail("image_size", f"is smaller than one patch of patch_size={self.patch_size}")
            if side % self.patch_size:
                below = side - side % self.patch_size
                divisors = [p for p in (2, 4, 7, 8, 14, 16, 32) if size[0] % p == 0 and size[1] % p == 0]
                remedy = f"image sides of {below} or {below + self.patch_size}"
                if divisors:
                    remedy += f", or patch_size {' or '.join(map(str, divisors))}"
                self._fail("image_size", f"is not a multiple of patch_size={self.patch_size}; try {remedy}")
        object.__setattr__(self, "image_size", size)

    def _check_heads(self) -> None:
        if self.embed_dim % self.num_heads:
            valid = [str(n) for n in range(1, self.embed_dim + 1) if self.embed_dim % n == 0]
            self._fail("num_heads", f"does not divide embed_dim={self.embed_dim}; allowed: {', '.join(valid)}")
        if self.pos_embed == "sincos2d" and self.embed_dim % 4:
            self._fail("embed_dim", 'must be a multiple of 4 with pos_embed="sincos2d"')
        if self.pos_embed == "rope" and self.head_dim % 4:
            self._fail("num_heads", f'gives head_dim={self.head_dim}; pos_embed="rope" needs a multiple of 4')

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches as (rows, columns)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        return math.prod(self.grid_size)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches: CLS, if there is one, then the registers."""
        return int(self.pool != "mean") + self.num_registers

    @property
    def pooled_dim(self) -> int:
        """Width of what the head reads."""
        return self.embed_dim * (1 if self.pool in ("cls", "mean") else 2)

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        return int(self.embed_dim * self.mlp_ratio)


_DROP_HALF = {"patch_drop_rate": 0.5, "patch_drop_until": 0.85}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Config):
    """How a network is optimized. The defaults are five plain epochs; each preset changes them to fit a time.

    Args:
        epochs: passes over the training images; a fraction ends the last one early.
        batch_size: images per step, those of all processes together.
        accumulation_steps: in how many parts a process computes a step, one after another: less memory, and the same
            gradient where the loss is a mean over samples (one with class weights or contrasts sees each part alone).
        optimizer: "muon" for the weight matrices of the blocks with AdamW on the rest, or "adamw" for all.
        learning_rate: AdamW's peak rate.
        muon_learning_rate: Muon's peak rate; its updates have spectral norm near 1, so it is far larger than AdamW's.
        muon_momentum: Muon's momentum, in [0, 1).
        adam_betas: AdamW's two decay rates, each in [0, 1).
        weight_decay: decoupled decay of weight matrices; vectors and position tables have none.
        warmup_epochs: the rates rise linearly from 0 over this many epochs (a fraction is fine).
        schedule: the fall to 0 that follows: "linear", "cosine", or "constant" for none.
        flat_until: share of the run, from its start, during which the rates stay at their peak, in [0, 1); a longer
            warm-up is finished first.
        label_smoothing: probability spread evenly over all classes, the true one among them, in [0, 1).
        clip_grad_norm: longest allowed gradient, 0 for no clipping.
        ema_decay: decay per step of a moving average of the weights, in [0, 1); 0 for none. The averaged weights are
            the ones that are evaluated and returned. The decay is smaller in the first steps, see `AveragedWeights`.
        crop_padding: random crops move the image by up to this many pixels.
        flip: "alternating" (each image mirrored every other epoch), "random" or "none".
        patch_drop_rate: share of the patches that the encoder is not shown, drawn anew for each image, in [0, 1).
        patch_drop_until: up to which share of the run patches are dropped, in [0, 1]; the rest of it sees them all.
        erase_size: side in pixels of the square blanked in each image, 0 for none.
        auto_augment: "trivial" (TrivialAugmentWide) or "rand" (RandAugment) for long runs, or "none".
        mixup_alpha, cutmix_alpha: Beta parameters of MixUp and CutMix, 0 for off; with both on each batch takes one.
        mix_probability: share of the batches that are mixed, in [0, 1].
        mix_until: up to which share of the run batches are mixed, in [0, 1]; the rest of it sees whole images.
        test_time_augmentation: "flip" averages the probabilities of an image and its mirror image, or "none".
        seed: decides the order of the images, every augmentation, dropout and dropped patches; the first weights too,
            with `torch.manual_seed(config.seed)` before the network is made.
        device: "auto" takes a GPU if there is one; else "cpu", "cuda" or "mps".
        precision: "fp32", "bf16" (autocast), or "auto": bf16 on a GPU that computes in it, fp32 elsewhere.
        compile: whether to run `torch.compile` on the network.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "optimizer": ("muon", "adamw"),
        "schedule": ("linear", "cosine", "constant"),
        "flip": ("alternating", "random", "none"),
        "auto_augment": ("none", "trivial", "rand"),
        "test_time_augmentation": ("none", "flip"),
        "device": ("auto", "cpu", "cuda", "mps"),
        "precision": ("auto", "fp32", "bf16"),
    }
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu_5min": {"epochs": 7, "warmup_epochs": 0.7, **_DROP_HALF},
        "cpu_10min": {"epochs": 10, "warmup_epochs": 1.0, **_DROP_HALF},
        "cpu_20min": {"epochs": 21, "warmup_epochs": 2.1, "crop_padding": 4, **_DROP_HALF},
        "cpu_2h": {
            "epochs": 40,
            "warmup_epochs": 4.0,
            "crop_padding": 4,
            "cutmix_alpha": 1.0,
            "mix_probability": 0.5,
            "mix_until": 0.85,
            **_DROP_HALF,
        },
        "quick": {"epochs": 2, "batch_size": 50, "warmup_epochs": 0.2},
        # For one GPU and the networks "vit_gpu_...". A starting point that no run has tested yet; `for_budget` makes
        # the number of epochs that of your GPU. The batch divides 45,000 and 50,000: compiled for one size only.
        "gpu_10min": {
            "epochs": 150,
            "batch_size": 1000,
            "muon_learning_rate": 0.01,
            "weight_decay": 0.02,
            "warmup_epochs": 4.5,
            "flat_until": 0.6,
            "clip_grad_norm": 1.0,
            "ema_decay": 0.999,
            "crop_padding": 4,
            "patch_drop_rate": 0.5,
            "patch_drop_until": 0.75,
            "auto_augment": "trivial",
            "cutmix_alpha": 1.0,
            "mix_probability": 0.5,
            "mix_until": 0.92,
            "compile": True,
        },
    }

    epochs: float = 5
    batch_size: int = 64
    accumulation_steps: int = 1
    optimizer: str = "muon"
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.008
    muon_momentum: float = 0.95
    adam_betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup_epochs: float = 0.5
    schedule: str = "linear"
    flat_until: float = 0.0
    label_smoothing: float = 0.1
    clip_grad_norm: float = 0.0
    ema_decay: float = 0.0
    crop_padding: int = 2
    flip: str = "alternating"
    patch_drop_rate: float = 0.0
    patch_drop_until: float = 0.6
    erase_size: int = 0
    auto_augment: str = "none"
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_probability: float = 1.0
    mix_until: float = 1.0
    test_time_augmentation: str = "none"
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation_steps"):
            self._check_int(name, 1)
        if self.accumulation_steps > self.batch_size:
            self._fail("accumulation_steps", f"must be at most batch_size={self.batch_size}")
        self._check_float("epochs", 0, open_start=True)
        for name in ("crop_padding", "erase_size", "seed"):
            self._check_int(name, 0)
        if self.seed >= 2**63:  # torch takes 64 bits, and several processes add a little to theirs
            self._fail("seed", "must be below 2**63")
        for name in ("learning_rate", "muon_learning_rate", "weight_decay", "warmup_epochs", "clip_grad_norm"):
            self._check_float(name, 0.0)
        for name in ("muon_momentum", "label_smoothing", "ema_decay", "patch_drop_rate", "flat_until"):
            self._check_float(name, 0.0, 1.0)
        for name in ("mixup_alpha", "cutmix_alpha"):
            self._check_float(name, 0.0)
        for name in ("mix_probability", "mix_until", "patch_drop_until"):
            self._check_float(name, 0.0, 1.0, open_end=False)
        self._check_choices()
        self._check_bool("compile")
        betas = self.adam_betas
        are_numbers = isinstance(betas, tuple) and len(betas) == 2 and all(map(is_number, betas))
        if not are_numbers or not all(0.0 <= beta < 1.0 for beta in betas):
            self._fail("adam_betas", "must be a tuple of two numbers in [0, 1)")
        object.__setattr__(self, "adam_betas", tuple(map(float, betas)))
        if self.warmup_epochs >= self.epochs:
            self._fail("warmup_epochs", f"must be shorter than the run of epochs={self.epochs}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The named preset, with any field changed. `list_presets()` gives the names.

        With other `epochs` the warm-up stays the same share of the run, unless `warmup_epochs` is given too;
        `dataclasses.replace` changes the named fields alone.
        """
        epochs, of_preset = changes.get("epochs"), cls.PRESETS.get(name, {})
        if is_number(epochs) and epochs != of_preset.get("epochs") and "warmup_epochs" in of_preset:
            share = of_preset["warmup_epochs"] / of_preset["epochs"]
            changes = {"warmup_epochs": max(0.0, share * epochs)} | changes
        return super().preset(name, **changes)

    def with_epochs(self, epochs: float) -> Self:
        """The same training over other epochs: its warm-up stays the same share of them."""
        warmup_epochs = self.warmup_epochs / self.epochs * epochs if is_number(epochs) else self.warmup_epochs
        return replace(self, epochs=epochs, warmup_epochs=warmup_epochs)

    def mixed_steps(self, steps_per_epoch: int) -> float:
        """How many first steps of the run may be mixed: see `mix_until`; without an end where it is 1."""
        return self.mix_until * self.epochs * steps_per_epoch if self.mix_until < 1 else math.inf


def _refuse_change(config: _Config, name: str, value: Any) -> None:
    owner, known = type(config).__name__, [field.name for field in fields(config)]
    what = f"{owner}.{name} cannot be set: configs"
    if name not in known:
        what = f"{owner} has no field {name!r}; {did_you_mean(name, known)}configs"
        name = nearest(name, known) or "field"
    raise FrozenInstanceError(
        f"{what} do not change; make another: config = dataclasses.replace(config, {name}={value!r})"
    )


# In place of the method that `dataclass` writes, which suggests nothing.
ViTConfig.__setattr__ = TrainConfig.__setattr__ = _refuse_change


# The network that goes with each training preset.
RECIPES = {
    "cpu_5min": "vit_fast_patch4_32",
    "cpu_10min": "vit_nano_patch4_32",
    "cpu_20min": "vit_fast6_patch4_32",
    "cpu_2h": "vit_fast6_wide_patch4_32",
    "quick": "vit_pico_patch8_32",
    "gpu_10min": "vit_gpu_patch4_32",
}


def recipe(name: str, **changes: Any) -> tuple[ViTConfig, TrainConfig]:
    """A network and a training that go together, by the name of the training preset, with any field of both changed;
    with other `epochs` the warm-up stays the same share of the run, see `TrainConfig.preset`.

    The name says for what: "cpu" is two cores, of which "cpu_2h" needs one. `for_budget` fits the epochs to another
    machine or time.

    Raises:
        ValueError: there is no such recipe or field, or the field's own rule is broken.
    """
    _check_named("recipe", name, RECIPES)
    model_fields = [field.name for field in fields(ViTConfig)]
    train_fields = [field.name for field in fields(TrainConfig)]
    _check_fields("a recipe", changes, model_fields + train_fields)
    of_model = {field: value for field, value in changes.items() if field in model_fields}
    of_train = {field: value for field, value in changes.items() if field in train_fields}
    return ViTConfig.preset(RECIPES[name], **of_model), TrainConfig.preset(name, **of_train)


def check_is_config(config: Any) -> None:
    """Raises TypeError for what is no `TrainConfig`."""
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config={config!r} must be a TrainConfig, such as TrainConfig.preset('quick')")
