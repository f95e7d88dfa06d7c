"""A run that was stopped and goes on is the run that was never stopped; what cannot be the same run is refused."""

import gc
import itertools
import os
import re
import signal
import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import same_weights
from kills import final_state, same

from vit.config import TrainConfig, ViTConfig
from vit.data import DataSplits, make_loaders
from vit.model.vision_transformer import VisionTransformer
from vit.pretrained import load
from vit.training import History, build_optimizers, checkpoint, evaluate, fit, load_state_weights, run_files
from vit.training.distributed import ALONE
from vit.training.run_files import HISTORY_FILE, STATE_FILE
from vit.training.state_file import best_of, previous_of, read_state, write_state

SMALL = ViTConfig(image_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)
QUICK = TrainConfig(epochs=3, batch_size=50, warmup_epochs=0.2, device="cpu")
BRIEF = replace(QUICK, epochs=1)  # where any run will do
STEPS = 4  # an epoch
# Everything that draws random numbers or keeps something from step to step, in two recipes.
RECIPES = {
    "muon, EMA, dropout, dropped patches, CutMix": (
        {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.1, "num_registers": 1},
        {"ema_decay": 0.9, "patch_drop_rate": 0.5, "cutmix_alpha": 1.0, "mixup_alpha": 0.5, "auto_augment": "trivial"},
    ),
    "adamw, clipping, erasing, random flips": (
        {"drop_path_rate": 0.2, "pos_embed": "rope", "pool": "mean", "layer_scale": 1e-2},
        {"optimizer": "adamw", "schedule": "cosine", "clip_grad_norm": 0.5, "erase_size": 4, "flip": "random"},
    ),
}


class Killed(BaseException):
    """What no handler catches: as sudden as a kill, within one process."""


class Cut:
    """A loader that ends the run in the middle of everything, right before a given step."""

    def __init__(self, loader, epoch, step):
        self.loader, self.num_classes, self.fingerprint = loader, loader.num_classes, loader.fingerprint
        self.at = (epoch, step)

    def __len__(self):
        return len(self.loader)

    def epoch(self, epoch, start_step=0):
        for step in range(start_step, len(self)):
            if (epoch, step) == self.at:
                raise Killed
            yield self.loader.batch(epoch, step)


def make_model(seed: int = 0, **changes) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(replace(SMALL, **changes))


@pytest.fixture(scope="module")
def data(shapes) -> DataSplits:
    return replace(shapes, train=shapes.train.subset(slice(200)))


@pytest.fixture(scope="module")
def wholes(data, tmp_path_factory) -> dict:
    """The runs that nobody stops: model and final state of each recipe."""
    found = {}
    for name, (model_changes, train_changes) in RECIPES.items():
        config, folder = replace(QUICK, **train_changes), tmp_path_factory.mktemp("whole")
        model = make_model(**model_changes)
        assert fit(model, *make_loaders(data, config), config, run_dir=folder).is_complete
        found[name] = model, final_state(folder)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("how", ["stopped", "killed"])
@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 2), (1, 0), (2, STEPS - 1), (2, STEPS)])
def test_every_split_ends_in_the_same_bits(data, tmp_path, wholes, recipe, how, at):
    """Before the first step, after it, mid-epoch, between epochs, before and after the very last step."""
    model_changes, train_changes = RECIPES[recipe]
    config = replace(QUICK, **train_changes)
    loaders = make_loaders(data, config)
    assert len(loaders[0]) == STEPS
    steps_left = at[0] * STEPS + at[1]
    torch.rand(7)  # the run must not depend on what was drawn before it
    if how == "killed" and at != (2, STEPS):
        with pytest.raises(Killed):
            fit(make_model(**model_changes), Cut(loaders[0], *at), loaders[1], config, run_dir=tmp_path)
    else:

        def should_stop() -> bool:
            nonlocal steps_left
            steps_left -= 1
            return steps_left <= 0

        fit(make_model(**model_changes), *loaders, config, run_dir=tmp_path, should_stop=should_stop)
    model = make_model(seed=99, **model_changes)
    torch.rand(3)
    history = fit(model, *loaders, config, run_dir=tmp_path, resume=True)
    whole, state = wholes[recipe]
    assert history.is_complete and same_weights(model, whole)
    final = final_state(tmp_path)
    for part in ("python", "numpy"):  # which the training does not use, and so does not seed
        del final["random"][part]
    expected = {**state, "random": {k: v for k, v in state["random"].items() if k in final["random"]}}
    assert same(final, expected)
    rows = History.load_csv(tmp_path / HISTORY_FILE).rows
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in rows] == state["progress"]["rows"]


