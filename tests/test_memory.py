"""Freed memory is kept while a training lasts and given back at its end, in any thread: the kernel counts."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")

CODE = """
import os, threading, torch
from vit.training.memory import keeping_freed_memory

def resident():  # MB
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

def use_and_free(megabytes):
    for block in [torch.ones(250_000) for _ in range(megabytes)]:  # 1 MB each
        del block

def measure():
    with keeping_freed_memory(torch.device("cpu")):
        use_and_free(1)
        start = resident()
        use_and_free(40)
        print(resident() - start)
    print(resident() - start)

measure()
thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


def test_freed_memory_is_kept_until_the_end_and_then_given_back():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=True)
    kept, after, kept_in_thread, after_in_thread = map(float, done.stdout.split())
    assert kept > 30 and kept_in_thread > 30
    assert after < 10 and after_in_thread < 10
