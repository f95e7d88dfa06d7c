"""Real processes, really killed, resumed until done: the same bits. The full form is `make test-faults`."""

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import kills
from kills import final_state, same  # noqa: F401  (test_resume compares states in the same way)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs an operating system that forks and kills")
def test_runs_that_are_killed_end_in_the_same_bits():
    found = list(kills.outcomes(kills.QUICK))
    for row in kills.summarize(found):
        assert row["same_bits"] == row["runs"] == kills.QUICK[signal.Signals[row["signal"]]], row
    assert any(outcome.is_inside_save for outcome in found)
    codes = {outcome.exit_code for outcome in found if outcome.signum == signal.SIGTERM}
    assert codes <= {143, -signal.SIGTERM}, "saved, or killed before there was anything to save"
