"""Trainings that are killed at random moments and resumed until they are done: do they end in the same bits?

    python benchmarks/kills.py [--quick]

A real process is killed each time, by SIGKILL, SIGTERM or SIGINT; a third of the SIGKILLs wait until a state is
being written. Compared, bit by bit, with a run that nobody disturbs: weights, averaged weights, both optimizers, random
numbers, history. The training is small, with all that could go wrong: averaged weights, Muon, dropout, dropped
patches, CutMix, random augmentation. Needs an operating system that forks.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vit.config import TrainConfig, ViTConfig
from vit.data import make_loaders, make_shapes
from vit.model.vision_transformer import VisionTransformer
from vit.training import fit
from vit.training.run_files import STATE_FILE
from vit.training.state_file import read_state

MODEL = ViTConfig(
    image_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0, drop_rate=0.1, drop_path_rate=0.1
)
TRAIN = TrainConfig(
    epochs=5,
    batch_size=24,
    ema_decay=0.9,
    clip_grad_norm=1.0,
    cutmix_alpha=1.0,
    auto_augment="trivial",
    patch_drop_rate=0.25,
    device="cpu",
)
COMPLETE = 64  # exit code of a process whose training has reached its end; no signal and no error gives it
COUNTS = {signal.SIGKILL: 100, signal.SIGTERM: 20, signal.SIGINT: 20}
QUICK = {signal.SIGKILL: 5, signal.SIGTERM: 1, signal.SIGINT: 1}
# Processes are forked from a server that has imported everything already, also what is imported late.
CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
if hasattr(os, "fork"):
    CONTEXT.set_forkserver_preload(["torch._dynamo", "torchvision.transforms.v2", "vit.data", "vit.training"])


def train(folder: Path, config: TrainConfig = TRAIN) -> None:
    """What each process does: begin the run, or go on with it."""
    os.environ["VIT_PROGRESS"] = "none"
    tqdm.set_lock(threading.RLock())  # its own is shared by processes, and would outlive a killed one
    torch.set_num_threads(1)
    random.seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002
    torch.manual_seed(config.seed)
    data = make_shapes(num_train=96, num_val=24, num_test=1, image_size=16, seed=1)
    model = VisionTransformer(MODEL)
    if fit(model, *make_loaders(data, config), config, run_dir=folder, resume="auto").is_complete:
        os._exit(COMPLETE)


def start(folder: Path, config: TrainConfig = TRAIN) -> Any:
    """A process that trains, forked from a server that has imported everything already."""
    process = CONTEXT.Process(target=train, args=(folder, config), daemon=True)
    process.start()
    return process


def final_state(folder: Path) -> dict[str, Any]:
    """All that a run has come to, without the seconds it took."""
    state = read_state(folder / STATE_FILE)
    del state["progress"]["seconds"]
    for row in state["progress"]["rows"]:
        del row["seconds"]
    return state


def same(a: Any, b: Any) -> bool:
    """Whether two trees of tensors and plain values are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@dataclass
class Outcome:
    """One run that was killed once and resumed until done."""

    signum: int
    is_inside_save: bool
    exit_code: int  # of the process that got the signal
    fault: str = ""  # what is wrong with the end of the run; empty if it ended in the same bits


def run_with_a_kill(
    folder: Path, signum: int, seconds: float, reference: dict[str, Any], rng: random.Random, *, aim: bool
) -> Outcome | None:
    """Kills a run at a moment in its first `seconds`, resumes it; None if it was done before it could be killed.

    Args:
        aim: wait for the next moment at which a state is being written.
    """
    process = start(folder)
    time.sleep(rng.uniform(0, seconds))
    with contextlib.suppress(ProcessLookupError):
        if aim:
            halt_in_a_save(process, folder, rng)
        os.kill(process.pid, signum)
    process.join()
    if process.exitcode == COMPLETE:
        return None
    outcome = Outcome(signum, is_saving(folder), process.exitcode)
    for _ in range(3):
        if process.exitcode == COMPLETE:
            break
        process = start(folder)
        process.join()
    leftovers = [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
    if process.exitcode != COMPLETE:
        outcome.fault = f"never complete, the last process ended with {process.exitcode}"
    elif not same(final_state(folder), reference):
        outcome.fault = "other bits"
    elif leftovers:
        outcome.fault = f"files left behind: {leftovers}"
    return outcome


def halt_in_a_save(process: Any, folder: Path, rng: random.Random) -> None:
    """Stops the process at a moment at which a state is being written; returns without if it ends before."""
    while process.is_alive():
        if is_saving(folder):
            time.sleep(rng.uniform(0, 0.001))  # some way into the save, which may take no longer than that
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(0.01)  # it has stopped by then
            if is_saving(folder):
                return
            os.kill(process.pid, signal.SIGCONT)


def is_saving(folder: Path) -> bool:
    """Whether a state is being written, or was when its writer was killed."""
    return any(folder.glob(f".{STATE_FILE}.*.tmp"))


def outcomes(counts: dict[int, int], seed: int = 0) -> Iterator[Outcome]:
    """The runs asked for, one by one: so many that were killed by each signal."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "reference"
        for name in ("warm-up", "reference"):
            process = start(Path(root) / name)
            began = time.perf_counter()
            process.join()
            assert process.exitcode == COMPLETE, f"the undisturbed run ended with {process.exitcode}"
        seconds = time.perf_counter() - began
        reference = final_state(folder)
        number = 0
        for signum, count in counts.items():
            done = 0
            while done < count:
                number += 1
                aim = signum == signal.SIGKILL and done % 3 == 0
                outcome = run_with_a_kill(Path(root) / str(number), signum, seconds, reference, rng, aim=aim)
                if outcome is not None:
                    done += 1
                    yield outcome


def summarize(found: list[Outcome]) -> list[dict[str, Any]]:
    """A row for each signal: how many runs, how many killed inside a save, how many ended in the same bits."""
    rows = []
    for signum in COUNTS:
        of_signal = [outcome for outcome in found if outcome.signum == signum]
        rows.append(
            {
                "signal": signal.Signals(signum).name,
                "runs": len(of_signal),
                "inside_save": sum(outcome.is_inside_save for outcome in of_signal),
                "same_bits": sum(not outcome.fault for outcome in of_signal),
                "faults": [outcome.fault for outcome in of_signal if outcome.fault],
                "exit_codes": sorted({outcome.exit_code for outcome in of_signal}),
            }
        )
    return rows


def describe(row: dict[str, Any]) -> str:
    text = "{signal:<8} {runs:>4} runs, {inside_save:>3} killed inside a save, {same_bits:>4} ended in the same bits"
    return "\n    ".join([text.format(**row), *row["faults"]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seven kills instead of 140")
    options = parser.parse_args()
    rows = summarize(list(outcomes(QUICK if options.quick else COUNTS)))
    for row in rows:
        print(describe(row))
    return 0 if all(row["same_bits"] == row["runs"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
