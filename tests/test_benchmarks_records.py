"""The benchmarks that wait for a GPU: their small forms, clocks and plans, and runs that go on where they stopped."""

import argparse
import json
import multiprocessing
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import ceiling
import libraries
import pytest
import record
import record_results
import report
import speedrun
import torch
from peers import PEERS

import vit
from vit.tasks.mae import MaskedAutoencoder
from vit.training.state_file import read_state, write_state

FOREVER = ["--minutes-per-command", "1e9"]  # the command began when pytest did


@pytest.fixture
def quick_names(run_quick, monkeypatch, tmp_path):
    """Runs a benchmark's quick form in a folder of its own; returns the names it printed, or its exit status."""
    monkeypatch.setattr(record, "RUNS", tmp_path)

    def run(module, *arguments: str) -> list[str] | int:
        try:
            return [line.split()[0] for line in run_quick(module, *arguments) if "spread" in line]
        except SystemExit as end:
            return end.code

    return run


def result_of(folder: Path) -> dict:
    (path,) = folder.glob("quick/*/result.json")
    return json.loads(path.read_text())["values"]


@pytest.mark.parametrize("pretrain", ["none", "mae"])
def test_a_record_goes_on_where_it_was_stopped(quick_names, tmp_path, pretrain):
    arguments = ["--pretrain", pretrain, "--minutes", "7"]
    name = f"{'supervised' if pretrain == 'none' else 'mae'}.7min.vit_gpu_patch2_32"
    assert quick_names(record, *arguments, "--minutes-per-command", "1e-9") == speedrun.UNFINISHED
    (clock,) = tmp_path.glob("quick/*/clock.json")
    first = json.loads(clock.read_text())["values"]
    assert len(first) == 1 and not list(tmp_path.glob("quick/*/result.json"))
    names = quick_names(record, *arguments, *FOREVER)
    assert names == [f"{name}.{key}" for key in ("accuracy", "accuracy_plain", "seconds")]
    stopped = result_of(tmp_path)
    assert stopped["commands"] == 2 and stopped["seconds"] > first[0]
    assert stopped["epochs"] == dict.fromkeys(("train",) if pretrain == "none" else ("pretrain", "train"), 2.0)
    assert [row["epoch"] for row in stopped["curves"]["train"]] == [1, 2]
    # The same run without a stop ends in the same place.
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert quick_names(record, *arguments, *FOREVER) == names
    whole = result_of(tmp_path)
    assert whole["commands"] == 1
    for key in ("accuracy", "accuracy_plain", "train_flops", "parameters"):
        assert whole[key] == stopped[key], key
    losses = [[row["train_loss"] for row in result["curves"]["train"]] for result in (whole, stopped)]
    assert losses[0] == losses[1]


def test_pretraining_is_counted(quick_names, tmp_path):
    assert len(quick_names(record, *FOREVER)) == 3
    supervised = result_of(tmp_path)
    network = vit.ViTConfig.preset("vit_pico_patch8_32", depth=1, pool="mean")
    model, config = vit.VisionTransformer(network), record.SUPERVISED
    drop = {"patch_drop_rate": config.patch_drop_rate, "patch_drop_until": config.patch_drop_until}
    assert supervised["train_flops"] == vit.train_flops(model, 2 * (400 + 100), **drop), "the val images are trained on"


def test_operations_of_an_autoencoder_are_as_counted_by_hand():
    c = vit.ViTConfig.preset("vit_pico_patch8_32", pool="mean")
    model = MaskedAutoencoder(c, mask_rate=0.75, decoder_dim=32, decoder_depth=2, decoder_heads=2)

    def blocks(depth: int, T: int, D: int, mlp_dim: int) -> int:
        return depth * (T * 4 * D * D + 2 * T * T * D + 2 * T * D * mlp_dim)

    N, K, D, pixels = 16, 4, c.embed_dim, 3 * 8 * 8
    multiply_adds = N * pixels * D + blocks(c.depth, K, D, c.mlp_dim) + K * D * 32
    multiply_adds += blocks(2, N, 32, 4 * 32) + (N - K) * 32 * pixels
    assert libraries.forward_operations(model, c) == 2 * multiply_adds


def options(**changes) -> argparse.Namespace:
    fields = {"quick": False, "val": False, "pretrain": "none", "network": "vit_gpu_patch2_32", "minutes": 30.0}
    return argparse.Namespace(**(fields | {"minutes_per_command": 9.5} | changes))


