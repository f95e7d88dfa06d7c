"""Keeping freed memory for the next step of a training on a CPU, and giving it back at the end, on Linux."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

# From malloc.h of the GNU C library.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
DEFAULT_THRESHOLD, DEFAULT_PAD = 2**17, 2**17  # bytes


def keep_freed_memory() -> bool:
    """Tells the GNU allocator to hold on to freed blocks, and says whether it could.

    A training step on a CPU frees and takes the same few hundred megabytes again and again. By default glibc hands
    large blocks back to the kernel each time, which clears every page before it gives it out again.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    options = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28}
    return all(libc.mallopt(option, value) for option, value in options.items())


def give_back_freed_memory() -> None:
    """Hands what this thread has freed back to the kernel, once; how later blocks are kept stays as it is."""
    if not keep_freed_memory():
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_THRESHOLD)
    libc.mallopt(M_TOP_PAD, DEFAULT_PAD)
    # `malloc_trim` leaves the ends of the stores of threads other than the main one; freeing a block there trims them.
    libc.free(libc.malloc(2 * DEFAULT_THRESHOLD))
    libc.malloc_trim(0)
    keep_freed_memory()


@contextlib.contextmanager
def keeping_freed_memory(device: torch.device) -> Iterator[None]:
    """Keeps freed blocks while it lasts and gives them back at the end, if the training is on a CPU."""
    if device.type != "cpu":
        yield
        return
    keep_freed_memory()
    try:
        yield
    finally:
        give_back_freed_memory()
