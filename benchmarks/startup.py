"""How long a user waits: for `import vit`, for the model class (and so torch), for the first batch of CIFAR-10, and for
the quickstart notebook from a cold kernel to its last figure.

    python benchmarks/startup.py [--quick]

Each number is a fresh Python process, started to finished, with the data cached; the median of several.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

MODEL_CLASS = "import vit; vit.VisionTransformer"
FIRST_BATCH = """
import vit
data = vit.load_data({name!r})
train_loader, _ = vit.make_loaders(data, vit.TrainConfig())
images, labels = train_loader.batch(0, 0)
assert images.shape[1:] == (3, 32, 32)
"""


QUICKSTART = """
import sys, nbformat
sys.path.insert(0, {notebooks!r})
from execute import execute
execute(nbformat.read({notebooks!r} + "/00_quickstart.ipynb", as_version=4))
"""
NOTEBOOKS = str(Path(__file__).resolve().parents[1] / "notebooks")


def seconds(code: str) -> float:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"VIT_RUN_FOLDER": folder, "VIT_PROGRESS": "none"}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    report.hide_gpus()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run each, without the notebook; stores nothing")
    options = parser.parse_args()
    first_batch = FIRST_BATCH.format(name="shapes" if options.quick else "cifar10")
    cases = {"import": "import vit", "model_class": MODEL_CLASS, "first_batch": first_batch}
    if not options.quick:
        cases["quickstart"] = QUICKSTART.format(notebooks=NOTEBOOKS)
    runs = 1 if options.quick else 7
    times = {name: [] for name in cases}
    for _ in range(runs + (not options.quick)):  # the first round only warms the disk cache
        for name, code in cases.items():
            times[name].append(seconds(code))
    claims = []
    for name, values in times.items():
        claims.append(report.claim(name, values[-runs:], "s", "python benchmarks/startup.py", is_median=True))
    report.publish("startup", claims, store=not options.quick)


if __name__ == "__main__":
    main()
