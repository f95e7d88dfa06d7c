"""Estimates against closed forms, what torch's profiler sees allocated, real optimizer states, and known times."""

import gc
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from vit.analysis import estimate, forward_flops
from vit.analysis.estimate import TrainingMemory, measure_rate, training_memory
from vit.config import TrainConfig, ViTConfig
from vit.model.vision_transformer import VisionTransformer
from vit.training import build_optimizers

CONFIG = ViTConfig(image_size=16, embed_dim=48, depth=3, num_heads=3, mlp_ratio=2.0)
OPTIMIZERS = {
    "muon": lambda model: build_optimizers(model, TrainConfig()),
    "adamw": lambda model: build_optimizers(model, TrainConfig(optimizer="adamw")),
    "sgd": lambda model: [torch.optim.SGD(model.parameters(), lr=0.1)],
    "momentum": lambda model: [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)],
}


def step_of(model, batch_size, optimizers):
    images, labels = torch.zeros(batch_size, 3, *model.config.image_size), torch.zeros(batch_size, dtype=torch.long)

    def step():
        F.cross_entropy(model(images), labels).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def most_allocated(step) -> int:
    """Bytes at the height of a step, over what was there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    height = now = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        height = max(height, now)
    return height


@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": "mean", "pos_embed": "rope", "num_registers": 2}, {"drop_rate": 0.1, "head": "linear", "depth": 5}],
)
def test_the_height_of_a_real_step_is_within_a_tenth(changes):
    """With a batch so large that the passing results of single layers are small beside it."""
    model = VisionTransformer(replace(CONFIG, **changes))
    memory = training_memory(model, 64, make_optimizers=OPTIMIZERS["muon"])
    step = step_of(model, 64, OPTIMIZERS["muon"](model))
    step()  # makes the optimizers' states
    assert memory.parameters + memory.optimizer_state + most_allocated(step) == pytest.approx(memory.total, rel=0.1)


def test_a_block_keeps_what_its_formula_says():
    """Per token: the input and output of both norms with mean and deviation, q, k, v, what attention returns with one
    sum a head, and the MLP's hidden layer before and after GELU."""
    model, deeper = (VisionTransformer(replace(CONFIG, depth=depth, pool="mean")) for depth in (3, 5))
    T, D, h, hidden = 16, 48, 3, 96
    numbers = 2 * (2 * T * D + 2 * T) + 3 * T * D + T * D + h * T + 2 * T * hidden
    growth = training_memory(deeper, 7).activations - training_memory(model, 7).activations
    assert growth == 2 * 7 * numbers * 4


def test_memory_grows_with_the_batch_and_shrinks_with_dropped_patches_and_precision():
    model = VisionTransformer(CONFIG)
    of = {size: training_memory(model, size).activations for size in (1, 2, 3, 64)}
    assert of[3] - of[2] == of[2] - of[1] > 0 and of[64] == of[1] + 63 * (of[2] - of[1])
    model.patch_drop.rate = 0.5
    assert 0.45 < training_memory(model, 64).activations / of[64] < 0.65
    model.patch_drop.rate = 0.0
    with torch.autocast("cpu", torch.bfloat16):
        assert 0.4 < training_memory(model, 64).activations / of[64] < 0.8
    assert training_memory(model, 64).total == sum(
        getattr(training_memory(model, 64), name) for name in TrainingMemory.__dataclass_fields__
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_gradients_and_states_are_counted_to_the_byte(name):
    model = VisionTransformer(replace(CONFIG, pos_embed="sincos2d"))
    model.head.requires_grad_(False)
    memory = training_memory(model, 4, make_optimizers=OPTIMIZERS[name])
    step = step_of(model, 4, optimizers := OPTIMIZERS[name](model))
    F.cross_entropy(model(torch.zeros(1, 3, 16, 16)), torch.zeros(1, dtype=torch.long)).backward()
    assert memory.gradients == sum(4 * p.grad.numel() for p in model.parameters() if p.grad is not None)
    step()
    states = [value for o in optimizers for state in o.state.values() for value in state.values()]
    assert memory.optimizer_state == sum(4 * v.numel() for v in states if torch.is_tensor(v) and v.ndim)
    assert memory.parameters == 4 * (sum(p.numel() for p in model.parameters()) + 16 * 48)  # and the table
    assert (memory.optimizer_state > 0) == (name != "sgd")
    assert training_memory(model, 4).optimizer_state == 2 * memory.gradients


def test_looking_changes_nothing_and_keeps_nothing(frozen_objects):
    model = VisionTransformer(replace(CONFIG, drop_rate=0.1)).eval()
    model.encoder.train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)

    def living() -> int:
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    training_memory(model, 4)
    before = living()
    for _ in range(3):
        training_memory(model, 4)
    assert living() == before
    measure_rate(model, 4, make_optimizers=OPTIMIZERS["muon"], seconds=0.01)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training and model.encoder.training


