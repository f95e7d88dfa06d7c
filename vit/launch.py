"""Starts one program in several processes of this machine, which then train together: `distributed.processes()`.

    python -m vit.launch --processes 2 -m vit.tasks.train --run-dir runs/mine

They meet at an address of this machine alone: torchrun, which is for several machines, listens on all of its networks.
When one process fails, the others are stopped, and its error is the last thing said. Ctrl-C and SIGTERM go to all.
"""

import argparse
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ADDRESS = "127.0.0.1"
GRACE_SECONDS = 15.0  # what a process has to end by itself once it has been told to
POLL_SECONDS = 0.05


def launch(command: list[str], num_processes: int, port: int = 0) -> int:
    """Runs `command` in so many processes until all have ended, and returns their exit code.

    Args:
        command: program and arguments.
        port: at which they meet; 0 finds a free one.

    Raises:
        OSError: the port is in use.
    """
    try:
        with socket.create_server((ADDRESS, port)) as probe:
            port = probe.getsockname()[1]
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise OSError(error.errno, f"port={port} of {ADDRESS} is in use: take another, or 0 for any") from None
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running: list[subprocess.Popen] = []
        stack.callback(_end, running)
        told: list[int] = []

        def tell_all(signum: int, frame: Any) -> None:
            told.append(signum)
            # On Windows all processes of a console have got a Ctrl-C already.
            if not (sys.platform == "win32" and signum == signal.SIGINT):
                _end(running, signum)

        # A signal goes on to all processes, which save what they have; this one waits for them.
        for signum in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, signum, signal.signal(signum, tell_all))
        for rank in range(num_processes):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
            meeting = {"MASTER_ADDR": ADDRESS, "MASTER_PORT": port, "TORCHELASTIC_ERROR_FILE": Path(folder) / str(rank)}
            settings = {name: str(value) for name, value in (place | meeting).items()}
            environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ) | settings
            # In a session of its own, so that Ctrl-C in a terminal does not come twice.
            running.append(subprocess.Popen(command, env=environment, start_new_session=True))
        failed = _wait(running)
        if not failed:
            return 0
        rank, reason = _first_error(Path(folder), running, failed)
        if not told:
            print(f"process {rank} of {num_processes} failed first: {reason}", file=sys.stderr)
        code = running[rank].returncode
    return code if code > 0 else 128 - code  # what shells report for a process that a signal ended


def _wait(running: list[subprocess.Popen]) -> list[int]:
    """Waits for the end of all and returns which failed first. Once one has, the others have some seconds to follow."""
    failed: list[int] = []
    deadline = 0.0
    while any(process.poll() is None for process in running):
        time.sleep(POLL_SECONDS)
        if not failed:
            failed = [rank for rank, process in enumerate(running) if process.poll()]
            if failed:
                deadline = time.monotonic() + GRACE_SECONDS
                _end(running, signal.SIGTERM)
        elif time.monotonic() > deadline:
            _end(running)
    return failed or [rank for rank, process in enumerate(running) if process.returncode]


def _end(running: list[subprocess.Popen], signum: int | None = None) -> None:
    """Sends a signal to those that still run, or kills them."""
    for process in running:
        if process.poll() is None:
            process.kill() if signum is None else process.send_signal(signum)


def _first_error(folder: Path, running: list[subprocess.Popen], failed: list[int]) -> tuple[int, str]:
    """Which process failed first, and why. The others fail because it is gone, sometimes before it has ended itself."""
    for rank in failed:
        if (code := running[rank].returncode) < 0:
            return rank, f"signal {-code} ended it"
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(path.name), str(json.loads(path.read_text())["message"]["message"])
    return failed[0], f"it ended with code {running[failed[0]].returncode}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True, help="how many; one for each GPU")
    parser.add_argument("--port", type=int, default=0, help="where they meet; default: any that is free")
    parser.add_argument("-m", dest="is_module", action="store_true", help="the program is a module, as in python -m")
    parser.add_argument("program", help="a script, or the name of a module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the program")
    options: Any = parser.parse_args(arguments)
    if options.processes < 1:
        parser.error(f"--processes={options.processes} must be 1 or more")
    module = ["-m"] if options.is_module else []
    try:
        return launch([sys.executable, *module, options.program, *options.arguments], options.processes, options.port)
    except OSError as error:
        parser.error(error.strerror or str(error))


if __name__ == "__main__":
    sys.exit(main())
