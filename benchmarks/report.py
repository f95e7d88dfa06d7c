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
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import vit
from vit.training.run_folder import current_commit, write_json

RESULTS = Path(__file__).resolve().parent / "results"
CPU = torch.device("cpu")


def hide_gpus() -> None:
    """For what computes on the CPU alone, so that its claims name that. To be called before anything asks for a GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def hardware() -> str:
    """Processor and number of logical cores of this machine, or the GPU's name."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def processor() -> str:
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


def origin() -> dict[str, str]:
    """Where a number was measured; kept with a result of which a claim may be made on another day or machine."""
    return {
        "hardware": hardware(),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "commit": current_commit(),
    }


def claim(
    name: str,
    values: list[float],
    unit: str,
    command: str,
    *,
    seeds: list[int] | None = None,
    is_median: bool = False,
    origins: Sequence[dict] = (),
) -> dict:
    """One entry: the mean of `values`, or their median, and their spread, the sample standard deviation (0 for one).

    Args:
        origins: of results that were measured before, what each says of its `origin`; what one does not say, and
            everything where there are none, is taken from here and now.
    """
    middle = statistics.median if is_median else statistics.mean
    here = origin()
    sources = {key: list(dict.fromkeys(of.get(key, here[key]) for of in origins or [here])) for key in here}
    return {
        "name": name,
        "value": round(middle(values), 4),
        "unit": unit,
        "spread": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
        "values": [round(value, 4) for value in values],
        "seeds": seeds or [],
        "command": command,
        "hardware": " and ".join(sources["hardware"]),
        "versions": " and ".join(sources["versions"]),
        "commit": ", ".join(sources["commit"]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def publish(benchmark: str, claims: list[dict], *, store: bool = True, keep_others: bool = False) -> None:
    """Prints the claims as a table, and with `store` writes results/<benchmark>.json; with `keep_others` beside the
    claims of other names that are there."""
    width = max(len(c["name"]) for c in claims)
    for c in claims:
        print(
            f"{c['name']:<{width}}  {c['value']:>10.4g} {c['unit']:<8} spread {c['spread']:.2g}, n={len(c['values'])}"
        )
    if store:
        known = stored(benchmark) if keep_others else {}
        write_json(RESULTS / f"{benchmark}.json", list((known | {c["name"]: c for c in claims}).values()))


def stored(benchmark: str) -> dict[str, dict]:
    """The stored claims of a benchmark, by name; empty if there are none yet."""
    return load(benchmark) if (RESULTS / f"{benchmark}.json").exists() else {}


def load(benchmark: str) -> dict[str, dict]:
    """The stored claims of a benchmark, by name."""
    return {c["name"]: c for c in json.loads((RESULTS / f"{benchmark}.json").read_text())}


def seeds_in(folder: Path, name: str = "*") -> set[int]:
    """The seeds of the results <name>-seed<number>.json in a folder."""
    return {int(path.stem.rpartition("-seed")[2]) for path in folder.glob(f"{name}-seed*.json")}


def up_to_date(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a result was stored with, and the fields that its configs have got since, at their defaults."""
    train = vit.TrainConfig().to_dict()
    defaults = {"model": vit.ViTConfig().to_dict(), "train": train, "train_config": train}
    filled = {key: defaults[key] | value if key in defaults else value for key, value in settings.items()}
    return json.loads(json.dumps(filled))
