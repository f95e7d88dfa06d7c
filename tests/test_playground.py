"""The playground trains what its form says, stops when told, and keeps nothing to itself."""

import asyncio
import errno
import io
import os
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

import vit
from vit.analysis import forecast
from vit.config import TrainConfig, ViTConfig
from vit.data import make_loaders, make_shapes
from vit.model.vision_transformer import VisionTransformer
from vit.plots import plot_progress
from vit.training import History, background, current_run, delete_run, fit, list_runs, rename_run
from vit.training.run_folder import write_json
from vit.widgets import Playground
from vit.widgets import playground as module
from vit.widgets.run_table import MAX_CURVES

MODEL = ViTConfig(patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)
TRAIN = TrainConfig.preset("quick", device="cpu", batch_size=50)
pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture
def panel(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "measure_speed", lambda config: module.Speed((16, 512), (1e-4, 1e-3), (1e9, 1e10)))
    panel = Playground(shapes, MODEL, TRAIN, runs_dir=tmp_path)
    yield panel
    if (run := current_run()) is not None:
        run.stop()
        run.wait()


def said(widget) -> str:
    return re.sub("<[^>]+>", "", widget.value)


def train(panel):
    panel.train()
    return panel.wait()


def test_the_form_takes_sizes_and_classes_from_the_data(panel, shapes):
    config = panel.form.model_config
    assert (config.image_size, config.in_chans, config.num_classes) == ((16, 16), 3, 10)
    assert panel.form.controls["model.patch_size"].options == (2, 4, 8)


def test_costs_follow_the_sliders(panel, shapes):
    panel.form.controls["model.depth"].value = 5
    panel.form.controls["train.epochs"].value = 3.0
    model_config, train_config = panel.form.model_config, panel.form.train_config
    assert (model_config.depth, train_config.epochs) == (5, 3.0)
    speed = module.Speed((16, 512), (1e-4, 1e-3), (1e9, 1e10))
    told = forecast(model_config, train_config, 400, num_val_images=100, speed=speed)
    assert panel.costs() == told
    numbers = sum(p.numel() for p in VisionTransformer(model_config).parameters())
    assert f"{numbers:,} parameters" in said(panel.estimate) and said(panel.estimate).startswith("about ")


def test_it_trains_what_fit_would_train(panel, shapes):
    history = train(panel)
    (run,) = list_runs(panel.runs_dir)
    torch.manual_seed(TRAIN.seed)
    model = VisionTransformer(panel.form.model_config)
    expected = fit(model, *make_loaders(shapes, TRAIN), TRAIN)
    assert history["train_loss"] == expected["train_loss"] == run.history["train_loss"]
    assert run.history.is_complete and run.config["data"] == "shapes" and run.name == "playground"
    kept = vit.load(run.folder / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), model.state_dict().values(), strict=True))
    assert tuple(kept.metadata["class_names"]) == shapes.class_names
    assert run.value("num_parameters") == sum(p.numel() for p in model.parameters())
    assert said(panel.progress) == f"done: validation accuracy {expected.last['val_accuracy']:.1f} % after 16 steps"
    assert [run.name for run in panel.runs.chosen] == ["playground"]


def test_it_shows_the_curves(panel):
    train(panel)
    losses = [(panel.run.config.epochs * step / 16, loss) for step, loss in panel.run.losses]
    png = io.BytesIO()
    figure = plot_progress(losses, panel.run.history.rows, epochs=2, title=panel.run.run_dir.name)
    figure.savefig(png, format="png", dpi=100)
    shown, drawn = (np.asarray(Image.open(data)) for data in (io.BytesIO(panel.picture.value), png))
    np.testing.assert_array_equal(shown, drawn)


def test_stop_ends_it_and_train_on_goes_on(panel, shapes):
    panel.form.controls["train.epochs"].value = 30.0
    panel.train_button.click()
    while not panel.run.steps_done:
        time.sleep(0.01)
    assert panel.is_training and panel.train_button.disabled and not panel.stop_button.disabled
    panel.stop_button.click()
    panel.wait(timeout=20)
    assert re.fullmatch(r"stopped after step \d+ of 240; it can be trained on", said(panel.progress))
    assert not panel.train_button.disabled and panel.stop_button.disabled


def test_a_stopped_run_trained_on_is_the_run_that_was_never_stopped(panel, shapes):
    panel.form.controls["train.epochs"].value = 6.0
    config = panel.form.train_config
    panel.train()
    while not panel.run.history:
        time.sleep(0.01)
    panel.stop()
    panel.wait()
    (stopped,) = panel.runs.runs
    panel.use(train_config=TRAIN)
    panel.runs.choose(stopped)
    panel.runs.go_on.click()
    assert panel.form.train_config == config
    history = panel.wait()
    torch.manual_seed(TRAIN.seed)
    expected = fit(VisionTransformer(panel.form.model_config), *make_loaders(shapes, config), config)
    assert history["train_loss"] == expected["train_loss"]
    (run,) = panel.runs.runs
    panel.runs.go_on.click()
    assert f"{run.name} is complete: use its settings, with more epochs" in said(panel.runs.message)


