"""Two processes are one: the same training, the same stop, one writer; and when one fails, all end and say why.

The cases are in two_processes.py. References: a loop written by hand, and the same training in this process alone.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import kills
import pytest
import torch
import torch.nn.functional as F
import two_processes
from kills import final_state, same
from two_processes import RECIPE

from vit import launch
from vit.config import TrainConfig
from vit.tasks import train
from vit.training import distributed, for_budget
from vit.training.distributed import ALONE, World, current_world, processes
from vit.training.sharding import shard_model
from vit.training.state_file import read_state

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs an operating system that forks")
ROOT = Path(__file__).resolve().parents[1]
EXACT = 1e-10  # in float64


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alone(case, folder: Path):
    """A case in this process."""
    (folder / case.__name__).mkdir(exist_ok=True)
    return two_processes.run_case(case, ALONE, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two_processes")


@pytest.fixture(scope="module")
def two(folder) -> SimpleNamespace:
    """What every case gave, in each of two processes: `two.adamw[1]` is that of the second."""
    # One case goes on with a run that was begun in one process.
    begun = folder / "resumed_from_one" / "run"
    two_processes.train(RECIPE, run_dir=begun, should_stop=two_processes.stopped_by(0))
    port, names = free_port(), [case.__name__ for case in two_processes.CASES]
    pair = [kills.CONTEXT.Process(target=two_processes.run_cases, args=(r, 2, port, folder, names)) for r in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(600)
    assert [process.exitcode for process in pair] == [0, 0]
    return SimpleNamespace(
        **{name: [torch.load(folder / f"{name}.{rank}.pt", weights_only=True) for rank in range(2)] for name in names}
    )


def by_hand() -> dict[str, torch.Tensor]:
    """The weights that RECIPE comes to, in a plain loop over whole batches."""
    model, (loader, _) = two_processes.network(), two_processes.loaders(RECIPE)
    matrices = [p for p in model.parameters() if p.ndim in (2, 4)]
    vectors = [p for p in model.parameters() if p.ndim not in (2, 4)]
    groups = [{"params": matrices, "weight_decay": RECIPE.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=RECIPE.adam_betas)
    for step in range(4):  # a warm-up of one step, then down to zero
        rate = RECIPE.learning_rate * (0.5 if step < 1 else 1 - (step - 1) / 3)
        images, labels = list(loader.epoch(step // 2))[step % 2]
        loss = F.cross_entropy(model(images), labels, label_smoothing=RECIPE.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return dict(model.state_dict())


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of weights."""
    assert list(a) == list(b)
    return max(float((a[name] - b[name]).detach().abs().max()) for name in a)


def assert_rows_agree(rows: list[dict], expected: list[dict]) -> None:
    """Histories of 1e-10; of what `evaluate` measures, whose probabilities are float32, of 1e-6."""
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert math.isclose(value, other[name], abs_tol=1e-6 if name.startswith("val") else EXACT), name


def test_two_processes_equal_a_loop_by_hand_over_the_whole_batches(two):
    reference = by_hand()
    for found in (*two.adamw, *two.accumulated):
        assert found["is_complete"] and distance(found["weights"], reference) < EXACT
    moved = distance(reference, dict(two_processes.network().state_dict()))
    assert moved > 1e-4, "weights that stay where they are would agree too"


def test_other_parts_or_other_weights_of_them_are_seen(two):
    """Controls: an overlap of one sample, and means of parts of 11 and 12 that count alike."""
    reference = by_hand()
    for control in (two.one_process_too_late, two.mean_of_means):
        assert distance(control[0]["weights"], control[1]["weights"]) == 0
        assert distance(control[0]["weights"], reference) > 1e-6


@pytest.mark.parametrize("name", ["adamw", "augmented_muon_ema"])
def test_two_processes_equal_one(two, folder, name):
    expected = alone(getattr(two_processes, name), folder)
    for found in getattr(two, name):
        assert distance(found["weights"], expected["weights"]) < EXACT
        assert_rows_agree(found["rows"], expected["rows"])


def test_parts_of_a_batch_equal_the_whole(folder):
    """In one process, with parts of 5 and 6 samples; the random draws of CutMix and MixUp are those of the batch."""
    recipe = two_processes.replace(RECIPE, **two_processes.AUGMENTED)
    whole = two_processes.train(recipe)
    for count in (4, 23):
        parts = two_processes.train(two_processes.replace(recipe, accumulation_steps=count))
        assert distance(parts["weights"], whole["weights"]) < EXACT
        assert_rows_agree(parts["rows"], whole["rows"])


def test_processes_draw_random_numbers_of_their_own(two, folder):
    first, second = (found["drawn"] for found in two.random_draws)
    assert first == alone(two_processes.random_draws, folder)["drawn"] and not set(first) & set(second)


