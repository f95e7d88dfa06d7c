"""Writes the README's tables from the stored results, so that no number there is typed by hand.

python benchmarks/readme.py
"""

import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import libraries
import report
from peers import PEERS
from throughput import MODES

import vit
from vit.config import ViTConfig

README = Path(__file__).resolve().parents[1] / "README.md"

# What each claim is called, and how many decimals it is worth: one table a group, its claims by benchmark. A name in
# braces stands for the value of another claim of the same benchmark.
SHORT = {
    "On two CPU cores": {
        "train_cifar10": {"test_accuracy": ("`cpu_10min`, the default: test accuracy, last epoch", 2)},
        "make_train": {"train_seconds": ("its training time, validation included", 0)},
        "time_to_accuracy": {
            "5min.ours.cpu_5min": (
                "`cpu_5min`: test accuracy after the steps of five minutes, {claim[passes]:.1f} epochs",
                2,
            ),
            "20min.ours.cpu_20min": (
                "`cpu_20min`: test accuracy after the steps of twenty minutes, {claim[passes]:.1f} epochs",
                2,
            ),
        },
        "shipped_weights": {
            "vit_fast6_wide_patch4_32.cifar10.test_accuracy": ("`cpu_2h`, on one core: test accuracy, last epoch", 2),
        },
        "startup": {"quickstart": ("notebook `00_quickstart`, cold kernel to last figure", 1)},
    },
}
GROUPS = {
    "Training": {
        "train_cifar10": {
            "test_accuracy_flip": ("`cpu_10min`: test accuracy, averaged with the mirror image at test time", 2),
            "val_accuracy": ("its validation accuracy, which chose the settings", 2),
            "peak_memory_gb": ("peak memory of the process", 2),
        },
        "loop_overhead": {"loop_overhead": ("training time spent on anything but the computation", 1),
                          "save": ("a state of the default model, written and checked", 0)},
        "data_pipeline": {
            "crop_flip.batch64.vit/torchvision_0_workers":
                ("speed of cropped and mirrored batches, relative to torchvision's DataLoader", 0),
            "crop_flip.batch64.vit/torchvision_2_workers": ("the same, relative to it with two workers", 0),
            "crop_flip.batch64.share_of_step":
                ("time to make such a batch, relative to a step of `cpu_5min`, patches dropped", 1),
        },
        "scaling": {"weak_scaling": ("speed of two processes training together, relative to two apart", 1)},
    },
    "In a notebook": {
        "startup": {"import": ("`import vit`, fresh process", 2),
                    "model_class": ("the same with the model class, and so torch", 2),
                    "first_batch": ("first CIFAR-10 batch, fresh process, data cached", 2)},
        "attention_maps": {"maps_of_16_images": ("attention maps of 16 images, all layers and heads", 3),
                           "recording_ratio": ("forward pass that is recorded, relative to a plain one", 2),
                           "explorer_redraw": ("redraw of the attention explorer", 0)},
        "playground": {"slider_answer": ("playground: new estimate after a slider has moved", 0),
                       "live_curves": ("playground: training time that live curves cost", 1)},
    },
    "Weights and other classes": {
        "load_weights": {"own_seconds": ("a ViT-B/16 of 86.6 M parameters loaded, with every check", 2),
                         "timm_seconds": ("the same from a file of timm", 2),
                         "timm_memory": ("peak memory of that, relative to the weights", 2)},
        "transfer": {
            "cifar10.pixels_probe.10": ("five new classes, ten images of each: raw pixels, linear probe", 1),
            "cifar10.probe.10": ("the same on the features of a network trained on five others, linear probe", 1),
            "cifar10.finetune.10": ("the same with all weights fine-tuned", 1),
            "cifar10.scratch_steps.10": ("the same from scratch, as many steps as fine-tuning", 1),
            "cifar10.scratch_compute.10": ("the same from scratch, for as long as both trainings together", 1),
        },
    },
    "When things go wrong": {
        "faults": {
            "rows_pass":
                ("known faults handled correctly ({rows_fail:.0f} are not, {rows_na:.0f} cannot occur here)", 0),
            "sigkill_same_bits": ("trainings killed by SIGKILL, of {sigkill_runs:.0f}, resumed to the same bits", 0),
            "fuzz_wrong": ("damaged files, of {fuzz_files:,.0f}, handled wrongly", 0),
        },
    },
}  # fmt: skip


