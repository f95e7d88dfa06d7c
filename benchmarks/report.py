"""What every benchmark of this folder does with its numbers: say where they come from, store them, print a table.

A result file holds a list of claims, each with name, value, unit, spread, seeds, command, hardware, versions, commit
and date. The README's tables of measurements are made from these files.
"""

import json
import os
import platform
import re
import statistics
from datetime import UTC, datetime
from pathlib import Path

import torch

from vit.training.run_folder import current_commit, write_json

RESULTS = Path(__file__).resolve().parent / "results"


def hardware() -> str:
    """Processor and cores used, or the GPU's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


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
