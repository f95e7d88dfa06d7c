"""Speed beside other libraries: the same network for all, ratios of one minute, and memory of one process."""

import argparse
import statistics
import sys
from dataclasses import replace

import contender
import data_pipeline
import libraries
import pytest
import report
import throughput
import torch

from vit.analysis import count_parameters
from vit.config import ViTConfig
from vit.plots.scaling import plot_growth

PICO = ViTConfig.preset("vit_pico_patch8_32", head="linear")
OTHERS = [name for name in libraries.installed() if name not in libraries.VARIANTS]


@pytest.fixture
def options() -> argparse.Namespace:
    fields = {"device": torch.device("cpu"), "precision": "fp32", "allocator": "default"}
    return argparse.Namespace(**fields, rounds=2, turn=0.0, quick=True, growth=False)


def test_the_quick_comparison_prints_a_line_for_everyone_who_is_installed(run_quick, monkeypatch):
    find = libraries.importlib.util.find_spec
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: find(name) if name != "timm" else None)
    lines = run_quick(throughput)
    assert lines[0].startswith("timm is not installed and left out")
    table = lines[lines.index("") + 1 :]
    others = [name for name in OTHERS if name != "timm"]
    assert [line.split()[0] for line in table[2:]] == [*libraries.VARIANTS, *others]
    names = {line.split()[0] for line in lines if "spread" in line}
    preset = "vit_micro_patch4_32"
    assert names >= {f"{preset}.{mode}.vit/{name}" for mode in throughput.MODES for name in others}
    assert names >= {f"{preset}.matrix_product", f"{preset}.peak_memory.vit", "cold_start.vit"}


@pytest.mark.parametrize("preset", ["vit_micro_patch4_32", "vit_tiny_patch16_224"])
def test_everyone_builds_the_same_network(preset):
    config = libraries.config_of(preset)
    D, N, T = config.embed_dim, config.num_patches, config.num_patches + 1
    # The paper's network by hand: patch embedding, blocks (qkv, scores and values, projection, MLP), head.
    multiply_adds = N * 3 * config.patch_size**2 * D + D * config.num_classes
    multiply_adds += config.depth * (T * 3 * D * D + 2 * T * T * D + T * D * D + 2 * T * D * config.mlp_dim)
    models = {name: libraries.LIBRARIES[name](config) for name in libraries.installed()}
    parameters = {name: count_parameters(model) for name, model in models.items()}
    operations = {name: libraries.forward_operations(model, config) for name, model in models.items()}
    for name in [*OTHERS, "vit_every_token"]:
        assert parameters[name] == parameters["vit"] + libraries.extra_parameters(name, config)
        assert operations[name] == pytest.approx(2 * multiply_adds, rel=0.01)
    # In the last block, only CLS asks, of the tokens themselves, and passes the projection and the MLP.
    spared = (T - 1) * (4 * D * D + 2 * D * config.mlp_dim) + 2 * T * D * (T - config.num_heads)
    assert operations["vit"] == 2 * (multiply_adds - spared)


def test_the_shortcut_gives_the_same_logits():
    torch.manual_seed(0)
    every_token = libraries.EveryToken(PICO).eval()
    with torch.no_grad():
        for parameter in every_token.parameters():
            parameter.normal_(std=0.1)
        images = torch.randn(3, 3, 32, 32)
        assert torch.allclose(every_token(images), every_token.model(images), atol=1e-5)


def test_another_network_is_refused(monkeypatch, options):
    monkeypatch.setattr(libraries, "installed", lambda: ["vit", "torchvision"])
    deeper = lambda config: libraries._torchvision(replace(config, depth=config.depth + 1))  # noqa: E731
    monkeypatch.setitem(libraries.LIBRARIES, "torchvision", deeper)
    with pytest.raises(ValueError, match=r"torchvision has \+50,048 parameters beside .* not the same network"):
        throughput.build(PICO, 2, options)


