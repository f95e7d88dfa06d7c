"""The benchmark of transfer: its quick form runs, its cells are not reused wrongly, and no class is seen twice."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import report
import shipped_weights
import transfer
import transfer_methods

import vit
from vit.data import keep_classes
from vit.metadata import learned_from
from vit.tasks import fine_tuning


def test_the_quick_form_fills_the_table_and_stores_nothing(run_quick, monkeypatch):
    monkeypatch.setattr(transfer, "DRAWS", range(2))
    printed = run_quick(transfer)
    assert all(label in "\n".join(printed).split("shots of each class")[1] for label in transfer.LABELS.values())
    names = {f"shapes.{method}.{shots}" for method in transfer.LABELS for shots in (1, 5)}
    assert names <= {line.split()[0] for line in printed if line}


@pytest.fixture
def experiment(shapes, tmp_path) -> transfer_methods.Experiment:
    model = vit.VisionTransformer(
        vit.ViTConfig(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=5)
    )
    source, target = keep_classes(shapes, range(5)), keep_classes(shapes, range(5, 10))
    model.metadata = source.metadata
    return transfer_methods.Experiment("shapes", model, vit.TrainConfig(), len(source.train), target, tmp_path)


def test_a_cell_is_measured_once_and_anew_with_other_settings(experiment, monkeypatch):
    calls = []
    monkeypatch.setattr(transfer, "trained_accuracy", lambda *args: calls.append(args) or 50.0)
    cells = [transfer.cell("finetune", experiment, 2, 0, 3) for _ in range(2)]
    assert [cell["accuracy"] for cell in cells] == [50.0, 50.0] and len(calls) == 1
    assert cells[0] == cells[1] and cells[0]["commit"] == report.current_commit()
    transfer.cell("finetune", experiment, 2, 0, 4)  # other steps
    monkeypatch.setitem(transfer.TRAINING, "finetune", ({"learning_rate": 1e-5}, 0.75))
    transfer.cell("finetune", experiment, 2, 0, 4)  # another rate
    assert len(calls) == 3
    assert transfer.cell("finetune", experiment, 2, 1, 4, is_optional=True) is None and len(calls) == 3
    stored = json.loads((experiment.folder / "shapes-finetune-2-0.json").read_text())
    assert stored["settings"]["train_config"]["learning_rate"] == 1e-5


def test_a_network_that_knows_the_classes_is_refused(experiment, shapes):
    seen = replace(experiment, target=keep_classes(shapes, range(4, 9)))
    with pytest.raises(ValueError, match="has learned from .* already"):
        transfer.measure(seen, ["knn"], {1: 1}, compute=0, command="")


def test_the_shipped_weights_have_never_seen_the_target_classes():
    model = vit.load(transfer.WEIGHTS)
    assert model.metadata["class_names"] == ["airplane", "automobile", "bird", "cat", "deer"]
    [seen] = learned_from(model.metadata)
    names = vit.data.cifar10.CIFAR10_CLASSES
    assert seen == {"dataset": "cifar10", "class_names": names[:5]}
    assert not set(seen["class_names"]) & set(names[5:])


@pytest.mark.cifar10
def test_the_images_it_learned_from_hold_no_target_class():
    """Against the labels on disk: of the recipe's train images, none has a class of the target."""
    everything = vit.load_data("cifar10")
    source = shipped_weights.RECIPES[transfer.WEIGHTS][0]()
    pictures = {image.tobytes() for image in source.train.images.numpy()}
    labels = [
        int(label)
        for image, label in zip(everything.train.images.numpy(), everything.train.labels, strict=True)
        if image.tobytes() in pictures
    ]
    assert len(labels) >= len(source.train) and set(labels) == set(range(5))
    fine_tuning.check_unseen(vit.load(transfer.WEIGHTS), keep_classes(everything, range(5, 10)))
    with pytest.raises(ValueError, match="learned from deer of cifar10 already"):
        fine_tuning.check_unseen(vit.load(transfer.WEIGHTS), keep_classes(everything, range(4, 9)))


def test_equal_total_compute_sees_as_many_images_as_both_trainings(experiment, monkeypatch):
    seen = []

    def fit(model, loader, val_loader, config, **options):
        seen.append((loader, config))
        return SimpleNamespace(is_complete=True)

    monkeypatch.setattr(vit, "fit", fit)
    few = experiment.few(2, 0)
    transfer_methods.compute_accuracy(experiment, few, 7, 0, experiment.folder / "x")
    [(loader, config)] = seen
    num_seen = config.epochs * len(loader.images)
    assert num_seen == pytest.approx(experiment.recipe.epochs * experiment.num_pretraining + 7 * len(few.train))
    assert set(map(bytes, loader.images.numpy())) == set(map(bytes, few.train.images.numpy()))


@pytest.mark.parametrize("method", ["finetune", "scratch_compute"])
def test_a_stopped_training_leaves_no_result(experiment, monkeypatch, method):
    stopped = lambda *args, **options: SimpleNamespace(is_complete=False)  # noqa: E731
    monkeypatch.setattr(vit, "fit", stopped)
    monkeypatch.setattr(transfer_methods.fine_tuning, "fine_tune", stopped)
    with pytest.raises(SystemExit, match="stopped: what is finished is kept"):
        transfer.cell(method, experiment, 2, 0, 3)
    assert not list(experiment.folder.glob("*.json"))


# Nearest raw pixels on the same classes, measured elsewhere with other draws of the images.
ANCHORS = {1: 28.9, 5: 31.9, 10: 36.2, 50: 41.3, 500: 46.9}


def test_stored_results_meet_their_anchors_and_bars():
    stored = report.load("transfer")
    for shots, anchor in ANCHORS.items():
        pixels, probe = (stored[f"cifar10.{method}.{shots}"] for method in ("pixels_nearest", "probe"))
        assert len(pixels["values"]) == len(probe["values"]) == 5
        # Two independent means of five draws: 2.6 times their standard error is 99 %.
        assert abs(pixels["value"] - anchor) < 2.6 * pixels["spread"] * (2 / 5) ** 0.5 + 0.1, shots
        assert probe["value"] > pixels["value"] + 10, shots
        assert probe["value"] > stored[f"cifar10.pixels_knn.{shots}"]["value"] + 10, shots
    for shots in (1, 5, 10, 50):
        fine_tuned = stored[f"cifar10.finetune.{shots}"]["value"]
        for method in ("scratch_steps", "scratch_compute"):
            from_scratch = stored[f"cifar10.{method}.{shots}"]
            assert len(from_scratch["values"]) == 5 and fine_tuned > from_scratch["value"], (method, shots)