def short_table() -> str:
    """What a first reader wants to know."""
    return "\n".join(_claims_tables(SHORT, {})).strip()


def claims_tables() -> str:
    """All other claims, and at the end where they and those of the short table come from."""
    sources: dict[str, list[str]] = {}
    _claims_tables(SHORT, sources)
    lines = _claims_tables(GROUPS, sources)
    summary = "<details><summary>Hardware, versions, dates and commits</summary>"
    return "\n".join([*lines, summary, "", *_source_lines(sources), "", "</details>"])


def _claims_tables(groups: dict, sources: dict[str, list[str]]) -> list[str]:
    """A table a group with a line a claim; notes in `sources` where they come from."""
    lines = []
    for group, benchmarks in groups.items():
        lines += [f"| {group} | value | spread | n | command |", "| --- | ---: | ---: | ---: | --- |"]
        for benchmark, rows in benchmarks.items():
            claims = report.load(benchmark)
            values = {name: c["value"] for name, c in claims.items() if name.isidentifier()}
            for name, (label, decimals) in rows.items():
                c = claims[name]
                label = label.format(claim=c, **values)
                number, spread = (f"{c[key]:.{decimals}f}" for key in ("value", "spread"))
                n = len(c["values"])
                spread = f"± {spread}" if n > 1 else "-"
                lines.append(f"| {label} | {number} {c['unit']} | {spread} | {n} | `{c['command']}` |")
                _note_source(sources, c)
        lines.append("")
    return lines


