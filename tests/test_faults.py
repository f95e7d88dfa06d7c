"""The table of faults is whole, its tests exist, and damaged files end as they should, in the small form."""

import sys
import time

import faults
import fuzz
import pytest
from fault_table import ROWS, NotApplicable
from fuzz_targets import Target


def test_every_row_names_tests_that_exist_or_a_reason():
    assert list(ROWS) == list(range(1, 100))
    for number, (fault, proof) in ROWS.items():
        assert fault and (len(proof.reason) > 30 if isinstance(proof, NotApplicable) else proof), number
        assert isinstance(proof, NotApplicable) or not faults.missing(proof), number
    assert faults.missing("loop::test_that_nobody_wrote nothing::test_x") == [
        "loop::test_that_nobody_wrote",
        "nothing::test_x",
    ]


def test_outcomes_are_those_of_the_tests(monkeypatch, tmp_path):
    """A control: a test that fails, in one of its forms only, is told from one that passes."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text(
        "import pytest\n@pytest.mark.parametrize('x', [0, 1])\ndef test_bad(x): assert x\ndef test_good(): pass\n"
        "@pytest.mark.skip\ndef test_left_out(): pass\n"
    )
    monkeypatch.setattr(faults, "ROOT", tmp_path)
    names = {"a::test_bad", "a::test_good", "a::test_left_out", "a::test_missing"}
    assert faults.run_tests(names - {"a::test_missing"}) == {
        "a::test_bad": "FAIL",
        "a::test_good": "pass",
        "a::test_left_out": "skipped",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals that interrupt a loader")
def test_damaged_files_end_in_content_or_in_the_loaders_own_error():
    found = fuzz.fuzz_all(fuzz.QUICK, seed=1)
    assert not [outcome.wrong for outcome in found if outcome.wrong]
    assert sum(outcome.files for outcome in found) >= fuzz.QUICK
    assert all(outcome.refused for outcome in found)


def test_a_loader_that_is_wrong_is_found_out(monkeypatch, tmp_path):
    """A control for each way to be wrong: silence, another error, none in words, waiting, the end of the process."""
    path, whole = tmp_path / "x", bytes(range(100))

    def mute():
        if path.read_bytes() != whole:
            raise ValueError

    def slow():
        content = path.read_bytes()
        while content != whole:
            time.sleep(0.001)

    loaders = {
        "read, with other content": path.read_bytes,
        "KeyError": lambda: {whole: 1}[path.read_bytes()],
        "ValueError without a word": mute,
        "TooSlow": slow,
    }
    monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.05)
    for fault, load in loaders.items():
        path.write_bytes(whole)
        monkeypatch.setitem(fuzz.TARGETS, fault, lambda _, load=load: Target(path, load, is_hashed=True))
        outcome = fuzz.fuzz(fault, 4, seed=0)
        assert outcome.files == 4 and all(text.startswith(fault) for text in outcome.wrong) and outcome.wrong, fault
    (outcome,) = fuzz.fuzz_all(1, names=["no such target: its process dies"])
    assert outcome.wrong == ["the process ended with 1"]
