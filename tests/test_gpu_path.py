"""What keeps a GPU busy: no step waits for it, answers are read late but never too late, and one graph for each phase.

Without a GPU what would wait is seen in the operations that were asked for; with one, torch itself raises.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import same_weights
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from vit import analysis
from vit.config import TrainConfig, ViTConfig
from vit.data import DataSplits, keep_classes, make_loaders
from vit.data.augment import cutmix_mixup
from vit.data.corruptions import corrupt
from vit.model.vision_transformer import VisionTransformer
from vit.pretrained import load
from vit.training import Evaluation, build_optimizers, fit, load_state_weights, loop, run_files, train_one_epoch
from vit.training.averaging import AveragedWeights
from vit.training.finite import LAG, FiniteCheck
from vit.training.losses import classification_loss
from vit.training.run_files import STATE_FILE
from vit.training.state_file import read_state

NETWORK = ViTConfig(
    image_size=16, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2.0, pool="mean", pos_embed="rope", qk_norm=True,
    drop_path_rate=0.1,
)  # fmt: skip
EVERYTHING = TrainConfig.preset("gpu_10min", device="cpu", compile=False, epochs=2, warmup_epochs=0.1, batch_size=50)
QUICK = TrainConfig.preset("quick", device="cpu", batch_size=50)


def make_model(depth: int = 2) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(replace(NETWORK, depth=depth))


# Answers that come late


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("is_gradient", [False, True])
@pytest.mark.parametrize("lag", [0, 1, 4])
def test_a_bad_step_is_named_after_its_lag(lag, is_gradient, bad):
    check, fine, wrong = FiniteCheck(lag, "{} {} {}".format), torch.tensor(1.5), torch.tensor(bad)
    for step in range(3):
        check.look(fine, fine, step)
    check_bad = (fine, wrong) if is_gradient else (wrong, fine)
    with pytest.raises(FloatingPointError, match=f"^{'1.5 ' if is_gradient else ''}-?(nan|inf).* 3$"):
        check.look(*check_bad, 3)
        assert lag, "without a lag it is known before the step is taken"
        for later in range(lag):
            check.look(wrong, wrong, 10 + later)
            assert later < lag - 1, "known no later than so many steps after"


def test_what_is_left_is_read_at_the_end_and_no_value_is_read_twice():
    check, loss = FiniteCheck(4, "{} {} {}".format), torch.tensor(2.0)
    for step in range(6):
        check.look(loss, loss, step)
    check.finish()
    check.look(loss, torch.tensor(torch.inf), 6)
    loss.fill_(float("nan"))  # what happens to it later is not of that step
    with pytest.raises(FloatingPointError, match="2.0 inf 6"):
        check.finish()
    check.finish()


def diverging_in_step(number: int):
    """A loss whose gradient is infinite once."""
    learn, count = classification_loss(), 0

    def loss_fn(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict]:
        nonlocal count
        count += 1
        loss, metrics = learn(model, batch)
        return loss * (float("inf") if count == number else 1.0), metrics

    return loss_fn


def test_training_takes_the_same_steps_with_late_answers(shapes, monkeypatch):
    models = []
    for lag in (0, 4):
        monkeypatch.setitem(LAG, "cpu", lag)
        models.append(make_model())
        fit(models[-1], *make_loaders(shapes, QUICK), QUICK)
    assert same_weights(*models)


@pytest.mark.parametrize("stop_after", [None, 4])
def test_a_late_answer_comes_before_the_state_is_saved(shapes, monkeypatch, tmp_path, stop_after):
    """Step 12 is the 4th of the second epoch: the state of the first must stay, at the epoch's end and at a stop."""
    monkeypatch.setitem(LAG, "cpu", 20)
    loaders, steps = (make_loaders(shapes, QUICK)[0], None), 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return stop_after is not None and steps > 8 + stop_after

    model = make_model()
    seen = r"inf.* in step 4 of epoch 2, .*: seen after that step, so the weights in memory are spoiled, but what was"
    with pytest.raises(FloatingPointError, match=seen):
        fit(model, *loaders, QUICK, run_dir=tmp_path, loss_fn=diverging_in_step(12), should_stop=should_stop)
    assert not all(p.isfinite().all() for p in model.parameters())
    state = read_state(tmp_path / STATE_FILE)
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (1, 0)
    assert all(tensor.isfinite().all() for tensor in state["model"].values() if tensor.is_floating_point())
    resumed = make_model()
    assert fit(resumed, *loaders, QUICK, run_dir=tmp_path, resume=True, loss_fn=classification_loss()).is_complete


