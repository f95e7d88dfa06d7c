"""The README's Python runs as it stands there, each block after the first, and gives what its comments say."""

import re
from ast import literal_eval
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import same_weights

import vit
from vit.data import make_shapes
from vit.data.cifar10 import CIFAR10_CLASSES
from vit.files import REPOSITORY

BLOCKS = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE)
# What does not run here, by its first line: it installs packages, or downloads the weights of others (test_formats.py).
ELSEWHERE = ("%pip install", "from vit.pretrained import")


class FakeCIFAR100:
    """What torchvision's dataset has, in the forms that it has it in: pixels (N, H, W, C), a list of classes."""

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        self.data = np.random.default_rng(int(train)).integers(0, 256, (6000, 32, 32, 3), np.uint8)
        self.targets = [i % 100 for i in range(6000)]
        self.classes = [f"class {k}" for k in range(100)]


@pytest.fixture
def few_pictures(monkeypatch, tmp_path) -> None:
    """The data and the epochs of seconds, in an empty folder: drawn shapes under the names of CIFAR-10's classes."""
    shapes = make_shapes(num_train=400, num_val=50, num_test=50)
    cifar10 = replace(shapes, name="cifar10", class_names=CIFAR10_CLASSES)
    recipe = vit.recipe
    monkeypatch.setattr(vit, "load_data", lambda name: {"cifar10": cifar10}[name])
    monkeypatch.setattr(vit, "recipe", lambda name, **changes: recipe(name, **changes, epochs=2, device="cpu"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def names_after() -> Iterator[Callable[..., dict[str, Any]]]:
    """What is defined after the block with these words has run, where `names` were; in the end all have to have run."""
    left = list(BLOCKS)

    def run(words: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
        (block,) = [block for block in BLOCKS if words in block]
        names = dict(names or {})
        exec(block, names)
        if block in left:
            left.remove(block)
        return names

    yield run
    assert [block for block in left if not block.startswith(ELSEWHERE)] == []


def test_readme_runs(few_pictures, names_after, capsys, monkeypatch):
    first = names_after('recipe("cpu_5min"')
    model, config, data = (first[name] for name in ("model", "config", "data"))
    assert len(vit.training.load_run("runs/first").history) == 2
    assert same_weights(vit.load("runs/first/model.safetensors"), model)
    assert literal_eval(capsys.readouterr().out.splitlines()[-1]).keys() == set(CIFAR10_CLASSES)

    inside = names_after("AttentionExplorer(", first)
    layers, heads, tokens = 6, 3, 65
    assert inside["maps"].shape == (layers, 16, heads, tokens, tokens)
    assert inside["heat"].shape == (16, 8, 8)
    assert inside["alike"].shape[0] == 16
    assert inside["distances"].shape == (layers, heads)

    adapted = names_after("lora.add(", first)
    assert adapted["probabilities"].shape == (len(adapted["data"].test), 5)
    merged = vit.load("runs/adapted.safetensors")
    assert merged.metadata["class_names"] == list(CIFAR10_CLASSES[5:])
    images = adapted["data"].test.images
    torch.testing.assert_close(vit.predict(merged, images), vit.predict(adapted["adapted"], images))

    names_after("with processes(", first)
    assert len(vit.training.load_run("runs/script").history) == 2

    own = {f"{split}_images": data.train.images[:8] for split in ("train", "val", "test")}
    own |= {f"{split}_labels": torch.arange(8) % 2 for split in ("train", "val", "test")}
    mine = names_after('DataSplits("mine"', own | {"vit": vit, "torch": torch})
    assert mine["data"].num_classes == 2

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", FakeCIFAR100)
    of_100 = names_after("CIFAR100(", mine)
    assert [len(getattr(of_100["data"], name)) for name in ("train", "val", "test")] == [1000, 5000, 6000]
    first_image = torch.from_numpy(FakeCIFAR100("data", train=False, download=True).data[0])  # (H, W, C)
    assert torch.equal(of_100["data"].test.images[0].permute(1, 2, 0), first_image)
    assert of_100["model_config"].num_classes == of_100["data"].num_classes == 100

    rare = replace(
        data, train=data.train.subset(torch.cat([torch.where(data.train.labels == c)[0][: 4 + c] for c in range(10)]))
    )
    drawn = [names_after("multinomial", first | {"data": rare})["even"].train.labels for _ in range(100)]
    shares = torch.cat(drawn).bincount(minlength=10) / torch.cat(drawn).numel()
    assert (shares - 0.1).abs().max() < 5 * (0.1 * 0.9 / torch.cat(drawn).numel()) ** 0.5

    torch.manual_seed(config.seed)
    again = vit.VisionTransformer(model.config)
    watched = names_after("after_epoch=watch", first | {"model": again})["watched"]
    assert [maps.shape[1] for maps in watched] == [16, 16] and not torch.equal(*watched)
    assert same_weights(again, vit.load("runs/first/model.safetensors"))  # nobody has watched these
