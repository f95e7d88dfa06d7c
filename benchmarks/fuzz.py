"""Damaged and random files for 17 readers of files: does each end in the result or in the loader's own error?

    python benchmarks/fuzz.py [--quick]

A real file of each kind is cut off at steps of 64 bytes or more, gets bits flipped and stretches overwritten, moved and
repeated, or is random from start to end. A wrong outcome is: another error than the documented ones, content that is
not what was written where a hash protects it, ten seconds for one file, the end of the process, or a gigabyte of
memory.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
import report
import torch
from fuzz_targets import TARGETS
from kills import CONTEXT

TOTAL = 24_000
QUICK = 1_200
MAX_SECONDS = 10.0  # for one file
MAX_BYTES = 1 << 30  # of memory that the files of a kind may take beyond what the process had


class TooSlow(BaseException):
    """A loader has taken longer than MAX_SECONDS; no loader catches it."""


def damaged(raw: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    """`count` files that are not `raw`."""
    for length in range(0, len(raw), max(64, 64 * (len(raw) // (64 * max(1, count // 3))))):
        yield raw[:length]
        count -= 1
    while count > 0:
        data, kind = bytearray(raw), rng.randrange(6)
        place, size = rng.randrange(len(data)), rng.choice((1, 4, 8, 64, 1024))
        if kind <= 1:  # the most likely accident, and the hardest to see
            for _ in range(rng.choice((1, 1, 2, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[place : place + size] = rng.randbytes(size)
        elif kind == 3:
            data[place : place + size] = rng.choice((b"\0", b"\xff", b"9", b"[", b'"')) * size
        elif kind == 4:
            data[place:place] = data[rng.randrange(len(data)) :][:size]
        else:
            start = rng.choice((0, 0, 4, 16))
            data = data[:start] + rng.randbytes(rng.choice((0, 1, 20, 500, 20_000)))
        if data != raw:
            count -= 1
            yield bytes(data)


@dataclass
class Outcome:
    """What became of the files of one kind."""

    name: str
    files: int = 0
    refused: int = 0
    read: int = 0  # as they were written, or in a form without a hash
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds
    memory: int = 0  # bytes beyond what the process had before


def fuzz(name: str, count: int, seed: int) -> Outcome:
    """Damages the file of a target `count` times, and loads it each time."""
    outcome, rng = Outcome(name), random.Random(f"{name} {seed}")
    signal.signal(signal.SIGALRM, _too_slow)
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](Path(folder))
        raw = target.path.read_bytes()
        expected = _digest(target.load())
        before = report.peak_memory()
        for data in damaged(raw, count, rng):
            target.reset()
            target.path.write_bytes(target.finish(data))
            outcome.files += 1
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
            try:
                result = target.load()
                outcome.read += 1
                if target.is_hashed and _digest(result) != expected:
                    outcome.wrong.append(f"read, with other content, {_short(data, raw)}")
            except target.errors as error:
                outcome.refused += 1
                if not str(error):
                    outcome.wrong.append(f"{type(error).__name__} without a word, {_short(data, raw)}")
            except BaseException as error:
                outcome.wrong.append(f"{type(error).__name__}: {str(error)[:100]}, {_short(data, raw)}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            outcome.slowest = max(outcome.slowest, time.monotonic() - began)
        outcome.memory = report.peak_memory() - before
    if outcome.memory > MAX_BYTES:
        outcome.wrong.append(f"{outcome.memory:,} bytes of memory")
    return outcome


def _too_slow(*_: Any) -> None:
    raise TooSlow(f"more than {MAX_SECONDS} s")


def _short(data: bytes, raw: bytes) -> str:
    places = [i for i, (a, b) in enumerate(zip(data, raw, strict=False)) if a != b]
    return f"{len(data)} of {len(raw)} bytes, first change at {places[0] if places else len(data)}"


def _digest(result: Any) -> str:
    """A number for a tree of tensors, arrays and plain values."""
    if isinstance(result, torch.Tensor):
        result = result.detach().numpy()
    if isinstance(result, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(result)).hexdigest() + str(result.dtype) + str(result.shape)
    if isinstance(result, dict):
        return str({name: _digest(value) for name, value in result.items()})
    if isinstance(result, (list, tuple)):
        return str([_digest(value) for value in result])
    return repr(result)


def _in_a_process(name: str, count: int, seed: int, answer: Connection) -> None:
    with (  # loaders say what they found and what they leave out
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        answer.send(fuzz(name, count, seed))


def fuzz_all(total: int, seed: int = 0, names: list[str] | None = None) -> list[Outcome]:
    """All targets, each in a process of its own, so that the death of one is an outcome too."""
    found, names = [], list(names or TARGETS)
    for name in names:
        here, there = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_in_a_process, args=(name, -(-total // len(names)), seed, there))
        process.start()
        there.close()
        try:
            found.append(here.recv())
        except EOFError:
            process.join()
            found.append(Outcome(name, wrong=[f"the process ended with {process.exitcode}"]))
        process.join()
    return found


def table(found: list[Outcome]) -> str:
    lines = [f"{'file':<24} {'files':>6} {'refused':>8} {'read':>6} {'wrong':>6} {'slowest':>9} {'memory':>9}"]
    for o in found:
        memory = f"{o.memory / 1e6:.0f} MB"
        numbers = f"{o.files:>6} {o.refused:>8} {o.read:>6} {len(o.wrong):>6} {1000 * o.slowest:>6.0f} ms {memory:>9}"
        lines += [f"{o.name:<24} {numbers}", *(f"    {text}" for text in o.wrong[:5])]
    total, wrong = sum(o.files for o in found), sum(len(o.wrong) for o in found)
    return "\n".join([*lines, f"{total} files, {wrong} wrong outcomes"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} files instead of {TOTAL}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(TARGETS), nargs="+")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    options = parser.parse_args()
    found = fuzz_all(QUICK if options.quick else TOTAL, options.seed, options.only)
    print(json.dumps([vars(o) for o in found]) if options.json else table(found))
    return 1 if any(o.wrong for o in found) else 0


if __name__ == "__main__":
    sys.exit(main())