def test_the_comparison_sees_every_part_of_a_state(wholes):
    """A control: with any one part changed, the states are no longer the same."""
    _, state = next(iter(wholes.values()))
    assert same(state, state)
    for name in ("model", "optimizers", "ema", "random", "progress", "config"):
        assert not same(state, {**state, name: None}), name
    key = next(iter(state["model"]))
    nudged = state["model"][key].clone().flatten()
    nudged[0] = torch.nextafter(nudged[0], torch.tensor(9.0))
    assert not same(state, {**state, "model": {**state["model"], key: nudged.view_as(state["model"][key])}})


def test_random_numbers_of_python_and_numpy_go_on_too(data, tmp_path):
    import random

    import numpy as np

    def run(folder, **how):
        def loss_fn(model, batch):
            drawn.append((random.random(), np.random.rand()))  # noqa: NPY002
            return model(batch[0]).square().mean(), {}

        drawn = []
        fit(make_model(), *make_loaders(data, QUICK), QUICK, run_dir=folder, loss_fn=loss_fn, **how)
        return drawn

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    whole = run(tmp_path / "whole")
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    count = iter(range(99))
    first = run(tmp_path / "a", should_stop=lambda: next(count) == 5)
    assert 0 < len(first) < len(whole)
    random.seed(2)
    assert first + run(tmp_path / "a", resume=True) == whole


def test_a_damaged_newest_state_is_set_aside_and_the_one_before_it_taken(data, tmp_path, wholes, capfd):
    recipe = next(iter(RECIPES))
    model_changes, config = RECIPES[recipe][0], replace(QUICK, **RECIPES[recipe][1])
    loaders = make_loaders(data, config)
    with pytest.raises(Killed):
        fit(make_model(**model_changes), Cut(loaders[0], 2, 2), loaders[1], config, run_dir=tmp_path)
    newest = tmp_path / STATE_FILE
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes(raw)
    assert read_state(previous_of(newest))["progress"]["epoch"] == 1
    model = make_model(seed=5, **model_changes)
    assert fit(model, *loaders, config, run_dir=tmp_path, resume=True).is_complete
    said = capfd.readouterr().err
    assert re.search(r"state.pt is damaged: its SHA-256 .*; it is kept as state.pt.bad. Going on from .*previous", said)
    assert same_weights(model, wholes[recipe][0])
    assert (tmp_path / "state.pt.bad").read_bytes() == raw


def test_with_both_states_damaged_each_is_named(data, tmp_path):
    loaders = make_loaders(data, BRIEF)
    fit(make_model(), *loaders, BRIEF, run_dir=tmp_path)
    for path in (tmp_path / STATE_FILE, previous_of(tmp_path / STATE_FILE)):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state.pt is cut off after 1,000 bytes.*; .*state.previous.pt is cut off"):
        fit(make_model(), *loaders, BRIEF, run_dir=tmp_path, resume=True)


def test_what_differs_and_may_is_said(data, tmp_path, capfd):
    loaders = make_loaders(data, BRIEF)
    fit(make_model(), *loaders, BRIEF, run_dir=tmp_path)
    fit(make_model(), *loaders, BRIEF, run_dir=tmp_path, resume=True)
    assert "not as when" not in capfd.readouterr().err
    state = read_state(tmp_path / STATE_FILE)
    state["surroundings"] |= {"threads": 64, "torch": "2.11.0", "precision": "bf16"}
    write_state(tmp_path / STATE_FILE, state)
    changed = replace(BRIEF, test_time_augmentation="flip")
    fit(make_model(), *loaders, changed, run_dir=tmp_path, resume=True)
    said = capfd.readouterr().err
    assert "the last bits may differ: test_time_augmentation: saved 'none', now 'flip'; " in said
    assert "precision: saved 'bf16', now 'fp32' (more than the last bits); threads: saved 64, now 1; " in said
    assert "torch: saved '2.11.0', now " in said


def test_other_data_other_order_and_other_loaders(data, tmp_path):
    train, val = make_loaders(data, BRIEF)
    fit(make_model(), train, val, BRIEF, run_dir=tmp_path)
    turned = replace(data, train=data.train.subset(torch.arange(199, -1, -1)))
    fewer = replace(data, train=data.train.subset(slice(149)))
    for other, message in ((turned, r"fingerprint: saved \d+, now \d+"), (fewer, "steps_per_epoch: saved 4, now 3")):
        with pytest.raises(ValueError, match=f"written with other training data: .*{message}"):
            fit(make_model(), *make_loaders(other, BRIEF), BRIEF, run_dir=tmp_path, resume=True)


