"""Keeping freed memory for the next step, on Linux."""

import ctypes
import platform

# From malloc.h of the GNU C library.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Tells the GNU allocator to hold on to freed blocks, and says whether it could.

    A training step on a CPU frees and takes the same few hundred megabytes again and again. By default glibc hands
    large blocks back to the kernel each time, which clears every page before it gives it out again. Threads that start
    later share one store of such blocks, or each training in the background would keep its own.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    options = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28, M_ARENA_MAX: 1}
    return all(libc.mallopt(option, value) for option, value in options.items())