def test_a_check_that_reads_nothing_would_be_noticed(shapes, monkeypatch, tmp_path):
    monkeypatch.setitem(LAG, "cpu", 20)
    monkeypatch.setattr(FiniteCheck, "finish", lambda self: None)
    fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path, loss_fn=diverging_in_step(12))
    state = read_state(tmp_path / STATE_FILE)
    assert not all(tensor.isfinite().all() for tensor in state["model"].values() if tensor.is_floating_point())


# No step waits


class Waits(TorchDispatchMode):
    """Notes the operations for which a GPU would be waited for: those whose value, or whose result's size, Python asks
    for, and copies of Python's numbers."""

    NAMES = (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "lift_fresh"),
        *("_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in self.NAMES:
            self.found.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def epoch_of(data: DataSplits, config: TrainConfig, *, is_averaged: bool = False) -> Callable[[], int]:
    """What trains over one and the same epoch, whose order is drawn once."""
    model = make_model().to(config.device)
    ema = AveragedWeights(model, 0.9) if is_averaged else None
    loader, optimizers = make_loaders(data, config)[0], build_optimizers(model, config)
    return lambda: train_one_epoch(model, loader, optimizers, config, ema=ema)[0]


@pytest.mark.parametrize("auto_augment", ["trivial", "rand"])
def test_no_operation_of_a_step_waits(shapes, monkeypatch, auto_augment):
    """But for mixing and averaging, which read numbers that are on the CPU: see below."""
    monkeypatch.setitem(LAG, "cpu", 20)
    monkeypatch.setattr(FiniteCheck, "finish", lambda self: None)
    run = epoch_of(shapes, replace(EVERYTHING, cutmix_alpha=0.0, erase_size=4, auto_augment=auto_augment))
    assert run() == 8
    with Waits() as waits:
        assert run() == 8
    assert waits.found == []


def test_what_waits_is_found(shapes):
    """Such as the look at every step, which a CPU has no reason to put off."""
    run = epoch_of(shapes, replace(EVERYTHING, cutmix_alpha=0.0))
    run()
    with Waits() as waits:
        run()
    assert waits.found == 8 * ["_local_scalar_dense"]
    with Waits() as waits:
        torch.tensor([1.0, 2.0]).nonzero()
    assert sorted(waits.found) == ["lift_fresh", "nonzero"]


@pytest.mark.parametrize(("cutmix", "mixup"), [(1.0, 0.0), (0.0, 0.8)])
def test_mixing_reads_nothing_back(cutmix, mixup):
    """Tensors without values cannot be waited for."""
    images, labels = torch.empty(8, 3, 16, 16, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    for seed in range(8):
        mixed, soft = cutmix_mixup(
            images, labels, 10, cutmix_alpha=cutmix, mixup_alpha=mixup, probability=1.0, seed=seed
        )
        assert mixed.device.type == soft.device.type == "meta" and soft.shape == (8, 10)


class Crossings(TorchDispatchMode):
    """Counts copies from one kind of device to another, for which a GPU is waited for too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("copy_", "_to_copy"):
            self.count += args[name == "copy_"].device != result.device
        return result


def warming_up(averaged, current, count):
    """Torch's own average, with the decay that ours has after so many."""
    decay = min(0.3, (1 + int(count)) / (10 + int(count)))
    get_ema_multi_avg_fn(decay)(averaged, current, count)


def test_averaging_neither_reads_back_nor_sends_its_counter():
    model = make_model().to("meta")
    ema, torchs = AveragedWeights(model, 0.3), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.3))
    with Crossings() as crossings:
        for count in (1, 2, 3):
            ema.update_parameters(model)
            assert int(ema.n_averaged) == count
    assert crossings.count == 0
    with Crossings() as crossings:
        for _ in range(3):
            torchs.update_parameters(model)
    assert crossings.count > 0, "a copy would be noticed"