@pytest.mark.parametrize(
    ("minutes", "spent", "before", "expected"),
    [(10.0, 60, 0, 570 - 60 - 20), (30.0, 100, 0, 1800 - 100 - 20 - 3 * 45), (30.0, 10, 1200, 570 - 10 - 20)],
)
def test_what_is_planned_leaves_room_for_the_rest(monkeypatch, tmp_path, minutes, spent, before, expected):
    """`spent` seconds of this command, `before` of those before it; 45 for each command that will have to follow,
    unless that is more than it could add."""
    monkeypatch.setattr(record, "RUNS", tmp_path)
    monkeypatch.setattr(record, "STARTED", time.time() - spent)
    run = record.Run(0, options(minutes=minutes))
    if before:
        run.store("clock.json", [before - 200, 200])
    assert run.seconds_to_train() == pytest.approx(expected, abs=1)


def test_the_time_of_a_killed_command_is_not_given_away(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "RUNS", tmp_path)
    run = record.Run(0, options())
    monkeypatch.setattr(run, "_advance", lambda deadline: False)
    assert not run.advance(time.time()) and not run.advance(time.time())  # both ended by themselves
    run.store("running.json", {"since": 0.0})  # as SIGKILL leaves it
    with pytest.raises(SystemExit, match="was killed and its time is lost: delete"):
        run.advance(time.time())


def test_no_stage_begins_at_the_end_of_a_command(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "RUNS", tmp_path)
    run = record.Run(0, options())
    assert run.train(run.stages[0], None, None, time.time() + record.PLANNING - 5) is None
    assert not list(tmp_path.rglob("plan-*.json"))


def test_other_settings_are_another_run(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "RUNS", tmp_path)
    record.Run(0, options()).store("result.json", {"accuracy": 1.0})
    assert record.Run(0, options()).stored("result.json") == {"accuracy": 1.0}
    for changes in ({"minutes": 10.0}, {"val": True}, {"network": "vit_gpu_patch4_32"}, {"pretrain": "mae"}):
        assert record.Run(0, options(**changes)).stored("result.json") is None
    assert record.Run(1, options()).stored("result.json") is None
    monkeypatch.setattr(record, "SUPERVISED", replace(record.SUPERVISED, weight_decay=0.7))
    assert record.Run(0, options()).stored("result.json") is None


def test_too_few_minutes_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["record", "--minutes", "3"])
    with pytest.raises(SystemExit):
        record.parse()
    assert "must be 4 or more: compiling and planning take some of them" in capsys.readouterr().err


def test_the_probe_and_the_ceiling_in_small(quick_names, monkeypatch):
    assert quick_names(record, "--probe") == ["probe.vit_gpu_patch2_32", "probe.vit_gpu_patch4_32"]
    claims = []
    monkeypatch.setattr(report, "publish", lambda name, found, **options: claims.extend(found))
    quick_names(record, "--ceiling")
    by_name = {c["name"]: c for c in claims}
    assert set(by_name) == {
        "matrix_product",
        *(f"pico_half.{n}" for n in ("seconds_per_epoch", "share_of_matrix_product", "data_share", "optimizer_share")),
    }
    claims.clear()
    quick_names(record, "--timm")
    steps = {c["name"]: c for c in claims}
    ratios = {f"step_time.{name}/timm" for name in ("vit", "vit_every_token")}
    assert set(steps) == {f"step.{name}" for name in ("vit", "vit_every_token", "timm")} | ratios
    assert {c["command"] for c in claims} == {"python benchmarks/record.py --timm"}
    seconds, share, product = (
        by_name[name]["value"]
        for name in ("pico_half.seconds_per_epoch", "pico_half.share_of_matrix_product", "matrix_product")
    )
    # A train step is three forward passes, of 8 patches of 16: rate = operations / seconds.
    config = ceiling.QUICK_NETWORKS["pico_half"][0]
    operations = 3 * vit.analysis.cost.forward_flops(vit.VisionTransformer(config), patch_drop_rate=0.5)
    assert share / 100 * product * 1e12 == pytest.approx(operations * 400 / seconds, rel=0.02)
    ratio = steps["step.vit"]["value"] / steps["step.timm"]["value"]
    assert steps["step_time.vit/timm"]["value"] == pytest.approx(ratio, rel=0.01)


def test_turns_rotate_and_the_first_round_is_not_counted():
    said = []
    measures = {name: (lambda name=name: said.append(name) or len(said)) for name in "abc"}
    assert ceiling.in_turns(measures, 2) == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}
    assert "".join(said) == "abcbcacab"


# The speedrun