def test_sliders_moved_beside_a_training_do_not_change_it(panel, shapes):
    panel.use(train_config=TrainConfig.preset("quick", device="cpu", patch_drop_rate=0.5, epochs=6))
    config, model_config = panel.form.train_config, panel.form.model_config
    panel.train()
    depth = panel.form.controls["model.depth"]
    while panel.is_training:
        depth.value = depth.value % 16 + 1
        panel.form.controls["model.drop_rate"].value = 0.1
        panel.form.controls["train.patch_drop_rate"].value = 0.25 if depth.value % 2 else 0.75
    torch.manual_seed(config.seed)
    expected = fit(VisionTransformer(model_config), *make_loaders(shapes, config), config)
    assert panel.wait()["train_loss"] == expected["train_loss"]


def test_settings_of_a_run_come_back(panel):
    panel.form.controls["model.depth"].value = 3
    panel.form.controls["train.seed"].value = 9
    train(panel)
    panel.use(MODEL, TRAIN)
    assert panel.form.model_config.depth == 2
    panel.runs.settings.click()
    assert (panel.form.model_config.depth, panel.form.train_config.seed) == (3, 9)


def test_presets_fill_the_form(panel):
    panel.model_preset.value = "vit_pico_patch8_32"
    config = panel.form.model_config
    assert config == ViTConfig.preset("vit_pico_patch8_32", image_size=16) and panel.model_preset.value is None
    panel.train_preset.value = "cpu_10min"
    assert panel.form.train_config == TrainConfig.preset("cpu_10min") and panel.form.model_config == config


def test_a_preset_that_does_not_fit_is_answered_in_the_panel(panel):
    panel.data = make_shapes(num_train=20, num_val=10, num_test=10, image_size=28)
    before = panel.form.model_config
    panel.model_preset.value = "vit_pico_patch8_32"
    assert "image_size=(28, 28) is not a multiple of patch_size=8" in said(panel.progress)
    assert panel.model_preset.value is None and panel.form.model_config == before
    panel.train_preset.value = "cpu_10min"
    assert panel.form.train_config == TrainConfig.preset("cpu_10min") and panel.train_preset.value is None
    assert said(panel.progress) == ""


def test_what_cannot_be_is_answered_in_the_panel(panel, shapes, tmp_path):
    panel.name.value = "no/folder"
    panel.train_button.click()
    assert "name='no/folder' may hold letters" in said(panel.progress).replace("&#x27;", "'")
    assert not any(tmp_path.iterdir())
    panel.form.controls["train.label_smoothing"].max = 2.0
    panel.form.controls["train.label_smoothing"].value = 1.5
    assert "label_smoothing=1.5 must be a number in [0.0, 1.0)" in said(panel.estimate)
    assert panel.train_button.disabled
    panel.form.controls["train.label_smoothing"].value = 0.1
    assert not panel.train_button.disabled
    with pytest.raises(ValueError, match=r"there is no run to draw: train\(\) first"):
        panel.figure()
    with pytest.raises(ValueError, match=r"there is no run to wait for: train\(\) first"):
        panel.wait()


def test_a_failure_is_answered_in_the_panel(panel, capsys):
    panel.form.controls["train.learning_rate"].max = 30
    panel.form.controls["train.learning_rate"].value = 1e25
    panel.train()
    with pytest.raises(FloatingPointError):
        panel.wait()
    assert said(panel.progress).startswith("failed: the loss is nan")
    assert "FloatingPointError" in capsys.readouterr().err
    assert not panel.train_button.disabled


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def very_full_disk(*args, **kwargs):
    raise SafetensorError("I/O error: No space left on device")


@pytest.mark.parametrize("save", [full_disk, very_full_disk])
def test_weights_that_cannot_be_kept_are_told_and_the_panel_goes_on(panel, monkeypatch, save):
    with monkeypatch.context() as patch:
        patch.setattr(module, "save", save)
        train(panel)
    assert re.match(r"done, but what was trained could not be kept: .*No space left on device", said(panel.progress))
    assert not panel.train_button.disabled and panel.stop_button.disabled
    assert [run.name for run in panel.runs.chosen] == ["playground"]
    panel.wait()  # once there is space
    assert vit.load(panel.run.run_dir / "model.safetensors").config == panel.form.model_config
    assert said(panel.progress).startswith("done: validation accuracy")


@pytest.mark.parametrize("is_renamed", [True, False])
def test_a_run_that_was_renamed_or_deleted_is_not_made_again(panel, tmp_path, is_renamed):
    train(panel)
    folder = panel.run.run_dir
    if is_renamed:
        rename_run(folder, "better", tmp_path)
    else:
        delete_run(folder, tmp_path)
    panel.wait()
    assert not folder.exists()


