"""What every benchmark of this folder does with its numbers: say where they come from, store them, print a table.

A result file holds a list of claims, each with name, value, unit, spread, seeds, command, hardware, versions, commit
and date. The README's tables of measurements are made from these files.
"""

import json
import os
import platform
import re
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from vit.training.run_folder import current_commit, write_json

RESULTS = Path(__file__).resolve().parent / "results"
CPU = torch.device("cpu")


def hide_gpus() -> None:
    """For what computes on the CPU alone, so that its claims name that. To be called before anything asks for a GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def hardware() -> str:
    """Processor and cores used, or the GPU's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def peak_memory(device: torch.device = CPU) -> int:
    """Bytes that this process, or on a GPU its tensors, had at the most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage counts what the parent held when it started this process
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def claim(
    name: str,
    values: list[float],
    unit: str,
    command: str,
    *,
    seeds: list[int] | None = None,
    is_median: bool = False,
) -> dict:
    """One entry: the mean of `values`, or their median, and their spread, the sample standard deviation (0 for one)."""
    middle = statistics.median if is_median else statistics.mean
    return {
        "name": name,
        "value": round(middle(values), 4),
        "unit": unit,
        "spread": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
        "values": [round(value, 4) for value in values],
        "seeds": seeds or [],
        "command": command,
        "hardware": hardware(),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "commit": current_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def publish(benchmark: str, claims: list[dict], *, store: bool = True) -> None:
    """Prints the claims as a table, and with `store` writes results/<benchmark>.json."""
    width = max(len(c["name"]) for c in claims)
    for c in claims:
        print(
            f"{c['name']:<{width}}  {c['value']:>10.4g} {c['unit']:<8} spread {c['spread']:.2g}, n={len(c['values'])}"
        )
    if store:
        write_json(RESULTS / f"{benchmark}.json", claims)


def load(benchmark: str) -> dict[str, dict]:
    """The stored claims of a benchmark, by name."""
    return {c["name"]: c for c in json.loads((RESULTS / f"{benchmark}.json").read_text())}
