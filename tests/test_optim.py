"""Optimizers and schedule against closed forms, singular values and torch's own Muon."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from vit.config import TrainConfig, ViTConfig
from vit.data import make_loaders
from vit.model.vision_transformer import VisionTransformer
from vit.training import train_one_epoch
from vit.training.optim import (
    NS_COEFFICIENTS,
    Muon,
    build_optimizers,
    learning_rate_factor,
    orthogonalize,
    set_learning_rate,
)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_orthogonalize_applies_its_polynomial_to_the_singular_values(shape):
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    a, b, c = NS_COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalize(matrices), u * s[:, None] @ vh, rtol=0, atol=1e-10)


def test_orthogonalized_singular_values_are_near_one():
    values = torch.linalg.svdvals(orthogonalize(torch.randn(8, 32, 64)))
    assert values.min() > 0.5 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 32)])
def test_muon_follows_torchs(shape):
    """torch's works in bfloat16, which is all that keeps the two apart."""
    torch.manual_seed(0)
    target = torch.randn(shape)
    ours, theirs = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
    mine = Muon([ours], lr=0.02, momentum=0.9, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1)
    for _ in range(20):
        for parameter, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            (parameter - target).square().sum().backward()
            optimizer.step()
    assert ours.norm() > 0.5
    assert (ours - theirs).norm() / theirs.norm() < 0.02


def test_splitting_equals_separate_matrices():
    fused = nn.Parameter(torch.randn(12, 4))
    parts = [nn.Parameter(part.clone()) for part in fused.data.chunk(3)]
    one, three = Muon([fused], lr=0.1, num_splits=3), Muon(parts, lr=0.1)
    for _ in range(3):
        fused.grad = torch.randn(12, 4)
        for part, grad in zip(parts, fused.grad.chunk(3), strict=True):
            part.grad = grad.clone()
        one.step()
        three.step()
    torch.testing.assert_close(fused.data, torch.cat([part.data for part in parts]))
    unsplit = nn.Parameter(torch.zeros(12, 4))
    unsplit.grad = fused.grad.clone()
    Muon([unsplit], lr=0.1).step()
    assert (torch.linalg.svdvals(unsplit.data[:4]) < 0.1 * math.sqrt(3) * 0.9).any(), "splitting must matter"


def test_a_step_may_compute_the_loss():
    matrix = nn.Parameter(torch.eye(3))
    optimizer = Muon([matrix], lr=0.1)
    assert optimizer.step() is None

    def closure():
        loss = matrix.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3
    torch.testing.assert_close(matrix.data, 0.9 * torch.eye(3), rtol=0, atol=0.05)


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match=r"rows divide by num_splits=3, got \(4, 4\)"):
        Muon([{"params": [nn.Parameter(torch.zeros(4, 4))], "num_splits": 3}], lr=0.1)
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        Muon([nn.Parameter(torch.zeros(4))], lr=0.1)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("pos_embed", ["learned", "rope"])
def test_every_parameter_is_optimized_once_and_by_the_right_rule(optimizer, pos_embed):
    model = VisionTransformer(ViTConfig(depth=2, num_registers=1, layer_scale=0.1, qk_norm=True, pos_embed=pos_embed))
    names = {p: name for name, p in model.named_parameters()}
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer, weight_decay=0.05))
    groups = [(type(o).__name__, group) for o in optimizers for group in o.param_groups]
    held = [names[p] for _, group in groups for p in group["params"]]
    assert sorted(held) == sorted(names.values())
    by_muon = {names[p] for kind, group in groups if kind == "Muon" for p in group["params"]}
    block_matrices = {f"encoder.blocks.{i}.{m}.weight" for i in range(2)
                      for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}  # fmt: skip
    assert by_muon == (block_matrices if optimizer == "muon" else set())
    decayed = {names[p] for _, group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == block_matrices | {"patch_embed.proj.weight", "head.fc1.weight", "head.fc2.weight"}
    split = {names[p] for kind, group in groups if group.get("num_splits") == 3 for p in group["params"]}
    assert split == {name for name in by_muon if "qkv" in name}


def test_timms_models_are_grouped_the_same_way():
    import timm

    model = timm.models.VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2)
    muon = build_optimizers(model, TrainConfig())[1]
    assert sorted(len(group["params"]) for group in muon.param_groups) == [1, 3]


class Convolutions(nn.Module):
    """Kernels, and tables of as many axes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv1d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.ConvTranspose3d(3, 4, 3)])
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 2, 2, 4))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_kernels_of_convolutions_decay_and_tables_do_not(optimizer):
    model = Convolutions()
    adam = build_optimizers(model, TrainConfig(optimizer=optimizer, weight_decay=0.05))
    names = {p: name for name, p in model.named_parameters()}
    decays = {names[p]: group["weight_decay"] for o in adam for group in o.param_groups for p in group["params"]}
    decayed = {"head.weight", *(f"blocks.{i}.weight" for i in range(3))}
    assert decays == {name: 0.05 if name in decayed else 0.0 for name in names.values()}


def test_patches_are_all_that_is_a_kernel_in_a_transformer():
    """In ours and timm's: what decays is what the names and axes say, so trainings stay what they were."""
    import timm

    theirs = timm.models.VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, reg_tokens=1)
    for model in (VisionTransformer(ViTConfig(depth=1, num_registers=1, patch_norm=True)), theirs):
        groups = build_optimizers(model, TrainConfig(optimizer="adamw", weight_decay=0.05))[0].param_groups
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 or (p.ndim == 4 and "patch_embed" in name)]
        rest = [p for _, p in named if not any(p is matrix for matrix in matrices)]
        for group, decay, expected in zip(groups, (0.05, 0.0), (matrices, rest), strict=True):
            assert group["weight_decay"] == decay
            assert all(p is q for p, q in zip(group["params"], expected, strict=True))
        assert {p.ndim for p in rest} == {1, 3}


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"lr": -1}, "a number of 0 or more"),
        ({"lr": float("nan")}, "a number of 0 or more"),
        ({"momentum": 2}, r"in \[0, 1\)"),
        ({"momentum": 1.0}, r"in \[0, 1\)"),
        ({"weight_decay": -0.1}, "a number of 0 or more"),
        ({"num_splits": 0}, "an integer of 1 or more"),
        ({"num_splits": 1.5}, "an integer of 1 or more"),
    ],
)
def test_muon_refuses_settings_out_of_their_range(setting, rule):
    ((name, value),) = setting.items()
    for group in ({}, setting):  # of all groups, or of one
        options = {"lr": 0.1} | ({} if group else setting)
        with pytest.raises(ValueError, match=f"Muon: {name}={value} must be {rule}"):
            Muon([{"params": [nn.Parameter(torch.zeros(4, 4))], **group}], **options)
    assert Muon([nn.Parameter(torch.zeros(4, 4))], lr=0.0, momentum=0.0, num_splits=np.int64(2))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_schedule_is_its_closed_form_at_each_step(schedule):
    total, warmup = 20, 4
    factors = [
        learning_rate_factor(step, total_steps=total, warmup_steps=warmup, schedule=schedule) for step in range(total)
    ]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    for step in range(4, 20):
        left = (20 - step) / 16
        expected = {"linear": left, "cosine": math.sin(math.pi / 2 * left) ** 2, "constant": 1.0}[schedule]
        assert factors[step] == pytest.approx(expected), step
    assert factors[4] == 1.0
    assert factors[-1] > 0, "the last step must still learn"
    assert learning_rate_factor(0, total_steps=5, warmup_steps=0, schedule=schedule) == 1.0
    with pytest.raises(ValueError, match=f"schedule='{schedule}s' is not a choice; did you mean '{schedule}'"):
        learning_rate_factor(1, total_steps=5, warmup_steps=0, schedule=f"{schedule}s")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("flat_steps", [0, 3, 12.5, 19])
def test_the_rates_stay_at_their_peak_before_they_fall(schedule, flat_steps):
    total, warmup = 20, 4
    options = {"total_steps": total, "warmup_steps": warmup, "schedule": schedule}
    factors = [learning_rate_factor(step, **options, flat_steps=flat_steps) for step in range(total)]
    start = max(4, flat_steps)
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    for step in range(4, 20):
        left = min(1.0, (20 - step) / (20 - start))
        expected = {"linear": left, "cosine": math.sin(math.pi / 2 * left) ** 2, "constant": 1.0}[schedule]
        assert factors[step] == pytest.approx(expected), step
    if flat_steps <= warmup:
        assert factors == [learning_rate_factor(step, **options) for step in range(total)]


def test_training_follows_the_flat_schedule(shapes):
    """Up over two steps of ten, flat to the sixth, then down by quarters."""
    config = TrainConfig.preset("quick", device="cpu", batch_size=40, epochs=1, warmup_epochs=0.2, flat_until=0.6)
    model = VisionTransformer(ViTConfig(image_size=16, embed_dim=8, depth=1, num_heads=1))
    optimizers, rates = build_optimizers(model, config), []
    optimizers[0].register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"] / config.learning_rate))
    train_one_epoch(model, make_loaders(shapes, config)[0], optimizers, config)
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4])


def test_groups_of_one_shape_and_several_rates_equal_optimizers_of_their_own():
    """They are orthogonalized together."""
    settings = [{"lr": 0.1}, {"lr": 0.02, "weight_decay": 0.5}, {"lr": 0.1, "weight_decay": 0.2}]
    torch.manual_seed(0)
    together, alone = ([nn.Parameter(torch.randn(6, 4, dtype=torch.float64)) for _ in range(3)] for _ in range(2))
    for a, b in zip(alone, together, strict=True):
        a.data.copy_(b.data)
    one = Muon([{"params": [p], **setting} for p, setting in zip(together, settings, strict=True)], lr=1.0)
    three = [Muon([p], **setting) for p, setting in zip(alone, settings, strict=True)]
    for _ in range(3):
        for a, b in zip(alone, together, strict=True):
            a.grad = torch.randn(6, 4, dtype=torch.float64)
            b.grad = a.grad.clone()
        for optimizer in (one, *three):
            optimizer.step()
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a.data, b.data, rtol=0, atol=1e-12)


def test_setting_the_rate_scales_each_groups_own_peak():
    model = VisionTransformer(ViTConfig(depth=1))
    optimizers = build_optimizers(model, TrainConfig(learning_rate=2e-3, muon_learning_rate=0.01))
    set_learning_rate(optimizers, 0.5)
    assert {group["lr"] for group in optimizers[0].param_groups} == {1e-3}
    assert {group["lr"] for group in optimizers[1].param_groups} == {0.005}


def test_muon_has_the_settings_of_the_config(tiny):
    _, muon = build_optimizers(VisionTransformer(tiny), TrainConfig(muon_momentum=0.5, weight_decay=0.3))
    assert {(group["momentum"], group["weight_decay"]) for group in muon.param_groups} == {(0.5, 0.3)}
