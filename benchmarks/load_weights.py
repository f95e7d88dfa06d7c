"""How long a ViT-B/16, of 86.6 million parameters, takes to load, and how much memory: from a file of this library, of
timm, of transformers, and from a .pth, with all the checks that loading makes.

    python benchmarks/load_weights.py [--quick]

Each number is a fresh process, imports not counted, reading random weights that were written just before, so from a
warm cache of the disk. Memory is the peak of the process while loading, less what it held before, over the size of the
weights: 1 is the model alone. Linux only, where the peak can be set back.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
import torch
from safetensors.torch import load_file

import vit
from vit.pretrained import load_weights, to_timm, to_transformers

COMMAND = "python benchmarks/load_weights.py"
SOURCES = {"own": "own.safetensors", "timm": "timm/model.safetensors", "transformers": "hf", "pth": "weights.pth"}


def write_sources(folder: Path, model: vit.VisionTransformer) -> None:
    """The same weights in the four forms."""
    vit.save(model, folder / SOURCES["own"])
    to_timm(model, folder / "timm")
    to_transformers(model, folder / "hf")
    torch.save({"model": load_file(folder / SOURCES["timm"])}, folder / SOURCES["pth"])


def measure(kind: str, path: str) -> dict[str, float]:
    """Seconds and share of memory of one loading, in this process."""
    vit.VisionTransformer(vit.ViTConfig(depth=1))  # what torch sets up at its first use
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kilobytes("VmRSS")
    started = time.perf_counter()
    model = vit.load(path) if kind == "own" else load_weights(None, path, report=None)
    seconds = time.perf_counter() - started
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1024
    return {"seconds": seconds, "memory": (kilobytes("VmHWM") - before) / size}


def kilobytes(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def main() -> None:
    report.hide_gpus()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="once, with a small model; stores nothing")
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "PATH"), help="load one file in this process")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    preset = "vit_tiny_patch16_224" if options.quick else "vit_base_patch16_224"
    runs = 1 if options.quick else 7
    kinds = ["own", "transformers"] if options.quick else list(SOURCES)
    claims = []
    with tempfile.TemporaryDirectory() as name:
        write_sources(Path(name), vit.VisionTransformer(vit.ViTConfig.preset(preset)))
        for kind in kinds:
            command = [sys.executable, __file__, "--measure", kind, str(Path(name) / SOURCES[kind])]
            found = [json.loads(subprocess.check_output(command, text=True)) for _ in range(runs)]
            for key, unit in (("seconds", "s"), ("memory", "x")):
                values = [run[key] for run in found]
                claims.append(report.claim(f"{kind}_{key}", values, unit, COMMAND, is_median=True))
    report.publish("load_weights", claims, store=not options.quick)


if __name__ == "__main__":
    main()
