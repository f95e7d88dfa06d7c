"""Draws the README's picture: an image, its patches, its tokens, and how accuracy grew in a run.

python benchmarks/picture.py runs/<folder of make train>
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import vit
from vit.model import patchify
from vit.plots.style import BLUE, GRAY, ORANGE, set_title
from vit.training import History

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "overview.png"


def draw(run_dir: Path) -> plt.Figure:
    """A strip of four panels, left to right the way an image takes through the network."""
    train = vit.load_data("shapes", seed=1).train
    image = train.images[train.labels == 6][0]  # a star
    patches = patchify(image[None], 4)[0].reshape(64, 3, 4, 4).permute(0, 2, 3, 1).numpy()
    rows = History.load_csv(run_dir / "history.csv").rows
    figure = plt.figure(figsize=(10, 2.9), layout="constrained")
    panels = figure.subplot_mosaic("ABCD", width_ratios=[1, 1.12, 0.95, 1.5])
    panels["A"].imshow(image.permute(1, 2, 0))
    set_title(panels["A"], "image, 32 x 32")
    panels["A"].set_anchor("N")

    exploded = np.full((8 * 5 - 1, 8 * 5 - 1, 3), 255, np.uint8)
    for n, patch in enumerate(patches):
        y, x = 5 * (n // 8), 5 * (n % 8)
        exploded[y : y + 4, x : x + 4] = patch
    panels["B"].imshow(exploded)
    set_title(panels["B"], "64 patches, 4 x 4")
    panels["B"].set_anchor("N")

    tokens = np.vstack([np.full((1, 3), np.nan), patches.reshape(64, -1, 3).mean(1) / 255])
    ax = panels["C"]
    for n, color in enumerate(tokens[:12]):
        is_cls = n == 0
        face = ORANGE if is_cls else tuple(color)
        ax.add_patch(plt.Rectangle((0.05, -n), 0.35, 0.8, facecolor=face, edgecolor="none"))
        ax.text(0.5, -n + 0.4, "CLS" if is_cls else f"patch {n - 1} + position", va="center", fontsize=7.5)
    ax.text(0.22, -12.2, "...", ha="center", fontsize=11, color=GRAY)
    ax.set(xlim=(0, 1.5), ylim=(-12.6, 1))
    set_title(ax, "65 tokens")
    for name in "ABC":
        panels[name].axis("off")

    ax = panels["D"]
    ax.plot(
        [0] + [r["seconds"] / 60 for r in rows], [10] + [r["val_accuracy"] for r in rows], color=BLUE, marker="o", lw=2
    )
    ax.set(
        xlabel="minutes of training on two CPU cores", ylabel="validation accuracy (%)", ylim=(0, 100), xlim=(0, None)
    )
    ax.annotate(f"{rows[-1]['val_accuracy']:.1f} %", (rows[-1]["seconds"] / 60, rows[-1]["val_accuracy"]),
                xytext=(-4, 8), textcoords="offset points", ha="right", color=BLUE, fontweight="bold")  # fmt: skip
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#E5E5E5")
    ax.set_axisbelow(True)
    set_title(ax, "CIFAR-10, from scratch")
    return figure


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    PICTURE.parent.mkdir(exist_ok=True)
    draw(Path(sys.argv[1])).savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