def test_a_speedrun_in_parts_adds_up_and_ends_as_if_it_were_whole(monkeypatch, tmp_path):
    recipe = replace(speedrun.QUICK, seconds=1000.0)
    assert recipe.in_parts and not speedrun.QUICK.in_parts
    quick, steps = options(quick=True), iter(range(100))
    whole = speedrun.train_and_test(recipe, 3, tmp_path / "whole", quick, lambda: False)
    assert whole["parts"] == 1 and 0 < whole["from_first_step"] < whole["from_process_start"]
    parts = tmp_path / "parts"
    assert speedrun.train_and_test(recipe, 3, parts, quick, lambda: next(steps) >= 4) is None
    (first,) = json.loads((parts / "clock.json").read_text())
    last = speedrun.train_and_test(recipe, 3, parts, quick, lambda: False)
    assert last["parts"] == 2
    for clock in ("from_first_step", "from_process_start"):
        assert last[clock] > first[clock] > 0
    for key in ("accuracy", "accuracy_plain", "train_flops", "parameters"):
        assert last[key] == whole[key], key


@pytest.mark.parametrize(("accuracies", "is_reached"), [([92.9, 93.1], True), ([93.5, 92.4], False)])
def test_a_target_is_reached_by_the_mean_over_all_seeds(monkeypatch, tmp_path, accuracies, is_reached):
    monkeypatch.setattr(speedrun, "RUNS", tmp_path)
    runs = [speedrun.Run(93, seed, options()) for seed in (0, 1)]
    facts = {"accuracy_plain": 90.0, "parameters": 5, "train_flops": 2e15, "hardware": "a card"}
    for run, accuracy in zip(runs, accuracies, strict=True):
        result = facts | {"accuracy": accuracy, "from_first_step": accuracy / 2, "from_process_start": 80.0}
        run.folder.mkdir(parents=True)
        values = {"settings": run.settings, "result": result}
        (run.folder / "result.json").write_text(json.dumps(values))
    claims = speedrun.claims_of(runs)
    assert [c["name"] for c in claims] == [
        f"93.{name}" for name in ("from_first_step", "from_process_start", "accuracy", "accuracy_plain")
    ]
    assert {c["is_reached"] for c in claims} == {is_reached} and claims[0]["seeds"] == [0, 1]
    assert claims[0]["value"] == pytest.approx(sum(accuracies) / 4) and claims[0]["hardware"] == "a card"
    assert ("not reached" in speedrun.table(claims)) == (not is_reached)
    json.dumps(claims)
    assert speedrun.Run(93, 2, options()).result() is None
    monkeypatch.setitem(speedrun.RECIPES, 93, replace(speedrun.RECIPES[93], train=speedrun.LONG))
    assert speedrun.Run(93, 0, options()).result() is None, "of another recipe"


def test_all_training_images_are_those_of_train_and_val_and_no_other(shapes):
    joined = speedrun.with_all_training_images(shapes)
    assert torch.equal(joined.train.images, torch.cat([shapes.train.images, shapes.val.images]))
    assert torch.equal(joined.train.labels, torch.cat([shapes.train.labels, shapes.val.labels]))
    assert joined.test is shapes.test
    data, measured = speedrun.load(quick=True, val=True)
    assert (len(data.train), len(measured)) == (400, 100) and measured is data.val


