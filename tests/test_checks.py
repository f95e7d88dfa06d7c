"""What `fit`, `evaluate` and their helpers refuse before any work, each beside the same call as it should be."""

import json
import re
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import randomize
from torch import nn

import vit
from vit import analysis, training
from vit.config import TrainConfig, ViTConfig
from vit.data import DataSplits, Loader, keep_classes, make_eval_loader, make_loaders
from vit.model.vision_transformer import VisionTransformer
from vit.training import build_optimizers, evaluate, find_learning_rate, fit, for_budget, list_runs, train_one_epoch
from vit.training.losses import classification_loss
from vit.training.run_files import STATE_FILE, RunFiles

SMALL = ViTConfig(image_size=16, embed_dim=24, depth=1, num_heads=2, mlp_ratio=2.0)
QUICK = TrainConfig.preset("quick", device="cpu", batch_size=64, epochs=1)


def make_model(data: DataSplits | None = None, **changes) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(replace(SMALL, **changes))
    model.metadata = {} if data is None else dict(data.metadata)
    return model


def test_other_class_names_are_refused(shapes):
    """The same images with their classes numbered the other way round: all that tells them apart is the names."""
    turned = keep_classes(shapes, range(9, -1, -1))
    model = randomize(make_model(shapes))
    right = evaluate(model, make_eval_loader(shapes, shapes.test))
    names = f"{re.escape(str(shapes.class_names))}, the loader {re.escape(str(turned.class_names))}"
    with pytest.raises(ValueError, match=f"model.metadata has class_names={names}"):
        evaluate(model, make_eval_loader(turned, turned.test))
    with pytest.raises(ValueError, match=f"{names}: to train it for this data, set model.metadata = data.metadata"):
        fit(model, *make_loaders(turned, QUICK), QUICK)
    with pytest.raises(ValueError, match="class_names"):
        fit(model, make_loaders(shapes, QUICK)[0], make_eval_loader(turned, turned.val), QUICK)
    model.metadata = turned.metadata
    assert evaluate(model, make_eval_loader(turned, turned.test)).loss != right.loss
    assert fit(model, *make_loaders(turned, QUICK), QUICK).is_complete
    model.metadata["class_names"] = list(turned.class_names)  # as a file has them
    assert fit(model, *make_loaders(turned, QUICK), QUICK).is_complete


def test_another_normalization_is_refused(shapes):
    other = replace(shapes, mean=(0.1, 0.2, 0.3))
    model = randomize(make_model(shapes))
    for call in (
        lambda d: evaluate(model, make_eval_loader(d, d.test)),
        lambda d: fit(model, *make_loaders(d, QUICK), QUICK),
    ):
        with pytest.raises(ValueError, match=r"metadata has mean=.*normalizes with \(0.1, 0.2, 0.3\).*model=model"):
            call(other)
    with pytest.raises(ValueError, match="metadata has std="):
        evaluate(model, make_eval_loader(replace(shapes, std=(0.5, 0.5, 0.5)), shapes.test))
    as_model = evaluate(model, make_eval_loader(other, other.test, model=model))
    assert torch.equal(as_model.probabilities, evaluate(model, make_eval_loader(shapes, shapes.test)).probabilities)
    rounded = replace(shapes, mean=tuple(round(m, 4) for m in shapes.mean))
    assert evaluate(model, make_eval_loader(rounded, rounded.test)).accuracy == as_model.accuracy
    with pytest.raises(ValueError, match="the model does not say how its images were normalized"):
        make_eval_loader(shapes, shapes.test, model=make_model())


def test_a_loss_of_ones_own_may_look_at_other_classes(shapes):
    """It may be no classification at all; the normalization counts all the same."""
    turned = keep_classes(shapes, range(9, -1, -1))
    loss_fn = lambda model, batch: (model(batch[0]).square().mean(), {})  # noqa: E731
    assert fit(make_model(shapes), make_loaders(turned, QUICK)[0], None, QUICK, loss_fn=loss_fn).is_complete
    other = replace(turned, std=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="metadata has std="):
        fit(make_model(shapes), make_loaders(other, QUICK)[0], None, QUICK, loss_fn=loss_fn)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 50}, {"seed": 1}, {"crop_padding": 1}, {"flip": "none"}, {"erase_size": 2},
        {"auto_augment": "rand"}, {"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0}, {"mix_probability": 0.5},
    ],
)  # fmt: skip
def test_loaders_of_another_config_are_refused(shapes, change):
    loaders = make_loaders(shapes, replace(QUICK, **change))
    ((name, value),) = change.items()
    message = f"train_loader was made with {name}={value!r}, but config has {name}={getattr(QUICK, name)!r}: make the"
    with pytest.raises(ValueError, match=message):
        fit(make_model(), *loaders, QUICK)


