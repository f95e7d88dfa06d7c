"""One file that knows whether it is whole, and the one before it in case it is not.

The file is what `torch.save` writes, a zip archive, with a comment at its end: a format number and the SHA-256 of all
that stands before it. `torch.load` alone would read damaged weights without a word. The hash is checked
before anything is parsed, and what is parsed holds tensors and plain values only, so that no code can run.
Owns bytes and names on disk; what a state means is the concern of checkpoint.py.
"""

import errno
import hashlib
import io
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from vit.files import also_name, replacing
from vit.progress import say

FORMAT = 1
_SEAL = re.compile(rb"vit-state (\d{1,9}) ([0-9a-f]{64})\Z")
_SEAL_BYTES = 100  # at the end of a file, enough to hold the seal
_CHUNK_BYTES = 1 << 20
# What torch.load reads without running code. Exactly these: a float of numpy is a float, too.
_PLAIN = (Tensor, nn.Parameter, str, bytes, bool, int, float, type(None))


class DamagedStateError(ValueError):
    """A state file does not hold what was written into it, or never was one."""


def previous_of(path: Path) -> Path:
    """Where the state before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def best_of(path: Path) -> Path:
    """Where the state with the best validation accuracy is kept."""
    return path.with_name(f"{path.stem}.best{path.suffix}")


def write_state(path: Path, state: dict[str, Any], *, is_best: bool = False) -> None:
    """Writes a state, checks what has been written, and only then lets it take the place of the last one.

    Args:
        state: tensors and plain values.
        is_best: whether it is to be found as `best_of(path)` too.

    Raises:
        OSError: the disk is full or will not be written; the states of before are untouched.
        DamagedStateError: the disk does not hold what was written, or the state something else; likewise.
    """
    if odd := _odd_part(state, "state"):
        raise DamagedStateError(f"{path} would hold something else than tensors and plain values ({odd})")
    # By way of memory: on a full disk torch.save raises an error that does not say so.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            file.writelines(sealed(buffer.getbuffer()))
            file.flush()
            os.fsync(file.fileno())
        with open(temporary, "rb") as file:
            try:
                _check(file, path)
            except DamagedStateError as error:  # of the disk, not of the state: the next write may be better
                raise OSError(errno.EIO, f"what was written cannot be read back: {error}") from error
        if path.exists():
            also_name(path, previous_of(path))
        if is_best:
            also_name(temporary, best_of(path))


def _odd_part(value: Any, place: str) -> str | None:
    """The place and type of a first part that is neither a tensor nor a plain value; None if there is none."""
    if type(value) in (dict, OrderedDict):
        parts = [(key, f"{place}[key {key!r}]") for key in value] + [(v, f"{place}[{k!r}]") for k, v in value.items()]
    elif type(value) in (list, tuple):
        parts = [(part, f"{place}[{i}]") for i, part in enumerate(value)]
    else:
        return None if type(value) in _PLAIN else f"{place}: {type(value).__module__}.{type(value).__qualname__}"
    return next((odd for part, name in parts if (odd := _odd_part(part, name))), None)


def sealed(archive: bytes | memoryview) -> list[bytes | memoryview]:
    """The parts of the file that a zip archive becomes when its comment is to hold format and hash."""
    mark = f"vit-state {FORMAT} ".encode()
    # An archive ends with the length of its comment, in two bytes.
    parts = [archive[:-2], (len(mark) + 64).to_bytes(2, "little"), mark]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return [*parts, digest.hexdigest().encode()]


def read_newest_state(path: Path) -> dict[str, Any]:
    """The state at `path`, or, if that is damaged, the one before it, which is then said on stderr.

    A damaged file is set aside under its name with `.bad`.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: none can be used; the message has a reason for each.
    """
    try:
        return read_state(path)
    except (DamagedStateError, FileNotFoundError) as error:
        reason = error
    try:
        state = read_state(previous_of(path))
    except FileNotFoundError:
        raise reason from None
    except DamagedStateError as error:
        raise DamagedStateError(f"{reason}; {error}") from None
    aside = ""
    if path.exists():
        bad = path.with_name(f"{path.name}.bad")
        os.replace(path, bad)  # else the next save would put the damaged one in the place of this good one
        aside = f"; it is kept as {bad.name}"
    say(f"{reason}{aside}. Going on from the state before it, {previous_of(path).name}")
    return state


def read_state(path: Path) -> dict[str, Any]:
    """The state in one file, if it is whole; its tensors are on the CPU.

    Raises:
        FileNotFoundError: there is no such file; the message lists the states beside it.
        DamagedStateError: it is not what was written, or not a state at all.
        ValueError: a newer version of this library wrote it.
    """
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        found = sorted(p.name for p in folder.glob("*.pt")) if folder.is_dir() else []
        what = f"{path} is a folder and no training state" if path.is_dir() else f"no training state at {path}"
        raise FileNotFoundError(f"{what}; in that folder: {', '.join(found) or 'none'}")
    with open(path, "rb") as file:
        version = _check(file, path)
        if version > FORMAT:
            raise ValueError(f"{path} has format {version}, this version of vit reads {FORMAT}: upgrade vit to use it")
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # with the right hash: made by someone else than `write_state`
            # Of torch's text the reason alone: the rest of it says how to run the code in such a file.
            reason = re.search(r"WeightsUnpickler error: (.*?)( was not|\. |$)", str(error), re.MULTILINE)
            what = reason[1] if reason else type(error).__name__
            raise DamagedStateError(f"{path} holds something else than tensors and plain values ({what})") from None


def _check(file: BinaryIO, path: Path) -> int:
    """The format number of a file whose hash is right."""
    start, size = file.read(8), file.seek(0, os.SEEK_END)
    if not size:
        raise DamagedStateError(f"{path} is empty")
    if not start.startswith(b"PK"):
        raise DamagedStateError(f"{path} is not a training state (it starts with {start!r})")
    file.seek(max(0, size - _SEAL_BYTES))
    seal = _SEAL.search(file.read())
    if seal is None:
        raise DamagedStateError(f"{path} is cut off after {size:,} bytes, or was not written by vit.fit")
    file.seek(0)
    digest, left = hashlib.sha256(), size - 64
    while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
    if digest.hexdigest().encode() != seal[2]:
        raise DamagedStateError(f"{path} is damaged: its SHA-256 is not the one it was written with")
    return int(seal[1])
