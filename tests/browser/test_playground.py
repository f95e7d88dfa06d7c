"""The playground: a slider is answered, a training is seen to run, and stops when told to."""

import re
import time

import pytest

from vit import TrainConfig, ViTConfig
from vit.training import list_runs

pytestmark = pytest.mark.browser
STOP_SECONDS = 3
# Values that the form offers only once they are put in, and others whose places move with them.
ODD_NETWORK = {"depth": 2, "embed_dim": 84, "num_heads": 6, "mlp_ratio": 1.75, "drop_rate": 0.03, "patch_size": 16}


def test_sliders_answer_and_training_starts_and_stops(open_notebook):
    page = open_notebook("06_playground", "panel.use(train_config=replace(train_config, epochs=2000))")
    page.screenshot("opened")
    for label in ("depth", "embed_dim"):
        before = page.text("vit-estimate")
        page.move_slider(label)
        page.wait(lambda before=before: page.text("vit-estimate") not in ("", before), f"{label} changes no estimate")
    runs_before = page.text("vit-runs")

    page.click(page.button("Train"))
    page.wait(lambda: "training" in page.text("vit-progress"), "no training is shown")
    first = page.wait(lambda: steps(page), "no step is shown")
    page.wait(lambda: steps(page) > first, "the steps do not advance")
    page.screenshot("training")
    page.click(page.button("Stop"))
    pressed = time.monotonic()
    page.wait(lambda: "stopped" in page.text("vit-progress"), "it did not stop", seconds=STOP_SECONDS)
    print(f"stopped after {time.monotonic() - pressed:.1f} s")
    page.wait(lambda: page.text("vit-runs") != runs_before, "the run is not in the table")
    page.screenshot("stopped")
    assert page.console_errors() == []


def test_a_training_has_the_settings_that_were_put_in(open_notebook, lab):
    """A slider must not send back what it was given, rounded to its steps; and any number can be typed beside it."""
    network, training = ODD_NETWORK, {"muon_learning_rate": 0.0123, "batch_size": 24, "epochs": 0.35}
    more = f"panel.use(replace(model_config, **{network}), replace(train_config, **{training}))"
    page = open_notebook("06_playground", more)
    runs = lab[2].parent / "runs"
    num_before = len(list_runs(runs))
    page.click(page.tab("optimization"))
    page.type_beside("learning_rate", "0.0033")
    page.click(page.button("Train"))
    page.wait(lambda: len(list_runs(runs)) > num_before, "no run has begun")
    trained = list_runs(runs)[-1].config
    put_in = TrainConfig.preset("quick", device="cpu", learning_rate=0.0033, warmup_epochs=0.2, **training)
    assert TrainConfig.from_dict(trained["train"]) == put_in
    assert ViTConfig.from_dict(trained["model"]) == ViTConfig.preset("vit_pico_patch8_32", **network)


def steps(page) -> int:
    """The step counter: the first number of the progress line."""
    number = re.search(r"\d[\d,]*", page.text("vit-progress"))
    return int(number.group().replace(",", "")) if number else 0
