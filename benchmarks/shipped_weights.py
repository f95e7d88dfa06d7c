"""Trains the weights that come with the library and writes them to vit/pretrained/shipped/, with all that is known
about them in their metadata.

    python benchmarks/shipped_weights.py vit_nano_patch4_32.cifar10
    python benchmarks/shipped_weights.py vit_nano_patch4_32.shapes --threads 1

A run that was interrupted goes on where it stopped; it is kept in runs/shipped-<name>/.
"""

import argparse
from dataclasses import replace

import torch

import vit
from vit.data import keep_classes
from vit.pretrained.weights import SHIPPED
from vit.training.run_folder import current_commit, runs_root

RUNS = runs_root()
MODEL = vit.ViTConfig.preset("vit_nano_patch4_32")
# name: what to train on, the network, how
RECIPES = {
    "vit_nano_patch4_32.cifar10": (
        lambda: vit.load_data("cifar10"),
        MODEL,
        vit.TrainConfig(epochs=30, crop_padding=4, device="cpu"),
    ),
    "vit_fast8_patch4_32.cifar10": (lambda: vit.load_data("cifar10"), *vit.recipe("cpu_2h", device="cpu")),
    # Half of the classes, for transfer to the others. Without label smoothing, which makes features transfer less: see
    # Kornblith et al., "Why Do Better Loss Functions Lead to Less Transferable Features?", NeurIPS 2021.
    "vit_nano_patch4_32.cifar10_0to4": (
        lambda: keep_classes(vit.load_data("cifar10"), range(5)),
        replace(MODEL, num_classes=5),
        vit.TrainConfig(
            epochs=12, label_smoothing=0.0, crop_padding=4, patch_drop_rate=0.5, patch_drop_until=0.8, device="cpu"
        ),
    ),
    "vit_nano_patch4_32.shapes": (
        lambda: vit.load_data("shapes", num_train=20_000, num_val=1000, num_test=2000),
        MODEL,
        vit.TrainConfig(epochs=6, device="cpu"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--threads", type=int, help="CPU threads; the default is torch's own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    make_data, model_config, config = RECIPES[options.name]
    data = make_data()
    folder = RUNS / f"shipped-{options.name}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = vit.VisionTransformer(model_config)
    model.metadata = data.metadata
    train_loader, val_loader = vit.make_loaders(data, config)
    resume = (folder / "state.pt").exists()
    history = vit.fit(model, train_loader, val_loader, config, run_dir=folder, resume=resume)
    test = vit.evaluate(model, vit.make_eval_loader(data, data.test), config)
    drop = {"patch_drop_rate": config.patch_drop_rate, "patch_drop_until": config.patch_drop_until}
    path = vit.save(
        model,
        SHIPPED / f"{options.name}.safetensors",
        trained_on=f"{data.name}, {len(data.train)} images",
        test_accuracy=round(test.accuracy, 2),
        val_accuracy=round(history.last["val_accuracy"], 2),
        train_flops=vit.train_flops(model, config.epochs * len(data.train), **drop),
        train_config=config.to_dict(),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        command=f"python benchmarks/shipped_weights.py {options.name}",
        commit=current_commit(),
    )
    print(f"{path.name}: test accuracy {test.accuracy:.2f} %, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