def test_a_drift_of_the_machine_leaves_the_ratios_alone(monkeypatch, options):
    speed = {"vit": 120.0, "torchvision": 80.0}
    drift = iter([9.0, 1.0, 0.5])  # of the warm-up and two rounds
    now = []

    def product(*_) -> float:
        now.append(next(drift))
        return 1e12 * now[-1]

    def rate(self, mode: str, turn: float) -> float:
        name = "vit" if type(self.model).__module__.startswith("vit.") else "torchvision"
        return speed[name] * now[-1] * (1 if mode == "train" else 4)

    monkeypatch.setattr(libraries, "installed", lambda: list(speed))
    monkeypatch.setattr(libraries, "config_of", lambda preset: PICO)
    monkeypatch.setattr(throughput, "matrix_product_rate", product)
    monkeypatch.setattr(contender.Contender, "rate", rate)
    claims = {c["name"]: c for c in throughput.compare("p", options)}
    assert claims["p.train.vit"]["values"] == [120.0, 60.0] and claims["p.train.vit"]["value"] == 90.0
    assert claims["p.inference.vit/torchvision"]["values"] == [1.5, 1.5]
    share = claims["p.train.share_of_matrix_product"]
    assert share["spread"] == 0.0
    flops = libraries.forward_operations(libraries._vit(PICO), PICO)
    assert share["value"] == pytest.approx(100 * 3 * flops * 120 / 1e12, abs=1e-3)
    assert claims["p.train.vit"]["gflop_per_second"] == pytest.approx(3 * flops * 90 / 1e9, abs=1e-2)


def test_only_the_usual_settings_write_the_file_that_the_readme_quotes(options):
    usual = argparse.Namespace(**vars(options) | {"allocator": "keep", "threads": None, "machine": None})
    assert throughput.result_name("growth", usual) == "growth"
    changed = {
        "device": torch.device("cuda"),
        "precision": "bf16",
        "allocator": "default",
        "threads": 1,
        "machine": "old",
    }
    names = {throughput.result_name("x", argparse.Namespace(**vars(usual) | {k: v})) for k, v in changed.items()}
    assert names == {"x_cuda", "x_bf16", "x_default", "x_1threads", "x_old"}


