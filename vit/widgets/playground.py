"""A panel to try settings with: a form that says what they will cost, Train and Stop, live curves, and all runs so far.

Training goes on in a thread (`train_in_background`), so that the notebook answers meanwhile. The panel is redrawn by
the event loop of the notebook, never by a thread: figures have one global state. In plain Python there is no such loop,
and `wait` brings the panel up to date. One file, long for that: all of it is one panel, whose parts act on each other.
"""

import asyncio
import math
import time
from dataclasses import replace
from pathlib import Path

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from vit.analysis import Forecast, Speed, forecast, measure_speed
from vit.config import TrainConfig, ViTConfig
from vit.data import DataSplits, make_loaders
from vit.model.vision_transformer import VisionTransformer
from vit.plots import plot_progress
from vit.pretrained import save
from vit.training import (
    BackgroundRun,
    History,
    Run,
    current_run,
    new_run_folder,
    train_in_background,
    write_summary,
)
from vit.training.run_folder import began, runs_root
from vit.widgets.config_form import ConfigForm
from vit.widgets.panel import do_or_tell, message_html, side_by_side, to_png
from vit.widgets.run_table import MAX_CURVES, RunTable

GLANCE = 0.5  # seconds between two looks at a running training
DRAWING_SHARE = 0.02  # of the time that live curves may take from it


