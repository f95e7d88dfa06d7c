"""Real processes, really killed, resumed until done: the same bits. The full form is `make test-faults`."""

import random
import signal
from dataclasses import replace

import kills
import pytest
import soak


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs an operating system that forks and kills")
def test_runs_that_are_killed_end_in_the_same_bits():
    found = list(kills.outcomes(kills.QUICK))
    for row in kills.summarize(found):
        assert row["same_bits"] == row["runs"] == kills.QUICK[signal.Signals[row["signal"]]], row
    assert sum(outcome.is_inside_save for outcome in found) >= 2, "the first and the fourth are aimed at a save"
    codes = {outcome.exit_code for outcome in found if outcome.signum == signal.SIGTERM}
    assert codes <= {143, -signal.SIGTERM}, "saved, or killed before there was anything to save"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs an operating system that forks and kills")
def test_a_soak_kills_resumes_and_compares(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "CONFIG", replace(kills.TRAIN, epochs=2))
    counts = soak.kill_until(0.0, tmp_path, random.Random(0))
    assert counts["runs"] >= 1 and counts["wrong"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"warm-up", "reference"}


def test_a_soak_ends_where_a_run_cannot_go_on(tmp_path, monkeypatch):
    class Failing:
        exitcode, name = 1, "run"

        def __init__(self, folder, config):
            folder.mkdir(exist_ok=True)

        def join(self, seconds=None):
            pass

        def is_alive(self):
            return False

    monkeypatch.setattr(soak, "start", Failing)
    monkeypatch.setattr(soak, "final_state", lambda folder: {})
    counts = soak.kill_until(0.0, tmp_path, random.Random(0))
    assert counts == {"runs": 1, "kills": 0, "wrong": 2}, "the undisturbed run, and the one after it"


def test_growth_is_the_slope_and_no_single_peak():
    flat = [(second, 400.0 + (second == 30) * 500) for second in range(60)]
    rising = [(second, 400.0 + second / 30) for second in range(60)]
    assert soak.growth(flat) == 0 and soak.growth(rising) == pytest.approx(2.0)
