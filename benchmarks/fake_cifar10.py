"""Random images in every form that CIFAR-10 is handed round in, for tests and for damage; members of an archive are
{name: content}."""

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from vit.data.cifar10_forms import BATCHES

Batch = tuple[np.ndarray, np.ndarray]  # uint8 images (N, 3, 32, 32), uint8 labels (N,)


def random_batches(records: int) -> dict[str, Batch]:
    """The six batches of CIFAR-10, by name, with so many images in each."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (records, 3, 32, 32), np.uint8), rng.integers(0, 10, records, np.uint8))
        for name in BATCHES
    }


def arrays_of(batches: dict[str, Batch]) -> dict[str, np.ndarray]:
    """The four arrays that are kept once it is loaded."""
    images, labels = zip(*batches.values(), strict=True)
    return {
        "train_images": np.concatenate(images[:5]),
        "train_labels": np.concatenate(labels[:5]),
        "test_images": images[5],
        "test_labels": labels[5],
    }


def hashes_of(batches: dict[str, Batch]) -> dict[str, str]:
    return {name: hashlib.sha256(array).hexdigest() for name, array in arrays_of(batches).items()}


def binary_members(batches: dict[str, Batch]) -> dict[str, bytes]:
    return {
        f"cifar-10-batches-bin/{name}.bin": np.column_stack([labels, images.reshape(len(images), -1)]).tobytes()
        for name, (images, labels) in batches.items()
    }


def python_members(batches: dict[str, Batch]) -> dict[str, bytes]:
    return {f"cifar-10-batches-py/{name}": python2_pickle(*batch) for name, batch in batches.items()}


def python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """What Python 2 wrote: no Python 3 can, since it has another idea of strings."""
    pixels, count = images.tobytes(), bytes([len(images)])
    return b"".join(
        [
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(",
            *[b"K" + bytes([label]) for label in labels],
            b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b",
            b"\x87Rq\t(K\x01K" + count + b"M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03",
            b"U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T",
            struct.pack("<I", len(pixels)),
            pixels,
            b"tbU\tfilenamesq\x0c]q\r(U\x05a.pngq\x0eeu.",
        ]
    )


def npm_members(batches: dict[str, Batch]) -> dict[str, bytes]:
    members = {"package/package.json": b"{}"}
    for name, (images, _) in batches.items():
        file = io.BytesIO()
        Image.fromarray(images.transpose(0, 2, 3, 1).reshape(len(images), 1024, 3)).save(file, "PNG")
        members[f"package/{name}.png"] = file.getvalue()
    arrays = arrays_of(batches)
    for split in ("train", "test"):
        members[f"package/{split}_lables.json"] = json.dumps(arrays[f"{split}_labels"].tolist()).encode()
    return members


def write_tar(path: Path, members: dict[str, bytes], extra: Iterable[tarfile.TarInfo] = ()) -> Path:
    """Writes an archive; `extra` are members without content, put first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for info in extra:
            tar.addfile(info)
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path
