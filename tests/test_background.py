"""A training in the background is the same training: same bits, stopped within seconds, resumed, never lost."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from conftest import same_weights

from vit.config import TrainConfig, ViTConfig
from vit.data import make_loaders
from vit.model.vision_transformer import VisionTransformer
from vit.training import History, background, fit
from vit.training.background import train_in_background
from vit.training.run_lock import is_being_written

CONFIG = TrainConfig.preset("quick", device="cpu", batch_size=64, epochs=3, patch_drop_rate=0.5, ema_decay=0.9)
LIMIT = 3.0  # seconds from Stop to the end


def make_model(seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(
        ViTConfig(image_size=16, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0, drop_rate=0.1, drop_path_rate=0.1)
    )


def without_seconds(history: History) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]


class Slow:
    """A loader that takes its time before every batch, and says when it has begun; at a given batch it may raise.

    A val loader is drawn from once before the training: its first validation begins with the second batch.
    """

    num_classes = 10

    def __init__(self, loader, seconds=0.0, raises_at=None, begins_at=1):
        self.loader, self.seconds, self.raises_at, self.begins_at = loader, seconds, raises_at, begins_at
        self.drawn, self.has_begun = 0, threading.Event()

    def __len__(self):
        return len(self.loader)

    def epoch(self, epoch, start_step=0):
        for batch in self.loader.epoch(epoch, start_step):
            self.drawn += 1
            if self.drawn == self.raises_at:
                raise OSError("the disk is gone")
            if self.drawn >= self.begins_at:
                self.has_begun.set()
            time.sleep(self.seconds)
            yield batch


class Parts:
    """The one batch of a val loader in many small ones."""

    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return 20

    def epoch(self, epoch, start_step=0):
        images, labels = next(self.loader.epoch(0))
        yield from zip(images.chunk(20), labels.chunk(20), strict=True)


@pytest.fixture(scope="module")
def loaders(shapes):
    return make_loaders(shapes, CONFIG)


@pytest.fixture(scope="module")
def whole(loaders):
    """The run that nobody puts in the background or stops."""
    model = make_model()
    return model, fit(model, *loaders, CONFIG)


def test_the_background_ends_in_the_same_bits(loaders, whole, tmp_path):
    model, rows = make_model(), []
    run = train_in_background(model, *loaders, CONFIG, tmp_path, after_epoch=lambda _, row: rows.append(row))
    history = run.wait(60)
    assert rows == history.rows
    assert history.is_complete and not run.is_running and run.error is None
    assert same_weights(model, whole[0]) and without_seconds(history) == without_seconds(whole[1])
    assert History.load_csv(tmp_path / "history.csv").rows == history.rows
    assert run.steps_done == run.total_steps == 21
    assert repr(run) == f"BackgroundRun(done, epoch=3, step 21 of 21, run_dir={str(tmp_path)!r})"


def test_one_can_watch_it_and_do_other_things(loaders, tmp_path):
    run = train_in_background(make_model(), Slow(loaders[0], 0.05), loaders[1], CONFIG, tmp_path)
    seen = []  # (steps, epochs, losses)
    while run.is_running:
        seen.append((run.steps_done, len(run.history), len(run.losses)))
        run.history.rows.clear()  # a copy: nothing is lost by it
        assert repr(run).startswith("BackgroundRun(training, epoch=") or not run.is_running
        time.sleep(0.01)
    assert len({steps for steps, _, _ in seen}) > 10 and {epochs for _, epochs, _ in seen} >= {0, 1, 2}
    assert len(run.history) == 3
    assert 1 <= len(run.losses) <= 21 and all(1 < loss < 4 for _, loss in run.losses)
    assert [step for step, _ in run.losses] == sorted({step for step, _ in run.losses})


@pytest.mark.parametrize("where", ["a step", "the validation"])
def test_stopped_within_seconds_and_resumed_to_the_same_bits(loaders, whole, tmp_path, where):
    train, val = loaders[0], Parts(loaders[1])
    slow = (
        Slow(train, 0.4) if where == "a step" else Slow(val, 0.4, begins_at=2)
    )  # an epoch of 3 s, a validation of 8 s
    run = train_in_background(make_model(), *((slow, val) if where == "a step" else (train, slow)), CONFIG, tmp_path)
    assert slow.has_begun.wait(20)
    assert is_being_written(tmp_path)
    run.stop()
    history = run.wait(LIMIT)
    assert not history.is_complete and len(history) == 0 and not is_being_written(tmp_path)
    assert run.steps_done == (1 if where == "a step" else 7)
    assert repr(run).startswith(f"BackgroundRun(stopped, epoch=0, step {run.steps_done} of 21, ")

    model = make_model(seed=99)
    torch.manual_seed(4242)
    resumed = train_in_background(model, *loaders, CONFIG, tmp_path, resume=True)
    assert resumed.wait(60).is_complete
    assert same_weights(model, whole[0]) and without_seconds(resumed.history) == without_seconds(whole[1])


def test_errors_are_kept_said_and_raised(loaders, tmp_path, capsys):
    model = make_model()
    run = train_in_background(model, Slow(loaders[0], raises_at=9), loaders[1], CONFIG, tmp_path)
    with pytest.raises(OSError, match="the disk is gone"):
        run.wait(60)
    assert isinstance(run.error, OSError) and not run.is_running and len(run.history) == 1
    assert repr(run).startswith("BackgroundRun(failed with OSError, epoch=1, step 8 of 21, ")
    assert f"the training in {tmp_path} has ended: OSError: the disk is gone" in capsys.readouterr().err
    # The state of the last whole epoch is there.
    assert train_in_background(model, *loaders, CONFIG, tmp_path, resume=True).wait(60).is_complete
    other = replace(CONFIG, learning_rate=1e-4)
    wrong = train_in_background(model, *loaders, other, tmp_path, resume=True)
    with pytest.raises(ValueError, match="learning_rate: saved 0.002, now 0.0001"):
        wrong.wait(60)


def test_what_the_run_gives_fit_itself_is_refused(loaders, tmp_path):
    with pytest.raises(TypeError, match="^history, make_bar: not an option here"):
        train_in_background(make_model(), *loaders, CONFIG, tmp_path, make_bar=None, history=History())
    assert background.current_run() is None and not list(tmp_path.iterdir())


def test_one_at_a_time(loaders, tmp_path):
    run = train_in_background(make_model(), Slow(loaders[0], 0.2), loaders[1], CONFIG, tmp_path / "a")
    with pytest.raises(RuntimeError, match=r"the training in .*a still goes on: stop\(\) it and wait\(\)"):
        train_in_background(make_model(), *loaders, CONFIG, tmp_path / "b")
    with pytest.raises(TimeoutError, match="still goes on after 0.01 s"):
        run.wait(0.01)
    while not is_being_written(tmp_path / "a"):
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match="another training is writing into .*a: stop it, or take another folder"):
        fit(make_model(), *loaders, CONFIG, run_dir=tmp_path / "a")
    run.stop()
    run.wait(LIMIT)
    short = replace(CONFIG, epochs=0.2, warmup_epochs=0.0)
    assert train_in_background(make_model(), *loaders, short, tmp_path / "b").wait(60).is_complete


def test_the_thread_computes_with_as_many_threads_as_its_starter(loaders, tmp_path):
    seen = []

    def loss_fn(model, batch):
        seen.append(torch.get_num_threads())
        return model(batch[0]).square().mean(), {}

    torch.set_num_threads(2)
    try:
        short = replace(CONFIG, epochs=0.2, warmup_epochs=0.0)
        train_in_background(make_model(), *loaders, short, tmp_path, loss_fn=loss_fn).wait(60)
    finally:
        torch.set_num_threads(1)
    assert set(seen) == {2}


def test_it_draws_no_bar(loaders, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("VIT_PROGRESS", "text")
    train_in_background(make_model(), *loaders, CONFIG, tmp_path).wait(60)
    assert capfd.readouterr() == ("", "")


def test_the_end_of_python_saves_the_state(tmp_path):
    """A daemon thread is cut off at exit, and another one would keep Python alive until the last epoch."""
    code = f"""
import time
from vit.training import background

def fit(run_dir, should_stop, **_):
    while not should_stop():
        time.sleep(0.01)
    time.sleep(0.3)
    (run_dir / "state").write_text("saved")

background.fit = fit
background.train_in_background(None, None, None, None, {str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert (tmp_path / "state").read_text() == "saved"


def test_losses_come_every_half_second_and_ever_more_slowly(monkeypatch):
    """So that the curve of a long training stays a short list."""
    now, due = [0.0], []
    monkeypatch.setattr(background.time, "monotonic", lambda: now[0])
    bar = background._LiveBar(SimpleNamespace(), total=10**6, initial=0, unit="step")
    for _ in range(36_000):  # an hour of steps of 0.1 s
        now[0] += 0.1
        if bar.update():
            due.append(now[0])
    assert due[0] == pytest.approx(0.5) and min(b - a for a, b in pairwise(due)) > 0.45 and len(due) < 2000
    assert due[-1] - due[-2] == pytest.approx(3600 / 500, abs=0.2)