def test_timm_models_are_measured_too():
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10}
    theirs = timm.models.VisionTransformer(**sizes, global_pool="avg", class_token=False, fc_norm=False)
    ours = VisionTransformer(replace(CONFIG, mlp_ratio=4.0, head="linear", pool="mean"))
    memory, expected = training_memory(theirs, 8), training_memory(ours, 8)
    assert memory.gradients == expected.gradients
    assert memory.activations == pytest.approx(expected.activations, rel=0.02)
    theirs.forward = None  # no step is measured in vain
    with pytest.raises(TypeError, match="as a VisionTransformer of this library has; VisionTransformer has none"):
        measure_rate(theirs, 8)


def test_the_rate_is_the_operations_over_the_time():
    naps = iter([0.4, 0.4] + 50 * [0.1])  # the first steps of a process are slow, and not counted

    class Sleepy(VisionTransformer):
        def forward(self, images):
            time.sleep(next(naps))
            return super().forward(images)

    model = Sleepy(replace(CONFIG, depth=1))
    most = 3 * forward_flops(VisionTransformer(model.config)) * 4 / 0.1  # were the rest to take no time
    rate = measure_rate(model, 4, make_optimizers=OPTIMIZERS["adamw"], seconds=0.3)
    assert 0.5 * most < rate <= most


def test_numpys_batch_sizes_are_numbers():
    model = VisionTransformer(CONFIG)
    memory = training_memory(model, np.int64(4))
    assert memory == training_memory(model, 4) and type(memory.total) is int
    assert measure_rate(model, np.int64(4), seconds=0.01) > 0


def test_what_cannot_be_is_refused():
    model = VisionTransformer(CONFIG)
    for batch_size in (0, 2.0):
        with pytest.raises(ValueError, match=f"batch_size={batch_size} must be an integer of 1 or more"):
            training_memory(model, batch_size)
        with pytest.raises(ValueError, match=f"batch_size={batch_size} must be"):
            measure_rate(model, batch_size)
    with pytest.raises(ValueError, match="seconds=0 must be more than 0"):
        measure_rate(model, 4, seconds=0)
    with torch.device("meta"):
        nowhere = VisionTransformer(CONFIG)
    for function in (training_memory, measure_rate):
        with pytest.raises(ValueError, match=r'model is on "meta".*model.to_empty\(device="cpu"\)'):
            function(nowhere, 4)
    with pytest.raises(TypeError, match="no plain Vision Transformer of this library or of timm"):
        training_memory(torch.nn.Linear(3, 3), 4)


def test_counting_the_operations_is_not_in_the_time(monkeypatch):
    steps, loss = [], estimate._loss
    monkeypatch.setattr(estimate, "_loss", lambda *arguments: steps.append(1) or loss(*arguments))
    monkeypatch.setattr(estimate, "train_flops", lambda *arguments: time.sleep(1) or 1)
    rate = measure_rate(VisionTransformer(CONFIG), 2, seconds=0.1)
    assert (len(steps) - estimate.WARM_UP_STEPS) / rate < 0.9
