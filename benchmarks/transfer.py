"""What pretraining on five classes of CIFAR-10 is worth on the other five.

python benchmarks/transfer.py --pretrain      the checkpoint: 12 epochs of classes 0 to 4, about 12 minutes on a core
"""

import argparse
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import vit
from vit.data import DataSplits, keep_classes
from vit.training.run_folder import REPOSITORY, current_commit

RUNS = Path(os.environ.get("VIT_RUNS") or REPOSITORY / "runs") / "transfer"
SOURCE, TARGET = range(5), range(5, 10)
MODEL = vit.ViTConfig.preset("vit_nano_patch4_32", num_classes=5)
# No label smoothing: it makes the classes it was trained on tighter, and what it knows beside them less.
PRETRAINING = vit.TrainConfig(
    epochs=12, label_smoothing=0.0, crop_padding=4, patch_drop_rate=0.5, patch_drop_until=0.8, device="cpu"
)


def pretrain(data: DataSplits) -> vit.VisionTransformer:
    """The network trained on the source classes alone; an interrupted run goes on where it stopped."""
    folder = RUNS / "pretraining"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(PRETRAINING.seed)
    model = vit.VisionTransformer(MODEL)
    model.metadata = data.metadata
    loaders = vit.make_loaders(data, PRETRAINING)
    resume = (folder / "state.pt").exists()
    history = vit.fit(model, *loaders, PRETRAINING, run_dir=folder, resume=resume)
    facts = {"train_config": PRETRAINING.to_dict(), "commit": current_commit(), "num_images": len(data.train)}
    vit.save(model, folder / "model.safetensors", val_accuracy=history.last["val_accuracy"], **facts)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain", action="store_true")
    parser.parse_args()
    torch.set_num_threads(1)
    pretrain(keep_classes(vit.load_data("cifar10"), SOURCE))


if __name__ == "__main__":
    main()
