"""A forecast from configs alone against what is counted, measured and timed on the real model."""

import importlib
import math
import time
from dataclasses import replace

import pytest
import torch

from vit.analysis import count_parameters, forward_flops, train_flops, training_memory
from vit.analysis.forecast import Speed, forecast, measure_speed
from vit.config import TrainConfig, ViTConfig
from vit.data import make_loaders
from vit.model.vision_transformer import VisionTransformer
from vit.training import build_optimizers, fit

MODEL = ViTConfig(image_size=16, embed_dim=48, depth=5, num_heads=3, mlp_ratio=2.0)
TRAIN = TrainConfig(batch_size=8, epochs=1.5, device="cpu")


@pytest.mark.parametrize(
    ("model_changes", "train_changes"),
    [
        ({}, {}),
        ({"depth": 1}, {"optimizer": "adamw", "patch_drop_rate": 0.5}),
        ({"pool": "mean", "pos_embed": "rope", "qk_norm": True}, {"patch_drop_rate": 0.75, "patch_drop_until": 0.8}),
        ({"num_registers": 3, "layer_scale": 1e-4, "qkv_bias": False, "head": "linear"}, {"batch_size": 3}),
        ({}, {"accumulation_steps": 3}),
    ],
)
def test_it_tells_what_the_real_model_would(model_changes, train_changes):
    model_config, train_config = replace(MODEL, **model_changes), replace(TRAIN, **train_changes)
    told = forecast(model_config, train_config, 1000)
    model = VisionTransformer(model_config)
    assert told.num_parameters == count_parameters(model)
    assert told.flops_per_image == forward_flops(model)
    drop = {name: getattr(train_config, name) for name in ("patch_drop_rate", "patch_drop_until")}
    assert told.train_flops == pytest.approx(train_flops(model, 1500, **drop), abs=1)
    at_a_time = math.ceil(train_config.batch_size / train_config.accumulation_steps)
    real = training_memory(model, at_a_time, make_optimizers=lambda model: build_optimizers(model, train_config))
    assert told.memory == real
    assert told.seconds is None
    with_average = forecast(model_config, replace(train_config, ema_decay=0.9), 1000).memory
    assert with_average.total - real.total == sum(4 * t.numel() for t in (*model.parameters(), *model.buffers()))


def test_the_time_follows_from_the_speed():
    """Half-way between two widths on a logarithmic scale lie the means of their overheads and of their rates."""
    speed = Speed(widths=(12, 192), overheads=(1e-3, 3e-3), rates=(1e9, 3e9))
    model = VisionTransformer(MODEL)
    steps, validations = 1.5 * 125, 2
    expected = steps * 5 * 2e-3 + (1.5 * 3 * 1000 + validations * 300) * forward_flops(model) / 2e9
    assert forecast(MODEL, TRAIN, 1000, num_val_images=300, speed=speed).seconds == pytest.approx(expected)
    assert speed.seconds(1e9, 6) == 1 and speed.seconds(3e9, 1000) == 1  # beyond what was measured, the nearest


def test_a_measured_speed_forecasts_a_real_training(shapes):
    config = replace(TRAIN, batch_size=25, epochs=2, warmup_epochs=0.1)
    model = VisionTransformer(MODEL)
    loaders = make_loaders(shapes, config)
    speed = measure_speed(config, seconds=0.6)
    assert all(overhead >= 0 for overhead in speed.overheads) and all(1e8 < rate < 1e14 for rate in speed.rates)
    told = forecast(MODEL, config, len(shapes.train), num_val_images=len(shapes.val), speed=speed).seconds
    started = time.perf_counter()
    fit(model, *loaders, config)
    # Wide, for busy machines: it must find the order of magnitude, here and on a machine ten times as fast.
    assert told / 5 < time.perf_counter() - started < told * 5


def test_it_leaves_random_numbers_to_a_training_that_runs_beside(monkeypatch):
    """It neither draws any nor puts the state back to what it was."""
    config = replace(MODEL, drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.2, depth=4)
    state = torch.get_rng_state()
    monkeypatch.setattr(torch, "set_rng_state", None)
    told = forecast(config, replace(TRAIN, patch_drop_rate=0.3, batch_size=5), 100)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.undo()
    real = training_memory(VisionTransformer(config), 5, make_optimizers=lambda model: build_optimizers(model, TRAIN))
    assert 0.7 * real.total < told.memory.total < real.total  # less the masks of dropout


def test_a_measured_speed_leaves_the_random_state_alone(monkeypatch):
    monkeypatch.setattr(importlib.import_module("vit.analysis.forecast"), "measure_rate", lambda *_, **__: 1e9)
    state = torch.get_rng_state()
    measure_speed(TRAIN)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_that_there_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_images=-100 must be a number of 0 or more"):
        forecast(MODEL, TRAIN, -100)
    with pytest.raises(ValueError, match="num_val_images=-1 must be"):
        forecast(MODEL, TRAIN, 100, num_val_images=-1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_that_of_the_config(monkeypatch, precision):
    """For the memory, and for the steps that are timed."""
    config = replace(TRAIN, precision=precision)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        real = training_memory(
            VisionTransformer(MODEL), 8, make_optimizers=lambda model: build_optimizers(model, config)
        )
    assert forecast(MODEL, config, 1000).memory == real
    seen = []

    def rate(model, batch_size, **_):
        seen.append(model(torch.zeros(1, 3, 32, 32)).dtype)
        return 1e9

    monkeypatch.setattr(importlib.import_module("vit.analysis.forecast"), "measure_rate", rate)
    measure_speed(config)
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_speed_is_that_of_a_machine_made_up(monkeypatch):
    """One that needs 1 ms a block of width 64, in proportion to the width, and computes faster the wider it is."""

    def rate(model, batch_size, **_):
        flops, width = train_flops(model, batch_size), model.config.embed_dim
        return flops / (model.config.depth * 1e-3 * width / 64 + flops / (1e9 * width))

    monkeypatch.setattr(importlib.import_module("vit.analysis.forecast"), "measure_rate", rate)
    speed = measure_speed(TrainConfig(device="cpu"))
    assert speed.overheads == pytest.approx([1e-3, 2e-3, 4e-3])
    assert speed.rates == pytest.approx([6.4e10, 1.28e11, 2.56e11])
