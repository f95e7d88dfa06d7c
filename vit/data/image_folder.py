"""Pictures of your own, one folder a class, as the three splits of a dataset.

    photos/cat/1.jpg  photos/cat/2.png  photos/dog/a.jpg  ...             ->  load_image_folder("photos")
    photos/train/cat/1.jpg  photos/test/cat/2.png  photos/val/dog/a.jpg   ->  the same, split already

Which picture goes where depends on the names in its class and the seed alone, not on the order in which a disk lists
its files. A picture that is saved twice is used once, for the test before anything else: in two splits it would be
scored from memory. What a file may be, and how it is brought to size, is the concern of vit/pictures.py.
"""

import hashlib
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit.arguments import as_integer, as_size, is_number
from vit.data.splits import DataSplits, Split, check_labels
from vit.normalization import channel_statistics
from vit.pictures import SUFFIXES, picture_to_tensor
from vit.progress import progress_bar, say

_LEFTOVERS = {"Thumbs.db", "desktop.ini", "__MACOSX"}  # of operating systems; like hidden files they are no pictures
_SHOWN = 5  # faults that one message lists
# Names of the folders of data that is split already, in the order in which pictures are read.
_SPLITS = {"test": ("test",), "val": ("val", "valid", "validation"), "train": ("train",)}


def load_image_folder(
    path: str | Path,
    *,
    image_size: int | tuple[int, int] = 32,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    skip_unreadable: bool = False,
) -> DataSplits:
    """The pictures of a folder `path/<class>/<picture>`, resized with antialiasing and cut to their middle.

    Each class is split by itself, so that all splits have the same mixture, and gives at least one picture to each.
    Where `path` holds a folder "train" with the classes in it, and "val" or "test" beside it, those are taken as they
    are, and one that is missing is cut from "train". All pictures stay in memory, N x 3 x H x W bytes.

    Args:
        image_size: pixels, one side of a square or (height, width).
        val_fraction, test_fraction: shares of every class, each in (0, 1), together below 1.
        seed: decides the split and the order in it; 0 or more.
        skip_unreadable: leave out files that are no pictures and say which, where otherwise an error lists them.

    Returns: images (N, 3, H, W); classes in alphabetical order; mean and std of the train images.

    Raises:
        FileNotFoundError: there is no folder at `path`.
        TypeError: `path` is no path.
        ValueError: an argument, the folder, or a file in it cannot be used; the message says which and why.
    """
    size, seed = as_size(image_size), as_integer("seed", seed)
    _check_fractions(val_fraction, test_fraction)
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path={path!r} must be the path of a folder")
    if path == "":
        raise ValueError("path='' names no folder")  # and must not stand for the working folder
    root = Path(path).expanduser()
    files = _find(root)
    class_names = tuple(files["train"])
    fractions = (0.0 if "val" in files else val_fraction, 0.0 if "test" in files else test_fraction)
    for name, paths in files["train"].items():
        _counts(name, len(paths), fractions)  # before any picture is read
    images, origins = _read(files, class_names, size, skip_unreadable)
    everything = Split(images, torch.tensor([label for _, label in origins], dtype=torch.int64, device="cpu"))
    train, val, test = (
        everything.subset(members[_permutation(len(members), seed, split)])
        for split, members in _assigned(origins, class_names, fractions, seed).items()
    )
    mean, std = channel_statistics(train.images)
    return DataSplits(root.resolve().name, train, val, test, class_names, mean, std)


