"""Stores the time that `make train` took, from the run folders it left.

python benchmarks/make_train.py runs/<folder> [runs/<folder> ...]
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    summaries = [json.loads((Path(folder) / "summary.json").read_text()) for folder in sys.argv[1:]]
    seconds = [summary["train_seconds"] for summary in summaries]
    seeds = [summary["seed"] for summary in summaries]
    origins = [summary | {"versions": f"torch {summary['torch_version']}"} for summary in summaries]
    report.publish(
        "make_train", [report.claim("train_seconds", seconds, "s", "make train", seeds=seeds, origins=origins)]
    )


if __name__ == "__main__":
    main()
