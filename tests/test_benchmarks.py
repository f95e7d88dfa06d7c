"""Benchmarks run, their numbers are what they say, and the README quotes nothing else."""

import importlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import imagenet_plan
import pytest
import readme
import report
import train_cifar10

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
FIELDS = {"name", "value", "unit", "spread", "seeds", "command", "hardware", "versions", "commit", "date"}


@pytest.mark.parametrize("name", ["startup", "attention_maps", "playground", "loop_overhead", "load_weights"])
def test_the_quick_form_runs_and_stores_nothing(name, run_quick):
    assert any("spread" in line for line in run_quick(importlib.import_module(name)))


@pytest.mark.parametrize("name", ["train_cifar10", "speedrun", "scaling"])
def test_the_quick_form_runs_in_processes_of_its_own(name, tmp_path):
    before = {path.name: path.read_text() for path in report.RESULTS.glob("*.json")}
    seeds = ["--seeds", "5"] if name == "train_cifar10" else []
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", *seeds]
    environment = os.environ | {"VIT_RUNS": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert "spread" in done.stdout
    assert {path.name: path.read_text() for path in report.RESULTS.glob("*.json")} == before


def test_a_claim_is_the_mean_and_the_sample_deviation():
    c = report.claim("a", [1.0, 2.0, 6.0], "s", "x", seeds=[0, 1, 2])
    assert c["value"] == 3.0 and c["spread"] == pytest.approx(statistics.stdev([1, 2, 6]), abs=1e-4)
    assert set(c) >= FIELDS
    assert report.claim("a", [1.0], "s", "x")["spread"] == 0.0


def test_stored_results_are_complete():
    files = sorted(report.RESULTS.glob("*.json"))
    assert files
    for path in files:
        for c in json.loads(path.read_text()):
            assert set(c) >= FIELDS, path.name
            assert c["commit"] != "unknown" and not c["commit"].endswith("+"), f"{path.name}: not of a commit"


def test_the_plan_for_imagenet_is_what_its_command_writes():
    text = imagenet_plan.PAGE.read_text()
    written = text.split(imagenet_plan.START)[1].split(imagenet_plan.END)[0].strip()
    assert written == imagenet_plan.tables(), "run: python benchmarks/imagenet_plan.py"


def test_the_readme_quotes_the_stored_results():
    text = readme.README.read_text()
    assert text == readme.filled(text), "run: python benchmarks/readme.py"


def test_a_seed_is_kept_for_the_same_settings_and_trained_anew_for_others(monkeypatch, tmp_path):
    trained = []

    def run(command: list[str], **_) -> None:
        folder, seed = Path(command[command.index("--one") + 1]), int(command[command.index("--seeds") + 1])
        trained.append((seed, sorted(path.name for path in folder.iterdir())))
        values = dict.fromkeys(("test_accuracy", "test_accuracy_flip", "val_accuracy", "peak_memory_gb"), 1.0)
        settings = train_cifar10.settings_of(seed, quick=False)
        (folder / "result.json").write_text(json.dumps({"settings": settings, "threads": 1, "commit": "c", **values}))
        (folder / "state.pt").touch()

    monkeypatch.setattr(train_cifar10, "RUNS", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(train_cifar10, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(sys, "argv", ["train_cifar10.py", "--seeds", "0", "1"])
    for _ in range(2):
        train_cifar10.main()
    assert trained == [(0, ["begun.json"]), (1, ["begun.json"])], "once"
    (tmp_path / "cpu_10min-seed1" / "result.json").unlink()
    train_cifar10.main()
    assert trained[2:] == [(1, ["begun.json", "state.pt"])], "goes on"
    changed = train_cifar10.vit.TrainConfig.PRESETS["cpu_10min"] | {"epochs": 7}
    monkeypatch.setitem(train_cifar10.vit.TrainConfig.PRESETS, "cpu_10min", changed)
    train_cifar10.main()
    assert trained[3:] == [(0, ["begun.json"]), (1, ["begun.json"])], "begins anew"