def save_image_folder(split: Split, class_names: tuple[str, ...], path: str | Path) -> Path:
    """Writes a split as `path/<class>/<number>.png`, the form that `load_image_folder` reads; returns the folder.

    Args:
        split: images of 1 or 3 channels.
        class_names: one for each label; each becomes the name of a folder.

    Raises:
        FileExistsError: there is something in the folder, with which the pictures would mix.
        ValueError: names that are too few or can be no folder of their own, or images of other channels.
    """
    check_labels(split.labels, len(class_names), "with these class_names")
    for i, name in enumerate(class_names):
        is_plain = isinstance(name, str) and name and not set(name) & set("/\\\0")
        if not is_plain or name.startswith(".") or name in _LEFTOVERS:  # which the loader skips, and ".." leads outside
            raise ValueError(
                f"class_names[{i}]={name!r} cannot name a class folder: use a text without / and \\ and without a dot "
                "in front"
            )
    if len(set(class_names)) < len(class_names):
        raise ValueError("class_names names a class twice: their pictures would mix in one folder")
    if (channels := split.images.shape[1]) not in (1, 3):
        raise ValueError(f"split has images of {channels} channels: pictures are gray or RGB, of 1 or 3")
    root = Path(path).expanduser()
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty: take a new folder for these pictures")
    for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        folder = root / class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = image.expand(3, -1, -1).permute(1, 2, 0)  # (H, W, 3)
        Image.fromarray(pixels.numpy()).save(folder / f"{number:05d}.png")
    return root


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not is_number(value) or not 0 < value < 1:
            raise ValueError(f"{name}={value!r} must be a number between 0 and 1, neither included; try 0.15")
    if val_fraction + test_fraction >= 1:
        raise ValueError(f"val_fraction={val_fraction} and test_fraction={test_fraction} leave nothing to train on")


def _counts(name: str, count: int, fractions: tuple[float, float]) -> tuple[int, int]:
    """How many pictures of a class are for validation, and how many for the test."""
    num_val, num_test = (max(1, round(count * fraction)) if fraction else 0 for fraction in fractions)
    if num_val + num_test >= count:
        raise ValueError(
            f"class {name!r} has {count} different pictures: with {num_val} for validation and {num_test} for the test "
            f"none is left to train on; it needs {1 + sum(map(bool, fractions))} or more, or smaller fractions"
        )
    return num_val, num_test


def _assigned(
    origins: list[tuple[str, int]], class_names: tuple[str, ...], fractions: tuple[float, float], seed: int
) -> dict[str, Tensor]:
    """The pictures of train, val and test, by number: where they were found, or cut from train class by class."""
    found = defaultdict(list)
    for i, origin in enumerate(origins):
        found[origin].append(i)
    splits: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for (split, _), members in found.items():
        if split != "train":
            splits[split] += members
    for label, name in enumerate(class_names):
        members = torch.tensor(found["train", label], device="cpu")
        num_val, num_test = _counts(name, len(members), fractions)
        members = members[_permutation(len(members), seed, name)]
        sizes = (len(members) - num_val - num_test, num_val, num_test)
        for split, chosen in zip(splits, members.split(sizes), strict=True):
            splits[split] += chosen.tolist()
    for split, members in splits.items():
        if not members:
            raise ValueError(f"no picture of {split} can be used: they cannot be read, or are in another split, too")
    return {split: torch.tensor(members, device="cpu") for split, members in splits.items()}


def _permutation(count: int, seed: int, name: str) -> Tensor:
    """An order that depends on the seed and a name, so that a new class moves no picture of another."""
    return torch.from_numpy(np.random.default_rng((seed, *os.fsencode(name))).permutation(count))


# From a folder to files


