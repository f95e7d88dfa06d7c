"""The audit asks about every floor, and never takes silence for good news."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
import audit  # noqa: E402


def test_floors_are_those_that_security_promises():
    floors = audit.floors()
    assert floors["torch"] == "2.11" and floors["pillow"] == "13.0"
    assert floors["jupyterlab"] == "4.5.7" and floors["notebook"] == "7.5.6"
    text = (ROOT / "SECURITY.md").read_text()
    assert "| torch | 2.11 |" in text and "| Pillow | 13.0 |" in text and "| 4.5.7, 7.5.6 |" in text


@pytest.mark.parametrize(
    "answers,code,words",
    [
        ([{}], 2, "not audited"),  # no network
        ([{"pillow 9.0.0": None}], 2, "not audited"),
        ([{"pillow 9.0.0": []}], 2, "not audited"),  # an empty database knows nothing of anything
        (
            [{"pillow 9.0.0": ["CVE-1"]}, {"a 1": [], "b 2": None}, {}],
            0,
            "2 packages: 0 with known weaknesses, 1 without",
        ),
        ([{"pillow 9.0.0": ["CVE-1"]}, {"a 1": []}, {"c 3": ["CVE-2"]}], 1, "c 3: CVE-2\n2 packages: 1 with known"),
    ],
)
def test_silence_is_told_from_good_news(monkeypatch, capsys, answers, code, words):
    answers = iter(answers)
    monkeypatch.setattr(audit, "audit", lambda *_: next(answers))
    assert audit.main() == code and words in capsys.readouterr().out
