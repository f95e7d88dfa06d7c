"""Tensors out of anyone's file, or an error that says what the file is instead.

Three containers are read: safetensors, PyTorch's (with `weights_only=True` and never less) and NumPy's `.npz` (never
its pickled objects). The first bytes decide which, not the suffix. Sizes are compared with the file before memory is
taken. Checksums are verified where there are any: in zip archives, which `torch.load` does not do, and in files of
`vit.save`.
"""

import argparse
import hashlib
import json
import math
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit.files import url_hint

MAX_HEADER = 16 << 20  # bytes of JSON in front of a safetensors file
MAX_RATIO = 10  # weights hardly compress: an archive that grows by more is no archive of weights

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a file of weights holds, by name, and the text that comes with it (safetensors only).

    Raises:
        FileNotFoundError: no such file; the message lists the weights beside it.
        ValueError: empty, cut off, damaged, or no file of weights; the message says which.
    """
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".safetensors", ".pt", ".pth", ".npz"))
        raise FileNotFoundError(f"no weights at {path}{url_hint(path)}; in that folder: {', '.join(beside) or 'none'}")
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        raise ValueError(f"{path} is empty (0 bytes): fetch or save it again")
    if start[8:9] == b"{":  # first, since the length in front may look like the start of anything
        return read_safetensors(path)
    if start.startswith(b"PK"):
        names = _check_zip(path)
        if all(name.endswith(".npy") for name in names):
            return _read_npz(path), {}
        return _read_torch(path), {}
    if start.startswith(b"\x80"):  # a pickle, as torch.save wrote it before version 1.6
        return _read_torch(path), {}
    raise ValueError(
        f"{path} is not a readable safetensors file, nor .pt, .pth or .npz: it starts with {start!r}; "
        "a page of HTML or text here means that the download failed"
    )


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the text of a safetensors file.

    Every tensor gets memory of its own, read once: views of a mapped file would change when the file does.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER, size - 8):
            raise ValueError(f"{path} is not a readable safetensors file: its header would have {length:,} bytes")
        header = file.read(length)
    try:
        with safe_open(path, framework="numpy") as file:  # the reference reader checks every offset
            facts = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); it has {size:,} bytes: was it cut off?"
        ) from error
    tensors = {}
    with open(path, "rb") as file:
        for name, entry in json.loads(header).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _SAFETENSORS_DTYPES:
                raise ValueError(f"{path}: {name} is {entry['dtype']}, which is not read; save it as F32")
            tensors[name] = torch.empty(entry["shape"], dtype=_SAFETENSORS_DTYPES[entry["dtype"]], device="cpu")
            file.seek(8 + length + entry["data_offsets"][0])
            file.readinto(_as_bytes(tensors[name]))
    if "sha256" in facts and facts["sha256"] != checksum(tensors, facts):
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one it was saved with; fetch or save it again")
    return tensors, facts


def checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """SHA-256 of names, shapes, numbers and text, which `vit.save` stores among the text, since the format has none."""
    digest = hashlib.sha256(json.dumps({**facts, "sha256": ""}, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(_as_bytes(tensors[name]))
    return digest.hexdigest()


def _as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _check_zip(path: Path) -> list[str]:
    """The names in an archive that is whole, of a sane size, and of a kind that is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            unpacked, packed = sum(info.file_size for info in archive.infolist()), path.stat().st_size
            if unpacked > MAX_RATIO * packed:
                raise ValueError(f"{path} would unpack from {packed:,} to {unpacked:,} bytes: weights do not")
            if any(name.endswith("/constants.pkl") for name in names):
                raise ValueError(
                    f"{path} is a TorchScript archive, whose loading runs code. Where you trust it, pass "
                    "torch.jit.load(path).state_dict() instead of the path"
                )
            is_torch = any(name == "data.pkl" or name.endswith("/data.pkl") for name in names)
            if not is_torch and not all(name.endswith(".npy") for name in names):
                raise ValueError(f"{path} is a zip archive, but of neither PyTorch nor NumPy: it holds {names[:3]}")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged or cut off at {path.stat().st_size:,} bytes ({error}): fetch or save it again"
        ) from error
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of {damaged!r} in it does not match; fetch it again")
    return names


def _read_torch(path: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # DINO, DeiT and timm keep their command line beside the weights: a bag of values, which runs nothing.
            with torch.serialization.safe_globals([argparse.Namespace]):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:
            # Not chained: torch's own message advises to load such a file with less care.
            culprit = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it holds Python objects ({culprit[1]})" if culprit else f"{type(error).__name__} while reading"
            raise ValueError(
                f"{path} was refused: {reason}, and nothing of it was run. Only tensors are read; "
                "whoever has the model can save model.state_dict()"
            ) from None
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not tensors by name; save model.state_dict()")
    return dict(loaded)


def _read_npz(path: Path) -> dict[str, Tensor]:
    tensors = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                tensors[name] = _read_array(member, info.file_size, f"{path}: {name}")
    return tensors


def _read_array(member: IO[bytes], size: int, name: str) -> Tensor:
    """The array in a `.npy` member of `size` bytes, which errors call by `name`."""
    try:
        is_first = np.lib.format.read_magic(member) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(member)
    except ValueError as error:
        raise ValueError(f"{name} is not a NumPy array ({error})") from error
    nbytes = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or not dtype.isnative or member.tell() + nbytes != size:
        raise ValueError(f"{name} is not a plain array of its size ({dtype}, {shape}); refused")
    is_bfloat16 = dtype == np.dtype("V2")  # how NumPy stores JAX's
    if not is_bfloat16 and (dtype.kind not in "fiub" or dtype.itemsize > 8):
        raise ValueError(f"{name} holds no numbers that are read ({dtype}); save it as float32")
    data = bytearray(member.read(nbytes))
    array = np.ndarray(shape, np.int16 if is_bfloat16 else dtype, data, order="F" if is_fortran else "C")
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor
