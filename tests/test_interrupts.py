"""Ctrl-C, SIGTERM and the stop button: the state is saved, the process or kernel is left as it should be."""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import kills
import pytest
import slow_training
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from vit.training.interrupt import stop_on_interrupt
from vit.training.run_files import STATE_FILE
from vit.training.run_lock import is_being_written
from vit.training.state_file import read_state

posix = pytest.mark.skipif(os.name != "posix", reason="signals between processes are those of POSIX systems")


def training(folder: Path, pause: float = 0.2):
    """A process in the middle of a step, and where it says how it goes on."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = kills.CONTEXT.Process(target=slow_training.train, args=(folder, there.send, pause))
    process.start()
    there.close()
    assert here.poll(60) and here.recv() == "step"
    return process, here


def rest_of(words) -> list[str]:
    """What a process still said before it ended."""
    said = []
    with contextlib.suppress(EOFError):
        while True:
            said.append(words.recv())
    return said


@posix
@pytest.mark.parametrize(
    "signum,code,last_words",
    [(signal.SIGINT, 0, ["returned, complete: False"]), (signal.SIGTERM, 143, [])],
)
def test_the_first_signal_saves(tmp_path, signum, code, last_words):
    """Ctrl-C returns the history; SIGTERM ends the process, and what follows the training does not run."""
    process, words = training(tmp_path)
    os.kill(process.pid, signum)
    process.join(60)
    assert process.exitcode == code and rest_of(words) == last_words
    progress = read_state(tmp_path / STATE_FILE)["progress"]
    assert (progress["epoch"], progress["step"]) == (0, 1)
    assert not is_being_written(tmp_path) and not list(tmp_path.glob(".*.tmp"))


@posix
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_stops_at_once(tmp_path, signum):
    process, words = training(tmp_path, pause=30)
    os.kill(process.pid, signum)
    time.sleep(0.3)
    assert process.is_alive(), "the first one waits for the end of the step"
    os.kill(process.pid, signum)
    process.join(20)
    assert process.exitcode == (143 if signum == signal.SIGTERM else 1) and rest_of(words) == []
    assert read_state(tmp_path / STATE_FILE)["progress"]["step"] == 0, "that of the start"


def test_handlers_are_put_back_after_every_way_out():
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_interrupt() as should_stop:
        assert not should_stop()
    with pytest.raises(KeyError), stop_on_interrupt():
        raise KeyError
    with pytest.raises(SystemExit) as caught, stop_on_interrupt() as should_stop:
        signal.raise_signal(signal.SIGTERM)
        assert should_stop()
    assert caught.value.code == 143
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_one_yes_is_enough_in_any_thread():
    answers = iter([False, True, False, False])
    with stop_on_interrupt(lambda: next(answers)) as should_stop:
        assert [should_stop() for _ in range(4)] == [False, True, True, True]
    found = []

    def elsewhere():
        answers = iter([True, False])
        with stop_on_interrupt(lambda: next(answers)) as should_stop:
            found.extend([should_stop(), should_stop()])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [True, True]


def test_the_stop_button_leaves_a_kernel_that_can_go_on(tmp_path):
    """A real kernel: the training cell is interrupted while it runs, the next cells run, and one of them resumes."""
    train = f"from slow_training import train; train({str(tmp_path)!r}, print"
    cells = [f"{train})", "import threading; print(threading.active_count())", f"{train}, resume=True)"]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])

    class Impatient(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] == "stream" and "step" in msg["content"]["text"] and not self.is_interrupted:
                self.is_interrupted = True
                os.kill(self.km.provisioner.pid, signal.SIGINT)  # what the button sends
            return super().process_message(msg, cell, cell_index)

    client = Impatient(notebook, timeout=120, kernel_name="python3", extra_arguments=["--log-level=ERROR"])
    client.is_interrupted = False
    client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)})
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    assert client.is_interrupted and "returned, complete: False" in printed[0]
    assert re.fullmatch(r"\d+\n", printed[1]) and "returned, complete: True" in printed[2]