def speed_table(benchmark: str = "throughput") -> str:
    """A line a configuration, a train step and inference in each cell: speed, share of the hardware, and ratios."""
    claims = report.load(benchmark)
    others = [name for name in libraries.LIBRARIES if name not in libraries.VARIANTS]
    sources: dict[str, list[str]] = {}
    rows = [["network", "pixels, batch", "images/s", "of the machine", *(name.replace("_", "-") for name in others)]]
    rows.append([*["---"] * 2, *["---:"] * (2 + len(others))])
    ratios: dict[str, list[float]] = {mode: [] for mode in MODES}
    for preset, batch in libraries.BATCHES.items():
        config = ViTConfig.preset(preset)
        of_mode = []  # cells of a train step, then of inference
        for mode in MODES:
            own = claims[f"{preset}.{mode}.vit"]
            found = [claims[f"{preset}.{mode}.vit/{name}"]["value"] for name in others]
            of_mode.append(
                [_three_digits(own["value"]), f"{own['share_of_matrix_product']:.0f}", *(f"{r:.2f}" for r in found)]
            )
            ratios[mode] += found
            _note_source(sources, own)
        speed, share, *compared = [" / ".join(pair) for pair in zip(*of_mode, strict=True)]
        name = f"{config.embed_dim} wide, {config.depth} blocks"
        rows.append([name, f"{config.image_size[0]}, {batch}", speed, f"{share} %", *compared])
    means = " / ".join(f"{statistics.geometric_mean(ratios[mode]):.2f}" for mode in MODES)
    last = f"Geometric mean of the ratios: {means}; the lowest is {min(min(r) for r in ratios.values()):.2f}."
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", last, "", *_source_lines(sources)])


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def weights_table() -> str:
    """A line for each of the weights that come with the library, all of it from their metadata."""
    head = ["weights", "parameters", "trained on", "epochs", "training work", "test accuracy", "commit"]
    rows = [head, ["---", "---:", "---", *["---:"] * 3, "---"]]
    for name in vit.pretrained.list_weights():
        model = vit.load(name)
        facts = model.metadata
        size, work = f"{vit.count_parameters(model) / 1e6:.2f} M", f"{facts['train_flops'] / 1e15:.2f} PFLOP"
        images = f"{facts['trained_on']}, {len(facts['class_names'])} classes"
        epochs, accuracy = f"{facts['train_config']['epochs']:g}", f"{facts['test_accuracy']:.2f} %"
        rows.append([f"`{name}`", size, images, epochs, work, accuracy, f"`{facts['commit']}`"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def peers_tables() -> str:
    """For each budget a line a recipe, best first: how it was fed, and what its authors state."""
    sources = {}
    tables = [_peers_table(minutes, sources) for minutes in (5, 20)]
    return "\n".join([*tables, *_source_lines(sources)])


def _peers_table(minutes: int, sources: dict[str, list[str]]) -> str:
    found = [c for c in report.load("time_to_accuracy").values() if c["minutes"] == minutes]
    claims = {(c["recipe"], c["variant"]): c for c in found}
    rows, own, gains = [], f"cpu_{minutes}min", []
    for recipe in dict.fromkeys(recipe for recipe, _ in claims):
        published, batched, ours = (claims.get((recipe, of)) for of in ("per_sample", "batched", own))
        best = max(filter(None, (published, batched, ours)), key=lambda c: c["value"])
        name = f"**this project**, `{own}`" if ours else f"[{recipe}]({PEERS[recipe].source.split(' ')[0]})"
        cells = [name, f"{best['parameters'] / 1e6:.2f} M", f"{(batched or ours)['passes']:.1f}"]
        stated = f"{best['published']} passes" if best["published"] else ""
        gains += [batched["value"] - published["value"]] if published and batched else []
        rows.append((best["value"], [*cells, _accuracy(published), _accuracy(batched or ours), stated]))
        for c in filter(None, (published, batched, ours)):
            _note_source(sources, c)
    columns = ["parameters", "passes, our loader", "their pipeline, test %", "our loader, test %"]
    head = [f"{minutes} minutes", *columns, "stated by its authors"]
    lines = [head, ["---", *["---:"] * 4, "---"], *(cells for _, cells in sorted(rows, key=lambda row: -row[0]))]
    error, of_best_peer = 100 - claims["ours", own]["value"], min(100 - v for v, cells in rows if own not in cells[0])
    ratio = f"{error:.1f} / {of_best_peer:.1f} = {error / of_best_peer:.2f}"
    last = f"This project's test error relative to the best peer's: {ratio}."
    if gains:
        low, high, mean = min(gains), max(gains), round(statistics.mean(gains), 1) + 0.0  # no minus before a zero
        last += f" Our loader in place of their pipeline changes a peer's accuracy by {low:+.1f} to {high:+.1f} points,"
        last += f" by {mean:.1f} on average."
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", last, ""])


def _accuracy(claim: dict | None) -> str:
    if claim is None:
        return "-"
    n = len(claim["values"])
    spread = f" ± {claim['spread']:.2f}" if n > 1 else ""
    seeds = "" if n == 3 else f" ({n} seed{'s' * (n > 1)})"
    return f"{claim['value']:.2f}{spread}{seeds}"


def _note_source(sources: dict[str, list[str]], claim: dict) -> None:
    of_machine = sources.setdefault(f"{claim['hardware']}; {claim['versions']}; {claim['date']}", [])
    of_machine += [commit for commit in claim["commit"].split(", ") if commit not in of_machine]


def _source_lines(sources: dict[str, list[str]]) -> list[str]:
    return [f"- {machine}; commits {', '.join(f'`{c}`' for c in found)}." for machine, found in sources.items()]


TABLES = {
    "short": short_table,
    "claims": claims_tables,
    "weights": weights_table,
    "peers": peers_tables,
    "speed": speed_table,
    "speed on another machine": partial(speed_table, "throughput_xeon"),
}


def filled(text: str) -> str:
    """The text with every table written anew between its marks."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name}: written by benchmarks/readme.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{table()}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    README.write_text(filled(README.read_text()))


if __name__ == "__main__":
    main()