def test_averaging_is_torchs_to_the_bit():
    model = make_model()
    ema, torchs = AveragedWeights(model, 0.3), AveragedModel(model, multi_avg_fn=warming_up)
    for _ in range(6):
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        for averaged in (ema, torchs):
            averaged.update_parameters(model)
    assert same_weights(ema, torchs) and not same_weights(ema.module, model)
    ema.load_state_dict(torchs.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_torch_sees_no_step_wait_for_the_gpu(shapes):
    run = epoch_of(shapes, replace(EVERYTHING, device="cuda", erase_size=4), is_averaged=True)
    run()  # loads kernels, which waits
    try:
        torch.cuda.set_sync_debug_mode("error")
        assert run() == 8
    finally:
        torch.cuda.set_sync_debug_mode("default")


# One graph for each phase


def test_a_run_compiles_once_for_dropped_and_once_for_all_patches():
    """A rate that became a variable of the graph would make every shape in it one too."""
    sizes = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        sizes.append({type(side) for tensor in inputs if isinstance(tensor, Tensor) for side in tensor.shape})
        return graph.forward

    images = torch.randn(4, 3, 16, 16)
    for _ in range(2):  # a second network of the same kind, such as the one that the budget was measured with
        model = make_model(depth=1).train()
        network = torch.compile(model, backend=backend)
        for rate in (0.5, 0.5, 0.0, 0.0, 0.5):
            model.patch_drop.rate = rate
            network(images).sum().backward()
    assert sizes == [{int}, {int}]
    network(torch.randn(5, 3, 16, 16))
    assert len(sizes) > 2, "another batch size is another graph, so sizes of a run must be equal"


@pytest.mark.parametrize("num_images", [45_000, 50_000])
def test_all_batches_of_the_gpu_recipe_have_one_size(num_images):
    assert num_images % TrainConfig.preset("gpu_10min").batch_size == 0


# What a GPU's short epochs need


@pytest.mark.parametrize(("save_seconds", "num_saves"), [(0.0, 5), (1e6, 2)])
def test_short_epochs_need_not_be_saved(shapes, monkeypatch, tmp_path, save_seconds, num_saves):
    saved, save = [], run_files.save_training_state
    monkeypatch.setattr(
        run_files, "save_training_state", lambda *a, **k: saved.append(k["progress"]["epoch"]) or save(*a, **k)
    )
    config = replace(QUICK, epochs=4)
    fit(make_model(), *make_loaders(shapes, config), config, run_dir=tmp_path, save_seconds=save_seconds)
    assert len(saved) == num_saves and saved[0] == 0 and saved[-1] == 4
    saved.clear()  # every step takes longer than the five minutes that an epoch may go without a save
    monkeypatch.setattr(run_files, "SAVE_SECONDS", 0.0)
    fit(make_model(), *make_loaders(shapes, config), config, run_dir=tmp_path / "slow", save_seconds=save_seconds)
    assert (len(saved) == num_saves) == (save_seconds > 0)


def test_a_stop_is_saved_however_short_the_epochs_are(shapes, tmp_path):
    config, calls = replace(QUICK, epochs=4), iter(range(100))
    loader, whole, model = make_loaders(shapes, config)[0], make_model(), make_model()
    fit(whole, loader, None, config)
    options = {"run_dir": tmp_path, "save_seconds": 1e6}
    history = fit(model, loader, None, config, should_stop=lambda: next(calls) >= 8, **options)  # after epoch 1
    assert not history.is_complete and len(history) == 1
    assert fit(model, loader, None, config, resume=True, **options).is_complete and same_weights(model, whole)


def test_mixing_ends_with_its_share_of_the_run(shapes):
    config = replace(QUICK, epochs=2, cutmix_alpha=1.0, mix_until=0.7)
    loader, plain = make_loaders(shapes, config)[0], make_loaders(shapes, replace(config, cutmix_alpha=0.0))[0]
    assert len(loader) == 8
    kinds = [loader.batch(epoch, step)[1].ndim for epoch in range(2) for step in range(8)]
    assert kinds == [2] * 12 + [1] * 4  # 11.2 steps of 16
    for mine, theirs in zip(loader.batch(1, 5), plain.batch(1, 5), strict=True):
        assert torch.equal(mine, theirs)
    assert make_loaders(shapes, replace(config, mix_until=1.0))[0].batch(9, 7)[1].ndim == 2, "all, however long"
    seen = []

    def loss_fn(model, batch):
        seen.append(batch[1].ndim)
        return classification_loss()(model, batch)

    fit(make_model(), loader, None, config, loss_fn=loss_fn)
    assert seen == kinds


def test_a_loader_made_for_other_epochs_mixes_as_long_as_the_run_asks(shapes):
    """As one made for the run does; the loader itself stays what it was."""
    config = replace(QUICK, epochs=2, cutmix_alpha=1.0, mix_until=0.7)
    longer = config.with_epochs(3)
    loader, anew = make_loaders(shapes, config)[0], make_loaders(shapes, longer)[0]
    models = [make_model() for _ in range(3)]
    for model, train_loader, run in zip(models, (loader, anew, anew), (longer, longer, config), strict=True):
        fit(model, train_loader, None, run)
    assert same_weights(models[0], models[1]) and not same_weights(models[1], models[2])
    assert loader.config is config and [loader.batch(1, step)[1].ndim for step in (3, 4)] == [2, 1]
    assert [anew.batch(2, step)[1].ndim for step in (0, 1)] == [2, 1]  # 16.8 steps of 24


def test_a_wrapped_loader_is_not_taken_off(shapes):
    class Wrapped:
        def __init__(self, loader):
            self.loader, self.batches = loader, 0

        def __len__(self):
            return len(self.loader)

        def __getattr__(self, name):
            return getattr(self.loader, name)

        def epoch(self, epoch, start_step=0):
            for batch in self.loader.epoch(epoch, start_step):
                self.batches += 1
                yield batch

    config = replace(QUICK, epochs=1, cutmix_alpha=1.0, mix_until=0.7)
    wrapped = Wrapped(make_loaders(shapes, config)[0])
    fit(make_model(), wrapped, None, config)
    assert wrapped.batches == 8


def test_the_best_state_is_the_best_that_was_saved(shapes, monkeypatch, tmp_path):
    """Of accuracies 50, 90, 70, 60 the 90 is not saved; 70 is the best that is."""
    accuracies, is_due, nothing = iter((50.0, 90.0, 70.0, 60.0)), iter((True, False, True)), torch.zeros(0)
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: Evaluation(1.0, next(accuracies), nothing, nothing))
    monkeypatch.setattr(
        run_files.RunFiles, "is_save_due", lambda run, s, within_epoch=False: not within_epoch and next(is_due)
    )
    config = replace(QUICK, epochs=4)
    fit(make_model(), *make_loaders(shapes, config), config, run_dir=tmp_path, save_seconds=1.0)
    assert load_state_weights(make_model(), tmp_path / "state.best.pt")["val_accuracy"] == 70