def test_a_stop_of_one_is_a_stop_of_all_and_resumed_to_the_same_bits(two, folder):
    case = folder / "stopped_and_resumed"
    progress = read_state(case / "stopped.pt")["progress"]
    assert (progress["epoch"], progress["step"], float(progress["sums"]["samples"])) == (1, 1, 22)
    for found in two.stopped_and_resumed:
        assert not found["first"]["is_complete"] and len(found["first"]["rows"]) == 1
        assert distance(found["first"]["weights"], two.stopped_and_resumed[0]["first"]["weights"]) == 0
        assert found["second"]["is_complete"] and found["second"]["rows"] == found["whole"]["rows"]
        assert distance(found["second"]["weights"], found["whole"]["weights"]) == 0
    whole, resumed = final_state(case / "whole"), final_state(case / "run")
    assert len(whole["random_of_others"]) == 1 and not same(whole["random"]["torch"], whole["random_of_others"][0])
    for part in ("python", "numpy"):  # which the training does not use, and so does not seed
        for state in (whole, resumed):
            for random in (state["random"], *state["random_of_others"]):
                del random[part]
    assert same(whole, resumed)


def test_the_first_process_alone_writes(two, folder):
    assert not (folder / "stopped_and_resumed" / "elsewhere").exists()
    assert (folder / "stopped_and_resumed" / "run" / "history.csv").exists()


def test_another_number_of_processes_goes_on_and_says_what_is_not_exact(two, folder, capfd):
    model = two_processes.network(9)
    found = two_processes.train(RECIPE, model, run_dir=folder / "begun_for_one" / "run", resume=True)
    assert "processes: saved 2, now 1, so that dropout and dropped patches draw other numbers too" in (
        capfd.readouterr().err
    )
    for other in (found, *two.resumed_from_one):
        assert other["is_complete"] and distance(other["weights"], by_hand()) < EXACT
        assert_rows_agree(other["rows"], two.adamw[0]["rows"])


def test_what_cannot_be_one_training_is_refused_by_all(two):
    messages = {
        "different_settings": "ValueError: processes 0 and 1 are not of the same training: learning_rate: 0.001 and ",
        "not_finite_in_one": "FloatingPointError: the loss is nan and the gradient's norm ",
        "too_small_a_batch": "ValueError: a batch of 1 images cannot be divided over 2 processes, from batch_size=1: ",
        "batch_normalization": "ValueError: 1 normalizes over the batch, of which each process sees a part: use nn.Sy",
        "sharded_with_muon": 'ValueError: optimizer="muon" orthogonalizes whole matrices, of which each process holds ',
        "sharded_with_ema": "ValueError: ema_decay=0.9 needs a copy of the whole model",
    }
    for name, message in messages.items():
        for found in getattr(two, name):
            assert isinstance(found, str) and found.startswith(message), found


def test_an_evaluation_is_shared_and_each_has_the_whole(two, folder):
    expected = alone(two_processes.evaluation, folder)
    assert len(expected["labels"]) == 21 and expected["probabilities"].std() > 0.01
    for found in two.evaluation:
        assert torch.equal(found["labels"], expected["labels"])
        torch.testing.assert_close(found["probabilities"], expected["probabilities"], rtol=0, atol=1e-6)


def test_a_sharded_model_holds_a_part_and_its_states_are_whole(two, folder):
    config, model = two_processes.SHARDED_RECIPE, two_processes.network(**two_processes.SHARDED)
    expected = two_processes.train(config, model, run_dir=folder / "unsharded")
    for found in two.sharded:
        assert found["is_complete"] and distance(found["weights"], expected["weights"]) < EXACT
        assert_rows_agree(found["rows"], expected["rows"])
    held, count = [found["held"] for found in two.sharded], sum(p.numel() for p in model.parameters())
    assert sum(held) == count and max(held) < 0.6 * count
    states = [read_state(folder / name / "state.pt") for name in ("sharded/run", "unsharded")]
    for moment in ("exp_avg", "exp_avg_sq"):
        parts, wholes = (
            {str(number): entries[moment] for number, entries in state["optimizers"][0]["state"].items()}
            for state in states
        )
        assert distance(parts, wholes) < EXACT
    model = two_processes.network(9, **two_processes.SHARDED)
    two_processes.train(config, model, run_dir=folder / "sharded" / "run", resume=True)  # in one process, unsharded
    assert distance(dict(model.state_dict()), expected["weights"]) < EXACT


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of sockets")
def test_nothing_listens_but_on_the_loopback_interface(two):
    addresses = [address for found in two.open_addresses for address in found["addresses"]]
    assert addresses and set(addresses) <= {"0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F"}


