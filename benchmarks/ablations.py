"""What each choice is worth in a short training: differences from a base recipe, at equal time on a CPU.

    python benchmarks/ablations.py --measure            the times of all steps, on an idle machine, once: 3 minutes
    python benchmarks/ablations.py --minutes 5          every variant with seeds 0, 1 and 2, seed after seed
    python benchmarks/ablations.py --minutes 20 --variants base adamw --processes 2 --stop-after 50
    python benchmarks/ablations.py --quick              seconds, on the built-in shapes; stores nothing

The minutes become steps by the measured times. So the trainings may run anywhere, with one thread each and beside
other work, and the time they are compared at stays equal. Accuracy is that of the last weights on the validation
images, without test-time augmentation; the test images are not touched. Times and finished cells are kept in
results/ablation_cells/ and not repeated for the same settings, so the hours can be spread over days and machines; a
training that was stopped goes on (the one on small images first starts anew).
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from ablation_results import merged, stored, table
from ablation_training import ROUNDS, step_seconds, train
from ablation_variants import BASES, QUICK_BASE, VARIANTS, Setup, changes_of, setups_of

import vit
from vit.data import DataSplits
from vit.training.run_folder import runs_root, write_json

CELLS = report.RESULTS / "ablation_cells"
RUNS = runs_root() / "ablations"  # of trainings that go on
QUICK_MINUTES = 0.0005
PROBE_IMAGES = 10_000  # of a measurement; more would only take memory


def load_data(*, quick: bool) -> DataSplits:
    return vit.load_data("shapes", num_train=256, num_val=32, num_test=8) if quick else vit.load_data("cifar10")


def times_file() -> Path:
    return CELLS / "step_times.json"


def known_times() -> list[dict]:
    return json.loads(times_file().read_text()) if times_file().exists() else []


def is_of(stored: dict, setup: Setup) -> bool:
    """Whether a stored setup is this one; options that it has not heard of have their defaults."""
    return report.up_to_date(stored) == setup.to_dict()


def measured(setup: Setup) -> dict | None:
    """The stored time of a step of such a setup, with the machine and threads it was measured on."""
    found = [row for row in known_times() if is_of(row["setup"], setup.timed)]
    return {name: value for name, value in found[0].items() if name != "setup"} if found else None


def measure(setups: list[Setup], data: DataSplits, *, rounds: int = ROUNDS) -> None:
    """Times the steps of all setups without a stored time, in turns, and stores them; at the pace of the first of the
    stored ones, if there are any, which is timed again with the others."""
    wanted = list(dict.fromkeys(setup.timed for setup in setups if measured(setup) is None))
    if not wanted:
        return
    known = [setup.timed for setup in setups if measured(setup)][:1]
    few = replace(data, train=data.train.subset(slice(PROBE_IMAGES)))
    threads = torch.get_num_threads()
    if known and (paced := measured(known[0])["threads"]) != threads:
        sys.exit(f"the stored times are of {paced} threads, and a ratio of {threads} says nothing about them")
    times = step_seconds([*known, *wanted], few, rounds=rounds)
    pace = measured(known[0])["seconds_per_step"] / times.pop(0) if known else 1.0
    of_machine = {"threads": threads, "hardware": report.hardware()}
    rows = [
        {"setup": setup.to_dict(), "seconds_per_step": pace * seconds, **of_machine}
        for setup, seconds in zip(wanted, times, strict=True)
    ]
    CELLS.mkdir(parents=True, exist_ok=True)
    write_json(times_file(), known_times() + rows)


@dataclass(frozen=True)
class Cell:
    """One training: a variant at a budget with a seed."""

    minutes: float
    name: str
    seed: int
    setup: Setup

    @property
    def path(self) -> Path:
        return CELLS / f"{self.minutes:g}min" / f"{self.name}-seed{self.seed}.json"

    @property
    def steps(self) -> int | None:
        """The steps that fit into the minutes; None where no time is stored."""
        found = measured(self.setup)
        return max(1, int(60 * self.minutes / found["seconds_per_step"])) if found else None

    def settings(self) -> dict:
        return {"setup": self.setup.with_seed(self.seed).to_dict(), "steps": self.steps}

    def result(self) -> dict | None:
        """What is stored of it, if that is of these settings."""
        found = json.loads(self.path.read_text()) if self.path.exists() else {"settings": {}}
        setup, steps = (found["settings"].get(name) for name in ("setup", "steps"))
        return found if setup and is_of(setup, self.setup.with_seed(self.seed)) and steps == self.steps else None

    def run(self, data: DataSplits) -> None:
        """Trains and stores the result."""
        settings, started = self.settings(), time.perf_counter()
        key = zlib.crc32(json.dumps(settings).encode())
        folder = RUNS / f"{self.minutes:g}min" / f"{self.path.stem}-{key:08x}"
        folder.mkdir(parents=True, exist_ok=True)
        accuracy = train(self.setup.with_seed(self.seed), data, settings["steps"], folder)
        if accuracy is None:
            sys.exit(f"{self.path.stem} was stopped: it goes on next time")
        seconds = time.perf_counter() - started
        result = {"val_accuracy": accuracy, "seconds": seconds, "threads": torch.get_num_threads()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, result | report.origin() | {"settings": settings})
        shutil.rmtree(folder)
        print(f"{self.path.stem}: {accuracy:.2f} % after {settings['steps']} steps, {seconds:.0f} s", flush=True)


def run_all(cells: list[Cell], *, processes: int, stop_after: float) -> list[Cell]:
    """Runs the cells in order, each in a process of its own with one thread, until `stop_after` minutes are over; those
    that run then save and end. Returns those that failed, were stopped or did not begin; a failure does not keep the
    others from running."""
    waiting, running, failed, deadline = list(cells), {}, [], time.monotonic() + 60 * stop_after
    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < processes:
                cell = waiting.pop(0)
                running[cell] = start(cell)
            time.sleep(0.2)
            ended = [cell for cell, process in running.items() if process.poll() is not None]
            failed += [cell for cell in ended if running.pop(cell).returncode]
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed + [cell for cell, process in running.items() if process.returncode] + waiting


def start(cell: Cell) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", "--minutes", f"{cell.minutes:g}"]
    command += ["--variants", cell.name, "--seeds", str(cell.seed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VIT_PROGRESS": "none"}
    # Ctrl-C is for this process alone, which then asks them to save: twice would be to insist.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def claims_of(cells: list[Cell], base: Setup, num_train: int, command: str) -> list[dict]:
    """A claim of every variant with a result, over the seeds it has."""
    claims = []
    for name in dict.fromkeys(cell.name for cell in cells):
        found = {cell: result for cell in cells if cell.name == name and (result := cell.result())}
        if not found:
            continue
        cell, accuracies = next(iter(found)), [result["val_accuracy"] for result in found.values()]
        per_epoch = math.ceil(num_train / cell.setup.train.batch_size)
        seeds, origins = [cell.seed for cell in found], list(found.values())
        claim = report.claim(f"{cell.minutes:g}min.{name}", accuracies, "%", command, seeds=seeds, origins=origins)
        claim |= {
            "minutes": cell.minutes,
            "label": VARIANTS[name].label,
            "changes": changes_of(cell.setup, base),
            "steps": cell.steps,
            "passes": round(cell.steps / per_epoch, 3),
            "parameters": vit.count_parameters(vit.VisionTransformer(cell.setup.model)),
            "measured": measured(cell.setup),
        }
        claims.append(claim | ({"setup": base.to_dict()} if name == "base" else {}))
    return claims


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, choices=sorted(BASES), default=5, help="time budget of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time, with one thread each")
    parser.add_argument("--stop-after", type=float, default=math.inf, metavar="MINUTES", help="save and end then")
    parser.add_argument("--measure", action="store_true", help="only time the steps, at every budget")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processes < 1:
        parser.error(f"--processes {options.processes} must be 1 or more")
    return options


def quick() -> None:
    """All variants on the built-in shapes, for a few steps, in this process and a folder that is thrown away."""
    global CELLS, RUNS
    with tempfile.TemporaryDirectory() as folder:
        kept, CELLS, RUNS = (CELLS, RUNS), Path(folder), Path(folder)
        try:
            data, setups = load_data(quick=True), setups_of(QUICK_BASE)
            measure(list(setups.values()), data, rounds=1)
            cells = [Cell(QUICK_MINUTES, name, 0, setup) for name, setup in setups.items()]
            for cell in cells:
                cell.run(data)
            claims = claims_of(cells, QUICK_BASE, len(data.train), "")
        finally:
            CELLS, RUNS = kept
    report.publish("ablations", claims, store=False)
    print("", table(claims), sep="\n")


def main() -> None:
    report.hide_gpus()
    options = parse()
    if options.quick:
        quick()
        return
    if options.measure:
        setups = {minutes: setups_of(base) for minutes, base in BASES.items()}
        names = dict.fromkeys(["base", *options.variants])  # the base has the pace
        chosen = [s[name] for s in setups.values() for name in names if name in s]
        measure(chosen, load_data(quick=False))
        return
    base = BASES[options.minutes]
    setups = setups_of(base)
    # Those on disk as well, so that a run with a few of them does not forget the others.
    seeds = sorted({*options.seeds, *report.seeds_in(CELLS / f"{options.minutes:g}min")})
    cells = [Cell(options.minutes, name, seed, setup) for seed in seeds for name, setup in setups.items()]
    chosen = [cell for cell in cells if cell.name in options.variants and cell.seed in options.seeds]
    if untimed := [cell.name for cell in chosen if cell.steps is None]:
        sys.exit(f"no time of a step is stored for {', '.join(dict.fromkeys(untimed))}: first --measure, when idle")
    if options.child:
        [cell] = chosen
        cell.run(load_data(quick=False))
        return
    chosen.sort(key=lambda cell: (options.seeds.index(cell.seed), options.variants.index(cell.name)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the trainings save
    missing = [cell for cell in chosen if cell.result() is None]
    failed = run_all(missing, processes=options.processes, stop_after=options.stop_after)
    num_train = len(load_data(quick=False).train)
    command = f"python benchmarks/ablations.py --minutes {options.minutes}"
    timed = [cell for cell in cells if cell.steps is not None]
    claims = claims_of(timed, base, num_train, command)
    if not any("setup" in claim for claim in claims):
        sys.exit("the base has no result yet: nothing to compare with")
    report.publish("ablations", merged(claims))
    print("", table(stored(options.minutes)), sep="\n")
    if failed:
        sys.exit(f"failed or not finished, see above: {', '.join(cell.path.stem for cell in failed)}")


if __name__ == "__main__":
    main()