def test_what_does_not_change_the_data_may_differ(shapes):
    loaders = make_loaders(shapes, QUICK)
    assert fit(make_model(), *loaders, replace(QUICK, learning_rate=1e-4, label_smoothing=0.0)).is_complete


@pytest.mark.parametrize("outputs", [0, 5, 50])
def test_outputs_are_counted_before_anything_is_lost(shapes, tmp_path, outputs):
    """Also of a network that does not say how many it has."""
    model = nn.Sequential(make_model(num_classes=outputs))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    message = rf"outputs of shape \({outputs or 24},\) an image, the data has 10 classes: build it with num_classes=10"
    loader, val_loader = make_loaders(shapes, QUICK)
    for number, val in enumerate((val_loader, None)):
        with pytest.raises(ValueError, match=message):
            fit(model, loader, val, QUICK, run_dir=tmp_path / str(number))
    with pytest.raises(ValueError, match=message):
        evaluate(model, make_eval_loader(shapes, shapes.test))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_processes_that_would_train_alone_are_refused(shapes, monkeypatch):
    loaders = make_loaders(shapes, QUICK)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2 .* `with vit.training.distributed.processes\(\):`"):
        fit(make_model(), *loaders, QUICK)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert fit(make_model(), *loaders, QUICK).is_complete


class Short:
    """A loader that gives a batch less than it says."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start_step: int = 0):
        for step in range(start_step, len(self) - 1):
            yield self.loader.batch(epoch, step)


def test_a_loader_that_gives_less_than_it_says_is_refused(shapes):
    loader, val_loader = make_loaders(shapes, QUICK)
    with pytest.raises(ValueError, match=r"the loader gave 6 batches in epoch 1, but len\(loader\) is 7"):
        fit(make_model(), Short(loader), val_loader, QUICK)


def test_a_history_of_another_training_is_refused(shapes):
    history = fit(make_model(), *make_loaders(shapes, QUICK), QUICK)
    with pytest.raises(ValueError, match="history holds 1 epochs already: give an empty one"):
        fit(make_model(), *make_loaders(shapes, QUICK), QUICK, history=history)
    assert len(history) == 1


@pytest.mark.parametrize("ends_by", ["stop", "error"])
@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_left_as_it_was_found(shapes, ends_by, is_training):
    config = replace(QUICK, patch_drop_rate=0.5, patch_drop_until=1.0)
    model, seen = make_model().train(is_training), []
    model.head.train(not is_training)

    def loss_fn(model, batch):
        seen.append((model.patch_drop.rate, model.training))
        if ends_by == "error":
            raise ArithmeticError("a fault")
        return classification_loss()(model, batch)

    options = {"loss_fn": loss_fn, "should_stop": lambda: ends_by == "stop"}
    if ends_by == "stop":
        assert not fit(model, *make_loaders(shapes, config), config, **options).is_complete
    else:
        with pytest.raises(ArithmeticError):
            fit(model, *make_loaders(shapes, config), config, **options)
    assert seen == [(0.5, True)]
    assert model.patch_drop.rate == 0 and model.training is is_training is not model.head.training


def test_a_train_loader_is_not_measured_with(shapes):
    model, (train, val) = make_model(), make_loaders(shapes, QUICK)
    norm = {"batch_size": 50, "mean": shapes.mean, "std": shapes.std}
    for loader in (train, Loader(shapes.train, shuffle=True, **norm)):
        with pytest.raises(
            ValueError, match=r"augments or shuffles: measure with make_eval_loader\(data, data.train\)"
        ):
            evaluate(model, loader)
    with pytest.raises(ValueError, match=r"val_loader is one for training.*make_eval_loader\(data, data.val\)"):
        fit(model, train, train, QUICK, loss_fn=lambda *_: pytest.fail("a step has been taken"))
    for loader in (val, Loader(shapes.train, **norm), make_eval_loader(shapes, shapes.train)):
        assert evaluate(model, loader) is not None


def test_a_run_that_failed_in_its_first_step_leaves_its_folder_free(shapes, tmp_path):
    def fault(model, batch):
        raise ArithmeticError("a fault")

    other = replace(QUICK, epochs=2)
    with pytest.raises(ArithmeticError):
        fit(make_model(), *make_loaders(shapes, other), other, run_dir=tmp_path / "a", loss_fn=fault)
    history = fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path / "a")
    assert history.is_complete and list_runs(tmp_path)[0].settings["train.epochs"] == 1, "not that of the first try"
    for _ in range(2):
        with pytest.raises(FileExistsError, match="holds a run already"):
            fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path / "a")
    # A state that cannot be read may be of a run of days.
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / STATE_FILE).write_bytes(b"PK damaged")
    with pytest.raises(FileExistsError, match="holds a run already"):
        fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path / "b")


def test_a_run_that_another_has_begun_meanwhile_is_not_written_over(shapes, tmp_path, monkeypatch):
    """Between the first look at the folder and its lock a whole training of another process may fit."""
    loaders, start = make_loaders(shapes, QUICK), RunFiles.start

    def overtaken(self):
        monkeypatch.setattr(RunFiles, "start", start)
        (tmp_path / ".lock").unlink()  # so that the other does not meet ours
        thread = threading.Thread(target=fit, args=(make_model(), *loaders, QUICK), kwargs={"run_dir": tmp_path})
        thread.start()
        thread.join()
        return start(self)

    monkeypatch.setattr(RunFiles, "start", overtaken)
    with pytest.raises(FileExistsError, match="holds a run already"):
        fit(make_model(), *loaders, QUICK, run_dir=tmp_path)


def test_faults_of_the_val_loader_are_found_before_the_first_step(shapes, tmp_path):
    def never(model, batch):
        pytest.fail("a step has been taken")

    class Pair(nn.Module):
        """Not a classifier."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, images):
            return images, images

    for model, data in ((make_model(), vit.data.resize(shapes, 32)), (Pair(), shapes)):
        loaders = make_loaders(shapes, QUICK)[0], make_eval_loader(data, data.val)
        with pytest.raises((ValueError, AttributeError, TypeError)) as caught:
            fit(model, *loaders, QUICK, loss_fn=never, run_dir=tmp_path)
        assert "the val_loader's first batch" in caught.value.__notes__[0]
        assert not (tmp_path / STATE_FILE).exists()


