"""Benchmarks run, their numbers are what they say, and the README quotes nothing else."""

import importlib
import json
import re
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import imagenet_plan
import pytest
import readme
import report
import scaling
import speedrun
import train_cifar10

import vit

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
FIELDS = {"name", "value", "unit", "spread", "seeds", "command", "hardware", "versions", "commit", "date"}


@pytest.mark.parametrize("name", ["startup", "attention_maps", "playground", "loop_overhead", "load_weights"])
def test_the_quick_form_measures_what_the_readme_quotes_and_stores_nothing(name, run_quick):
    measured = {line.split()[0] for line in run_quick(importlib.import_module(name)) if "spread" in line}
    groups = [*readme.SHORT.values(), *readme.GROUPS.values()]
    quoted = {claim for benchmarks in groups for claim in benchmarks.get(name, {})}
    assert quoted - measured <= {"quickstart", "timm_seconds", "timm_memory"}, "which take longer"
    assert measured <= set(report.load(name))


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(train_cifar10, ["--seeds", "5"]), (speedrun, ["--minutes-per-command", "1e9"]), (scaling, [])],
    ids=["train_cifar10", "speedrun", "scaling"],
)
def test_the_quick_form_runs_in_processes_of_its_own(module, arguments, run_quick, monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_RUNS", str(tmp_path))
    if hasattr(module, "RUNS"):  # which its processes read from the environment
        monkeypatch.setattr(module, "RUNS", tmp_path / module.RUNS.name)
    assert any("spread" in line for line in run_quick(module, *arguments))


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
            assert not re.search(r"\+|unknown", c["commit"]), f"{path.name}: not of a commit"


def test_the_plan_for_imagenet_is_what_its_command_writes():
    text = imagenet_plan.PAGE.read_text()
    written = text.split(imagenet_plan.START)[1].split(imagenet_plan.END)[0].strip()
    assert written == imagenet_plan.tables(), "run: python benchmarks/imagenet_plan.py"


def test_the_readme_quotes_the_stored_results():
    text = readme.README.read_text()
    assert text == readme.filled(text), "run: python benchmarks/readme.py"


def test_stored_accuracies_are_of_todays_recipes():
    """Of a changed recipe the README would state what nobody gets."""
    shipped = report.load("shipped_weights").items()
    of_2h = [claim for name, claim in shipped if name.startswith("vit_fast6_wide_patch4_32.cifar10.")]
    of_10min = report.load("train_cifar10").values()
    assert of_2h and of_10min
    for claims, recipe in ((of_10min, train_cifar10.RECIPE), (of_2h, "cpu_2h")):
        for claim in claims:
            expected = dict(zip(("model", "train"), vit.recipe(recipe), strict=True))
            stored = report.up_to_date(claim["settings"])
            stored["train"]["device"] = "auto"  # which is no matter of the recipe
            assert stored == json.loads(json.dumps({key: config.to_dict() for key, config in expected.items()})), claim[
                "name"
            ]


def test_a_claim_names_every_place_that_its_values_come_from():
    here = report.origin()
    assert report.claim("a", [1.0], "s", "x").items() >= here.items()
    origins = [{"hardware": "a card", "commit": "c1"}, {"hardware": "a card", "commit": "c2", "versions": "torch 2"}]
    c = report.claim("a", [1.0, 2.0], "s", "x", origins=origins)
    assert (c["hardware"], c["commit"], c["versions"]) == ("a card", "c1, c2", f"{here['versions']} and torch 2")


def test_claims_are_put_beside_those_of_other_names(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for name, value in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        report.publish("some", [report.claim(name, [value], "s", "x")], keep_others=True)
    assert {name: c["value"] for name, c in report.load("some").items()} == {"a": 3.0, "b": 2.0}
    report.publish("some", [report.claim("c", [4.0], "s", "x")])
    assert list(report.load("some")) == ["c"]


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
    assert len(list(tmp_path.glob("cpu_10min-seed*-*/result.json"))) == 2, "and nothing is lost"