def test_other_optimizers_orders_and_shapes_are_refused_before_anything_changes(data, tmp_path):
    loaders = make_loaders(data, BRIEF)
    fit(make_model(), *loaders, BRIEF, run_dir=tmp_path)
    state = read_state(tmp_path / STATE_FILE)
    names = state["parameter_names"]
    nan_head = {**state["model"], "head.fc2.bias": torch.full((10,), float("nan"))}
    short = {**state["model"], "head.fc2.bias": torch.zeros(7)}
    changes = {
        "parameters differ, for example .* in the place of ": {"parameter_names": [names[1], names[0], *names[2:]]},
        r"holds the state of \['SGD'\], the run has \['AdamW', 'Muon'\]": {"optimizer_kinds": ["SGD"]},
        r"for example head.fc2.bias: saved '\(7,\) torch.float32', now '\(10,\) ": {"model": short},
        "holds values in head.fc2.bias that are not finite": {"model": nan_head},
    }
    for message, change in changes.items():
        write_state(tmp_path / STATE_FILE, {**state, **change})
        model, before = make_model(seed=3), make_model(seed=3)
        with pytest.raises(ValueError, match=message):
            fit(model, *loaders, BRIEF, run_dir=tmp_path, resume=True)
        assert same_weights(model, before)


def test_weights_of_another_type_are_refused(data, tmp_path):
    """torch would turn integers into floats, and floats into integers, without a word."""
    loaders = make_loaders(data, BRIEF)
    fit(make_model(), *loaders, BRIEF, run_dir=tmp_path)
    state = read_state(tmp_path / STATE_FILE)
    for dtype in (torch.int64, torch.float16):
        changed = {name: tensor.to(dtype) for name, tensor in state["model"].items()}
        write_state(tmp_path / STATE_FILE, {**state, "model": changed})
        with pytest.raises(ValueError, match=f"saved .* {dtype}', now .* torch.float32'"):
            fit(make_model(), *loaders, BRIEF, run_dir=tmp_path, resume=True)


def test_a_compiled_model_is_saved_under_its_own_names(data, tmp_path, monkeypatch):
    """So a run may be compiled before a stop and not after it; the compiler is replaced by one that takes no minute."""
    compile_ = torch.compile
    monkeypatch.setattr("torch.compile", lambda model: compile_(model, backend="eager"))
    config = replace(QUICK, compile=True, epochs=1)
    loaders = make_loaders(data, config)
    fit(make_model(), *loaders, config, run_dir=tmp_path)
    names = read_state(tmp_path / STATE_FILE)["model"]
    assert not any("_orig_mod" in name for name in names) and list(names) == list(make_model().state_dict())
    plain = replace(config, compile=False)
    assert fit(make_model(), *loaders, plain, run_dir=tmp_path, resume=True).is_complete


def test_a_second_and_third_training_leave_nothing_behind(data, tmp_path, frozen_objects):
    """As with "run all" pressed again: no thread, no signal handler, no tensor is left of the one before."""

    def left_after_training(number: int) -> tuple[int, int, int]:
        fit(make_model(), *make_loaders(data, BRIEF), BRIEF, run_dir=tmp_path / str(number))
        gc.collect()
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        return tensors, threading.active_count(), id(signal.getsignal(signal.SIGINT))

    left_after_training(1)
    assert left_after_training(2) == left_after_training(3)


def test_a_state_from_a_gpu_is_read_without_one(data, tmp_path, monkeypatch):
    """The file says of each tensor where it was; torch alone would insist on that place."""
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda _: "cuda:0")
        fit(make_model(), *make_loaders(data, BRIEF), BRIEF, run_dir=tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / STATE_FILE, weights_only=True)
    state = read_state(tmp_path / STATE_FILE)
    assert all(tensor.device.type == "cpu" for tensor in state["model"].values())


def test_a_run_is_never_overwritten_and_one_that_is_complete_says_so(data, tmp_path, capfd):
    loaders = make_loaders(data, QUICK)
    model = make_model()
    first = fit(model, *loaders, QUICK, run_dir=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="holds a run already: go on with resume=True, or take another folder"):
        fit(make_model(), *loaders, QUICK, run_dir=tmp_path)
    (tmp_path / STATE_FILE).rename(tmp_path / "aside")
    with pytest.raises(FileExistsError, match="holds a run already"):
        fit(make_model(), *loaders, QUICK, run_dir=tmp_path)
    (tmp_path / "aside").rename(tmp_path / STATE_FILE)
    again = make_model(seed=8)
    second = fit(again, *loaders, QUICK, run_dir=tmp_path, resume=True)
    assert "is complete, 3 epochs: for more of them begin a run with more epochs" in capfd.readouterr().err
    assert second.rows == first.rows and second.is_complete and same_weights(again, model)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_killed_saves_have_left_is_removed(data, tmp_path):
    loaders = make_loaders(data, BRIEF)
    names = ("state.pt", "state.previous.pt", "state.best.pt", "history.csv", "config.json")
    ours = [f".{name}.abcd_123.tmp" for name in names]
    for resume in (False, True):
        for name in [*ours, ".model.safetensors.abcd_123.tmp"]:  # the last may be somebody's who writes it now
            (tmp_path / name).write_text("half")
        fit(make_model(), *loaders, BRIEF, run_dir=tmp_path, resume=resume)
        assert [path.name for path in tmp_path.glob(".*.tmp")] == [".model.safetensors.abcd_123.tmp"]