def test_a_val_loader_draws_no_random_numbers_of_the_training(shapes):
    config = replace(QUICK, patch_drop_rate=0.5)
    models = [make_model(drop_rate=0.2), make_model(drop_rate=0.2)]
    loader, val_loader = make_loaders(shapes, config)

    class Draws(Short):
        """A val loader that draws as it likes: in the trial before the training, not after it."""

        def epoch(self, epoch, start_step=0):
            torch.rand(100)
            yield self.loader.batch(0, 0)

    for model, val in zip(models, (None, Draws(val_loader)), strict=True):
        fit(model, loader, val, config)
    assert all(torch.equal(*pair) for pair in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_arguments_of_another_kind_are_named(shapes):
    model, loaders = make_model(), make_loaders(shapes, QUICK)
    dataset = torch.utils.data.DataLoader([1, 2])
    cases = [
        (lambda: fit(model, *loaders, "quick"), r"config='quick' must be a TrainConfig, such as"),
        (lambda: fit("vit", *loaders, QUICK), r"model='vit' must be a network, such as vit.VisionTransformer"),
        (lambda: evaluate(loaders[1], model), r"model=.*Loader.* must be a network"),
        (lambda: evaluate(model, dataset), r"loader is a DataLoader: make it with vit.make_eval_loader\(data"),
        (lambda: evaluate(model, shapes.test), r"loader is a Split: make it with vit.make_eval_loader\(data"),
        (lambda: evaluate(model, loaders[1], {}), r"config=\{\} must be a TrainConfig"),
        (lambda: make_loaders("cifar10", QUICK), r"data is a str and must be DataSplits, such as vit.load_data"),
        (
            lambda: make_eval_loader(shapes, "test"),
            r"split is a str and must be a Split, such as data.val or data.test",
        ),
        (lambda: make_eval_loader(shapes.test, shapes), r"data is a Split and must be DataSplits"),
        (lambda: for_budget(QUICK, *loaders, model, minutes=1), r"config is a VisionTransformer and must be a TrainC"),
        (lambda: for_budget("vit", *loaders, QUICK, minutes=1), r"model='vit' must be a network"),
        (lambda: for_budget(model, shapes, None, QUICK, minutes=1), r"train_loader is a DataSplits: it must have"),
        (lambda: for_budget(model, *loaders, QUICK, minutes="3"), r"minutes='3' must be a number"),
    ]
    for call, message in cases:
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.parametrize("fault", ["images", "labels"])
def test_a_batch_that_is_at_fault_is_named_and_not_the_learning_rate(shapes, fault):
    loader, _ = make_loaders(shapes, QUICK)

    class Faulty(Short):
        num_classes = 10

        def epoch(self, epoch, start_step=0):
            for step in range(start_step, len(self)):
                images, labels = self.loader.batch(epoch, step)
                if step == 2 and fault == "images":
                    images[5, 0, 0, 0] = float("nan")
                elif step == 2:
                    labels = torch.full_like(labels, -100)  # which cross-entropy leaves out: a mean of nothing
                yield images, labels

    expected = {
        "images": "images of the batch hold values that are not finite, first at place 5",
        "labels": "labels of the batch go from -100 to -100, allowed is 0..9",
    }
    with pytest.raises(FloatingPointError, match=f"step 3 of epoch 1.* the data is at fault: {expected[fault]}") as e:
        fit(make_model(), Faulty(loader), None, QUICK)
    assert "learning_rate or" not in str(e.value)


def test_a_run_is_listed_whoever_made_its_folder(shapes, tmp_path):
    model = make_model()
    fit(model, *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path / "mine")
    (run,) = list_runs(tmp_path)
    assert ViTConfig.from_dict(run.config["model"]) == model.config
    assert TrainConfig.from_dict(run.config["train"]) == QUICK and run.history.is_complete
    (tmp_path / "noted").mkdir()
    (tmp_path / "noted" / "config.json").write_text(json.dumps({"note": 1}))
    fit(model, *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path / "noted")
    assert json.loads((tmp_path / "noted" / "config.json").read_text()) == {"note": 1}, "what is there stays"


def test_a_run_of_any_network_is_listed(shapes, tmp_path):
    """With all but the config of a network, which it does not have."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    fit(model, *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path / "linear")
    fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path / "vit")
    linear, ours = list_runs(tmp_path)
    assert linear.config == {"train": json.loads(json.dumps(QUICK.to_dict())), "num_parameters": 769 * 10}
    assert linear.history.is_complete and linear.value("num_parameters") == 7690
    assert training.sort_runs([ours, linear], "num_parameters") == [linear, ours]
    differing = training.compare_runs([linear, ours])
    assert differing["model.depth"] == ["", 1] and not any(name.startswith("train.") for name in differing)
    noted = tmp_path / "noted"
    training.new_run_folder("x", tmp_path, train=replace(QUICK, seed=5), model="a net").rename(noted)
    fit(model, *make_loaders(shapes, QUICK), QUICK, run_dir=noted)
    config = training.load_run(noted).config
    assert config["model"] == "a net" and config["train"]["seed"] == 0 and config["num_parameters"] == 7690
    assert training.rename_run(linear, "line").name == "line"


def test_a_stopped_run_has_the_averaged_weights_that_its_history_is_of(shapes, tmp_path):
    config = replace(QUICK, epochs=3, ema_decay=0.9)
    loader, val_loader = make_loaders(shapes, config)
    calls = iter(range(100))
    model = make_model()  # stopped with the last step of the second epoch's validation: asked 7 + 1 + 1 an epoch
    history = fit(model, loader, val_loader, config, run_dir=tmp_path, should_stop=lambda: next(calls) >= 17)
    assert len(history) == 2 and not history.is_complete
    assert evaluate(model, val_loader, config).accuracy == history.last["val_accuracy"]
    assert evaluate(model, val_loader, config).loss == history.last["val_loss"]
    raw = torch.load(tmp_path / STATE_FILE, weights_only=True)["model"]
    assert any(not torch.equal(tensor, raw[name]) for name, tensor in model.state_dict().items())
    whole = make_model()
    fit(whole, loader, val_loader, config)
    fit(model, loader, val_loader, config, run_dir=tmp_path, resume=True)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_history_without_its_state_is_not_written_over(shapes, tmp_path):
    fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path)
    written = (tmp_path / "history.csv").read_text()
    for path in tmp_path.glob("state*.pt"):
        path.unlink()
    with pytest.raises(FileExistsError, match="history.csv is of a run whose state is gone.* take another folder"):
        fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path)
    assert (tmp_path / "history.csv").read_text() == written
    (tmp_path / "history.csv").write_text("")  # as it is before the first epoch has ended
    assert fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path).is_complete


def test_the_folder_says_what_was_trained_and_not_what_was_planned(shapes, tmp_path):
    folder = training.new_run_folder("plan", tmp_path, model=ViTConfig(), train=replace(QUICK, epochs=9), note="mine")
    fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=folder)
    (run,) = list_runs(tmp_path)
    assert run.config["train"]["epochs"] == 1 and run.history.is_complete and run.config["note"] == "mine"
    assert ViTConfig.from_dict(run.config["model"]) == SMALL


def test_a_tilde_is_the_home_folder(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    model = make_model(shapes)
    fit(model, *make_loaders(shapes, QUICK), QUICK, run_dir="~/runs/mine")
    vit.save(model, "~/mine.safetensors")
    vit.data.save_image_folder(shapes.val, shapes.class_names, "~/pictures")
    assert vit.load("~/mine.safetensors").config == SMALL
    assert training.load_run("~/runs/mine").history.is_complete
    assert [run.name for run in list_runs("~/runs")] == ["mine"]
    training.write_summary("~/runs/mine", QUICK, test_accuracy=50.0)
    assert training.load_run("~/runs/mine").summary["test_accuracy"] == 50.0
    assert training.load_state_weights(model, "~/runs/mine/state.pt")
    assert vit.pretrained.load_weights(None, "~/mine.safetensors").config == SMALL
    features = analysis.features(model, shapes.val.images[:2], cache="~/cache")
    assert analysis.features(model, shapes.val.images[:2], cache="~/cache").equal(features)
    picture = next((tmp_path / "home" / "pictures").rglob("*.png")).relative_to(tmp_path / "home")
    model.metadata = shapes.metadata
    assert vit.predict(model, f"~/{picture}").shape == (1, 10)
    vit.pretrained.to_timm(VisionTransformer(replace(SMALL, head="linear")), "~/timm")
    assert training.rename_run("~/runs/mine", "yours", "~/runs").name == "yours"
    training.delete_run("~/runs/yours", "~/runs")
    made = {path.name for path in (tmp_path / "home").iterdir()}
    assert made == {"runs", "mine.safetensors", "pictures", "cache", "timm"}
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["loss", "samples"])
def test_a_metric_cannot_take_the_place_of_what_fit_counts(shapes, name):
    def loss_fn(model, batch):
        loss = model(batch[0]).square().mean()
        return loss, {name: loss.detach()}

    with pytest.raises(ValueError, match=f"loss_fn names a metric {name}, which fit counts itself"):
        fit(make_model(), make_loaders(shapes, QUICK)[0], None, QUICK, loss_fn=loss_fn)


def test_a_metric_called_accuracy_is_refused_with_the_remedy(shapes):
    loader = make_loaders(shapes, QUICK)[0]

    def loss_fn(model, batch):
        loss, metrics = classification_loss()(model, batch)
        return loss, {name: metrics["correct"]}

    name = "accuracy"
    with pytest.raises(ValueError, match=r'metric accuracy, .* return \{"correct": number of right answers\}'):
        fit(make_model(), loader, None, QUICK, loss_fn=loss_fn)
    name = "correct"
    assert 0 < fit(make_model(), loader, None, QUICK, loss_fn=loss_fn).last["train_accuracy"] <= 100


@pytest.mark.parametrize(
    "loss_fn",
    [nn.functional.cross_entropy, nn.CrossEntropyLoss(), nn.MSELoss, partial(nn.functional.cross_entropy, weight=None)],
)
def test_losses_of_torch_are_refused_with_the_wrapper_to_write(shapes, loss_fn):
    loaders = make_loaders(shapes, QUICK)
    message = r"loss_fn is torch's \w+, .*`lambda model, batch: \(loss\(model\(batch\[0\]\), batch\[1\]\), \{\}\)`"
    for call in (
        lambda: fit(make_model(), *loaders, QUICK, loss_fn=loss_fn),
        lambda: for_budget(make_model(), *loaders, QUICK, minutes=1, loss_fn=loss_fn),
        lambda: find_learning_rate(make_model(), loaders[0], QUICK, loss_fn=loss_fn),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(TypeError, match=r"loss_fn is 'mse', but it is called with the model and a batch"):
        fit(make_model(), *loaders, QUICK, loss_fn="mse")
    loss = nn.functional.cross_entropy
    wrapped = lambda model, batch: (loss(model(batch[0]), batch[1]), {})  # noqa: E731
    own = fit(make_model(), *loaders, QUICK, loss_fn=wrapped)
    usual = fit(make_model(), *loaders, replace(QUICK, label_smoothing=0.0))
    assert own["train_loss"] == usual["train_loss"]


@pytest.mark.parametrize(
    ("change", "came"),
    [
        (lambda images, labels: {"images": images}, "a dict"),
        (lambda images, labels: images, "a Tensor"),
        (lambda images, labels: (images, labels[1:]), r"\(\(\d+, 3, 16, 16\), \(\d+,\)\)"),
        (lambda images, labels: (images, labels.tolist()), r"\(\(\d+, 3, 16, 16\), list\)"),
        (lambda images, labels: (images, labels.sum()), r"\(\(\d+, 3, 16, 16\), \(\)\)"),
        (lambda images, labels: (), r"\(\)"),
    ],
)
def test_a_batch_of_another_form_is_named(shapes, change, came):
    class Odd(Short):
        def epoch(self, epoch, start_step=0):
            return (change(*batch) for batch in self.loader.epoch(epoch, start_step))

    loss_fn = lambda model, batch: (model(batch[0]).square().mean(), {})  # noqa: E731
    odd = Odd(make_loaders(shapes, QUICK)[0])
    for call in (
        lambda: fit(make_model(), odd, None, QUICK, loss_fn=loss_fn),
        lambda: find_learning_rate(make_model(), odd, QUICK, loss_fn=loss_fn),
    ):
        with pytest.raises(TypeError, match=f"the loader gives {came} as a batch: it must be a tuple of equally long"):
            call()
    change = lambda images, labels: [images, labels, labels]  # noqa: E731
    assert fit(make_model(), odd, None, QUICK, loss_fn=loss_fn).is_complete


def _scheduled(model, config):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.optim.lr_scheduler.LinearLR(optimizer)
    return [optimizer]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        ("adamw", TypeError, r"make_optimizers='adamw' must be called with \(model, config\)"),
        (
            lambda model, config: torch.optim.AdamW(model.parameters()),
            TypeError,
            "returned AdamW: it must return a list",
        ),
        (lambda model, config: None, TypeError, "returned NoneType: it must return a list"),
        (lambda model, config: [], TypeError, r"returned \[\]: it must return a list"),
        (lambda model, config: [model], TypeError, r"returned \[VisionTransformer\]: it must return a list"),
        (lambda *_: [torch.optim.SGD(make_model().parameters())], ValueError, "returned optimizers of another model"),
        (lambda model, config: [torch.optim.LBFGS(model.parameters())], ValueError, "returned LBFGS, which computes"),
        (_scheduled, ValueError, "a learning-rate scheduler: .* schedule, warmup_epochs and flat_until of the config"),
    ],
)
def test_optimizers_are_checked_before_the_first_epoch(shapes, tmp_path, make, error, message):
    loaders, never = make_loaders(shapes, QUICK), lambda *_: pytest.fail("a step has been taken")
    for call in (
        lambda: fit(make_model(), loaders[0], None, QUICK, loss_fn=never, run_dir=tmp_path, make_optimizers=make),
        lambda: for_budget(make_model(), *loaders, QUICK, minutes=1, loss_fn=never, make_optimizers=make),
        lambda: find_learning_rate(make_model(), loaders[0], QUICK, loss_fn=never, make_optimizers=make),
    ):
        with pytest.raises(error, match=message):
            call()
    assert not (tmp_path / STATE_FILE).exists()


def test_a_model_that_is_no_classifier_may_have_any_number_of_outputs(shapes):
    loss_fn = lambda model, batch: (model(batch[0]).square().mean(), {})  # noqa: E731
    loader, val_loader = make_loaders(shapes, QUICK)
    assert fit(make_model(num_classes=7), loader, None, QUICK, loss_fn=loss_fn).is_complete
    for of_loss, of_val in ((loss_fn, val_loader), (None, None)):
        with pytest.raises(ValueError, match="the model has num_classes=7, the data 10 classes"):
            fit(make_model(num_classes=7), loader, of_val, QUICK, loss_fn=of_loss)


def test_a_trained_model_knows_its_data_from_the_loader(shapes, tmp_path):
    loaders = make_loaders(shapes, QUICK)
    known = {name: shapes.metadata[name] for name in ("mean", "std", "class_names")}
    model = make_model()
    stops = iter([False, True, *[False] * 20])
    assert not fit(model, *loaders, QUICK, run_dir=tmp_path, should_stop=lambda: next(stops)).is_complete
    assert model.metadata == known, "of a stopped run too"
    resumed = make_model()
    assert fit(resumed, *loaders, QUICK, run_dir=tmp_path, resume=True).is_complete
    assert resumed.metadata == known
    loaded = vit.load(vit.save(resumed, tmp_path / "model.safetensors"))
    expected = vit.predict(resumed, shapes.test.images[:3])
    loaded.metadata = shapes.metadata
    assert torch.equal(vit.predict(loaded, shapes.test.images[:3]), expected)
    turned = keep_classes(shapes, range(9, -1, -1))
    with pytest.raises(ValueError, match="model.metadata has class_names="):
        fit(resumed, *make_loaders(turned, QUICK), QUICK)


def test_what_a_model_says_of_its_data_is_never_overwritten(shapes):
    loaders = make_loaders(shapes, QUICK)
    loss_fn = lambda model, batch: (model(batch[0]).square().mean(), {})  # noqa: E731
    statistics = {"mean": shapes.mean, "std": shapes.std}
    for before, options, after in (
        ({"accuracy": 3}, {}, {"accuracy": 3, "class_names": shapes.class_names, **statistics}),
        ({"mean": list(shapes.mean)}, {}, {"mean": list(shapes.mean), "class_names": shapes.class_names}),
        ({"dataset": "mine"}, {}, {"dataset": "mine", **statistics}),  # whose classes these would seem to be
        ({}, {"loss_fn": loss_fn}, statistics),
    ):
        model = make_model()
        given = model.metadata = dict(before)
        fit(model, loaders[0], None, QUICK, **options)
        assert model.metadata == after and given == before
    timms = nn.Sequential(make_model())
    fit(timms, *loaders, QUICK)
    assert not hasattr(timms, "metadata")


@pytest.mark.parametrize("is_as_timms", [True, False])
def test_a_network_of_timm_is_asked_as_it_was_trained(shapes, is_as_timms):
    """Its `pretrained_cfg` is of the images of its pretraining, or of none at all."""
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes)
    normalization = {"model": model} if is_as_timms else {}
    assert fit(model, *make_loaders(shapes, QUICK, **normalization), QUICK).is_complete
    measured = evaluate(model, make_eval_loader(shapes, shapes.test, **normalization))
    torch.testing.assert_close(vit.predict(model, shapes.test.images), measured.probabilities)
    read = vit.pretrained.load_weights(None, model, report=None)
    torch.testing.assert_close(vit.predict(read, shapes.test.images), measured.probabilities)
    assert hasattr(model, "metadata") is not is_as_timms, "crop and interpolation of timm's stay true with its own"


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_model_without_metadata_is_trained_whatever_its_two_loaders_say(shapes, ema_decay):
    """What is filled in must not be what the first validation stumbles over."""
    config = replace(QUICK, ema_decay=ema_decay)
    other = replace(shapes, mean=(0.1, 0.2, 0.3))
    model = make_model()
    loaders = make_loaders(shapes, config)[0], make_loaders(other, config)[1]
    assert fit(model, *loaders, config).is_complete
    assert model.metadata["mean"] == other.mean, "of the images that its accuracy is of"


def test_loaders_that_normalize_as_the_model_does(shapes):
    other = replace(shapes, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
    model = make_model(other)
    with pytest.raises(ValueError, match="model=model in make_loaders or make_eval_loader, as fine_tuning.fine_tune"):
        fit(model, *make_loaders(shapes, QUICK), QUICK)
    as_model = make_loaders(shapes, QUICK, model=model)
    for ours, theirs in zip(as_model, make_loaders(other, QUICK), strict=True):
        assert torch.equal(ours.batch(0, 0)[0], theirs.batch(0, 0)[0])
    assert fit(model, *as_model, QUICK).is_complete and model.metadata == other.metadata


def test_resume_auto_begins_and_goes_on(shapes, tmp_path):
    config = replace(QUICK, epochs=2)
    loaders = make_loaders(shapes, config)
    whole = fit(make_model(), *loaders, config)
    auto = {"run_dir": tmp_path / "run", "resume": "auto"}
    stops = iter([False, True, *[False] * 50])
    assert not fit(make_model(), *loaders, config, should_stop=lambda: next(stops), **auto).is_complete
    state = tmp_path / "run" / STATE_FILE
    state.rename(state.with_name("state.previous.pt"))  # all that is left
    history = fit(make_model(), *loaders, config, **auto)
    assert history.is_complete and history["train_loss"] == whole["train_loss"]
    never = {"loss_fn": lambda *_: pytest.fail("a step has been taken")}
    assert fit(make_model(), *loaders, config, **auto, **never)["train_loss"] == whole["train_loss"]
    with pytest.raises(ValueError, match="resume='auto' needs run_dir"):
        fit(make_model(), *loaders, config, resume="auto")
    with pytest.raises(ValueError, match="resume='always' must be True, False or 'auto'"):
        fit(make_model(), *loaders, config, run_dir=tmp_path / "run", resume="always")


@pytest.mark.parametrize("seconds", [None, "60", -1, float("nan")])
def test_seconds_between_saves_are_checked_before_the_first_epoch(shapes, seconds, tmp_path):
    with pytest.raises(ValueError, match=f"save_seconds={seconds!r} must be a number of 0 or more"):
        fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path / "run", save_seconds=seconds)
    assert not list(tmp_path.iterdir())


def test_what_is_called_after_an_epoch_is_checked_before_the_first(shapes, tmp_path):
    with pytest.raises(TypeError, match=r"after_epoch=\{\} must be a function of the model and the row"):
        fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path / "run", after_epoch={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda loss: loss, r"returned Tensor instead of \(loss, metrics\): use `return loss, \{\}`"),
        (lambda loss: None, "returned NoneType instead of"),
        (lambda loss: (loss, None), "returned Tensor, NoneType instead of"),
        (lambda loss: (loss, [loss]), "returned Tensor, list instead of"),
        (lambda loss: (loss.item(), {}), r"returned the loss \d.*: it must be a tensor of one number"),
        (lambda loss: (loss.expand(3), {}), r"returned the loss of shape \(3,\)"),
        (
            lambda loss: (loss, {"each": torch.ones(3)}),
            r"returned the metric each of shape \(3,\): it must be one number",
        ),
        (lambda loss: (loss, {"each": np.ones(3)}), r"returned the metric each of shape \(3,\)"),
        (lambda loss: (loss, {"each": None}), "returned the metric each None: it must be one number"),
    ],
)
def test_what_a_loss_of_ones_own_returns_is_checked_before_it_is_learned(shapes, returned, message):
    model, before = make_model(), make_model()
    with pytest.raises(TypeError, match=f"loss_fn {message}"):
        loss_fn = lambda model, batch: returned(model(batch[0]).square().mean() + 1)  # noqa: E731
        fit(model, make_loaders(shapes, QUICK)[0], None, QUICK, loss_fn=loss_fn)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before.parameters(), strict=True))


def test_sums_of_metrics_keep_no_graph(shapes):
    """Whose activations of every step would stay in memory until the end of the epoch."""
    model, loader, seen = make_model(), make_loaders(shapes, QUICK)[0], []

    def loss_fn(model, batch):
        total = model(batch[0]).exp().sum()
        seen.append(float(total.detach()))
        return total / len(batch[0]), {"total": total, "alone": total[None]}

    _, sums = train_one_epoch(model, loader, build_optimizers(model, QUICK), QUICK, loss_fn=loss_fn)
    assert float(sums["total"]) == pytest.approx(sum(seen)) == float(sums["alone"]) and len(seen) == len(loader)
    assert not any(torch.is_tensor(value) and value.requires_grad for value in sums.values())


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.int64(2), torch.tensor(2.0)])
def test_a_metric_may_be_any_number_and_survives_a_stop(shapes, tmp_path, number):
    loader, calls = make_loaders(shapes, QUICK)[0], iter([False, True, *[False] * 20])

    def loss_fn(model, batch):
        return model(batch[0]).square().mean(), {"twos": number}

    options = {"run_dir": tmp_path, "loss_fn": loss_fn}
    assert not fit(make_model(), loader, None, QUICK, should_stop=lambda: next(calls), **options).is_complete
    history = fit(make_model(), loader, None, QUICK, resume=True, **options)
    assert history.last["train_twos"] == pytest.approx(2 * len(loader) / len(shapes.train))


class Given:
    """A loader of given batches, which remembers how many it has given."""

    def __init__(self, *batches):
        self.batches, self.num_given = batches, 0

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch, start_step=0):
        for batch in self.batches[start_step:]:
            self.num_given += 1
            yield batch


class TakesBytes(nn.Module):
    """Normalizes by itself."""

    def __init__(self, model: nn.Module, mean: tuple, std: tuple) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, images):
        assert images.dtype == torch.uint8
        return self.model(vit.data.normalize(images, self.mean, self.std))


def test_pixels_are_measured_as_they_are_trained_with(shapes):
    """Bytes, turned into floats, would be images a hundred times as bright as any that the model has seen."""
    model = randomize(make_model())
    loader = Given((shapes.test.images, shapes.test.labels))
    for use in (
        lambda: evaluate(model, loader),
        lambda: fit(model, loader, None, QUICK),
        lambda: fit(model, make_loaders(shapes, QUICK)[0], loader, QUICK),
    ):
        with pytest.raises(TypeError, match=r"images are uint8; the model takes floats: vit.data.normalize\(images"):
            use()
    measured = evaluate(TakesBytes(model, shapes.mean, shapes.std), loader)
    expected = evaluate(model, make_eval_loader(shapes, shapes.test))
    torch.testing.assert_close(measured.probabilities, expected.probabilities)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_may_be_any_integers(shapes, dtype):
    model = randomize(make_model())
    images, labels = next(make_eval_loader(shapes, shapes.test).epoch(0))
    expected, found = (evaluate(model, Given((images, y))) for y in (labels, labels.to(dtype)))
    assert found.loss == expected.loss and torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.Tensor.float, r"torch.float32 \(4,\)"),
        (lambda labels: torch.eye(10)[labels], r"torch.float32 \(4, 10\)"),
        (lambda labels: labels[:, None], r"torch.int64 \(4, 1\)"),
        (torch.Tensor.tolist, "list"),
    ],
)
def test_other_labels_are_refused_with_the_first_batch(change, message):
    loader = Given(*[(torch.zeros(4, 3, 16, 16), change(torch.arange(4)))] * 3)
    with pytest.raises(TypeError, match=f"loader gives labels of {message}: it must give a class number for each"):
        evaluate(make_model(), loader)
    assert loader.num_given == 1


def test_a_loader_that_gives_nothing_is_named():
    with pytest.raises(ValueError, match="loader gives no batch: there is nothing to measure"):
        evaluate(make_model(), Given())


class Wraps(nn.Module):
    def __init__(self, function, model: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.model = function, model

    def forward(self, images):
        return self.function(images if self.model is None else self.model(images))


def test_networks_that_cannot_be_measured_are_refused():
    loader = Given((torch.zeros(4, 3, 16, 16), torch.arange(4)))
    with pytest.raises(ValueError, match="model has no parameter, which would say on what device to compute"):
        evaluate(Wraps(lambda images: images.flatten(1)[:, :10]), loader)
    pairs = Wraps(lambda logits: (logits, logits), make_model())
    for use in (lambda: evaluate(pairs, loader), lambda: fit(pairs, loader, None, QUICK)):
        with pytest.raises(
            TypeError, match=r"the model returns a tuple instead of a tensor of logits \(B, num_classes\)"
        ):
            use()


def test_a_run_begun_anew_with_another_network_forgets_the_first(shapes, tmp_path):
    first = {"model": SMALL.to_dict(), "train": QUICK.to_dict(), "note": "mine"}
    (tmp_path / "config.json").write_text(json.dumps(first))  # of a run that never took a step
    wrapper = nn.Sequential(make_model())
    assert fit(wrapper, *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path).is_complete
    stored = json.loads((tmp_path / "config.json").read_text())
    assert "model" not in stored and stored["note"] == "mine" and stored["train"]["epochs"] == 1
