"""How much accuracy for how much work and time: the stored results of several benchmarks, as tables and figures."""

from typing import Any

import report
import speedrun
from peers import PEERS

OURS, ON_GPU = "this project, 2 CPU cores", "this project, one GPU"
FEEDS = {"batched": "our loader", "per_sample": "their pipeline"}  # as in the README
OUR_IMAGES = 45_000  # of a pass in our claims; the others are held out
STATED_IMAGES = dict.fromkeys(PEERS, 50_000) | {"uva15": 45_000}  # of a pass of the authors


def trainings() -> dict[str, list[dict]]:
    """The trainings of each recipe, from the least work to the most, this project's first; all without test-time
    augmentation."""
    found: dict[str, list[dict]] = {OURS: [], **{recipe: [] for recipe in PEERS}, ON_GPU: []}
    for c in report.stored("time_to_accuracy").values():
        if c["variant"] != "per_sample":
            rows = found[OURS if c["recipe"] == "ours" else c["recipe"]]
            rows.append(row_of(c, f"{c['minutes']:g} minutes", c["passes"]))
    for c in report.stored("shipped_weights").values():
        if c["name"].endswith("test_accuracy"):
            found[OURS].append(row_of(c, f"{c['epochs']:g} epochs, one core", c["epochs"]))
    for c in report.stored("record").values():
        if c["name"].endswith("accuracy_plain"):
            training, passes = f"{c['minutes']:g} minutes, {c['name'].split('.')[0]}", sum(c["epochs"][0].values())
            found[ON_GPU].append(row_of(c, training, passes))
    for recipe, peer in PEERS.items():
        if found[recipe]:
            found[recipe].append(stated_row(recipe, peer.published, found[recipe][0]))
    return {recipe: sorted(rows, key=lambda row: row["flops"]) for recipe, rows in found.items() if rows}


def row_of(claim: dict, training: str, passes: float) -> dict:
    """What a claim says of a training."""
    return {
        "training": training,
        "accuracy": claim["value"],
        "spread": f"{claim['spread']:.2f}" if len(claim["values"]) > 1 else "-",
        "seeds": str(len(claim["values"])),
        "passes": passes,
        "flops": claim["train_flops"],
        "is_measured": True,
    }


def stated_row(recipe: str, published: str, known: dict) -> dict:
    """What its authors state of the whole training, with as many operations an image as a measured one had."""
    accuracy, passes = (float(number) for number in published.split(" % after "))
    flops = known["flops"] / (known["passes"] * OUR_IMAGES) * passes * STATED_IMAGES[recipe]
    row = {"training": "stated by its authors", "accuracy": accuracy, "spread": "-", "seeds": "-"}
    return row | {"passes": passes, "flops": flops, "is_measured": False}


def work_table() -> str:
    """A line a training: accuracy, its standard deviation over the seeds, and what it took."""
    form = "{:<26} {:<24} {:>7} {:>7} {:>6} {:>7} {:>8}"
    lines = [form.format("recipe", "training", "test %", "spread", "seeds", "passes", "PFLOP")]
    for recipe, rows in trainings().items():
        for row in rows:
            numbers = row["spread"], row["seeds"], f"{row['passes']:.3g}", f"{row['flops'] / 1e15:.3g}"
            lines.append(form.format(recipe, row["training"], f"{row['accuracy']:.2f}", *numbers))
    return "\n".join(lines)


def work_figure() -> Any:
    """Accuracy against operations, a line a recipe; what was not measured but stated is hollow."""
    from vit import plots  # here, since no training needs matplotlib

    points = {
        recipe: [(row["flops"], row["accuracy"], row["is_measured"]) for row in rows]
        for recipe, rows in trainings().items()
    }
    return plots.plot_accuracy_and_work(points, title="Accuracy and what it cost")


def time_figure(minutes: float) -> Any:
    """Accuracy on the way of all recipes that were trained for so many minutes."""
    from vit import plots

    found, order = report.stored("time_to_accuracy").values(), ["ours", *PEERS]
    claims = [c for c in found if c["minutes"] == minutes]
    if not claims:
        known = ", ".join(f"{m:g}" for m in sorted({c["minutes"] for c in found}))
        raise ValueError(f"minutes={minutes} has no stored results; there are some of: {known or 'none'}")
    curves = [
        {
            "name": "this project" if c["recipe"] == "ours" else c["recipe"],
            "variant": FEEDS.get(c["variant"], c["variant"]),
        }
        | {axis: [point[axis] for point in c["curve"]] for axis in ("seconds", "flops", "accuracy")}
        for c in sorted(claims, key=lambda c: order.index(c["recipe"]))
    ]
    return plots.plot_time_to_accuracy(curves, title=f"{minutes:g} minutes of training on two CPU cores")


def gpu_table() -> str:
    """Seconds to each accuracy and accuracy after each time, of one GPU; or how to get them, where there are none."""
    records, runs = report.stored("record"), list(report.stored("speedrun").values())
    if not records and not runs:
        return "no training on a GPU is stored yet: python benchmarks/on_gpu.py"
    form = "{:<44} {:>7} {:>7} {:>7} {:>7} {:>9}  {}"
    lines = [form.format("best accuracy", "mirror", "plain", "spread", "seeds", "seconds", "hardware")]
    for name in sorted(name.removesuffix(".accuracy") for name in records if name.endswith(".accuracy")):
        mirror, plain, seconds = (records[f"{name}.{key}"] for key in ("accuracy", "accuracy_plain", "seconds"))
        numbers = [f"{c['value']:.2f}" for c in (mirror, plain)] + [f"{mirror['spread']:.2f}"]
        lines.append(form.format(name, *numbers, len(mirror["values"]), f"{seconds['value']:.0f}", mirror["hardware"]))
    tables = (["\n".join(lines)] if records else []) + ([speedrun.table(runs)] if runs else [])
    return "\n\n".join(tables)


def gpu_figure() -> Any:
    """The loss on the way of the GPU's trainings; None where there are none yet."""
    from vit import plots

    runs = {
        f"{c['name'].split('.')[0]}, {c['minutes']:g} minutes": c["curves"]["train"]
        for c in report.stored("record").values()
        if c["name"].endswith(".accuracy")
    }
    return plots.plot_runs(runs, quantity="train_loss", against="seconds", title="On the way") if runs else None
