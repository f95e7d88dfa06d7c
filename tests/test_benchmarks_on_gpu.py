"""All that waits for a GPU, by one command: its order, what it tells the programs, and how it goes on."""

import sys
from types import SimpleNamespace

import on_gpu
import pytest
import record
import report
import speedrun
import torch


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command with programs that only note what they are told, and end as asked: by default with status 0.

    Returns what they were told, and the exit status."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(on_gpu, "resolve_device", lambda: torch.device("cuda"))

    def command(*arguments: str, status=lambda told: 0) -> tuple[list[list[str]], object]:
        told = []

        def program(command, **_):
            told.append(command[1:])
            return SimpleNamespace(returncode=status(told[-1]))

        monkeypatch.setattr(on_gpu.subprocess, "run", program)
        monkeypatch.setattr(sys, "argv", ["on_gpu.py", *arguments])
        try:
            on_gpu.main()
        except SystemExit as end:
            return told, end.code
        return told, 0

    return command


def store(benchmark: str, **values: float) -> None:
    claims = [report.claim(name.replace("_dot_", "."), [value], "x", "c") for name, value in values.items()]
    report.publish(benchmark, claims, keep_others=True)


def test_every_program_understands_what_it_is_told(run, monkeypatch):
    store("record_ceiling", matrix_product=700.0)  # which no small form takes for its own
    told, status = run("--minutes", "600", "--quick")
    assert status == 0 and len(told) == len(on_gpu.STEPS)
    for program, *arguments in told:
        if program == "-m":
            continue
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        options = {"benchmarks/record.py": record, "benchmarks/speedrun.py": speedrun}[program].parse()
        assert options.quick
        if not any(flag in arguments for flag in ("--ceiling", "--probe", "--timm")):
            assert 590 < options.minutes_per_command <= 600
    records = [arguments for program, *arguments in told if "--network" in arguments]
    assert [arguments[1] for arguments in records] == ["10", "30", "30"] and "mae" in records[2]


def test_what_is_stored_is_not_done_again_and_the_probe_chooses_the_network(run, capsys):
    store("record_ceiling", matrix_product=700.0)
    store("record_probe", probe_dot_vit_gpu_patch2_32=88.0, probe_dot_vit_gpu_patch4_32=89.0)
    told, status = run("--minutes", "60")
    assert status == 0 and "nothing is left" in capsys.readouterr().out
    assert [arguments[0] for arguments in told] == ["benchmarks/speedrun.py"] + 4 * ["benchmarks/record.py"]
    assert told[1][:5] == ["benchmarks/record.py", "--minutes", "10", "--network", "vit_gpu_patch4_32"]


def test_what_does_not_fit_gives_way_and_what_is_unfinished_is_told(run, capsys):
    told, status = run("--minutes", "3", status=lambda told: speedrun.UNFINISHED * ("--ceiling" in told))
    assert [arguments[-1] for arguments in told[1:]] == ["--ceiling", "--timm"] and told[0][1] == "pytest"
    assert status == speedrun.UNFINISHED
    (last,) = capsys.readouterr().out.splitlines()[-1:]
    assert last.startswith("still to come: ceiling, probe, speedrun, record_10, record_30, record_30_mae.")


def test_a_failure_ends_it_and_says_where(run):
    told, status = run("--minutes", "60", status=lambda told: 3 * ("--probe" in told))
    assert told[-1][-1] == "--probe" and len(told) == 3
    assert status == "probe ended with status 3: python benchmarks/record.py --probe"


def test_without_a_gpu_only_the_small_form_runs(run, monkeypatch):
    monkeypatch.setattr(on_gpu, "resolve_device", lambda: torch.device("cpu"))
    told, status = run()
    assert told == [] and "there is no GPU" in status
    told, status = run("--quick", "--steps", "tests", "ceiling")
    assert status == 0 and told[1] == ["benchmarks/record.py", "--ceiling", "--quick"]
    assert "--quick" not in told[0], "which pytest does not know"
