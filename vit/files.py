"""Where files are, how they are written whole, and what every reader of them needs.

Killed, out of space or out of power: a file is the old one or the new one. Under its name there is never half a file.
"""

import contextlib
import json
import os
import re
import reprlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_UMASK = os.umask(0o077)  # which can only be read by setting it
os.umask(_UMASK)
REPOSITORY = Path(__file__).resolve().parents[1]
NUM_RANDOM = 8  # characters that mkstemp draws for a name
MAX_JSON = 16 << 20  # bytes of a file of names and values


def home() -> Path:
    """Where `data/` and `runs/` are: the repository, or the working folder where the package is installed alone."""
    return REPOSITORY if (REPOSITORY / "pyproject.toml").is_file() else Path.cwd()


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds all data: `root`, or $VIT_DATA, or `data/` in the repository, or in the working folder
    where there is only the package."""
    return Path(root or os.environ.get("VIT_DATA") or home() / "data").expanduser()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder; when the block ends well it takes the place of `path` at once.

    If the block raises, a full disk and Ctrl-C included, the old file stays and the temporary one goes.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # Without the sync a power cut could leave the new name on an empty file.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # a disk that knows no modes
            os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_UMASK)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk: after a power cut the last `os.replace` still holds."""
    # Windows opens no folders, and some network disks sync none; they keep their names as best they can.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def also_name(path: Path, name: Path) -> None:
    """Lets a whole file be found under a second name too, at once, in place of what was there.

    Both names lead to the same bytes, which costs neither time nor space; on a disk without hard links it is a copy.
    """
    temporary = name.with_name(f".{name.name}.{'_' * NUM_RANDOM}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, name)
    finally:
        temporary.unlink(missing_ok=True)  # it stays if both names led to the same file already


def remove_leftovers(path: Path) -> None:
    """Removes what writers of `path` that were killed have left beside it. Only for whoever alone writes `path`."""
    for leftover in path.parent.glob(f".{path.name}.{'?' * NUM_RANDOM}.tmp"):
        leftover.unlink(missing_ok=True)


def url_hint(path: str | Path) -> str:
    """For the message about a missing file: what to do where its path is an address, which `Path` writes with one /."""
    is_url = re.match("[a-z]{2,}:/", str(path))  # one letter is a drive of Windows
    return "; addresses are never fetched: save the file and pass its path" if is_url else ""


def is_damage(error: Exception) -> bool:
    """Whether what a decoder raised may be the fault of its file. Damaged bytes make decoders raise anything, but not
    want of memory, nor errors with an errno."""
    return not isinstance(error, MemoryError) and getattr(error, "errno", None) is None


def short(path: Path) -> str:
    """A file by its folder's name and its own."""
    return "/".join(path.absolute().parts[-2:])


def read_json(path: Path) -> dict[str, Any]:
    """The names and values in a JSON file. Raises ValueError, with its folder and name, if they cannot be read."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON:,} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{short(path)} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{short(path)} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{short(path)} holds a {type(values).__name__} instead of names and values")
    return values


def check_json(values: Mapping[str, Any]) -> None:
    """Raises TypeError, with its name, for a value that JSON cannot hold, single numbers of numpy and torch apart."""
    for name, value in values.items():
        try:
            json.dumps(value, default=plain_number)
        except (TypeError, ValueError, RecursionError) as error:
            what = f"{name}={reprlib.repr(value)} cannot be written as JSON ({error})"
            raise TypeError(f"{what}: give a text, a number, or lists and dicts of them") from None


def plain_number(value: Any) -> Any:
    """What `json` cannot write as it is: one number of numpy or torch as Python's own. TypeError for anything else."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    remedy = "; use its .tolist()" if hasattr(value, "tolist") else ""
    raise TypeError(f"it holds a {type(value).__name__}{remedy}")
