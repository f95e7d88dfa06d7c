"""Ablations: variants are one difference each, all have equal time, finished cells are reused only when they may be."""

import itertools
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import ablation_results
import ablation_training
import ablation_variants
import ablations
import pytest
import report
import torch
from ablation_training import new_model, step_seconds, train
from ablation_variants import BASES, VARIANTS, Setup, Variant, changes_of, setups_of

import vit
from vit.model import init_mimetic, init_whitened_patches

TINY = Setup(
    vit.ViTConfig(image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2),
    vit.TrainConfig(epochs=5, batch_size=50, warmup_epochs=0.5, device="cpu"),
)


def test_the_quick_form_trains_every_variant_and_stores_nothing(run_quick, monkeypatch):
    for name, value in {"STEPS": 2, "WARM_UP_ROUNDS": 0}.items():  # their times matter to nobody
        monkeypatch.setattr(ablation_training, name, value)
    folders = ablations.CELLS, ablations.RUNS
    lines = run_quick(ablations)
    names = {f"{ablations.QUICK_MINUTES:g}min.{name}" for name in setups_of(ablations.QUICK_BASE)}
    printed, table = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert names <= {line.split()[0] for line in printed} and len(names) > 20
    assert len(table) == 1 + len(names)
    assert folders == (ablations.CELLS, ablations.RUNS)


# Variants

ONE_FIELD = {
    "adamw": "train.optimizer",
    "pos_sincos2d": "model.pos_embed",
    "pool_mean": "model.pool",
    "qk_norm": "model.qk_norm",
    "registers": "model.num_registers",
    "whitening": "prepare",
    "mimetic": "prepare",
    "smoothing_0": "train.label_smoothing",
    "ema": "train.ema_decay",
    "progressive": "start_size",
    "flip_random": "train.flip",
    "patch_8": "model.patch_size",
}


@pytest.mark.parametrize("base", BASES.values(), ids=map(str, BASES))
def test_a_variant_is_one_difference_from_the_base(base):
    setups = setups_of(base)
    assert setups["base"] == base and len(set(setups.values())) == len(setups), "no two are the same"
    for name, setup in setups.items():
        changes = changes_of(setup, base)
        fields = {field for field in changes if field not in ("train.patch_drop_until", "train.learning_rate")}
        assert len(fields) == {"base": 0, "batch_half": 2, "batch_double": 2, "wide": 3, "deep": 3}.get(name, 1), name
        if name in ONE_FIELD:
            assert set(changes) == {ONE_FIELD[name]}


