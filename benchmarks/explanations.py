"""Which explanation says best what a model looks at, and how far each is from chance.

    python benchmarks/explanations.py                     two of the networks that come with the library
    python benchmarks/explanations.py --model PATH        other weights, on their own dataset; stores nothing
    python benchmarks/explanations.py --quick             seconds, a network trained on the spot; stores nothing

For the first 512 test images and the class that the model predicts: the areas under the deletion and the insertion
curve; where the object's mask is known, also the share of heat on it and the pointing game. All in percent. "random" is
a random order of the patches or, for the last two, the exact level of chance. A claim is of one trained network; its
spread is half its 95 % interval, by bootstrap over the images.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

import vit
from vit.analysis.explain import METHODS, explain
from vit.analysis.faithfulness import (
    area,
    deletion_curve,
    insertion_curve,
    mask_area,
    mask_share,
    pointing_chance,
    pointing_game,
)
from vit.data import Split

MODELS = ("vit_nano_patch4_32.cifar10", "vit_nano_patch4_32.shapes")
NUM_IMAGES, NUM_RESAMPLES = 512, 2000
RANDOM = "random"
Scores = dict[str, dict[str, Tensor]]  # measure, method: percent (N,), one an image


def measure(model: vit.VisionTransformer, test: Split) -> Scores:
    """Every measure of every method for each image, the random order among them."""
    targets = vit.predict(model, test.images).argmax(dim=1)  # (N,)
    parts = list(zip(test.images.split(128), targets.split(128), strict=True))  # maps of all layers are large
    heat = {method: torch.cat([explain(model, x, method, targets=y) for x, y in parts]) for method in METHODS}
    known = heat[METHODS[0]]  # (N, rows, columns)
    heat[RANDOM] = torch.rand(known.shape, generator=torch.Generator().manual_seed(0))
    curves = {"deletion": deletion_curve, "insertion": insertion_curve}
    scores = {
        name: {method: 100 * area(curve(model, test.images, h, targets)) for method, h in heat.items()}
        for name, curve in curves.items()
    }
    if test.masks is not None:
        chance = {"mask_share": mask_area(test.masks), "pointing_game": pointing_chance(test.masks, known.shape[1:])}
        for name, score in {"mask_share": mask_share, "pointing_game": pointing_game}.items():
            scores[name] = {method: 100 * score(heat[method], test.masks).float() for method in METHODS}
            scores[name][RANDOM] = 100 * chance[name]
    return scores


def interval(values: Tensor) -> tuple[float, float]:
    """The 95 % interval of the mean of values (N,), by bootstrap; the same resamples for any values of that length."""
    chosen = torch.randint(len(values), (NUM_RESAMPLES, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values[chosen].mean(dim=1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def claims_of(dataset: str, scores: Scores, command: str) -> list[dict]:
    claims = []
    for name, of_method in scores.items():
        for method, values in of_method.items():
            low, high = interval(values)
            c = report.claim(f"{dataset}.{name}.{method}", [values.mean().item()], "%", command)
            c |= {"spread": round((high - low) / 2, 4), "interval": [round(low, 4), round(high, 4)]}
            claims.append(c | {"num_images": len(values)})
    return claims


def verdict(dataset: str, scores: Scores) -> list[str]:
    """A line a measure: the best method, its interval, chance, and the methods these images cannot tell from it."""
    lines = []
    for name, of_method in scores.items():
        sign = -1 if name == "deletion" else 1
        best = max(METHODS, key=lambda method: sign * of_method[method].mean().item())
        low, high = interval(of_method[best])
        # Image by image, since all methods see the same ones.
        gaps = {m: interval(sign * (of_method[best] - of_method[m])) for m in METHODS if m != best}
        level = ", ".join(m for m, (gap, _) in gaps.items() if gap <= 0) or "none"
        lines.append(
            f"{dataset:<8} {name:<14} {best:<17} {of_method[best].mean():5.1f} ({low:.1f} to {high:.1f})"
            f"   random {of_method[RANDOM].mean():5.1f}   level with it: {level}"
        )
    return lines


def quick_model() -> vit.VisionTransformer:
    """A small network that has seen the shapes for a few seconds."""
    config = vit.TrainConfig.preset("quick", device="cpu")
    data = vit.load_data("shapes", num_train=500, num_val=50, num_test=1)
    torch.manual_seed(config.seed)
    model = vit.VisionTransformer(vit.ViTConfig.preset("vit_pico_patch8_32"))
    model.metadata = data.metadata
    vit.fit(model, *vit.make_loaders(data, config), config)
    return model


def main() -> None:
    report.hide_gpus()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", metavar="PATH", help="names or files of weights for `vit.load`")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    models = [quick_model()] if options.quick else [vit.load(name) for name in options.model or MODELS]
    claims, lines = [], []
    for model in models:
        dataset = model.metadata["dataset"]
        sizes = {"num_train": 1, "num_val": 1, "num_test": NUM_IMAGES} if dataset == "shapes" else {}
        test = vit.load_data(dataset, **sizes).test
        scores = measure(model, test.subset(slice(32 if options.quick else NUM_IMAGES)))
        claims += claims_of(dataset, scores, "python benchmarks/explanations.py")
        lines += verdict(dataset, scores)
    report.publish("explanations", claims, store=not (options.quick or options.model))
    print("\nbest method; deletion: lower is better", *lines, sep="\n")


if __name__ == "__main__":
    main()