class Playground(widgets.VBox):
    """A panel to tweak, train and compare.

    Args:
        data: what is trained on; test images are never looked at.
        model_config, train_config: where the form begins; image size, channels and classes follow the data.
        runs_dir: where runs are kept and listed; default `runs/`, see `new_run_folder`.
    """

    def __init__(
        self,
        data: DataSplits,
        model_config: ViTConfig | None = None,
        train_config: TrainConfig | None = None,
        *,
        runs_dir: str | Path | None = None,
    ) -> None:
        self.data, self.runs_dir = data, runs_root(runs_dir).absolute()
        self.form = ConfigForm(self._fitting(model_config or ViTConfig()), train_config or TrainConfig())
        self.runs = RunTable(self.runs_dir, on_use=self._use)
        self.run: BackgroundRun | None = None
        self._speeds: dict[tuple[str, ...], Speed] = {}
        self._make_controls()
        presets = [self.model_preset, self.train_preset]
        actions = widgets.HBox([self.name, self.train_button, self.stop_button])
        live = widgets.VBox([self.estimate, actions, self.progress, self.picture], layout={"flex": "1 1 420px"})
        super().__init__([side_by_side([*presets, self.form], live), self.runs])
        self._tell_costs()
        if (run := current_run()) is not None:  # of a panel that this one replaces
            self._watch_over(run)

    @property
    def is_training(self) -> bool:
        return self.run is not None and self.run.is_running

    def use(self, model_config: ViTConfig | None = None, train_config: TrainConfig | None = None) -> None:
        """Fills the form in; None leaves its half as it is."""
        model_config = self.form.model_config if model_config is None else self._fitting(model_config)
        self.form.show(model_config, train_config or self.form.train_config)

    def costs(self) -> Forecast:
        """What the training in the form will cost. Raises ValueError where the form says what cannot be."""
        train_config = self.form.train_config
        return forecast(
            self.form.model_config,
            train_config,
            len(self.data.train),
            num_val_images=len(self.data.val),
            speed=self._speed(train_config),
        )

    def train(self) -> BackgroundRun:
        """Starts what the form says, as Train does.

        Raises:
            ValueError: the form says what cannot be, or the name is none for a folder.
            RuntimeError: another training goes on.
        """
        model_config, train_config = self.form.model_config, self.form.train_config
        self._check_idle()
        folder = new_run_folder(
            self.name.value.strip(), self.runs_dir, data=self.data.name, model=model_config, train=train_config
        )
        return self._start(model_config, train_config, folder)

    def resume(self, run: Run) -> BackgroundRun:
        """Goes on with a run that was stopped.

        Raises:
            ValueError: the run is complete, or of other data.
            RuntimeError: another training goes on.
        """
        if run.history.is_complete:
            raise ValueError(f"{run.name} is complete: use its settings, with more epochs, for a new run")
        model_config, train_config = _configs(run)
        if run.config.get("data") != self.data.name:
            raise ValueError(f"{run.name} was trained on {run.config.get('data')!r}, not on {self.data.name!r}")
        self._check_idle()
        self.use(model_config, train_config)
        return self._start(model_config, train_config, run.folder, resume=True)

    def stop(self) -> None:
        """Ends the training after its step, as Stop does; its state is kept, see `resume`."""
        if self.is_training:
            self.run.stop()
            self._tell("stopping …")

    def wait(self, timeout: float | None = None) -> History:
        """Waits for the end of the training, see `BackgroundRun.wait`, and brings the panel up to date."""
        if self.run is None:
            raise ValueError("there is no run to wait for: train() first")
        try:
            return self.run.wait(timeout)
        finally:
            self._glance()

    def figure(self) -> Figure:
        """The curves of the run that is training, or of the last one. Raises ValueError before there is one."""
        if self.run is None:
            raise ValueError("there is no run to draw: train() first")
        config, steps = self.run.config, self.run.total_steps
        losses = [(config.epochs * step / steps, loss) for step, loss in self.run.losses]
        return plot_progress(losses, self.run.history.rows, epochs=config.epochs, title=self.run.run_dir.name)

    def draw(self) -> None:
        """Shows the curves."""
        self.picture.value = to_png(self.figure())
        self.picture.layout.display = None

    def _make_controls(self) -> None:
        small = [name for name in ViTConfig.list_presets() if name.endswith("_32")]
        wide = {"style": {"description_width": "150px"}, "layout": {"width": "390px"}, "value": None}
        self.model_preset = widgets.Dropdown(options=small, description="network preset", **wide)
        self.train_preset = widgets.Dropdown(options=TrainConfig.list_presets(), description="training preset", **wide)
        self.estimate, self.progress = widgets.HTML(), widgets.HTML()
        self.estimate.add_class("vit-estimate")
        self.progress.add_class("vit-progress")
        self.name = widgets.Text("playground", description="name", style={"description_width": "initial"})
        self.train_button = widgets.Button(description="Train", button_style="success", icon="play")
        self.stop_button = widgets.Button(description="Stop", button_style="warning", icon="stop", disabled=True)
        self.picture = widgets.Image(format="png", layout={"width": "98%", "max_width": "800px", "display": "none"})
        self.model_preset.observe(lambda _: self._use_presets(), "value")
        self.train_preset.observe(lambda _: self._use_presets(), "value")
        self.form.on_change(self._tell_costs)
        self.train_button.on_click(lambda _: do_or_tell(self.train, self._tell))
        self.stop_button.on_click(lambda _: self.stop())

    def _use_presets(self) -> None:
        """Fills in the presets that were just chosen, and leaves the menus ready for another choice."""
        model, train = self.model_preset.value, self.train_preset.value
        if not (model or train):
            return

        def fill_in() -> None:
            self.use(
                ViTConfig.preset(model) if model else None,
                TrainConfig.preset(train) if train else None,
            )
            self._tell_progress()  # in place of what an earlier choice was refused for

        try:
            do_or_tell(fill_in, self._tell)
        finally:
            self.model_preset.value = self.train_preset.value = None

    def _use(self, run: Run, what: str) -> None:
        """What the table asks for: the settings of a run in the form, or its training to go on."""
        if what == "training":
            self.resume(run)
        else:
            self.use(*_configs(run))

    def _fitting(self, config: ViTConfig) -> ViTConfig:
        """The config for images like those of the data."""
        channels, *size = self.data.train.images.shape[1:]
        return replace(config, image_size=tuple(size), in_chans=channels, num_classes=self.data.num_classes)

    def _speed(self, config: TrainConfig) -> Speed | None:
        """Of this machine with the optimizer of a config. Measured once for each, but not beside a training."""
        key = (config.optimizer, config.device, config.precision)
        if key not in self._speeds:
            if self.is_training or current_run() is not None:
                return next(iter(self._speeds.values()), None)
            self._speeds[key] = measure_speed(config)
        return self._speeds[key]

    def _tell_costs(self) -> None:
        try:
            told = self.costs()
        except (ValueError, RuntimeError) as error:
            self.estimate.value = message_html(str(error), is_error=True)
            self.train_button.disabled = True
            return
        self.train_button.disabled = self.is_training
        duration = "" if told.seconds is None else f"<b>about {_duration(told.seconds)}</b> on this machine, "
        self.estimate.value = (
            f"<div style='line-height: 1.4'>{duration}{told.num_parameters:,} parameters, "
            f"{told.flops_per_image / 1e6:,.0f} MFLOP an image, {told.memory.total / 1e6:,.0f} MB of memory, "
            f"{told.train_flops / 1e12:,.3g} TFLOP in all</div>"
        )

    def _check_idle(self) -> None:
        """Before anything is written."""
        if (run := current_run()) is not None:
            raise RuntimeError(f"the training in {run.run_dir.name} still goes on: stop it first")

    def _start(
        self, model_config: ViTConfig, train_config: TrainConfig, folder: Path, *, resume: bool = False
    ) -> BackgroundRun:
        torch.manual_seed(train_config.seed)
        model = VisionTransformer(model_config)
        model.metadata = self.data.metadata
        run = train_in_background(model, *make_loaders(self.data, train_config), train_config, folder, resume=resume)
        self._watch_over(run)
        return run

    def _watch_over(self, run: BackgroundRun) -> None:
        self.run, self._first_step = run, None
        self.train_button.disabled, self.stop_button.disabled = True, False
        self.draw()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._watcher = loop.create_task(self._watch(run))

    async def _watch(self, run: BackgroundRun) -> None:
        """Follows a run until its end. The more computing a picture takes, the longer it waits for the next one."""
        drawn, pause, is_listed = time.monotonic(), 1.0, False
        while run.is_running:
            await asyncio.sleep(GLANCE)
            self._tell_progress()
            if run.steps_done and not is_listed:  # before its first step it may not have made its files yet
                self.runs.refresh()
                is_listed = True
            if run.losses and time.monotonic() - drawn > pause:
                computed = time.thread_time()
                self.draw()
                drawn, pause = time.monotonic(), max(1.0, (time.thread_time() - computed) / DRAWING_SHARE)
        if self.run is run:
            self._glance()

    def _glance(self) -> None:
        """Brings the panel up to date, and keeps the weights of a run that has just ended."""
        if self.is_training:
            self._tell_progress()
            return
        run, failure = self.run, None
        try:
            _keep(run)
        except Exception as error:  # a full disk can be a SafetensorError, which is no OSError
            failure = error
        self.stop_button.disabled = True
        self._tell_costs()
        self._tell_progress()
        if failure is not None:
            self._tell(f"done, but what was trained could not be kept: {failure}", is_error=True)
        if run.losses or run.history:
            self.draw()
        self.runs.refresh()
        chosen = [other.folder for other in self.runs.chosen if other.folder.name != run.run_dir.name]
        ended = [other for other in self.runs.runs if other.folder.name == run.run_dir.name]  # unless it is gone
        self.runs.choose(*sorted(chosen, key=began)[1 - MAX_CURVES :], *ended)  # the newest, if too many are ticked

    def _tell_progress(self) -> None:
        if self.run is None:
            self._tell("")
            return
        run, history = self.run, self.run.history
        if run.error is not None:
            self._tell(f"failed: {run.error}", is_error=True)
        elif history.is_complete:
            self._tell(f"done: validation accuracy {history.last['val_accuracy']:.1f} % after {run.total_steps} steps")
        elif not run.is_running:
            self._tell(f"stopped after step {run.steps_done} of {run.total_steps}; it can be trained on")
        else:
            loss = f", loss {run.losses[-1][1]:.3f}" if run.losses else ""
            self._tell(f"training: step {run.steps_done} of {run.total_steps}{loss}{self._time_left()}")

    def _time_left(self) -> str:
        run = self.run
        if self._first_step is None:
            self._first_step, self._started = run.steps_done, time.monotonic()
        done, elapsed = run.steps_done - self._first_step, time.monotonic() - self._started
        if done < 1 or elapsed < 2:
            return ""
        return f", {_duration((run.total_steps - run.steps_done) * elapsed / done)} to go"

    def _tell(self, text: str, *, is_error: bool = False) -> None:
        self.progress.value = message_html(text, is_error=is_error)


def _keep(run: BackgroundRun) -> None:
    """Writes the weights of a complete run, and what it came to, unless they are there or its folder is gone."""
    weights = run.run_dir / "model.safetensors"
    if not run.history.is_complete or weights.exists() or not (run.run_dir / "config.json").exists():
        return
    last = run.history.last
    write_summary(  # before the weights: without these, both are written at the next try
        run.run_dir,
        run.config,
        val_accuracy=last["val_accuracy"],
        train_seconds=last["seconds"],
    )
    save(run.model, weights, val_accuracy=round(last["val_accuracy"], 2))


def _configs(run: Run) -> tuple[ViTConfig, TrainConfig]:
    if not {"model", "train"} <= run.config.keys():
        raise ValueError(f"config.json of {run.name} does not say what network it trains, and how: start from the form")
    return ViTConfig.from_dict(run.config["model"]), TrainConfig.from_dict(run.config["train"])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
