"""The learning-rate finder against closed forms, a loop written by hand, and losses made up to have a known answer."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit.config import TrainConfig, ViTConfig
from vit.data import make_loaders
from vit.model.vision_transformer import VisionTransformer
from vit.training import build_optimizers
from vit.training.lr_finder import LearningRateCurve, find_learning_rate

CONFIG = TrainConfig.preset("quick", device="cpu", batch_size=64)


class Endless:
    """A loader that gives the same batch again and again, three times an epoch."""

    def __len__(self):
        return 3

    def epoch(self, epoch, start_step=0):
        for _ in range(start_step, 3):
            yield torch.zeros(2, 1), torch.zeros(2)


def made_up(values):
    """A loss that takes the given values one after the other, whatever the model does."""
    remaining = iter(values)
    return lambda model, batch: (model.weight.sum() * 0 + next(remaining), {})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VisionTransformer(ViTConfig(image_size=16, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0))


@pytest.mark.parametrize("curvature", [0.5, 3.0, 40.0])
def test_gradient_descent_on_a_parabola_diverges_above_two_over_the_curvature(curvature):
    """w <- (1 - rate * curvature) w grows exactly if the rate is above 2 / curvature."""

    def gradient_descent(model, config):
        return [torch.optim.SGD(model.parameters(), lr=1.0)]

    line = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(line.weight)
    # Few steps above the lowest rate, or the parabola would be at its bottom before the rate is at its limit.
    low, high, num_steps = 0.5 / curvature, 50 / curvature, 40
    curve = find_learning_rate(
        line,
        Endless(),
        CONFIG,
        low=low,
        high=high,
        num_steps=num_steps,
        loss_fn=lambda model, batch: (0.5 * curvature * model.weight.square().sum(), {}),
        make_optimizers=gradient_descent,
    )
    ratio = (high / low) ** (1 / (num_steps - 1))
    np.testing.assert_allclose(curve.factors, low * ratio ** np.arange(len(curve.factors)), rtol=1e-9)
    shrinkage = (1 - np.array(curve.factors) * curvature) ** 2
    expected = 0.5 * curvature * np.concatenate([[1], shrinkage[:-1].cumprod()])
    np.testing.assert_allclose(curve.losses, expected, rtol=1e-6)
    lowest = curve.factors[int(np.argmin(curve.losses))]
    assert 2 / curvature / ratio <= lowest <= 2 / curvature * ratio
    assert len(curve.losses) < num_steps, "the ramp ends where it diverges"
    is_above = np.array(curve.losses) > 4 * np.minimum.accumulate(curve.losses)
    assert is_above[-1] and not is_above[:-1].any(), "and no later"


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_all_rates_rise_together_as_in_a_loop_written_by_hand(shapes, model, optimizer):
    config = replace(CONFIG, optimizer=optimizer, label_smoothing=0.0, clip_grad_norm=0.3)
    loader, _ = make_loaders(shapes, config)
    assert len(loader) == 7
    curve = find_learning_rate(model, loader, config, low=0.1, high=5, num_steps=10)

    optimizers = build_optimizers(model, config)
    assert len(optimizers) == (2 if optimizer == "muon" else 1)
    for i, loss in enumerate(curve.losses):
        images, labels = loader.batch(i // 7, i % 7)  # ten steps are more than an epoch
        reference = F.cross_entropy(model(images), labels)
        assert loss == pytest.approx(reference.item(), rel=1e-5)
        model.zero_grad()
        reference.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        for one in optimizers:
            for group in one.param_groups:
                is_adam = isinstance(one, torch.optim.AdamW)
                peak = config.learning_rate if is_adam else config.muon_learning_rate
                group["lr"] = peak * 0.1 * 50 ** (i / 9)
            one.step()
    assert len(curve.losses) == 10


def test_nothing_changes(shapes, model):
    config = replace(CONFIG, patch_drop_rate=0.5)
    loader, _ = make_loaders(shapes, config)
    expected = [loader.batch(0, step)[0].clone() for step in range(2)]
    model.eval()
    model.head.fc1.weight.grad = torch.full_like(model.head.fc1.weight, 7.0)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    numbers = torch.rand(3)
    torch.manual_seed(3)
    curve = find_learning_rate(model, loader, config, num_steps=10)
    assert torch.equal(torch.rand(3), numbers)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not model.training and model.patch_drop.rate == 0
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"head.fc1.weight"}
    assert (model.head.fc1.weight.grad == 7).all()
    assert all(torch.equal(loader.batch(0, step)[0], images) for step, images in enumerate(expected))
    torch.manual_seed(3)
    assert curve == find_learning_rate(model, loader, config, num_steps=10)


@pytest.mark.parametrize("steepest", [0.3, 1.0, 8.0])
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_the_suggestion_is_where_the_loss_falls_fastest(steepest, noise):
    """A logistic fall in log(factor) is steepest in its middle; smoothing by equal weights on both sides keeps it."""
    factors = np.geomspace(0.01, 100, 100)
    rng = np.random.default_rng(0)
    losses = 2.3 - 1.5 / (1 + (factors / steepest) ** -2) + noise * rng.standard_normal(100)
    losses[80:] += np.linspace(0, 4, 20)  # and then it breaks
    curve = find_learning_rate(nn.Linear(1, 1), Endless(), CONFIG, loss_fn=made_up(losses))
    tolerance = 1.1 if noise == 0 else 1.8
    assert steepest / tolerance < curve.suggestion < steepest * tolerance
    assert np.std(np.array(curve.smoothed) - curve.losses) > noise / 2
    scaled = curve.scaled(CONFIG)
    assert scaled.learning_rate / CONFIG.learning_rate == pytest.approx(curve.suggestion)
    assert replace(scaled, learning_rate=1.0) == replace(
        CONFIG, learning_rate=1.0, muon_learning_rate=CONFIG.muon_learning_rate * curve.suggestion
    )


def test_one_huge_last_loss_does_not_move_the_suggestion():
    losses = list(2.3 - 1.5 / (1 + (np.geomspace(0.01, 100, 100) / 8) ** -2))  # steepest 18 steps before the end
    suggestions = [
        find_learning_rate(nn.Linear(1, 1), Endless(), CONFIG, loss_fn=made_up([*losses[:90], *end])).suggestion
        for end in (losses[90:], [1e30], [float("inf")], [float("nan")])
    ]
    assert len(set(suggestions)) == 1


def test_noise_is_no_fall():
    losses = 2.3 + 0.05 * np.random.default_rng(1).standard_normal(100)
    curve = find_learning_rate(nn.Linear(1, 1), Endless(), CONFIG, loss_fn=made_up(losses))
    assert curve.suggestion is None
    with pytest.raises(ValueError, match="there is no suggestion"):
        curve.scaled(CONFIG)


def test_arguments_that_make_no_ramp_are_refused(model):
    for options, message in (
        ({"low": 0.0}, "low=0.0 and high=100.0 must be positive"),
        ({"low": 2.0, "high": 1.0}, "low=2.0 and high=1.0"),
        ({"num_steps": 9}, "num_steps=9 must be an integer of 10 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            find_learning_rate(model, Endless(), CONFIG, **options)
    for first in (["nan"], ["inf", "inf"], ["inf", "nan"]):
        with pytest.raises(FloatingPointError, match="not finite before the first step"):
            find_learning_rate(nn.Linear(1, 1), Endless(), CONFIG, loss_fn=made_up([float(value) for value in first]))
    with pytest.raises(ValueError, match="patch_drop_rate=0.5: Linear has no `patch_drop.rate`"):
        find_learning_rate(nn.Linear(1, 1), Endless(), replace(CONFIG, patch_drop_rate=0.5))
    assert LearningRateCurve([1.0], [2.0], [2.0], 3.0).scaled(CONFIG).learning_rate == 3 * CONFIG.learning_rate


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"model": None}, TypeError, "model=None must be a network"),
        ({"config": None}, TypeError, "config=None must be a TrainConfig"),
        ({"num_steps": 10.5}, ValueError, "num_steps=10.5 must be an integer of 10 or more"),
        ({"num_steps": True}, ValueError, "num_steps=True must be an integer of 10 or more"),
    ],
)
def test_arguments_of_another_kind_are_named(model, change, kind, message):
    with pytest.raises(kind, match=message):
        find_learning_rate(**({"model": model, "train_loader": Endless(), "config": CONFIG} | change))


@pytest.mark.parametrize("outputs", [5, 50])
def test_outputs_are_as_many_as_the_classes(shapes, outputs):
    model = VisionTransformer(ViTConfig(image_size=16, embed_dim=16, depth=1, num_heads=2, num_classes=outputs))
    loader = make_loaders(shapes, CONFIG)[0]
    with pytest.raises(ValueError, match=rf"outputs of shape \({outputs},\) an image, the data has 10 classes"):
        find_learning_rate(model, loader, CONFIG)
    loss_fn = lambda model, batch: (model(batch[0]).square().mean(), {})  # noqa: E731
    assert find_learning_rate(model, loader, CONFIG, num_steps=np.int64(10), loss_fn=loss_fn).losses, "no classes"


def test_only_loaders_with_batches_are_taken(model):
    class Empty:
        def __init__(self, said):
            self.said = said

        def __len__(self):
            return self.said

        def epoch(self, epoch, start_step):
            return iter(())

    with pytest.raises(
        TypeError, match=r"train_loader is a list: it must have len\(loader\) and loader\.epoch.* tuples"
    ):
        find_learning_rate(model, [], CONFIG)
    with pytest.raises(ValueError, match="train_loader has no batch"):
        find_learning_rate(model, Empty(0), CONFIG)
    with pytest.raises(ValueError, match="train_loader gives no batch: there is nothing to train on"):
        find_learning_rate(model, Empty(3), CONFIG)


def test_the_finder_trains_as_fit_does_whatever_the_mode(shapes, model):
    config, modes = replace(CONFIG, label_smoothing=0.3), []
    loader = make_loaders(shapes, config)[0]
    nn.init.normal_(model.head.fc2.weight)  # or the first loss is ln 10 with any smoothing
    model.eval()
    images, labels = loader.batch(0, 0)
    expected = F.cross_entropy(model(images), labels, label_smoothing=0.3).item()
    assert find_learning_rate(model, loader, config, num_steps=10).losses[0] == pytest.approx(expected, rel=1e-5)

    def loss_fn(model, batch):
        modes.append(model.training)
        return model(batch[0]).square().mean(), {}

    find_learning_rate(model, loader, config, num_steps=10, loss_fn=loss_fn)
    assert modes and all(modes)


@pytest.mark.parametrize(("until", "seen"), [(0.0, 16), (0.5, 8)])
def test_patches_are_dropped_if_the_run_drops_any(shapes, model, until, seen):
    config, counts = replace(CONFIG, patch_drop_rate=0.5, patch_drop_until=until), []

    def loss_fn(model, batch):
        with model.patch_drop.register_forward_hook(lambda module, given, kept: counts.append(kept[0].shape[1])):
            return model(batch[0]).square().mean(), {}

    find_learning_rate(model, make_loaders(shapes, config)[0], config, num_steps=10, loss_fn=loss_fn)
    assert set(counts) == {seen}


def test_a_step_in_parts_gives_the_curve_of_a_whole_one(shapes):
    """And no more than a part is in memory at once."""
    torch.manual_seed(0)
    net = VisionTransformer(ViTConfig(image_size=16, embed_dim=16, depth=1, num_heads=2, pool="mean", head="linear"))
    largest, curves = [], []
    for parts in (1, 4):
        config = replace(CONFIG, optimizer="adamw", accumulation_steps=parts)
        seen = []
        probe = copy.deepcopy(net)
        probe.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        curves.append(find_learning_rate(probe, make_loaders(shapes, config)[0], config, num_steps=12, high=3.0).losses)
        largest.append(max(seen))
    assert largest[1] == math.ceil(largest[0] / 4)
    assert curves[1] == pytest.approx(curves[0], rel=1e-4) and len(set(curves[0])) > 1