def _find(root: Path) -> dict[str, dict[str, list[Path]]]:
    """The files of every split and class; those of a folder that is not split yet are all of "train"."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder at {root}")
    folders = [entry for entry in _visible(root) if entry.is_dir()]
    splits = {}
    for split, names in _SPLITS.items():
        of_split = [folder for folder in folders if folder.name.lower() in names]
        if len(of_split) > 1:
            raise ValueError(f"{of_split[0]} and {of_split[1]} are both for {split}; keep one of them")
        if of_split:
            splits[split] = of_split[0]
    # Classes may have such names too, but hold no folders.
    is_split = "train" in splits and len(splits) == len(folders) > 1
    if not is_split or not any(entry.is_dir() for entry in _visible(splits["train"])):
        return {"train": _classes(root)}
    files = {split: _classes(folder) for split, folder in splits.items()}
    for split, classes in files.items():
        if unknown := ", ".join(name for name in classes if name not in files["train"]):
            raise ValueError(f"{splits[split]} has classes that {splits['train']} has not: {unknown}")
    return files


def _classes(root: Path) -> dict[str, list[Path]]:
    """The files of every class, both in alphabetical order."""
    form = f"pictures are expected as {root}/<class>/<picture>"
    entries = _visible(root)
    for entry in entries:
        if entry.is_symlink() and not entry.exists():
            raise ValueError(f"{entry} is a link that leads nowhere; {form}")
        if not entry.is_dir() and entry.suffix.lower() in SUFFIXES:
            raise ValueError(f"{entry} is in no class folder; {form}")
    folders = [entry for entry in entries if entry.is_dir()]
    if len(folders) < 2:
        found = f"one class folder, {folders[0].name!r}" if folders else "no class folder"
        raise ValueError(f"{root} holds {found}; a classifier needs two or more, and {form}")
    return {folder.name: _members(folder) for folder in folders}


def _members(folder: Path) -> list[Path]:
    entries = _visible(folder)
    if not entries:
        raise ValueError(f"class folder {folder} holds no picture; fill it or remove it")
    for entry in entries:
        if entry.is_dir():
            raise ValueError(
                f"class folder {folder} holds a folder, {entry.name!r}, and should hold pictures only; "
                "pass the folder right above the classes"
            )
    return entries


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, without hidden files; sorted as text, since paths sort differently on Windows."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name not in _LEFTOVERS]
    return sorted(entries, key=lambda entry: entry.name)


# From files to pixels


def _read(
    files: dict[str, dict[str, list[Path]]], class_names: tuple[str, ...], size: tuple[int, int], skip_unreadable: bool
) -> tuple[Tensor, list[tuple[str, int]]]:
    """Every different picture (N, 3, H, W) with its split and label, or one error for all that cannot be used."""
    everyone = [
        (split, label, path)
        for split, classes in files.items()
        for label, name in enumerate(class_names)
        for path in classes.get(name, [])
    ]
    images = torch.empty(len(everyone), 3, *size, dtype=torch.uint8, device="cpu")
    origins, damaged, faults, copies = [], [], [], []
    first: dict[bytes, tuple[int, Path]] = {}  # who brought these pixels
    for split, label, path in progress_bar(everyone, desc="pictures", delay=1):
        try:
            image = picture_to_tensor(path, size)
        except (ValueError, OSError) as error:
            damaged.append(str(error))
            continue
        digest = hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
        first_label, first_path = first.setdefault(digest, (label, path))
        if first_label != label:
            faults.append(f"{first_path} and {path} are the same picture in two classes; remove one of them")
        elif first_path != path:
            is_near = first_path.parent == path.parent
            copies.append(f"{path} (as {first_path.name if is_near else first_path})")
        else:
            images[len(origins)] = image
            origins.append((split, label))
    if damaged and skip_unreadable:
        say(f"{len(damaged)} of {len(everyone)} files cannot be read as pictures, and are left out:{_listed(damaged)}")
        damaged = []
    if damaged or faults:
        many = len(damaged) + len(faults)
        hint = "\nPass skip_unreadable=True to leave out those that cannot be read." if damaged else ""
        raise ValueError(f"{many} of {len(everyone)} pictures cannot be used:{_listed(damaged + faults)}{hint}")
    if copies:
        say(f"{len(copies)} pictures are copies of others at this size, and left out:" + _listed(copies))
    return images[: len(origins)], origins


def _listed(lines: list[str]) -> str:
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "".join(f"\n  - {line}" for line in [*lines[:_SHOWN], *more])
