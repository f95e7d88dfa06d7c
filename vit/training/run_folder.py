"""The folder of a run: what was asked for, what happened, what came out.

`config.json`, `history.csv`, `state.pt`, `model.safetensors`, `curves.png`, `summary.json` and the executed notebook
share one folder `runs/<time>-<name>/`, so that a result is never without its settings.
"""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from vit.config import TrainConfig
from vit.files import REPOSITORY, check_json, home, plain_number, replacing

CONFIG_FILE = "config.json"
_TIME = "%Y%m%d-%H%M%S"  # in front of a folder's name


def new_run_folder(name: str, root: str | Path | None = None, **settings: Any) -> Path:
    """Makes and returns a folder `<root>/<time>-<name>` with a `config.json`; no earlier run is ever written over.

    Args:
        name: letters, digits, '.', '_' and '-'.
        settings: what `config.json` shall hold, by name: configs, or anything JSON can.
        root: default $VIT_RUNS, else `runs/` in the repository. Without a root, and if $VIT_RUN_FOLDER is set, that is
            the folder of the first run, and holds those of more: so `make train` keeps the executed notebook beside its
            results.

    Raises:
        ValueError: `name` names no folder.
        TypeError: JSON cannot hold one of the settings; no folder is made then.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name={name!r} may hold letters, digits, '.', '_' and '-' only: it names a folder")
    config = {k: v.to_dict() if hasattr(v, "to_dict") else v for k, v in settings.items()}
    check_json(config)
    if root is None and os.environ.get("VIT_RUN_FOLDER"):
        folder = Path(os.environ["VIT_RUN_FOLDER"]).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CONFIG_FILE).exists():
            folder = _make_new(folder, name)
    else:
        folder = _make_new(runs_root(root), name)
    write_json(folder / CONFIG_FILE, config)
    return folder


def runs_root(root: str | Path | None = None) -> Path:
    """The folder that holds all runs: `root`, or $VIT_RUNS, or `runs/` in the repository, or in the working folder
    where there is only the package."""
    return Path(root or os.environ.get("VIT_RUNS") or home() / "runs").expanduser()


def _make_new(root: Path, name: str) -> Path:
    stem = f"{time.strftime(_TIME)}-{name}"
    for attempt in range(100):
        folder = root / (f"{stem}-{attempt + 1}" if attempt else stem)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"{root} already holds 100 runs named {stem}")


def began(folder: Path) -> tuple[int, float, str]:
    """When a run began, to sort by: the time in its folder's name, which a copy keeps, or else that of `config.json`.
    Within a second `config.json` decides."""
    try:
        written = (folder / CONFIG_FILE).stat().st_mtime
    except OSError:  # deleted meanwhile
        written = 0.0
    try:
        second = int(time.mktime(time.strptime(folder.name[:15], _TIME)))
    except (ValueError, OverflowError):
        second = int(written)
    return second, written, folder.name


def write_json(path: str | Path, values: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, default=plain_number) + "\n")


def write_summary(run_dir: str | Path, config: TrainConfig, **results: Any) -> dict[str, Any]:
    """Writes `summary.json`: the results given, and where they come from (seed, threads, torch version, commit).

    Raises:
        ValueError: a result has the name of what is written anyway.
        TypeError: JSON cannot hold one of the results.
    """
    sources = {
        "test_time_augmentation": config.test_time_augmentation,
        "epochs": config.epochs,
        "seed": config.seed,
        "torch_version": torch.__version__,
        "threads": torch.get_num_threads(),
        "commit": current_commit(),
    }
    if taken := sorted(results.keys() & sources.keys()):
        raise ValueError(
            f"{', '.join(taken)} cannot be a result: write_summary writes {', '.join(sources)} itself; leave it out "
            "or give it another name"
        )
    check_json(results)
    summary = results | sources
    write_json(Path(run_dir) / "summary.json", summary)
    return summary


def current_commit() -> str:
    """The commit of the repository, with "+" if the code differs from it; outside a git checkout $VIT_COMMIT, which is
    for whoever copies the code to another machine, or "unknown"."""
    try:
        _git("ls-files", "--error-unmatch", "vit")  # an installed package may lie within somebody else's repository
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--", "vit", "benchmarks/*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("VIT_COMMIT") or "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.strip()