def test_a_rate_counts_what_the_clock_shows(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(contender.time, "perf_counter", lambda: clock[0])
    times = iter([0.5, 0.25, 0.25, 0.25, 0.25, 9.0])  # the first repeat says that 4 fill two seconds

    def work() -> None:
        clock[0] += next(times)

    assert contender.repeats_per_second(work, 2.0, torch.device("cpu")) == 4.0
    assert next(times) == 9.0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count from the start of the process anyway")
def test_peak_memory_is_of_the_process_alone():
    held = b"x" * 1_000_000_000
    code = "import report\nprint(report.peak_memory())\n"
    code += "x = b'x' * 400_000_000\ndel x\nprint(report.peak_memory())"
    before, after = (int(line) for line in throughput.fresh_process(code).split())
    assert before < len(held), "getrusage counts what the parent held"
    assert 390e6 < after - before < 450e6


def test_growth_changes_one_thing_at_a_time(run_quick, monkeypatch):
    seen = []

    def train_alone(library: str, config: ViTConfig, batch: int, options: argparse.Namespace) -> dict:
        seen.append((config.num_patches + 1, config.depth, config.embed_dim, batch))
        assert config.head_dim == 32
        return {"images_per_second": 6400 / batch, "peak_memory": 1e6 * batch}

    monkeypatch.setattr(throughput, "train_alone", train_alone)
    lines = run_quick(throughput, "--growth")
    assert [line.split()[:3] for line in lines if "spread" in line] == [
        ["batch.1.train", "6400", "images/s"],
        ["batch.1.peak_memory", "1", "MB"],
        ["batch.2.train", "3200", "images/s"],
        ["batch.2.peak_memory", "2", "MB"],
    ]
    assert seen == [(65, 6, 128, 1), (65, 6, 128, 2)]


def test_the_quick_loaders_are_compared(run_quick):
    lines = run_quick(data_pipeline)
    names = {line.split()[0] for line in lines if "spread" in line}
    for augmentation in data_pipeline.AUGMENTATIONS:
        assert f"{augmentation}.batch64.share_of_step" in names
        assert {f"{augmentation}.batch64.vit/torchvision_{n}_workers" for n in data_pipeline.WORKERS} <= names


def test_only_loaders_of_the_same_distribution_are_compared(shapes):
    # Brighter to the right, so that a missing flip shows.
    ramp = shapes.train.images // 2 + torch.linspace(0, 127, 16).to(torch.uint8)
    data = replace(shapes, train=replace(shapes.train, images=ramp).subset(torch.arange(2000) % 400))

    def check(augmentation: str, **changes) -> float:
        theirs = data_pipeline.torchvision_loader(data, augmentation, 100, 0)
        for transform in theirs.dataset.transform.transforms:
            for name, value in changes.items():
                if hasattr(transform, name):
                    setattr(transform, name, value)
        return data_pipeline.check_alike(data_pipeline.our_loader(data, "crop_flip", 100).epoch(0), theirs)

    torch.manual_seed(0)
    assert check("crop_flip") < 0.18
    for wrong in ({"padding_mode": "constant"}, {"p": 0.0}, {"mean": [0.2, 0.2, 0.2]}):
        with pytest.raises(ValueError, match="differ by .* more than 0.179"):
            check("crop_flip", **wrong)
    with pytest.raises(ValueError, match="differ by"):
        check("trivial")
    with pytest.raises(ValueError, match="labels differ"):
        other = replace(data, train=data.train.subset(slice(1999)))
        ours = data_pipeline.our_loader(other, "crop_flip", 100).epoch(0)
        data_pipeline.check_alike(ours, data_pipeline.torchvision_loader(data, "crop_flip", 100, 0))


def test_growth_is_drawn_in_two_panels_a_quantity():
    curves = {"depth": [(6, 330.0, 610.0), (3, 640.0, 500.0)], "batch": [(4, 200.0, 400.0), (64, 330.0, 610.0)]}
    axes = plot_growth(curves, title="a").axes
    drawn = [[(*map(float, xy),) for xy in ax.lines[0].get_xydata()] for ax in axes]
    assert drawn[0] == [(3, 640), (6, 330)] and drawn[2] == [(3, 500), (6, 610)]
    assert drawn[1] == [(4, 200), (64, 330)] and drawn[3] == [(4, 400), (64, 610)]
    assert axes[0].get_ylabel() == "images per second" and axes[2].get_ylabel() == "peak memory (MB)"
    assert axes[0].get_ylim() == axes[1].get_ylim() and axes[2].get_xlabel() == "depth"
    for bad in ({}, {"depth": [(3, 0.0, 1.0)]}, {"depth": [(1, 2)]}):
        with pytest.raises(ValueError, match="curves"):
            plot_growth(bad)


@pytest.mark.parametrize("machine", ["throughput", "throughput_xeon"])
def test_no_library_is_faster_in_what_is_stored(machine):
    """Every configuration, training and inference, in the mean 1.15 times."""
    claims = report.load(machine)
    assert len({claims[f"{preset}.train.vit"]["hardware"] for preset in libraries.BATCHES}) == 1
    for mode in throughput.MODES:
        of_mode = [claims[f"{preset}.{mode}.vit/{name}"]["value"] for preset in libraries.BATCHES for name in OTHERS]
        assert len(of_mode) == 20 and statistics.geometric_mean(of_mode) >= 1.15
    ratios = [c["value"] for name, c in claims.items() if f".{libraries.OURS}/" in name]
    assert len(ratios) == len(libraries.BATCHES) * len(throughput.MODES) * (len(libraries.LIBRARIES) - 1)
    assert min(ratios) >= 1.0


def test_a_stored_train_step_at_192_x_9_reaches_70_percent_of_the_matrix_product():
    assert report.load("throughput")["vit_mini_patch4_32.train.share_of_matrix_product"]["value"] >= 70


def test_a_configuration_measured_anew_leaves_the_stored_ones_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(throughput, "compare", lambda p, o: [report.claim(f"{p}.x", [float(o.rounds)], "x", "c")])
    monkeypatch.setattr(throughput, "memory_and_cold_start", lambda *_: [report.claim("memory", [1.0], "MB", "c")])
    monkeypatch.setattr(throughput, "table", lambda *_: [])
    first, second = list(libraries.BATCHES)[:2]
    for rounds, presets in (("1", [first, second]), ("2", [second])):
        arguments = ["--device", "cpu", "--allocator", "default", "--rounds", rounds, "--configs", *presets]
        monkeypatch.setattr(sys, "argv", ["throughput.py", *arguments])
        throughput.main()
    (path,) = tmp_path.glob("throughput*.json")
    values = {name: c["value"] for name, c in report.load(path.stem).items()}
    assert values == {f"{first}.x": 1.0, f"{second}.x": 2.0, "memory": 1.0}


def test_what_is_measured_before_an_error_is_stored(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    first, second = list(libraries.BATCHES)[:2]
    monkeypatch.setattr(throughput, "compare", lambda p, o: [report.claim(p, [1 / (p == first)], "x", "c")])
    arguments = ["--device", "cpu", "--allocator", "default", "--configs", first, second]
    monkeypatch.setattr(sys, "argv", ["throughput.py", *arguments])
    with pytest.raises(ZeroDivisionError):
        throughput.main()
    (path,) = tmp_path.glob("throughput*.json")
    assert set(report.load(path.stem)) == {first}