def test_width_against_depth_keeps_heads_and_about_the_size():
    for width in (96, 128, 192, 384):
        base = replace(TINY, model=vit.ViTConfig(embed_dim=width, num_heads=width // 32, depth=6))
        for name, depth in (("wide", 3), ("deep", 12)):
            model = VARIANTS[name].of(base).model
            assert model.depth == depth and model.head_dim == 32
            numbers = [config.depth * config.embed_dim**2 for config in (model, base.model)]
            assert 0.65 < numbers[0] / numbers[1] < 1.5, (name, width)


def test_another_batch_has_rates_of_the_root():
    double = VARIANTS["batch_double"].of(TINY).train
    assert double.batch_size == 100
    assert double.muon_learning_rate / TINY.train.muon_learning_rate == pytest.approx(2**0.5)
    assert double.learning_rate / TINY.train.learning_rate == pytest.approx(2**0.5)


def test_a_variant_that_the_base_has_already_is_left_out():
    whitened = replace(TINY, prepare=("whitening",), model=replace(TINY.model, pool="mean"))
    names = set(setups_of(whitened))
    assert not {"whitening", "pool_mean", "pos_learned"} & names
    assert {"base", "plain_start", "pool_cls", "mimetic"} <= names
    assert setups_of(whitened)["adamw"].prepare == ("whitening",), "a difference keeps the rest of the base"
    assert Variant("x", start_size=8).of(replace(TINY, start_size=12)).start_size == 8


def test_preparations_are_the_library_s(shapes):
    norm = torch.tensor(shapes.mean)[:, None, None], torch.tensor(shapes.std)[:, None, None]
    images = (shapes.train.images / 255 - norm[0]) / norm[1]
    for name, init in {"whitening": lambda m: init_whitened_patches(m, images), "mimetic": init_mimetic}.items():
        torch.manual_seed(3)
        expected = vit.VisionTransformer(TINY.model)
        init(expected)
        found = new_model(replace(TINY, prepare=(name,)).with_seed(3), shapes)
        for one, other in zip(found.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one.abs(), other.abs(), rtol=1e-3, atol=1e-3)  # components have no sign


# Time


@pytest.mark.parametrize("changes", [{}, {"cutmix_alpha": 1.0, "mix_until": 0.5}], ids=["plain", "mixed"])
def test_a_training_is_fit_for_so_many_steps(changes, shapes):
    torch.manual_seed(2)
    model, base = vit.VisionTransformer(TINY.model), replace(TINY, train=replace(TINY.train, **changes))
    config = replace(base.train, epochs=1.5, warmup_epochs=0.15, seed=2)  # 8 steps an epoch
    loaders = vit.make_loaders(shapes, config)
    vit.fit(model, loaders[0], None, config)
    assert train(base.with_seed(2), shapes, 12) == vit.evaluate(model, loaders[1], config).accuracy


def test_a_mean_step_is_weighted_by_the_parts_of_the_training(shapes, monkeypatch):
    """Half of a training on small images, and three tenths with dropped patches: each kind of step has its own time."""
    count, order = itertools.count(), []

    class Timer:
        now = 0.0

    def one_step(model, loader, optimizers, config, **options):
        size, is_dropping = loader.images.shape[-1], config.patch_drop_until == 1
        order.append((size, is_dropping))
        n = next(count)  # the first round is slow, and so is the first step of each turn
        slow = 1 + 100 * (n < 4 * ablation_training.STEPS or n % ablation_training.STEPS == 0)
        Timer.now += {8: 1.0, 16: 10.0}[size] * (0.5 if is_dropping else 1) * slow

    monkeypatch.setattr(ablation_training.vit, "train_one_epoch", one_step)
    monkeypatch.setattr(ablation_training, "time", SimpleNamespace(perf_counter=lambda: Timer.now))
    dropping = replace(TINY, train=replace(TINY.train, patch_drop_rate=0.5, patch_drop_until=0.3), start_size=8)
    found = step_seconds([dropping, TINY], shapes, rounds=3)
    assert found == pytest.approx([0.3 * 0.5 + 0.2 * 1 + 0.5 * 10, 10])
    turn = [part for part in [(8, True), (8, False), (16, False), (16, False)] for _ in range(ablation_training.STEPS)]
    assert order == turn * 4, "in turns"


@pytest.fixture
def table(shapes, tmp_path, monkeypatch):
    """The script with a tiny base, three variants and a time for each, its files in a folder of the test."""
    few = {name: VARIANTS[name] for name in ("base", "adamw", "progressive")}
    monkeypatch.setattr(ablation_variants, "VARIANTS", few | {"progressive": Variant("small first", start_size=8)})
    monkeypatch.setattr(ablations, "BASES", {5: TINY, 20: TINY})
    monkeypatch.setattr(ablations, "CELLS", tmp_path / "cells")
    monkeypatch.setattr(ablations, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(ablations, "load_data", lambda *, quick: shapes)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(ablations, "step_seconds", lambda setups, data, rounds: [60.0 + i for i in range(len(setups))])
    done = []

    def run_all(cells, **options):
        for cell in cells:
            cell.run(shapes)
            done.append((cell.minutes, cell.name, cell.seed))
        return []

    monkeypatch.setattr(ablations, "run_all", run_all)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def main(*arguments):
        done.clear()
        monkeypatch.setattr(sys, "argv", ["ablations.py", *arguments])
        ablations.main()
        return list(done)

    main.cell = lambda name: tmp_path / "cells" / "5min" / f"{name}.json"
    return main


CHOSEN = ("--variants", "base", "progressive", "adamw", "--seeds", "0", "1")


def test_steps_are_those_that_fit_and_need_a_measured_time(table, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no time of a step is stored for base, adamw, progressive: first --measure"):
        table(*CHOSEN)
    table("--measure")
    rows = json.loads((tmp_path / "cells" / "step_times.json").read_text())
    assert [row["seconds_per_step"] for row in rows] == [60, 61, 62] and all(row["hardware"] for row in rows)
    assert table(*CHOSEN) == [(5, n, s) for s in (0, 1) for n in ("base", "progressive", "adamw")], "seed after seed"
    claims = report.load("ablations")
    assert {name: claim["steps"] for name, claim in claims.items()} == {
        "5min.base": 5, "5min.adamw": 4, "5min.progressive": 4
    }  # fmt: skip
    base = claims["5min.base"]
    assert base["seeds"] == [0, 1] and len(base["values"]) == 2 and base["passes"] == 5 / 8
    assert base["setup"] == TINY.to_dict() and claims["5min.adamw"]["changes"] == {"train.optimizer": "adamw"}
    table("--measure")
    assert json.loads((tmp_path / "cells" / "step_times.json").read_text()) == rows, "measured once"


def test_a_cell_is_trained_once_and_anew_with_other_settings(table, tmp_path, monkeypatch):
    table("--measure")
    assert len(table(*CHOSEN)) == 6
    assert table(*CHOSEN) == [] and table(*CHOSEN[:-1]) == []
    assert report.load("ablations")["5min.adamw"]["seeds"] == [0, 1], "a run with one seed keeps the other"
    assert list((tmp_path / "runs" / "5min").iterdir()) == [], "no state is left"
    stored = json.loads(table.cell("base-seed1").read_text())
    assert stored["settings"]["setup"]["train"]["seed"] == 1 and stored["settings"]["steps"] == 5
    assert table("--minutes", "20", "--variants", "base", "--seeds", "0") == [(20, "base", 0)]
    assert len(report.load("ablations")) == 4, "the claims of another budget stay"
    other = replace(TINY, train=replace(TINY.train, label_smoothing=0.0))
    monkeypatch.setattr(ablations, "BASES", {5: other, 20: TINY})
    assert len(table("--variants", "base", "--seeds", "0")) == 1, "whose steps take as long"
    claims = report.load("ablations")
    assert list(claims) == ["5min.base", "20min.base"], "differences from another base are gone"
    assert claims["5min.base"]["setup"]["train"]["label_smoothing"] == 0


def test_a_stopped_training_leaves_no_result_and_goes_on(table, monkeypatch, shapes):
    table("--measure")
    whole = table.cell("base-seed0")
    table("--variants", "base", "--seeds", "0")
    expected = json.loads(whole.read_text())["val_accuracy"]
    whole.unlink()
    fit, asked = vit.fit, itertools.count()
    stopping = {"should_stop": lambda: next(asked) > 1}
    monkeypatch.setattr(ablation_training.vit, "fit", lambda *args, **options: fit(*args, **options, **stopping))
    with pytest.raises(SystemExit, match="base-seed0 was stopped: it goes on next time"):
        table("--variants", "base", "--seeds", "0")
    assert not whole.exists()
    seen = []

    def resumed(*args, **options):
        seen.append((options["resume"], (options["run_dir"] / "state.pt").exists()))
        return fit(*args, **options)

    monkeypatch.setattr(ablation_training.vit, "fit", resumed)
    table("--variants", "base", "--seeds", "0")
    assert seen == [("auto", True)] and json.loads(whole.read_text())["val_accuracy"] == expected


class FakeProcess:
    """A child that ends when it was asked so often whether it has."""

    def __init__(self, cell, turns, code=0):
        self.cell, self.turns, self.code, self.returncode, self.terminated = cell, turns, code, None, False

    def poll(self):
        self.turns -= 1
        self.returncode = self.code if self.turns < 0 else None
        return self.returncode

    def terminate(self):
        self.terminated, self.returncode = True, -15

    def wait(self):
        pass


@pytest.fixture
def children(monkeypatch):
    """Lets `run_all` start `FakeProcess`es, on a clock that moves a second a look."""
    started, clock = [], itertools.count()
    monkeypatch.setattr(ablations, "start", lambda cell: started.append(cell) or cell)
    monkeypatch.setattr(ablations, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda s: None))
    return started


def test_cells_run_in_order_and_no_more_at_a_time_than_asked(children):
    cells = [FakeProcess(i, turns) for i, turns in enumerate((5, 1, 1, 0))]
    most = []
    for cell in cells:
        poll = cell.poll
        cell.poll = lambda poll=poll: most.append(sum(c.returncode is None for c in children)) or poll()
    ablations.run_all(cells, processes=2, stop_after=10)
    assert children == cells and max(most) == 2
    assert all(cell.returncode == 0 and not cell.terminated for cell in cells)


def test_what_still_runs_at_the_end_of_the_time_is_told_to_save(children):
    cells = [FakeProcess(0, 3), FakeProcess(1, 1000), FakeProcess(2, 0)]
    assert ablations.run_all(cells, processes=1, stop_after=0.5) == cells[1:], "stopped, and never begun"
    assert children == cells[:2], "nothing new is begun"
    assert [cell.terminated for cell in cells] == [False, True, False]


def test_a_failure_does_not_keep_the_others_from_running(children):
    cells = [FakeProcess(0, 6), FakeProcess(1, 2, code=1), FakeProcess(2, 0)]
    assert ablations.run_all(cells, processes=2, stop_after=10) == [cells[1]]
    assert children == cells and not any(cell.terminated for cell in cells)


def test_failures_are_told_after_the_results_are_stored(table, monkeypatch):
    table("--measure")
    table("--variants", "base", "--seeds", "0")
    monkeypatch.setattr(ablations, "run_all", lambda cells, **options: cells)
    with pytest.raises(SystemExit, match="see above: adamw-seed0"):
        table("--variants", "base", "adamw", "--seeds", "0")
    assert list(report.load("ablations")) == ["5min.base"]


@pytest.mark.parametrize("later", [(), ("--variants", "progressive")])
def test_a_variant_that_is_timed_later_has_the_pace_of_the_others(later, table, tmp_path, monkeypatch):
    table("--measure", "--variants", "base", "adamw")
    monkeypatch.setattr(ablations, "step_seconds", lambda setups, data, rounds: [120.0, 240.0])
    # A machine of half the speed by now: the first time is again that of the base, whether it was asked for or not.
    table("--measure", *later)
    rows = json.loads((tmp_path / "cells" / "step_times.json").read_text())
    assert [row["seconds_per_step"] for row in rows] == [60, 61, 120]


def test_the_pace_of_other_threads_is_no_pace(table, tmp_path):
    table("--measure", "--variants", "base")
    times = tmp_path / "cells" / "step_times.json"
    rows = json.loads(times.read_text())
    times.write_text(json.dumps([row | {"threads": row["threads"] + 1} for row in rows]))
    with pytest.raises(SystemExit, match=r"the stored times are of \d+ threads, and a ratio of \d+ says nothing"):
        table("--measure", "--variants", "adamw")


def test_results_outlive_options_that_come_later(table):
    table("--measure")
    table("--variants", "base", "--seeds", "0")
    path = table.cell("base-seed0")
    known = json.loads(path.read_text())
    del known["settings"]["setup"]["model"]["fc_norm"]
    path.write_text(json.dumps(known))
    assert table("--variants", "base", "--seeds", "0") == []
    del known["settings"]["setup"]["model"]["embed_dim"]  # whose default is another
    path.write_text(json.dumps(known))
    assert table("--variants", "base", "--seeds", "0") == [(5, "base", 0)]


def test_no_results_are_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert ablation_results.figure(20) is None
    assert capsys.readouterr().out == "no results of 20 minutes yet: python benchmarks/ablations.py --minutes 20\n"