def test_the_newest_runs_stay_ticked(panel, tmp_path):
    """As many as can be drawn, the one that has just ended among them."""
    config = {"model": MODEL.to_dict(), "train": TRAIN.to_dict()}
    row = {"epoch": 1, "train_loss": 2.0, "train_accuracy": 1.0, "val_loss": 2.0, "val_accuracy": 1.0, "seconds": 1}
    for i in range(MAX_CURVES):
        folder = tmp_path / (f"2020010{i}-000000-run{i}" if i else "run0")
        folder.mkdir()
        write_json(folder / "config.json", config)
        History([row | {"val_accuracy": float(-i)}]).save_csv(folder / "history.csv")
    os.utime(tmp_path / "run0" / "config.json", (0, 0))
    panel.runs.order.value = "validation accuracy"
    panel.runs.choose(*panel.runs.runs)
    train(panel)
    assert {run.name for run in panel.runs.chosen} == {"playground", *(f"run{i}" for i in range(1, MAX_CURVES))}
    assert panel.runs.picture.layout.display is None and "can be told apart" not in panel.runs.message.value


def test_runs_of_other_data_are_not_trained_on(panel, monkeypatch):
    panel.form.controls["train.epochs"].value = 6.0
    panel.train()
    while not panel.run.history:
        time.sleep(0.01)
    panel.stop()
    panel.wait()
    (run,) = panel.runs.runs
    run.config["data"] = "cifar10"
    with pytest.raises(ValueError, match="was trained on 'cifar10', not on 'shapes'"):
        panel.resume(run)
    del run.config["model"], run.config["data"]  # as `fit` leaves it of any other network
    for button in (panel.runs.go_on, panel.runs.settings):
        panel.runs.message.value = ""
        panel.runs.choose(run)
        button.click()
        assert f"config.json of {run.name} does not say what network it trains" in said(panel.runs.message)


def test_a_panel_made_again_takes_over_the_training(panel, shapes, tmp_path):
    """As when its cell is run a second time: the first panel is gone from the page, and with it its Stop."""
    panel.form.controls["train.epochs"].value = 30.0
    panel.train()
    second = Playground(shapes, MODEL, TRAIN, runs_dir=tmp_path)
    assert second.is_training and not second.stop_button.disabled
    with pytest.raises(RuntimeError, match="still goes on: stop it first"):
        second.train()
    assert len(list(tmp_path.iterdir())) == 1
    second.stop_button.click()
    second.wait(timeout=20)
    assert current_run() is None


def test_in_a_notebook_it_follows_the_training_by_itself(panel, monkeypatch):
    """Inside a running event loop, as in a kernel: the panel is redrawn while the training goes on, and at its end."""
    monkeypatch.setattr(module, "GLANCE", 0.01)
    progress, pictures = [], []
    panel.progress.observe(lambda change: progress.append(said(panel.progress)), "value")
    panel.picture.observe(lambda change: pictures.append(change.new), "value")

    async def cell():
        panel.form.controls["train.epochs"].value = 4.0
        panel.train()
        while not panel.run.history.is_complete or panel.stop_button.disabled is False:
            await asyncio.sleep(0.01)

    asyncio.run(cell())
    assert any(text.startswith("training: step") for text in progress)
    assert progress[-1].startswith("done: validation accuracy")
    assert pictures and len(panel.runs.runs) == 1


def test_a_training_is_listed_once_it_has_files(panel, monkeypatch):
    """It makes them a moment after its folder, which must not be called damaged meanwhile."""
    monkeypatch.setattr(module, "GLANCE", 0.01)
    monkeypatch.setattr(background, "fit", lambda **arguments: (time.sleep(0.3), fit(**arguments)))
    messages, listed = [], []
    panel.runs.message.observe(lambda change: messages.append(said(panel.runs.message)), "value")

    async def cell():
        panel.form.controls["train.epochs"].value = 4.0
        panel.train()
        while panel.stop_button.disabled is False:
            listed.append([run.is_running for run in panel.runs.runs])
            await asyncio.sleep(0.01)

    asyncio.run(cell())
    assert listed[0] == [] and [True] in listed
    assert messages and not any("not readable" in message for message in messages)


def test_durations_and_the_time_left(monkeypatch):
    durations = [module._duration(seconds) for seconds in (0.2, 89.1, 120, 5399, 5400, 9000)]
    assert durations == ["1 s", "90 s", "2 min", "90 min", "1.5 h", "2.5 h"]
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    panel = SimpleNamespace(run=SimpleNamespace(steps_done=10, total_steps=110), _first_step=None, _started=0)
    assert Playground._time_left(panel) == "", "nothing is known at the first look"
    now[0], panel.run.steps_done = 120.0, 30
    assert Playground._time_left(panel) == ", 80 s to go", "a step a second"