def test_alone_nothing_is_exchanged(monkeypatch):
    """As in a notebook, or in any Python that no launcher has started: a training is this process."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes() as world:
        assert world is current_world() is ALONE and not torch.distributed.is_initialized()
    value, model = {"loss": torch.ones(())}, torch.nn.BatchNorm1d(2)
    assert world.total(value) is value and world.share(value) is value and world.wrap(model) is model
    assert world.seed(7) == 7 and world.any(True) is True and world.part(5) == slice(0, 5)
    with pytest.raises(RuntimeError, match="needs several processes"):
        shard_model(model)


@pytest.mark.parametrize(("count", "size"), [(7, 2), (8, 3), (3, 5), (0, 2)])
def test_parts_follow_one_another(count, size):
    parts = [range(count)[World(rank, size).part(count)] for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_port_in_use_is_named(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port={port} of 127.0.0.1 is in use: take another, or 0 for any"):
            launch.launch([sys.executable, "-c", "raise SystemExit(9)"], 2, port)
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 is in use: take another MASTER_PORT"):
            distributed._meeting_place("127.0.0.1", port, 0, 2)
        with pytest.raises(SystemExit):
            launch.main(["--processes", "2", "--port", str(port), "-m", "this"])
        assert f"port={port} of 127.0.0.1 is in use" in capsys.readouterr().err


FAILING = """
import sys, time
from pathlib import Path
from vit.training.distributed import processes
with processes() as world:
    world.any(True)
    if world.rank == 1:
        Path(sys.argv[1]).write_text(str(time.time()))
        raise ValueError("this came first")
    world.any(True)  # waits for one that will not come
    time.sleep(600)
"""


def test_one_that_fails_ends_all_and_is_named(tmp_path, capfd):
    script, failed_at = tmp_path / "failing.py", tmp_path / "failed_at"
    script.write_text(FAILING)
    assert launch.launch([sys.executable, str(script), str(failed_at)], 2) == 1
    assert time.time() - float(failed_at.read_text()) < 30
    said = capfd.readouterr().err
    assert said.splitlines()[-1] == "process 1 of 2 failed first: ValueError: this came first"
    assert "in <module>" in said


IN_PLACE = "import os, signal, sys, time\nrank = int(os.environ['RANK'])\n"


@pytest.mark.parametrize(
    ("program", "code", "last"),
    [
        ("", 0, ""),
        ("sys.exit(3 if rank == 0 else time.sleep(60))", 3, "process 0 of 2 failed first: it ended with code 3"),
        ("os.kill(os.getpid(), 9) if rank else time.sleep(60)", 137, "process 1 of 2 failed first: signal 9 ended it"),
        (
            "signal.signal(15, signal.SIG_IGN)\nsys.exit(3) if rank else time.sleep(60)",
            3,
            "process 1 of 2 failed first: it ended with code 3",
        ),
    ],
    ids=["all end well", "one exits", "one is killed", "the other does not listen"],
)
def test_the_launcher_ends_all_in_bounded_time(monkeypatch, capfd, program, code, last):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 1.0)
    started = time.monotonic()
    assert launch.launch([sys.executable, "-c", IN_PLACE + program], 2) == code
    assert capfd.readouterr().err.strip().endswith(last) and time.monotonic() - started < 30


STARVED = """
import os
import sys

import torch

from vit.training.distributed import processes

open(sys.argv[1], "w").close()
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
with processes() as world:
    network = world.wrap(torch.nn.Linear(8, 8))
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/comm") as name:
            if "gloo" in name.read():
                os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
    for _ in range(5):
        network(torch.ones(4, 8)).sum().backward()
        world.any(False)
    world.gather(world.rank)
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="needs threads that can be starved")
def test_all_end_well_although_the_threads_of_the_group_lag_behind(tmp_path, capfd):
    """On a core that others use, too: without the wait at the end, Python aborts six times of ten."""
    script, begun = tmp_path / "starved.py", tmp_path / "begun"
    script.write_text(STARVED)
    spin = "import os, sys, time; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    spin += "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin, str(begun)]) as other:
        try:
            code = launch.launch([sys.executable, str(script), str(begun)], 2)
        finally:
            other.kill()
    assert code == 0, capfd.readouterr().err


def test_the_end_waits_for_what_was_lent():
    held = [distributed._lend(torch.ones(3))]
    timer = threading.Timer(0.2, held.clear)
    timer.start()
    distributed._wait_for_return()
    assert not held and not any(alias() is not None for alias in distributed._lent)
    kept = torch.ones(3)
    distributed._lend(kept)  # what its owner still has is no reason to wait
    started = time.monotonic()
    distributed._wait_for_return()
    assert time.monotonic() - started < 5 and kept.sum() == 3


