"""The command line: what is asked for is what is trained, and mistakes end in a line, not a traceback."""

import pytest
import torch

import vit
from vit.config import RECIPES, TrainConfig, ViTConfig
from vit.data import Loader, keep_classes, make_loaders, save_image_folder
from vit.tasks import train
from vit.training import fit, list_runs
from vit.training.run_files import STATE_FILE


@pytest.fixture
def main(shapes, tmp_path, monkeypatch):
    """The command with quick settings, in a folder of its own; the shapes in the place of every dataset but folders."""
    load_data = train.load_data
    monkeypatch.setattr(train, "load_data", lambda name, **path: load_data(name, **path) if path else shapes)

    def run(*arguments: str, folder: str = "run") -> None:
        quick = ["--recipe", "quick", "--set", "device=cpu", "epochs=0.1"]
        train.main(["--run-dir", str(tmp_path / folder), *quick, *arguments])

    return run


def test_every_set_counts_and_network_fields_are_set_too(main, tmp_path, shapes):
    main("--set", "seed=3", "batch_size=40", "--set", "depth=2", "qk_norm=True")
    (run,) = list_runs(tmp_path)
    changes = {"seed": 3, "batch_size": 40, "device": "cpu", "epochs": 0.1}
    assert TrainConfig.from_dict(run.config["train"]) == TrainConfig.preset("quick", **changes)
    expected = ViTConfig.preset(RECIPES["quick"], depth=2, qk_norm=True, image_size=16)
    assert ViTConfig.from_dict(run.config["model"]) == expected
    assert run.history.is_complete and (run.folder / "model.safetensors").exists()


def test_pictures_of_ones_own(main, tmp_path, shapes, monkeypatch):
    save_image_folder(shapes.train, shapes.class_names, tmp_path / "pictures")
    main("--data", f"folder:{tmp_path / 'pictures'}", "--set", "image_size=24", folder="runs/a")
    (run,) = list_runs(tmp_path / "runs")
    assert run.config["model"]["image_size"] == [24, 24]
    sizes = []
    monkeypatch.setattr(train, "load_data", lambda name, **options: sizes.append(options["image_size"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main("--model", "vit_base_patch16_224", "--data", "folder:pictures", folder="runs/b")
    assert sizes == [(224, 224)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "cpu_5mins"], "unknown recipe 'cpu_5mins'; did you mean 'cpu_5min'?"),
        (["--model", "vit_nano"], "unknown preset 'vit_nano'; did you mean 'vit_nano_patch4_32'?"),
        (["--set", "epochs"], "--set 'epochs' must be name=value, such as epochs=10"),
        (["--set", "dept=3"], "has no field 'dept'"),
        (["--set", "epochs=many"], "TrainConfig.epochs='many' must be a number"),
        (["--set", "depth=0"], "ViTConfig.depth=0 must be an integer of 1 or more"),
        (["--set", "num_classes=7"], "--set num_classes=7 does not fit cifar10, which has 10"),
        (["--set", "image_size=24"], "--set image_size=24 does not fit cifar10, which has (16, 16)"),
        (["--minutes", "0"], "--minutes=0.0 must be more than 0"),
        (["--data", "folder:/nowhere/at/all"], "there is no folder at /nowhere/at/all"),
        (["--resume"], "holds no run to go on with: leave out --resume"),
        (["--resume", "always"], "invalid choice: 'always'"),
        (["--resume", "auto", "--minutes", "1"], "--minutes is for a new run"),
        pytest.param(
            ["--set", "device=cuda"],
            "device='cuda' is not available on this machine; use 'auto' or 'cpu'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU"),
        ),
    ],
)
def test_a_mistake_is_a_line(main, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(*arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_taken_folder_is_a_line_and_resume_goes_on(main, tmp_path, capsys):
    main("--set", "epochs=0.2")
    with pytest.raises(SystemExit):
        main("--set", "epochs=0.2")
    assert "holds a run already: go on with --resume, or take another folder" in capsys.readouterr().err
    main("--set", "epochs=0.2", "--resume")
    assert "is complete, 0.2 epochs" in capsys.readouterr().err


def test_one_line_begins_a_run_and_goes_on_with_it(main, tmp_path, capsys, monkeypatch):
    line = ("--resume", "auto", "--set", "epochs=2")
    epoch = Loader.epoch
    broken = lambda self, number, step=0: 1 / 0 if number == 1 else epoch(self, number, step)  # noqa: E731
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Loader, "epoch", broken)
        main(*line)
    (stopped,) = list_runs(tmp_path)
    assert len(stopped.history) == 1 and not stopped.history.is_complete
    main(*line)
    (run,) = list_runs(tmp_path)
    assert run.history.is_complete and run.history.rows[0] == stopped.history.rows[0]
    assert (run.folder / "model.safetensors").exists()
    (tmp_path / "run" / STATE_FILE).unlink()
    (tmp_path / "run" / "state.previous.pt").unlink()
    with pytest.raises(SystemExit):
        main(*line)
    assert "is of a run whose state is gone" in capsys.readouterr().err


def test_settings_are_read_as_they_are_meant():
    cases = {
        "compile=True": True,
        "compile=false": False,
        "layer_scale=null": None,
        "epochs=1e1": 10.0,
        "act=gelu": "gelu",
    }
    for text, value in cases.items():
        assert train.read_setting(text) == (text.partition("=")[0], value)
    assert train.read_setting("adam_betas=[0.9,0.99]")[1] == (0.9, 0.99)
    with pytest.raises(ValueError, match="--set 'epochs' must be name=value"):
        train.read_setting("epochs")


def test_the_command_is_fit_with_the_seed_of_its_settings(tmp_path, shapes, monkeypatch):
    data = keep_classes(shapes, range(4))
    monkeypatch.setattr(train, "load_data", lambda name: data)
    settings = ["--data", "shapes", "--recipe", "quick", "--set", "device=cpu", "seed=5", "epochs=0.5"]
    train.main(["--run-dir", str(tmp_path), *settings])
    config = TrainConfig.preset("quick", device="cpu", seed=5, epochs=0.5)
    torch.manual_seed(5)
    model = vit.VisionTransformer(ViTConfig.preset(RECIPES["quick"], image_size=16, num_classes=4))
    fit(model, *make_loaders(data, config), config)
    stored = vit.load(tmp_path / "model.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(stored.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert tuple(stored.metadata["class_names"]) == data.class_names
