"""A budget in minutes becomes a number of epochs, and nothing else changes."""

import time
from dataclasses import replace

import pytest
import torch

from vit.config import TrainConfig, ViTConfig
from vit.data import make_loaders
from vit.model.vision_transformer import VisionTransformer
from vit.training import budget, build_optimizers, for_budget
from vit.training.budget import _epochs_that_fit

CONFIG = TrainConfig.preset("quick", device="cpu", batch_size=64, epochs=5, warmup_epochs=1.0)


class Slow:
    """A loader whose batches take a known time, far longer than a step of the network."""

    num_classes = 10

    def __init__(self, loader, seconds):
        self.loader, self.seconds, self.drawn = loader, seconds, 0

    def __len__(self):
        return len(self.loader)

    def epoch(self, epoch, start_step=0):
        for batch in self.loader.epoch(epoch, start_step):
            time.sleep(self.seconds)
            self.drawn += 1
            yield batch


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VisionTransformer(ViTConfig(image_size=16, embed_dim=8, depth=1, num_heads=1))


def test_epochs_are_the_minutes_over_the_measured_time(shapes, model):
    train, val = make_loaders(shapes, CONFIG)
    train, val = Slow(train, 0.1), Slow(val, 0.2)
    assert (len(train), len(val)) == (7, 1)
    # An epoch sleeps for 7 x 0.1 s and its validation for 0.2 s: ten of them in 9 s, fewer for the work beside it.
    found = for_budget(model, train, val, CONFIG, minutes=9 / 60, probe_seconds=0.3)
    assert 3 <= found.epochs <= 10
    assert found == replace(CONFIG, epochs=found.epochs, warmup_epochs=found.warmup_epochs)
    assert found.warmup_epochs == pytest.approx(found.epochs / 5)
    assert train.drawn < 7, "the probe stops when its seconds are over"


@pytest.mark.parametrize("batch_size", [400, 200, 100])
def test_an_epoch_of_a_few_steps_is_timed_too(shapes, model, batch_size):
    config = replace(CONFIG, batch_size=batch_size)
    train = Slow(make_loaders(shapes, config)[0], 0.1)
    assert len(train) == 400 // batch_size
    found = for_budget(model, train, None, config, minutes=len(train) / 60, probe_seconds=0.1)
    assert 3 <= found.epochs <= 10  # each sleeps for 0.1 s a step, and works for less


def test_steps_that_drop_patches_are_timed_apart(shapes, model):
    config = replace(CONFIG, patch_drop_rate=0.5, patch_drop_until=0.75)
    train, _ = make_loaders(shapes, config)
    tokens = []

    class Watched(VisionTransformer):
        def embed(self, images):
            x, rope = super().embed(images)
            tokens.append(x.shape[1])
            time.sleep(0.05 if x.shape[1] == 9 else 0.25)
            return x, rope

    watched = Watched(model.config)
    found = for_budget(watched, train, None, config, minutes=7 / 60, probe_seconds=1.5)
    # 0.75 x 50 ms + 0.25 x 250 ms = 100 ms a step, 7 steps an epoch: ten epochs at most.
    assert set(tokens) == {9, 17}
    assert 3 <= found.epochs <= 10
    assert watched.patch_drop.rate == 0


@pytest.mark.parametrize("epochs", [1, 3])
def test_steps_are_timed_for_as_many_epochs_as_the_config_has(shapes, model, monkeypatch, epochs):
    asked, config = [], replace(CONFIG, epochs=epochs, warmup_epochs=0.0)
    train, _ = make_loaders(shapes, config)
    epoch = train.epoch
    monkeypatch.setattr(train, "epoch", lambda number, start: asked.append(number) or epoch(number, start))
    budget._step_seconds(model, train, config, build_optimizers(model, config), 60.0, None)
    assert asked == list(range(epochs))
    asked.clear()
    budget._step_seconds(model, train, config, build_optimizers(model, config), 0.0, None)
    assert asked == [0], "the seconds are over"


@pytest.mark.parametrize(("device", "epochs"), [("cpu", [1, 1]), ("meta", [5, 5])])
def test_only_a_cpu_is_timed_for_no_longer_than_an_epoch(shapes, model, monkeypatch, device, epochs):
    timed = []
    monkeypatch.setattr(budget, "resolve_device", lambda _: torch.device(device))
    monkeypatch.setattr(budget, "_step_seconds", lambda probe, loader, config, *_: timed.append(config.epochs) or 1.0)
    config = replace(CONFIG, patch_drop_rate=0.5, patch_drop_until=0.75)  # both kinds of steps
    for_budget(model, make_loaders(shapes, config)[0], None, config, minutes=10)
    assert timed == epochs


def test_the_steps_are_those_of_the_given_optimizers(shapes, model):
    """One that sleeps for 0.1 s a step: 7 steps an epoch, so that no more than ten epochs fit into 7 s."""

    class Sleepy(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(0.1)

    train, _ = make_loaders(shapes, CONFIG)
    sleepy = {"make_optimizers": lambda model, config: [Sleepy(model.parameters(), lr=0.1)], "probe_seconds": 1.0}
    assert for_budget(model, train, None, CONFIG, minutes=7 / 60, **sleepy).epochs <= 10


def test_nothing_else_changes(shapes, model):
    train, val = make_loaders(shapes, CONFIG)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    for_budget(model, train, val, CONFIG, minutes=1, probe_seconds=0.05)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("seconds", "epoch", "val", "expected"),
    [(100, 9, 1, 10.0), (105, 9, 1, 10.44), (100.9, 9, 1, 10.0), (5, 10, 0, 0.5), (99.9, 9, 1, 9.98), (1, 10, 2, 0.0)],
)
def test_a_begun_epoch_pays_for_its_validation(seconds, epoch, val, expected):
    assert _epochs_that_fit(seconds, epoch, val) == pytest.approx(expected)


def test_impossible_budgets_are_refused(shapes, model):
    train, val = make_loaders(shapes, CONFIG)
    for minutes in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"minutes={minutes} must be more than 0, and finite"):
            for_budget(model, train, None, CONFIG, minutes=minutes)
    with pytest.raises(ValueError, match=r"minutes=0.0001 is too short: a step takes .* s here"):
        for_budget(model, Slow(train, 0.01), val, CONFIG, minutes=0.0001, probe_seconds=0.05)


def test_each_part_of_a_run_is_weighed_by_its_length(shapes, model, monkeypatch):
    """Steps made up to take 1 s with dropped patches and 5 s without."""
    monkeypatch.setattr(
        budget, "_step_seconds", lambda probe, loader, config, *_: {1.0: 1.0, 0.0: 5.0}[config.patch_drop_until]
    )
    config = replace(CONFIG, patch_drop_rate=0.5, patch_drop_until=0.75)
    found = for_budget(model, make_loaders(shapes, config)[0], None, config, minutes=10)
    assert found.epochs == pytest.approx(600 / (7 * (0.75 * 1 + 0.25 * 5)), abs=0.01)