def test_a_half_written_history_is_made_whole(data, tmp_path):
    loaders = make_loaders(data, QUICK)
    count = iter(range(99))
    fit(make_model(), *loaders, QUICK, run_dir=tmp_path, should_stop=lambda: next(count) == 9)
    path = tmp_path / HISTORY_FILE
    whole = path.read_text()
    assert len(whole.splitlines()) == 2
    path.write_text(whole + "2,1.9")
    with pytest.raises(ValueError, match="history.csv is damaged"):
        History.load_csv(path)
    fit(make_model(), *loaders, QUICK, run_dir=tmp_path, resume=True)
    assert path.read_text().startswith(whole) and len(History.load_csv(path)) == 3


def test_the_best_weights_are_kept_whatever_comes_after(data, tmp_path):
    config = replace(QUICK, epochs=6, ema_decay=0.5)
    loaders = make_loaders(data, config)
    history = fit(make_model(), *loaders, config, run_dir=tmp_path)
    accuracies = history["val_accuracy"]
    model = make_model(seed=7)
    row = load_state_weights(model, best_of(tmp_path / STATE_FILE))
    assert row["epoch"] == accuracies.index(max(accuracies)) + 1
    assert evaluate(model, loaders[1], config).accuracy == row["val_accuracy"] == max(accuracies)
    with pytest.raises(ValueError, match="belongs to another network"):
        load_state_weights(make_model(depth=1), best_of(tmp_path / STATE_FILE))
    with pytest.raises(ValueError, match=r"of a training: vit\.training\.load_state_weights\(model, path\) reads"):
        load(best_of(tmp_path / STATE_FILE))


def test_weights_that_are_not_found(data, tmp_path):
    fit(make_model(), *make_loaders(data, BRIEF), BRIEF, run_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="a folder .*folder: state.best.pt, state.previous.pt, state.pt$"):
        load_state_weights(make_model(), tmp_path)
    with pytest.raises(TypeError, match=r"\(\w+Path, VisionTransformer\) must be called as .*\(model, path\)"):
        load_state_weights(tmp_path / STATE_FILE, make_model())
    for path in tmp_path.glob("*.pt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no training state at .*; to begin the run, leave out resume=True"):
        fit(make_model(), *make_loaders(data, BRIEF), BRIEF, run_dir=tmp_path, resume=True)


def test_a_compiled_model_takes_them_too(data, tmp_path):
    model = make_model()
    fit(model, *make_loaders(data, BRIEF), BRIEF, run_dir=tmp_path)
    other = make_model(seed=7)
    assert load_state_weights(torch.compile(other), tmp_path / STATE_FILE) and same_weights(other, model)


def test_what_a_broken_step_has_left_enters_no_training(data):
    """Its gradient, that is, which a second Ctrl-C or a step without enough memory leaves behind."""
    clean, used = make_model(), make_model()
    for p in used.parameters():
        p.grad = torch.full_like(p, float("nan"))
    for model in (clean, used):
        fit(model, *make_loaders(data, BRIEF), BRIEF)
    assert same_weights(clean, used)


def test_weights_of_the_middle_of_an_epoch_have_no_row(data, tmp_path):
    model, seen = make_model(), []
    model.register_forward_pre_hook(lambda *_: seen.append(1) if model.training else None)
    loaders = make_loaders(data, QUICK)
    history = fit(model, *loaders, QUICK, run_dir=tmp_path, should_stop=lambda: len(seen) == STEPS + 1)
    assert len(history) == 1 and read_state(tmp_path / STATE_FILE)["progress"]["step"] > 0
    assert load_state_weights(make_model(seed=7), tmp_path / STATE_FILE) == {}