def test_a_budget_is_one_for_all_and_of_the_slowest(two):
    """An epoch of two batches sleeps for 0.2 s in one of the processes, so 15 would fit if they took no work."""
    assert two.budget[0] == two.budget[1]
    assert 3 <= two.budget[0]["epochs"] <= 15


def test_a_signal_goes_to_all(tmp_path, capfd):
    """SIGINT to the launcher, once both processes listen: both hear it once, and end as they like."""
    before = signal.getsignal(signal.SIGINT)
    program = f"""
signal.signal(2, lambda *_: sys.exit(0 if rank else 5))
open({str(tmp_path)!r} + f"/{{rank}}", "w").close()
while rank and len(os.listdir({str(tmp_path)!r})) < 2:
    time.sleep(0.01)
if rank:
    os.kill(os.getppid(), 2)
time.sleep(60)"""
    assert launch.launch([sys.executable, "-c", IN_PLACE + program], 2) == 5
    assert "failed first" not in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_the_command_under_torchrun(tmp_path):
    settings = ["--data", "shapes", "--model", "vit_pico_patch8_32", "--recipe", "quick", "--run-dir", str(tmp_path)]
    changes = ["--set", "epochs=0.04", "warmup_epochs=0", "device=cpu"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VIT_PROGRESS": "none"}
    command = [sys.executable, *launcher, "-m", "vit.tasks.train", *settings, *changes]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("val accuracy") == 1 and (tmp_path / "model.safetensors").exists()
    assert len(read_state(tmp_path / "state.pt")["random_of_others"]) == 1


def test_the_command_trains_for_the_epochs_that_fit(tmp_path, shapes, monkeypatch, capsys):
    monkeypatch.setattr(train, "load_data", lambda name: shapes)
    monkeypatch.setattr(train, "for_budget", partial(for_budget, probe_seconds=0.1))
    arguments = ["--run-dir", str(tmp_path), "--model", "vit_pico_patch8_32", "--recipe", "quick", "--minutes", "0.03"]
    train.main([*arguments, "--set", "device=cpu"])
    told = float(capsys.readouterr().out.split(" epochs fit into 0.03 minutes")[0].splitlines()[-1])
    rows = (tmp_path / "history.csv").read_text().splitlines()
    steps_per_epoch = math.ceil(len(shapes.train) / TrainConfig.preset("quick").batch_size)
    half_a_step = 0.5 / steps_per_epoch  # told in hundredths of an epoch, trained in whole steps
    assert float(rows[-1].split(",")[0]) == pytest.approx(told, abs=half_a_step) and told != 2, "the preset has 2"
    with pytest.raises(SystemExit):
        train.main([*arguments, "--resume"])
    assert "--minutes is for a new run" in capsys.readouterr().err


def test_a_training_on_the_cpu_needs_no_gpu(monkeypatch):
    """Of two processes on a machine with one GPU, the second can train on the CPU alone."""
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="has no GPU, there are 1: start 1 at most, or take device='cpu'"), processes():
        pass
    backends = []

    def meet(backend, **_):
        backends.append(backend)
        raise RuntimeError("met")

    monkeypatch.setattr(distributed, "_meeting_place", lambda *_: None)
    monkeypatch.setattr(distributed, "_record", lambda error: None)
    monkeypatch.setattr(distributed.dist, "init_process_group", meet)
    with pytest.raises(RuntimeError, match="met"), processes("cpu"):
        pass
    assert backends == ["gloo"]


def test_processes_are_ended_where_there_is_no_sigkill(monkeypatch):
    monkeypatch.delattr(signal, "SIGKILL")  # as on Windows
    assert launch.launch([sys.executable, "-c", "pass"], 2) == 0


@pytest.mark.parametrize("own", [None, "7"])
def test_cores_are_shared_out_unless_somebody_has(tmp_path, monkeypatch, own):
    monkeypatch.delenv("OMP_NUM_THREADS") if own is None else monkeypatch.setenv("OMP_NUM_THREADS", own)
    monkeypatch.setattr(launch.os, "cpu_count", lambda: 12)
    place = f"{str(tmp_path)!r} + '/' + os.environ['RANK']"
    code = f"import os; open({place}, 'w').write(os.environ['OMP_NUM_THREADS'])"
    assert launch.launch([sys.executable, "-c", code], 3) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [own or "4"] * 3


def test_a_cluster_that_says_too_little_is_told_what_is_missing(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(RuntimeError, match="WORLD_SIZE=2, but the environment has no LOCAL_RANK, MASTER_PORT"),
        processes(),
    ):
        pass
