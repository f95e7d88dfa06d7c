"""Training for half an hour: killed at random moments, resumed, compared; then in one process, its memory watched.

    python benchmarks/soak.py [--minutes 30]

Two thirds of the time go to runs that are killed again and again, by SIGKILL, SIGTERM and SIGINT, until they are
complete; each must end in the bits of the undisturbed run, and leave no file behind but its own. In the last third
one process trains run after run, as a notebook does; its memory must not grow once the first runs are over.
Needs Linux, for the memory of another process.
"""

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from kills import COMPLETE, CONTEXT, TRAIN, final_state, same, start, train

COMMAND = "python benchmarks/soak.py"
CONFIG = replace(TRAIN, epochs=60)  # some ten seconds
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FILES = {"config.json", "history.csv", "state.pt", "state.best.pt", "state.previous.pt", ".lock"}


def kill_until(end: float, root: Path, rng: random.Random) -> dict[str, int]:
    """Runs that are killed over and over, until the time is up: how many, how many kills, and how many went wrong."""
    reference = root / "reference"
    for folder in (root / "warm-up", reference):
        began = time.monotonic()
        process = start(folder, CONFIG)
        process.join()
    seconds, expected = time.monotonic() - began, final_state(reference)
    counts = {"runs": 0, "kills": 0, "wrong": int(process.exitcode != COMPLETE)}
    while not counts["runs"] or time.monotonic() < end:
        folder = root / "run"
        patience = seconds / 3
        while True:
            process = start(folder, CONFIG)
            process.join(rng.uniform(0, patience))
            patience *= 1.03  # a machine that has become slower since must get to the end too
            if not process.is_alive():  # complete, or an error that would come again
                break
            os.kill(process.pid, rng.choice(SIGNALS))
            counts["kills"] += 1
            process.join()
            if process.exitcode == COMPLETE:
                break
        faults = faults_of(folder, process.exitcode, expected)
        counts["runs"] += 1
        counts["wrong"] += bool(faults)
        what = f"WRONG, {'; '.join(faults)}" if faults else "same bits"
        print(f"run {counts['runs']}, {counts['kills']} kills so far: {what}", flush=True)
        shutil.rmtree(folder)
    return counts


def faults_of(folder: Path, exit_code: int, expected: dict[str, Any]) -> list[str]:
    """What is wrong with a run that came to its end."""
    if exit_code != COMPLETE:
        return ["an error, see above, and no way on"]
    faults = [] if same(final_state(folder), expected) else ["other bits"]
    if odd := {path.name for path in folder.iterdir()} ^ FILES:
        faults.append(f"files missing or left behind: {sorted(odd)}")
    return faults


def train_for_ever(root: Path, words: Connection) -> None:
    """Run after run in one process; says when each is over."""
    os._exit = lambda code: None  # how `train` says that a run is complete
    for number in range(10**6):
        train(root / str(number), TRAIN)
        shutil.rmtree(root / str(number))
        words.send(number)


def memory_until(end: float, root: Path) -> list[tuple[float, float]]:
    """(seconds, MB) of a process that trains run after run, once a run, from the tenth run on."""
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=train_for_ever, args=(root, there), daemon=True)
    process.start()
    there.close()
    found = []
    while time.monotonic() < end or len(found) < 20:
        if here.recv() >= 10:
            status = Path(f"/proc/{process.pid}/status").read_text()
            kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            found.append((time.monotonic(), kilobytes / 1000))
    process.kill()
    process.join()
    return found


def growth(found: list[tuple[float, float]]) -> float:
    """MB a minute, between the middle of the first third and that of the last."""
    third = len(found) // 3
    (t0, m0), (t1, m1) = (
        [statistics.median(values) for values in zip(*part, strict=True)] for part in (found[:third], found[-third:])
    )
    return 60 * (m1 - m0) / (t1 - t0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="default 30; less stores nothing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_until(began + 40 * options.minutes, Path(folder), random.Random(options.seed))
        found = memory_until(began + 60 * options.minutes, Path(folder) / "memory")
    claims = [
        report.claim(name, [count], "runs" if name != "kills" else "kills", COMMAND) for name, count in counts.items()
    ]
    claims.append(report.claim("memory", [memory for _, memory in found], "MB", COMMAND))
    claims[-1]["values"] = claims[-1]["values"][:: 1 + len(found) // 50]
    claims.append(report.claim("memory_growth", [growth(found)], "MB/min", COMMAND))
    claims.append(report.claim("minutes", [(time.monotonic() - began) / 60], "min", COMMAND))
    report.publish("soak", claims, store=options.minutes >= 30)
    return int(counts["wrong"] > 0 or growth(found) > 0.5)


if __name__ == "__main__":
    sys.exit(main())