@pytest.mark.parametrize("text", ['{"note": 1,}', "[1]"])
def test_a_description_that_cannot_be_read_is_named_before_any_work(data, tmp_path, text):
    loaders = make_loaders(data, BRIEF)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json (cannot be read|holds a list)"):
        fit(make_model(), *loaders, BRIEF, run_dir=tmp_path)
    assert not (tmp_path / STATE_FILE).exists()
    (tmp_path / "config.json").unlink()
    fit(make_model(), *loaders, BRIEF, run_dir=tmp_path)
    (tmp_path / "config.json").write_text(text)
    model = make_model(seed=7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="config.json (cannot be read|holds a list)"):
        fit(model, *loaders, BRIEF, run_dir=tmp_path, resume=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_long_epoch_is_saved_on_the_way_and_that_changes_nothing(data, tmp_path, monkeypatch, wholes):
    recipe = next(iter(RECIPES))
    model_changes, config = RECIPES[recipe][0], replace(QUICK, **RECIPES[recipe][1])
    saved = []
    monkeypatch.setattr(run_files, "SAVE_SECONDS", 0.0)
    keep = run_files.save_training_state
    monkeypatch.setattr(
        run_files,
        "save_training_state",
        lambda path, progress, **rest: (
            saved.append((progress["epoch"], progress["step"])),
            keep(path, progress=progress, **rest),
        ),
    )
    model = make_model(**model_changes)
    fit(model, *make_loaders(data, config), config, run_dir=tmp_path)
    assert saved == [(epoch, step) for epoch in range(3) for step in range(STEPS)] + [(3, 0)]
    assert same_weights(model, wholes[recipe][0])


def test_a_full_disk_in_between_is_said_and_training_goes_on(data, tmp_path, monkeypatch, capfd):
    loaders = make_loaders(data, QUICK)
    count = iter(range(99))

    def full(path, state, **rest):
        if next(count) in (1, 2):  # the first two epochs; the start is 0
            raise OSError(28, "No space left on device")
        return keep(path, state, **rest)

    keep = checkpoint.write_state
    monkeypatch.setattr(checkpoint, "write_state", full)
    assert fit(make_model(), *loaders, QUICK, run_dir=tmp_path).is_complete
    said = capfd.readouterr().err
    assert said.count("the state could not be saved in") == 2
    assert re.search(r"\(No space left on device; [\d,]+ bytes free\): training goes on, and the next save", said)
    assert read_state(tmp_path / STATE_FILE)["progress"]["epoch"] == 3


def test_a_disk_that_is_full_at_the_end_costs_no_result_and_is_not_said_to_be_tried_again(
    data, tmp_path, monkeypatch, capfd
):
    def full(path, state, **rest):
        if state["progress"]["epoch"] == QUICK.epochs:
            raise OSError(28, "No space left on device")
        return keep(path, state, **rest)

    keep = checkpoint.write_state
    monkeypatch.setattr(checkpoint, "write_state", full)
    history = fit(make_model(), *make_loaders(data, QUICK), QUICK, run_dir=tmp_path)
    assert history.is_complete and len(history) == QUICK.epochs
    said = capfd.readouterr().err
    assert "the end of the training is in memory alone" in said and "try again" not in said
    assert read_state(tmp_path / STATE_FILE)["progress"]["epoch"] == QUICK.epochs - 1


def test_a_stop_that_comes_while_a_save_fails_is_not_lost(data, tmp_path, monkeypatch):
    """It comes after `fit` has asked for the last time before that save."""
    answers = itertools.chain([False, False], itertools.repeat(True))
    keep, count = checkpoint.write_state, iter(range(99))

    def full(path, state, **rest):
        if next(count):  # the start is 0
            raise OSError(28, "No space left on device")
        return keep(path, state, **rest)

    monkeypatch.setattr(checkpoint, "write_state", full)
    monkeypatch.setattr(run_files, "SAVE_SECONDS", -1.0)  # due after every step
    with pytest.raises(OSError, match="the state could not be saved in"):
        fit(make_model(), *make_loaders(data, QUICK), QUICK, run_dir=tmp_path, should_stop=answers.__next__)


def test_a_disk_that_loses_bytes_is_said_and_training_goes_on(data, tmp_path, monkeypatch, capfd):
    """What was written is read back at once."""
    writes, write, sync = [], checkpoint.write_state, os.fsync

    def counted(*args, **rest):
        writes.append(args)
        write(*args, **rest)

    def losing(handle):
        is_first_epochs = len(writes) == 2 and os.fstat(handle).st_size > 1000
        os.ftruncate(handle, 1000) if is_first_epochs else sync(handle)

    monkeypatch.setattr(checkpoint, "write_state", counted)
    monkeypatch.setattr("vit.training.state_file.os.fsync", losing)
    assert fit(make_model(), *make_loaders(data, QUICK), QUICK, run_dir=tmp_path).is_complete
    assert "what was written cannot be read back" in capfd.readouterr().err
    assert read_state(tmp_path / STATE_FILE)["progress"]["epoch"] == 3


def test_a_history_that_another_program_keeps_open_ends_nothing(data, tmp_path, monkeypatch, capfd):
    """As Excel does on Windows. The state holds the history too."""
    loaders, save_csv = make_loaders(data, QUICK), History.save_csv

    def refuse(history, path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(History, "save_csv", refuse)
    history = fit(make_model(), *loaders, QUICK, run_dir=tmp_path)
    assert history.is_complete and "history.csv could not be written" in capfd.readouterr().err
    monkeypatch.setattr(History, "save_csv", save_csv)
    fit(make_model(), *loaders, QUICK, run_dir=tmp_path, resume=True)
    assert History.load_csv(tmp_path / HISTORY_FILE)["val_loss"] == history["val_loss"]


def test_a_change_of_the_working_folder_does_not_move_the_run(data, tmp_path, monkeypatch):
    """As `%cd` in a notebook, while it trains in the background."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fit(
        make_model(), *make_loaders(data, QUICK), QUICK, run_dir="run",
        should_stop=lambda: os.chdir(tmp_path / "elsewhere") is not None,
    )  # fmt: skip
    assert not list((tmp_path / "elsewhere").iterdir())
    assert len(History.load_csv(tmp_path / "run" / HISTORY_FILE)) == QUICK.epochs


def test_a_folder_that_is_not_there_is_not_made_by_a_resume(data, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"run_dir='{tmp_path / 'gone'}' is no folder"):
        fit(make_model(), *make_loaders(data, QUICK), QUICK, run_dir=tmp_path / "gone", resume=True)
    assert not (tmp_path / "gone").exists()


def test_a_folder_that_cannot_be_written_fails_before_the_first_step(data, tmp_path, monkeypatch):
    """Root may write anywhere, so the refusal is made here."""
    train, val = make_loaders(data, QUICK)

    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vit.files.tempfile.mkstemp", refused)
    with pytest.raises(PermissionError, match="could not be saved in .*Permission denied; [0-9,]+ bytes free"):
        fit(make_model(), Cut(train, 0, 0), val, QUICK, run_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        fit(make_model(), Cut(train, 0, 0), val, QUICK, run_dir=tmp_path / "file")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_taken(data, tmp_path, where):
    loaders = make_loaders(data, QUICK)
    seen = []

    class Explodes(torch.autograd.Function):
        """A loss that is finite and a gradient that is not."""

        @staticmethod
        def forward(ctx, x):
            return x.sum() * 0 + 1.0

        @staticmethod
        def backward(ctx, gradient):
            return torch.full((50, 10), float("inf")) * gradient

    def loss_fn(model, batch):
        logits = model(batch[0])
        if len(seen) == 6:
            before.load_state_dict(model.state_dict())
            return (logits.sum() * float("nan") if where == "loss" else Explodes.apply(logits)), {}
        seen.append(1)
        return logits.square().mean(), {}

    model, before = make_model(), make_model()
    first = ", ".join(str(int(i)) for i in loaders[0].batch_indices(1, 2)[:8])
    value = "nan and the gradient's norm nan" if where == "loss" else "1 and the gradient's norm (nan|inf)"
    message = rf"the loss is {value} in step 3 of epoch 2, at learning_rate 0.\d+: stopped before that step"
    with pytest.raises(FloatingPointError, match=rf"{message}.*train_loader.batch_indices\(1, 2\): {first}, \.\.\."):
        fit(model, *loaders, QUICK, run_dir=tmp_path, loss_fn=loss_fn)
    assert same_weights(model, before)
    assert read_state(tmp_path / STATE_FILE)["progress"]["epoch"] == 1  # the last good state


def test_want_of_memory_comes_with_a_way_out(data, tmp_path):
    def loss_fn(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        fit(make_model(), *make_loaders(data, QUICK), QUICK, run_dir=tmp_path, loss_fn=loss_fn)
    assert "out of memory at batch_size=50: what was saved last is good" in caught.value.__notes__[0]


def test_loaders_that_give_nothing_are_refused_before_the_first_step(data):
    train, val = make_loaders(data, QUICK)
    train.num_steps = 0
    with pytest.raises(ValueError, match="train_loader has no batch: there is nothing to train on"):
        fit(make_model(), train, val, QUICK)
    val.num_steps = 0
    with pytest.raises(ValueError, match="val_loader has no batch: there is nothing to measure"):
        fit(make_model(), make_loaders(data, QUICK)[0], val, QUICK)
    with pytest.raises(TypeError, match=r"train_loader is a list: .* loader\.epoch\(epoch, start_step=0\)"):
        fit(make_model(), [1, 2], None, QUICK)


def test_a_clock_that_is_set_back_does_not_matter(data, monkeypatch):
    now = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr("time.time", lambda: next(now))
    seconds = fit(make_model(), *make_loaders(data, QUICK), QUICK)["seconds"]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < 600


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_resume_on_a_gpu_with_the_deterministic_switch(data, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    model_changes, train_changes = next(iter(RECIPES.values()))
    config = replace(QUICK, **train_changes, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        loaders = make_loaders(data, config)
        whole = make_model(**model_changes)
        fit(whole, *loaders, config)
        count = iter(range(99))
        fit(make_model(**model_changes), *loaders, config, run_dir=tmp_path, should_stop=lambda: next(count) == 5)
        model = make_model(seed=9, **model_changes)
        fit(model, *loaders, config, run_dir=tmp_path, resume=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert same_weights(model, whole)


def test_a_state_of_more_gpus_is_resumed_with_fewer(monkeypatch):
    given, state = [], checkpoint._random_state() | {"cuda": [torch.ones(1), torch.zeros(1)]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.extend)
    checkpoint._restore_random_state(state)
    assert given == [torch.ones(1)]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time of runs, in seconds, for a test to set."""
    now = [0.0]
    monkeypatch.setattr(run_files, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_in_a_long_epoch_saves_are_as_far_apart_as_said(data, tmp_path, monkeypatch, clock):
    saves, save, config = [], run_files.save_training_state, replace(QUICK, epochs=1, batch_size=10)
    monkeypatch.setattr(run_files, "save_training_state", lambda *a, **k: saves.append(clock[0]) or save(*a, **k))

    def loss_fn(model, batch):
        clock[0] += 60
        return model(batch[0]).square().mean(), {}

    fit(make_model(), make_loaders(data, config)[0], None, config, run_dir=tmp_path, loss_fn=loss_fn)
    assert saves == [0, 360, 720, 1080, 1200], "of 20 steps of a minute each: when over five minutes have gone by"


def test_a_resumed_run_counts_its_seconds_on(data, tmp_path, clock):
    def loss_fn(model, batch):
        clock[0] += 1
        return model(batch[0]).square().mean(), {}

    loader, asked = make_loaders(data, QUICK)[0], itertools.count()
    options = {"run_dir": tmp_path, "loss_fn": loss_fn}
    fit(make_model(), loader, None, QUICK, should_stop=lambda: next(asked) >= 2, **options)
    clock[0] += 1000  # nobody trains
    history = fit(make_model(), loader, None, QUICK, resume=True, **options)
    assert history["seconds"] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_parts_of_a_batch_may_change_at_a_resume_and_labels_may_not(data, tmp_path):
    config = replace(QUICK, epochs=1)
    fit(make_model(), *make_loaders(data, config), config, run_dir=tmp_path)
    in_parts = replace(config, accumulation_steps=2)
    history = fit(make_model(), *make_loaders(data, in_parts), in_parts, run_dir=tmp_path, resume=True)
    assert history.is_complete
    other = replace(data, train=replace(data.train, labels=data.train.labels.flip(0)))
    with pytest.raises(ValueError, match="fingerprint"):
        fit(make_model(), *make_loaders(other, config), config, run_dir=tmp_path, resume=True)


def test_other_groups_of_parameters_are_refused_before_anything_is_changed(data, tmp_path):
    """Else a resumed run would keep the old rates in silence, or fail when the weights are already written over."""

    def with_decay(layer_decay):
        return {"make_optimizers": partial(build_optimizers, layer_decay=layer_decay), "run_dir": tmp_path}

    fit(make_model(), *make_loaders(data, QUICK), QUICK, should_stop=lambda: True, **with_decay(0.5))
    for other in (0.9, 1.0):
        model = make_model(seed=1)
        with pytest.raises(ValueError, match=r"other groups of parameters or other rates.*layer_decay.*saved \[\("):
            fit(model, *make_loaders(data, QUICK), QUICK, resume=True, **with_decay(other))
        assert same_weights(model, make_model(seed=1))
    assert fit(make_model(), *make_loaders(data, QUICK), QUICK, resume=True, **with_decay(0.5)).is_complete


def frozen(name: str, **changes) -> VisionTransformer:
    model = make_model(**changes)
    model.get_parameter(name).requires_grad_(False)
    return model


def as_of_old(path) -> None:
    """The state as earlier versions wrote it."""
    state = read_state(path)
    del state["network"], state["optimized_names"], state["data"]["mean"], state["data"]["std"]
    write_state(path, state)


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_go_to_the_parameter_they_are_of(data, tmp_path, optimizer, is_old):
    """With another matrix frozen the groups are as large as before, but a fused step writes past a moment's end."""
    config, calls = replace(QUICK, optimizer=optimizer), iter(range(99))
    loaders = make_loaders(data, config)
    first, other = "encoder.blocks.0.attn.proj.weight", "encoder.blocks.1.mlp.fc1.weight"
    fit(frozen(first), *loaders, config, run_dir=tmp_path, should_stop=lambda: next(calls) >= STEPS + 1)
    message = rf"encoder.blocks.0.mlp.fc1.weight trained in the place of {first}"
    if is_old:
        as_of_old(tmp_path / STATE_FILE)
        message = rf"of shape \(32, 16\) for {first} \(16, 16\)"
    model = frozen(other)
    with pytest.raises(ValueError, match=f"state.pt has .*{message}: freeze the same parameters as before"):
        fit(model, *loaders, config, run_dir=tmp_path, resume=True)
    assert same_weights(model, make_model())
    assert fit(frozen(first), *loaders, config, run_dir=tmp_path, resume=True).is_complete


def test_moments_of_other_shapes_are_for_their_optimizer_to_judge(data, tmp_path):
    """Adafactor keeps a row and a column of each matrix."""

    def factored(model, config):
        return [torch.optim.Adafactor(model.parameters(), lr=1e-2)]

    loaders, calls = make_loaders(data, QUICK), iter(range(99))
    options = {"run_dir": tmp_path, "make_optimizers": factored}
    fit(make_model(), *loaders, QUICK, should_stop=lambda: next(calls) >= STEPS + 1, **options)
    as_of_old(tmp_path / STATE_FILE)
    assert fit(make_model(), *loaders, QUICK, resume=True, **options).is_complete


ROPE = {"pos_embed": "rope", "pool": "mean", "layer_scale": 1e-2}


@pytest.mark.parametrize(
    ("change", "is_resumed", "is_loaded"),
    [
        ({"num_heads": 4}, False, False),
        ({"norm_eps": 1e-5}, False, False),
        ({"act": "quick_gelu"}, False, False),
        ({"image_size": (8, 32)}, False, False),
        ({"drop_rate": 0.1}, False, True),  # a setting of the training, for a network that is not trained on
        ({"layer_scale": 1.0, "pos_resampling": "bicubic", "patch_init": "whitened"}, True, True),
    ],
)
def test_a_network_of_the_same_shapes_may_be_another(data, tmp_path, change, is_resumed, is_loaded):
    loaders = make_loaders(data, BRIEF)
    fit(make_model(**ROPE), loaders[0], None, BRIEF, run_dir=tmp_path)
    for is_taken, use in (
        (is_loaded, lambda model: load_state_weights(model, tmp_path / STATE_FILE)),
        (is_resumed, lambda model: fit(model, loaders[0], None, BRIEF, run_dir=tmp_path, resume=True)),
    ):
        model = make_model(seed=3, **(ROPE | change))
        if is_taken:
            assert use(model)
            continue
        name = next(iter(change))
        saved, now = (re.escape(repr(config.to_dict()[name])) for config in (make_model(**ROPE).config, model.config))
        with pytest.raises(ValueError, match=f"with weights of the same shapes: {name}: saved {saved}, now {now}"):
            use(model)
        assert same_weights(model, make_model(seed=3, **(ROPE | change)))
    as_of_old(tmp_path / STATE_FILE)  # which does not say what its network was
    assert load_state_weights(make_model(**(ROPE | change)), tmp_path / STATE_FILE)


def test_data_with_another_normalization_is_other_data(data, tmp_path):
    fit(make_model(), *make_loaders(data, BRIEF), BRIEF, run_dir=tmp_path)
    last_digit = replace(data, mean=tuple(value + 1e-12 for value in data.mean))
    fit(make_model(), *make_loaders(last_digit, BRIEF), BRIEF, run_dir=tmp_path, resume=True)
    for name in ("mean", "std"):
        other = make_loaders(replace(data, **{name: (0.1, 0.2, 0.3)}), BRIEF)
        with pytest.raises(
            ValueError, match=rf"written with other training data: {name}: saved .*now \[0.1, 0.2, 0.3\]"
        ):
            fit(make_model(), *other, BRIEF, run_dir=tmp_path, resume=True)
    as_of_old(tmp_path / STATE_FILE)
    assert fit(make_model(), *other, BRIEF, run_dir=tmp_path, resume=True).is_complete


def test_the_best_of_a_resumed_run_is_the_best_that_was_saved(data, tmp_path):
    """An epoch that was too soon after a save is neither kept nor, after a resume, the one to beat."""
    model, loader, history = make_model(), make_loaders(data, QUICK)[0], History()
    state = {"model": model, "optimizers": build_optimizers(model, QUICK), "ema": None, "config": QUICK}
    files = run_files.RunFiles(tmp_path, history, loader, ALONE, **state)
    files.start()
    history.rows.append({"epoch": 1, "val_accuracy": 80.0})  # not saved
    history.rows.append({"epoch": 2, "val_accuracy": 79.0})
    files.save(2, 0, {}, is_last=True, may_be_best=True)
    again = run_files.RunFiles(tmp_path, History(), loader, ALONE, **state)
    again.resume(torch.device("cpu"), 3)
    assert again.best == 79.0
    again.history.rows.append({"epoch": 3, "val_accuracy": 79.5})
    again.save(3, 0, {}, is_last=True, may_be_best=True)
    assert load_state_weights(model, best_of(tmp_path / STATE_FILE))["epoch"] == 3