def test_warming_up_leaves_the_network_as_it_is(shapes):
    config = replace(speedrun.QUICK.train, batch_size=100)
    model = vit.VisionTransformer(vit.ViTConfig(image_size=16, embed_dim=8, depth=1, num_heads=1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    speedrun.warm_up(model, shapes, config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.patch_drop.rate == 0


def test_nothing_is_left_to_compile_after_the_warm_up(shapes, monkeypatch):
    """The clock runs by then. Compiled are a step with half of the patches and one with all; a network of another
    width, the control, has to be compiled."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = replace(speedrun.QUICK.train, batch_size=100, compile=True, mix_until=0.75)
    loader, _ = vit.make_loaders(shapes, config)

    def graphs_after(model: torch.nn.Module) -> int:
        vit.fit(model, loader, None, config)
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    small, wide = (vit.ViTConfig(image_size=16, embed_dim=dim, depth=1, num_heads=1) for dim in (8, 12))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = vit.VisionTransformer(small)
    speedrun.warm_up(model, shapes, config)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs_after(model) == 2
    assert graphs_after(vit.VisionTransformer(wide)) > 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_a_process_knows_when_it_began():
    earliest = time.time()
    time.sleep(0.1)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        time.sleep(0.2)
        began = pool.apply(speedrun.process_start)
    assert earliest < began < time.time() - 0.15


@pytest.mark.parametrize("recipe", speedrun.RECIPES.values(), ids=map(str, speedrun.RECIPES))
def test_the_recipes_build_and_their_batches_have_one_size(recipe):
    with torch.device("meta"):
        model = vit.VisionTransformer(recipe.model)
    assert 10e6 < sum(p.numel() for p in model.parameters()) < 25e6
    assert all(count % recipe.train.batch_size == 0 for count in (45_000, 50_000))
    assert recipe.train.test_time_augmentation == "flip" and recipe.train.compile


def test_a_part_counts_however_it_ends(monkeypatch, tmp_path):
    """A SIGTERM ends `fit` by an exit; a part that was killed leaves no time, which is noticed."""
    recipe = replace(speedrun.QUICK, seconds=600)
    assert recipe.in_parts
    monkeypatch.setattr(speedrun, "warm_up", lambda *_: None)
    steps, fit = iter(range(10**6)), vit.fit

    def ended(*arguments, **options):
        options["should_stop"] = lambda: next(steps) > 4
        fit(*arguments, **options)
        raise SystemExit(143)

    chosen = options(quick=True)
    monkeypatch.setattr(vit, "fit", ended)
    with pytest.raises(SystemExit):
        speedrun.train_and_test(recipe, 0, tmp_path, chosen, lambda: False)
    (part,) = json.loads((tmp_path / "clock.json").read_text())
    assert part["from_first_step"] > 0
    monkeypatch.setattr(vit, "fit", fit)
    (tmp_path / "clock.json").write_text("[]")
    state = read_state(tmp_path / "state.pt")
    state["progress"]["seconds"] = 1000.0
    write_state(tmp_path / "state.pt", state)
    with pytest.raises(SystemExit, match="a part of the run was killed and its time is lost"):
        speedrun.train_and_test(recipe, 0, tmp_path, chosen, lambda: False)
    (tmp_path / "clock.json").write_text(json.dumps([{"from_first_step": 1001.0, "from_process_start": 1002.0}]))
    result = speedrun.train_and_test(recipe, 0, tmp_path, chosen, lambda: False)
    assert result["from_first_step"] > 1001 and result["parts"] == 2


def test_settings_that_have_changed_begin_anew(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(record, "RUNS", tmp_path)
    chosen = options(quick=True)
    run = record.Run(0, chosen)
    assert run.advance(time.time() + 600)
    monkeypatch.setattr(record, "SUPERVISED", replace(record.SUPERVISED, weight_decay=0.5))
    other = record.Run(0, chosen)
    assert other.stored("result.json") is None and other.advance(time.time() + 600)
    assert other.stored("result.json") is not None and record.Run(0, chosen).stored("result.json") is not None


# Results of several seeds, commands and machines


def test_a_record_has_a_process_for_each_seed_and_claims_all_that_are_stored(quick_names, monkeypatch, tmp_path):
    published = []
    for module in (record, speedrun):
        monkeypatch.setattr(module, "is_stored", lambda options: True)
    monkeypatch.setattr(record, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(report, "publish", lambda name, claims, **options: published.append(claims[0]["seeds"]))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert quick_names(record, "--seeds", "0", "1", *FOREVER) == speedrun.UNFINISHED
    assert quick_names(record, "--seeds", "0", "1", *FOREVER) == []
    for path in (tmp_path / "quick").rglob("*"):  # as on another machine
        path.unlink() if path.is_file() else None
    assert quick_names(record, "--seeds", "2", *FOREVER) == []
    assert published == [[0], [0, 1], [0, 1, 2]]
    assert len(list((tmp_path / "kept").glob("supervised.10min-vit_gpu_patch2_32-seed?.json"))) == 3


def test_a_speedrun_claims_what_there_is(monkeypatch, tmp_path, capsys):
    published, room = [], iter([True, False])
    monkeypatch.setattr(speedrun, "is_stored", lambda options: True)
    monkeypatch.setattr(speedrun, "KEPT", tmp_path)
    monkeypatch.setattr(speedrun, "process_start", time.time)
    facts = {"accuracy_plain": 90.0, "parameters": 5, "train_flops": 2e15, "hardware": "a card"}
    result = facts | {"accuracy": 90.5, "from_first_step": 18.0, "from_process_start": 80.0}

    def start(run, seconds_left):
        if is_done := next(room):
            run.file.write_text(json.dumps({"settings": run.settings, "result": result}))
        return is_done

    monkeypatch.setattr(speedrun.Run, "start", start)
    monkeypatch.setattr(report, "publish", lambda name, claims, store: published.append((claims, store)))
    for seeds, expected in (("3", None), ("0", speedrun.UNFINISHED)):
        monkeypatch.setattr(sys, "argv", ["speedrun", "--targets", "90", "--seeds", seeds])
        try:
            speedrun.main()
        except SystemExit as end:
            assert end.code == expected
    assert "target 90, seed 0 is to come" in capsys.readouterr().out
    for claims, store in published:
        assert store and {c["name"].split(".")[0] for c in claims} == {"90"}
        assert claims[0]["seeds"] == [3] and not claims[0]["is_whole"] and claims[0]["is_reached"]
    assert len(published) == 2


# The page of records


def test_the_work_that_authors_do_not_state_is_that_of_their_network():
    """Counted by hand: 65 tokens, 64 patches of 48 numbers; a multiply-add is two operations, training three passes."""

    def by_hand(dim: int, depth: int, mlp: int, images: float) -> float:
        block = 65 * (4 * dim**2 + 2 * dim * mlp) + 2 * 65**2 * dim
        return 6 * (depth * block + 64 * 48 * dim + 10 * dim) * images

    expected = {
        "tintn": by_hand(48, 4, 192, 100 * 50_000),
        "s-chh": by_hand(128, 6, 256, 200 * 50_000),
        "uva15": by_hand(256, 6, 512, 180 * 45_000),
        "omihub777": by_hand(384, 7, 384, 200 * 50_000),
        "kentaroy47": by_hand(512, 6, 512, 200 * 50_000),
        "spt_lsa": by_hand(192, 9, 384, 300 * 50_000),
    }
    rows = {recipe: of[-1] for recipe, of in record_results.trainings().items() if not of[-1]["is_measured"]}
    assert rows.keys() == expected.keys()
    for recipe, row in rows.items():
        assert row["flops"] == pytest.approx(expected[recipe], rel=0.01), recipe
        assert PEERS[recipe].published == f"{row['accuracy']:g} % after {row['passes']:g}"


def test_the_page_shows_what_is_stored():
    found = record_results.trainings()
    assert next(iter(found)) == record_results.OURS, "drawn thickest"
    shown = {row["accuracy"] for rows in found.values() for row in rows if row["is_measured"]}
    known = [c for c in report.load("time_to_accuracy").values() if c["variant"] != "per_sample"]
    assert {c["value"] for c in known} <= shown
    assert all(rows == sorted(rows, key=lambda row: row["flops"]) for rows in found.values())
    table = record_results.work_table()
    assert table.count("\n") == sum(map(len, found.values())) and "nan" not in table


def test_the_page_of_a_gpu_fills_when_its_results_are_stored(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "no training on a GPU is stored yet" in record_results.gpu_table() and record_results.gpu_figure() is None
    assert record_results.trainings() == {}
    with pytest.raises(ValueError, match="minutes=7 has no stored results; there are some of: none"):
        record_results.time_figure(7)
    curves = {
        "train": [{"epoch": 1, "train_loss": 2.0, "seconds": 9.0}, {"epoch": 2, "train_loss": 1.5, "seconds": 18.0}]
    }
    facts = {"parameters": 5, "train_flops": 2e15, "hardware": "a card", "versions": "v", "commit": "c"}
    result = facts | {"accuracy": 95.75, "accuracy_plain": 95.5, "seconds": 590.0, "commands": 1, "curves": curves}
    result |= {"epochs": {"train": 100.0}}
    options = SimpleNamespace(minutes=10.0, network="vit_gpu_patch2_32", pretrain="none")
    run = SimpleNamespace(seed=0, name="supervised.10min", settings={}, stored=lambda file: result)
    report.publish("record", record.claims_of([run], options))
    result |= {"from_first_step": 18.25, "from_process_start": 80.0, "accuracy": 90.5}
    fast = SimpleNamespace(seed=0, target=90, recipe=speedrun.RECIPES[90], result=lambda: result)
    report.publish("speedrun", speedrun.claims_of([fast]))
    table = record_results.gpu_table()
    row = next(line for line in table.splitlines() if line.startswith("supervised.10min.vit_gpu_patch2_32 "))
    assert row.split()[1:] == ["95.75", "95.50", "0.00", "1", "590", "a", "card"]
    assert "18.2 ± 0.0 s" in table
    (ax,) = record_results.gpu_figure().axes
    assert ax.lines[0].get_xydata().tolist() == [[9.0, 2.0], [18.0, 1.5]]
    [point] = record_results.trainings()[record_results.ON_GPU]
    assert (point["accuracy"], point["flops"], point["is_measured"]) == (95.5, 2e15, True)
    assert "10 minutes, supervised" in record_results.work_table() and record_results.work_figure().axes
