"""Fashion-MNIST: ten kinds of clothes in gray, from the files of the Debian package or of the authors.

A second target for transfer, and a trap: it is so easy that raw pixels do well, and so says little of what a network
has learned before. Nothing is downloaded; what is read must match known hashes.
Source: Xiao et al., "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017.
"""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit.data.splits import DataSplits, Split, make_val_split
from vit.files import data_root
from vit.normalization import channel_statistics

FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# Of the files once unpacked; bytes and SHA-256.
FILES = {
    "train-images-idx3-ubyte": (47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels-idx1-ubyte": (60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte": (7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels-idx1-ubyte": (10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}


def load_fashion_mnist(root: str | Path | None = None, *, val_size: int = 5000, seed: int = 0) -> DataSplits:
    """Fashion-MNIST in memory, as networks for CIFAR-10 take it: 28x28 pixels with a black margin of 2, gray in all of
    three channels.

    Args:
        root: the folder of the four `.gz` files; by default `fashion-mnist/` in the data folder ($VIT_DATA), else the
            Debian package's.
        val_size: images cut from the train images for validation, 1 to 59,999.
        seed: decides which ones; 0 or more.

    Raises:
        FileNotFoundError: the files are not there; the message says how to get them.
        ValueError: a file is not the official one.
    """
    folder = _folder(root)
    train_images, train_labels, test_images, test_labels = (_read(folder, name) for name in FILES)
    train_images = _as_rgb32(train_images)
    train, val = make_val_split(train_images, train_labels.long(), val_size, seed)
    test = Split(_as_rgb32(test_images), test_labels.long())
    mean, std = channel_statistics(train_images)
    return DataSplits("fashion_mnist", train, val, test, FASHION_CLASSES, mean, std)


def _folder(root: str | Path | None) -> Path:
    places = [data_root() / "fashion-mnist", DEBIAN] if root is None else [Path(root).expanduser()]
    for place in places:
        if all((place / f"{name}.gz").is_file() for name in FILES):
            return place
    raise FileNotFoundError(
        f"Fashion-MNIST is not in {' or '.join(map(str, places))}: apt-get install dataset-fashion-mnist, or put "
        f"{', '.join(f'{name}.gz' for name in FILES)} of github.com/zalandoresearch/fashion-mnist there"
    )


def _read(folder: Path, name: str) -> Tensor:
    """The numbers of an IDX file, verified: images (N, 28, 28) or labels (N,), uint8."""
    size, sha256 = FILES[name]
    path = folder / f"{name}.gz"
    try:
        with gzip.open(path) as file:
            content = file.read(size + 1)  # a byte more than there should be, never a bomb
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not the official file: its content does not have the known SHA-256")
    values = torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())
    return values[16:].reshape(-1, 28, 28) if "images" in name else values[8:]


def _as_rgb32(images: Tensor) -> Tensor:
    padded = F.pad(images, (2, 2, 2, 2))  # (N, 32, 32)
    return padded[:, None].repeat(1, 3, 1, 1)  # (N, 3, 32, 32)
