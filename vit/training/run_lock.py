"""Who is writing into a run folder: one training at a time, and nobody renames or deletes the folder meanwhile.

A lock of the operating system on the empty file `.lock`, so it ends with its process, however that ends. The file
itself stays and means nothing.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK_FILE = ".lock"


@contextlib.contextmanager
def being_written(run_dir: str | Path | None) -> Iterator[None]:
    """Marks the folder as being written for as long as the block runs; None marks nothing.

    Raises:
        RuntimeError: another training is writing into it, in this process or another.
    """
    if run_dir is None:
        yield
        return
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    with open(Path(run_dir) / LOCK_FILE, "ab") as file:
        is_locked = _lock(file)
        if not is_locked:  # `is_being_written` holds the lock for a moment when it looks
            time.sleep(0.1)
            is_locked = _lock(file)
        if not is_locked:
            raise RuntimeError(f"another training is writing into {run_dir}: stop it, or take another folder")
        try:
            yield
        finally:
            _unlock(file)  # closing is not enough if a worker process was forked meanwhile and has the file open too


def is_being_written(run_dir: str | Path) -> bool:
    """Whether a training, in this process or another on this machine, is writing into the folder."""
    try:
        with open(Path(run_dir) / LOCK_FILE, "r+b") as file:
            return not _lock(file)
    except OSError:  # no such file, or one that we may not write, and so is not of our trainings
        return False


def _lock(file: Any) -> bool:
    """Takes the lock and says so; False if another has it. Without locks on this disk, everyone gets it."""
    try:
        if fcntl is None:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return fcntl is not None and not isinstance(error, BlockingIOError)
    return True


def _unlock(file: Any) -> None:
    with contextlib.suppress(OSError):
        if fcntl is None:
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_UN)