def test_validation_leaves_the_compiled_network_alone(shapes, monkeypatch):
    """Its batches have another size, after which torch would compile for any size."""
    was_training = []

    class Compiled(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self._orig_mod = model

        def forward(self, images: Tensor) -> Tensor:
            was_training.append(self._orig_mod.training)
            return self._orig_mod(images)

    monkeypatch.setattr("torch.compile", Compiled)
    history = fit(make_model(), *make_loaders(shapes, QUICK), replace(QUICK, compile=True))
    assert was_training == [True] * 16 and history["val_accuracy"]


def trained(model: VisionTransformer, data: DataSplits) -> Tensor:
    config = replace(QUICK, epochs=0.5, warmup_epochs=0.0)
    fit(model, *make_loaders(data, config), config)
    return model.head.fc2.weight.detach()


LOOKS: dict[str, Callable[[VisionTransformer, DataSplits], Tensor]] = {
    "batch": lambda model, data: make_loaders(data, QUICK)[0].batch(0, 0)[0],
    "classes": lambda model, data: keep_classes(data, [1, 2]).train.labels,
    "colors": lambda model, data: analysis.token_pca(model, data.test.images[:2]),
    "deletion": lambda model, data: analysis.deletion_curve(
        model, data.test.images[:2], torch.full((2, 4, 4), 0.5, device="cpu"), [0, 1]
    ),
    "distance": lambda model, data: analysis.mean_attention_distance(
        analysis.attention_maps(model, data.test.images[:2]), analysis.token_layout(model)
    ),
    "heads": lambda model, data: analysis.head_similarity(analysis.attention_maps(model, data.test.images[:2])),
    "layers": lambda model, data: analysis.layer_similarity(model, data.test.images[:2]),
    "noise": lambda model, data: corrupt(data.test.images[:2], "noise", 2),
    "reliability": lambda model, data: (
        analysis.reliability(analysis.predict(model, data.test.images), data.test.labels).count
    ),
    "training": trained,
    "weights": lambda model, data: load("vit_nano_patch4_32.shapes").head.fc1.weight.detach(),
}


@pytest.mark.parametrize("what", LOOKS)
def test_torchs_default_device_plays_no_part(what, shapes):
    """`meta` stands for a GPU: what is made there by mistake has no values."""
    models = [make_model() for _ in range(2)]
    for model in models:
        model.metadata = shapes.metadata
    expected = LOOKS[what](models[0], shapes)
    with torch.device("meta"):
        found = LOOKS[what](models[1], shapes)
    assert found.device.type == "cpu" and torch.equal(found, expected)
