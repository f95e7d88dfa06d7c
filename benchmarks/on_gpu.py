"""All that waits for a GPU, one step after another: a command to be started again until it says that nothing is left.

    python benchmarks/on_gpu.py                        for 9.5 minutes; what is stored already is not done again
    python benchmarks/on_gpu.py --minutes 240          at once
    python benchmarks/on_gpu.py --steps record_10      some of it
    python benchmarks/on_gpu.py --quick                every step in small, on a CPU; stores nothing

What a step measures, and how, is said by the program that it runs. A step that does not fit into the minutes that are
left gives way to a later one, and while something is left the exit status is 75. The network of the records is the one
that is ahead in the probe.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from record import NETWORKS
from speedrun import UNFINISHED

from vit.device import resolve_device
from vit.files import REPOSITORY

RECORD = "benchmarks/record.py"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is run, how many seconds have to be left for it, and what is stored once it is done.

    Args:
        claim: benchmark and name of a claim of its results; none for a program that keeps to --minutes-per-command and
            knows by itself what is left.
        of_network: whether it is told which network to train.
    """

    command: tuple[str, ...]
    seconds: float = 240
    claim: tuple[str, str] | None = None
    of_network: bool = False

    def is_done(self) -> bool:
        return self.claim is not None and self.claim[1] in report.stored(self.claim[0])

    def arguments(self, *, seconds_left: float, quick: bool) -> list[str]:
        """What python is told."""
        arguments = [*self.command, *(["--network", better_network()] if self.of_network else [])]
        if self.claim is None:
            arguments += ["--minutes-per-command", f"{seconds_left / 60:.2f}"]
        return arguments + ["--quick"] * (quick and self.command[0] != "-m")


STEPS = {
    "tests": Step(
        command=("-m", "pytest", "-q", "tests", "-k", "wait_for_the_gpu or training_on_a_gpu"),
        seconds=60,
        claim=("record_ceiling", "matrix_product"),  # which the next one stores
    ),
    "ceiling": Step(command=(RECORD, "--ceiling"), seconds=150, claim=("record_ceiling", "matrix_product")),
    "probe": Step(command=(RECORD, "--probe"), seconds=330, claim=("record_probe", f"probe.{[*NETWORKS][-1]}")),
    "speedrun": Step(command=("benchmarks/speedrun.py",)),
    "record_10": Step(command=(RECORD, "--minutes", "10"), of_network=True),
    "timm": Step(command=(RECORD, "--timm"), seconds=90, claim=("record_ceiling", "step.timm")),
    "record_30": Step(command=(RECORD, "--minutes", "30"), of_network=True),
    "record_30_mae": Step(command=(RECORD, "--minutes", "30", "--pretrain", "mae"), of_network=True),
}


def better_network() -> str:
    """The one that is ahead in the probe; the first, where there was none."""
    found = report.stored("record_probe")
    return max(NETWORKS, key=lambda network: found[f"probe.{network}"]["value"] if found else 0.0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=[*STEPS])
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if not options.quick and resolve_device().type != "cuda":
        sys.exit("there is no GPU; --quick takes every step in small on a CPU")
    deadline, left = time.monotonic() + 60 * options.minutes, []
    for name in options.steps:
        step, seconds = STEPS[name], deadline - time.monotonic()
        if step.is_done() and not options.quick:
            continue
        if seconds < step.seconds:
            left.append(name)
            continue
        print(f"\n{name}, {seconds:.0f} s left", flush=True)
        arguments = step.arguments(seconds_left=seconds, quick=options.quick)
        status = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, check=False).returncode
        if status == UNFINISHED:
            left.append(name)
        elif status:
            sys.exit(f"{name} ended with status {status}: python {' '.join(arguments)}")
    if left:
        print(f"\nstill to come: {', '.join(left)}. Start the same command again")
        sys.exit(UNFINISHED)
    print("\nnothing is left")


if __name__ == "__main__":
    main()
