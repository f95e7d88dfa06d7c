"""Small things that most tests share."""

import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from unittest import mock

# Two threads make tiny tensors slower, and the number of threads changes the last bits of a result.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VIT_PROGRESS", "none")

import numpy as np
import pytest
import report
import torch
from PIL import Image
from torch import nn

from vit.config import ViTConfig
from vit.data import DataSplits, make_shapes

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test draws the same whichever ran before it, so that a failure can be repeated alone."""
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> ViTConfig:
    """A model small enough for float64 and finite differences."""
    return ViTConfig(image_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)


@pytest.fixture(scope="session")
def shapes() -> DataSplits:
    return make_shapes(num_train=400, num_val=100, num_test=100, image_size=16, seed=3)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Forgets what was compiled: torch compiles a method for eight kinds of network, others run as they are."""
    yield
    if "torch._dynamo" in sys.modules:  # whose import takes seconds
        torch.compiler.reset()


@pytest.fixture
def frozen_objects() -> Iterator[None]:
    """Hides from the garbage collector what there is already, a million objects of other libraries."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def plain_figures(monkeypatch) -> None:
    """Figures whose parts are not laid out, which takes longer than to draw them; for tests that compare figures."""
    from vit.plots.style import STYLE

    monkeypatch.setitem(STYLE, "figure.constrained_layout.use", False)


@pytest.fixture
def run_quick(monkeypatch, capsys) -> Callable[..., list[str]]:
    """Runs the quick form of a benchmark in this process; returns the lines it prints, once it has stored nothing."""

    def run(module: ModuleType, *arguments: str) -> list[str]:
        before = {path.name: path.read_bytes() for path in report.RESULTS.glob("*.json")}
        monkeypatch.setattr(sys, "argv", [module.__name__, "--quick", *arguments])
        try:
            with mock.patch.dict(os.environ):  # which a benchmark may change for itself, as it is a program
                module.main()
        finally:
            assert {path.name: path.read_bytes() for path in report.RESULTS.glob("*.json")} == before
        return capsys.readouterr().out.splitlines()

    return run


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter a random value: many start at zero, where a wrong use of them would not show."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        # Drawn in float64, so that a model has the same weights in either precision.
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(values * (0.5 if parameter.ndim < 2 else parameter.shape[1:].numel() ** -0.5))
    return model


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks hold the same bits by the same names."""
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def drawn(figure) -> np.ndarray:
    """The pixels of a figure, as the panels draw it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return np.asarray(Image.open(file).convert("RGB"))


def pictures(figure) -> list[np.ndarray]:
    """The arrays behind the images of a figure, axes by axes."""
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]


def is_whole(figure) -> bool:
    """Whether all that a figure draws lies within its picture."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()  # both in inches
    return bool(min(box.x0, box.y0) > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02)


def overlapping(texts) -> list[tuple[str, str]]:
    """The pairs of texts of a drawn figure that meet."""
    boxes = [(text.get_window_extent(), text.get_text()) for text in texts if text.get_text()]
    return [(a, b) for i, (one, a) in enumerate(boxes) for other, b in boxes[:i] if one.overlaps(other)]
