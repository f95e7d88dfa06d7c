"""A search against trainings whose best values are known, the median rule written out, and `fit` called by hand."""

import functools
import math
import signal
import sys
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch

from vit.config import TrainConfig, ViTConfig
from vit.data import make_loaders
from vit.model.vision_transformer import VisionTransformer
from vit.training import History, Range, fit, importances, search
from vit.training.search import SearchResult
from vit.training.search_trial import Trial

MODEL, TRAIN = ViTConfig(), TrainConfig(device="cpu")
ERRORS = [
    FloatingPointError("the loss is nan"),
    torch.OutOfMemoryError("too large"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB, other allocations: 2 GB, max allowed: 3 GB)"),
    MemoryError("too large"),
    None,
]
SPACE = {
    "train.learning_rate": Range(1e-4, 1e-1, log=True),
    "model.depth": Range(1, 9),
    "model.qk_norm": [False, True],
    "train.weight_decay": Range(0.0, 0.3),
}


def made_up(accuracy, num_epochs=5):
    """A `train` whose accuracy rises to a known value, half of the rest with each epoch."""

    def train(model_config, train_config, *, history, should_stop, make_bar):
        final = accuracy(model_config, train_config)
        for epoch in range(1, num_epochs + 1):
            history.rows.append({"epoch": epoch, "val_accuracy": final * (1 - 0.5**epoch)})
            if should_stop() and epoch < num_epochs:
                return history
        history.is_complete = True
        return history

    return train


def by_learning_rate(model_config, train_config):
    """Best at 3e-3; the depth, best at 5, matters little, and nothing else does."""
    return 80 - 12 * math.log10(train_config.learning_rate / 3e-3) ** 2 - 0.2 * abs(model_config.depth - 5)


def by_depth(model_config, train_config):
    return 80 - 6 * abs(model_config.depth - 5) - 0.2 * math.log10(train_config.learning_rate / 3e-3) ** 2


find = functools.partial(search, model_config=MODEL, train_config=TRAIN)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("accuracy", "first"), [(by_learning_rate, "train.learning_rate"), (by_depth, "model.depth")])
def test_the_optimum_and_what_matters_are_found(accuracy, first, seed):
    result = find(made_up(accuracy), SPACE, num_trials=40, seed=seed)
    model_config, train_config = result.best_configs
    if accuracy is by_learning_rate:
        assert 3e-3 / 1.5 < train_config.learning_rate < 3e-3 * 1.5
    else:
        assert model_config.depth == 5
    assert result.best.value == pytest.approx(accuracy(model_config, train_config) * (1 - 0.5**5))
    assert model_config == replace(MODEL, depth=model_config.depth, qk_norm=model_config.qk_norm)
    shares = importances(result)
    assert next(iter(shares)) == first and shares[first] > 0.5
    assert shares.keys() == SPACE.keys() and sum(shares.values()) == pytest.approx(1)
    assert shares["model.qk_norm"] < 0.2 and shares["train.weight_decay"] < 0.45


def test_trials_end_where_the_median_rule_says():
    trained = []

    def train(model_config, train_config, **watch):
        history = made_up(by_learning_rate)(model_config, train_config, **watch)
        trained.append(len(history))
        return history

    result = find(train, SPACE, num_trials=30, seed=1)
    complete = []  # the accuracies of complete trials, an epoch a column
    for trial in result.trials:
        curve = by_learning_rate(*configs_of(trial)) * (1 - 0.5 ** np.arange(1, 6))
        is_behind = len(complete) >= 5 and (curve < np.median(complete, axis=0))[:4]
        num_epochs = int(np.argmax(is_behind)) + 1 if np.any(is_behind) else 5
        assert len(trial.history) == num_epochs and trial.value == pytest.approx(curve[num_epochs - 1])
        assert trial.state == ("complete" if num_epochs == 5 else "pruned") and not trial.reason
        if trial.state == "complete":
            complete.append(curve)
    assert len(result.trials) == len(trained) == 30
    assert sum(trained) == sum(len(trial.history) for trial in result.trials) < 0.8 * 5 * 30
    unpruned = find(train, SPACE, num_trials=30, seed=1, prune=False)
    assert {trial.state for trial in unpruned.trials} == {"complete"}
    unpruned = find(train, SPACE | {"train.epochs": Range(1, 9)}, num_trials=12)
    assert {trial.state for trial in unpruned.trials} == {"complete"}


def configs_of(trial):
    values = {"model": {}, "train": {}}
    for name, value in trial.changes.items():
        part, field = name.split(".")
        values[part][field] = value
    return replace(MODEL, **values["model"]), replace(TRAIN, **values["train"])


def test_the_seed_decides_the_suggestions():
    runs = [find(made_up(by_learning_rate), SPACE, num_trials=15, seed=seed).rows for seed in (3, 3, 4)]
    assert runs[0] == runs[1] and runs[0][0] != runs[2][0]
    depths = {row["model.depth"] for rows in runs for row in rows}
    assert depths <= set(range(1, 10)) and len(depths) > 5
    assert all(1e-4 <= row["train.learning_rate"] <= 1e-1 for rows in runs for row in rows)


def test_choices_and_whole_numbers_reach_the_configs_as_they_are():
    choices = {
        "train.adam_betas": [(0.9, 0.95), (0.8, 0.9)],
        "model.layer_scale": [None, 1e-4],
        "model.qk_norm": (True,),
    }
    space = choices | {"train.mix_probability": Range(0, 1), "model.num_registers": Range(1, 4, log=True)}
    seen = []

    def accuracy(model_config, train_config):
        seen.append((model_config, train_config))
        return 50.0

    result = find(made_up(accuracy), space, num_trials=12)
    assert {train_config.adam_betas for _, train_config in seen} == {(0.9, 0.95), (0.8, 0.9)}
    assert {model_config.layer_scale for model_config, _ in seen} == {None, 1e-4}
    assert all(model_config.qk_norm is True for model_config, _ in seen)
    assert all(0 < train_config.mix_probability < 1 for _, train_config in seen), "no whole numbers"
    assert {1, 2} < {model_config.num_registers for model_config, _ in seen} <= {1, 2, 3, 4}
    assert [configs_of(trial) for trial in result.trials] == seen
    assert result.log_names == ["model.num_registers"]


def test_refused_combinations_cost_nothing_and_say_why(capsys):
    space = {"model.embed_dim": [96, 100], "model.num_heads": [3, 5, 7]}
    result = find(made_up(lambda model_config, _: float(model_config.embed_dim) / 2), space, num_trials=12)
    assert sum(trial.state != "refused" for trial in result.trials) == 12
    for trial in result.trials:
        divides = trial.changes["model.embed_dim"] % trial.changes["model.num_heads"] == 0
        assert (trial.state == "refused") is not divides
        assert ("does not divide embed_dim" in trial.reason) is not divides
        assert (trial.value is None) is not divides
    assert "suggestions; the last: ViTConfig.num_heads=" in capsys.readouterr().err
    assert result.best.changes == {"model.embed_dim": 100, "model.num_heads": 5}
    with pytest.raises(ValueError, match=r"refused 100 of 100 .*num_heads=[57] does not divide.*; change the space"):
        find(None, {"model.num_heads": [5, 7]}, num_trials=2)


@pytest.mark.parametrize("error", ERRORS)
def test_failed_trainings_count_and_the_search_goes_on(error):
    def accuracy(model_config, train_config):
        if train_config.learning_rate > 3e-3 and error is not None:
            raise error
        return float("nan") if train_config.learning_rate > 3e-3 else by_learning_rate(model_config, train_config)

    result = find(made_up(accuracy), SPACE, num_trials=40)
    assert len(result.trials) == 40
    for trial in result.trials:
        assert (trial.state == "failed") is (trial.changes["train.learning_rate"] > 3e-3)
        assert trial.state != "failed" or trial.reason == str(error or "the validation accuracy is nan")
    failures = [trial.state == "failed" for trial in result.trials]
    assert sum(failures[:10]) > 3 and sum(failures[-20:]) < sum(failures[:20]), "it learns from them"
    assert 1e-3 < result.best.changes["train.learning_rate"] <= 3e-3
    assert next(iter(importances(result))) == "train.learning_rate"


@pytest.mark.parametrize("how", ["exception", "signal", "button"])
def test_an_interrupt_ends_the_search_with_what_there_is(how):
    pressed, ended = [], []

    def accuracy(model_config, train_config):
        if len(ended) == 2:
            if how == "exception":
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT) if how == "signal" else pressed.append(True)
        return by_learning_rate(model_config, train_config)

    before = signal.getsignal(signal.SIGINT)
    stops = {"should_stop": lambda: bool(pressed), "on_trial": ended.append}
    result = find(made_up(accuracy), SPACE, num_trials=9, **stops)
    assert [trial.state for trial in result.trials] == ["complete", "complete", "stopped"] and result.trials == ended
    assert len(result.trials[2].history) == (0 if how == "exception" else 1)
    assert result.best in result.trials[:2]
    assert signal.getsignal(signal.SIGINT) is before
    pressed.append(True)
    none = find(made_up(accuracy), SPACE, num_trials=9, **stops)
    assert none.trials == [] and none.rows == []
    with pytest.raises(ValueError, match=r"none of 0 trials is complete \(states: none\)"):
        none.best  # noqa: B018


class Bar:
    """A progress bar that remembers."""

    made: tuple = ()

    def __init__(self, **options):
        self.options, self.updates, self.texts = options, 0, []
        Bar.made += (self,)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def update(self):
        self.updates += 1

    def set_description(self, text):
        self.texts.append(text)


def tiny_model(model_config):
    torch.manual_seed(0)
    return VisionTransformer(model_config)


TINY = ViTConfig(image_size=16, embed_dim=16, depth=1, num_heads=2, mlp_ratio=2.0)
QUICK = TrainConfig.preset("quick", device="cpu", batch_size=100)


def test_a_search_over_fit_is_fit(shapes, monkeypatch):
    monkeypatch.setattr(Bar, "made", ())

    def train(model_config, train_config, **watch):
        return fit(tiny_model(model_config), *make_loaders(shapes, train_config), train_config, **watch)

    space = {"train.learning_rate": Range(1e-4, 1e-1, log=True), "model.depth": Range(1, 2)}
    result = search(train, space, TINY, QUICK, num_trials=2, make_bar=Bar)
    assert [trial.state for trial in result.trials] == ["complete", "complete"]
    for trial in result.trials:
        config = replace(QUICK, learning_rate=trial.changes["train.learning_rate"])
        model = tiny_model(replace(TINY, depth=trial.changes["model.depth"]))
        history = fit(model, *make_loaders(shapes, config), config)
        assert trial.history["train_loss"] == history["train_loss"] and trial.value == history.last["val_accuracy"]
    outer, *inner = Bar.made
    assert outer.options["total"] == outer.updates == 2
    assert outer.texts[-1] == f"search, best val {result.best.value:.1f} %"
    assert [(bar.options["total"], bar.options["disable"], bar.updates) for bar in inner] == [(8, True, 8)] * 2


@pytest.mark.parametrize("why", ["pruned", "stopped"])
def test_fit_ends_early_without_an_exception(shapes, why):
    config = replace(QUICK, epochs=4)
    train_loader, val_loader = make_loaders(shapes, config)
    steps = []

    class Counted:
        num_classes = 10

        def __len__(self):
            return len(train_loader)

        def epoch(self, epoch, start_step=0):
            for batch in train_loader.epoch(epoch, start_step):
                steps.append(epoch)
                if why == "stopped" and len(steps) == 6:
                    signal.raise_signal(signal.SIGINT)
                yield batch

    def train(model_config, train_config, *, history, **watch):
        if model_config.num_registers or why == "stopped":
            return fit(tiny_model(model_config), Counted(), val_loader, train_config, history=history, **watch)
        return made_up(lambda *_: 99.0, num_epochs=4)(model_config, train_config, history=history, **watch)

    space = {"train.learning_rate": Range(1e-4, 1e-3), "model.num_registers": [0, 1]}
    result = search(train, space, TINY, config, num_trials=11, seed=8)
    real = [trial for trial in result.trials if trial.changes["model.num_registers"] or why == "stopped"]
    if why == "stopped":
        assert [(trial.state, len(trial.history)) for trial in real] == [("stopped", 1)] and steps == [0] * 4 + [1] * 2
    else:
        five = [trial.number for trial in result.trials if trial.state == "complete"][4]
        late = [trial for trial in real if trial.number > five]
        assert late and {(trial.state, len(trial.history)) for trial in late} == {("pruned", 1)}
        early = len(real) - len(late)
        assert len(steps) == 4 * 4 * early + 4 * len(late)


def test_what_is_always_pruned_matters():
    """Bad learning rates never complete: looking at complete trials alone, as Optuna does, weight decay comes first."""
    rng = np.random.default_rng(0)
    ranges = {"train.learning_rate": (0.0, 1.0), "train.weight_decay": (0.0, 1.0)}
    distributions = {name: optuna.distributions.FloatDistribution(*ends) for name, ends in ranges.items()}
    study = optuna.create_study(direction="maximize")
    trials = []
    for i in range(60):
        rate, decay = rng.random(2)
        is_pruned = abs(rate - 0.5) > 0.1
        changes = {"train.learning_rate": rate, "train.weight_decay": decay}
        accuracy = 30.0 if is_pruned else 70 + 5 * decay
        history = History([{"epoch": 1, "val_accuracy": accuracy}], is_complete=not is_pruned)
        trials.append(Trial(i, changes, "pruned" if is_pruned else "complete", "", history))
        state = optuna.trial.TrialState.PRUNED if is_pruned else optuna.trial.TrialState.COMPLETE
        of_trial = {"params": changes, "distributions": distributions}
        study.add_trial(optuna.trial.create_trial(state=state, value=None if is_pruned else accuracy, **of_trial))
    result = SearchResult(trials, {}, MODEL, TRAIN, study)
    assert next(iter(importances(result))) == "train.learning_rate"
    assert next(iter(optuna.importance.get_param_importances(study))) == "train.weight_decay"


def test_importances_need_trials_that_differ():
    few = find(made_up(by_learning_rate), SPACE, num_trials=9)
    with pytest.raises(ValueError, match="importances need 10 trials that are complete or pruned, got 9"):
        importances(few)
    same = find(made_up(lambda *_: 10.0), SPACE, num_trials=12)
    with pytest.raises(ValueError, match=r"none of 12 trials are the best: too many have an accuracy of 9\.6\d* %"):
        importances(same)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, r"space=\{\} must be a dict with a name or more"),
        ({"train.learning_rat": [1]}, "no field 'train.learning_rat' to change; did you mean 'train.learning_rate'?"),
        ({"learning_rate": [1]}, "did you mean 'train.learning_rate'?"),
        ({"model.heads": [1]}, "did you mean 'model.num_heads'?"),
        ({"train.lr": [1]}, "did you mean 'train.learning_rate'?"),
        ({3: [1]}, "space has no field 3 to change; names: model.image_size"),
        ({"train.flip": "none"}, "must be a Range or a list of one or more choices"),
        ({"train.flip": []}, "must be a Range or a list of one or more choices"),
        ({"model.depth": [2, 3, 2]}, "holds a choice twice"),
        ({"train.flip": Range(0, 1)}, "the field holds no plain number: give a list"),
        ({"model.qk_norm": Range(0, 1)}, "the field holds no plain number: give a list"),
        ({"model.depth": Range(2.0, 8)}, "must have whole numbers as bounds"),
    ],
)
def test_wrong_spaces_are_refused_before_any_work(space, message):
    with pytest.raises(ValueError, match=message):
        find(None, space, num_trials=1)


@pytest.mark.parametrize("ends", [(2, 1), (1, 1), (float("nan"), 1), (0, float("inf")), ("1", 2), (True, 2)])
def test_wrong_ranges_are_refused(ends):
    with pytest.raises(ValueError, match=r"Range.(low|high)="):
        Range(*ends)
    with pytest.raises(ValueError, match="Range.low=0 must be above 0 with log=True"):
        Range(0, 1, log=True)


def test_numbers_of_numpy_are_numbers():
    """As in the configs, which store Python's."""
    space = {"model.depth": Range(np.int64(2), np.int32(4)), "train.learning_rate": Range(np.float32(0.5), 1)}
    plain = {"model.depth": Range(2, 4), "train.learning_rate": Range(0.5, 1)}
    found, expected = (
        find(made_up(by_depth), where, num_trials=count) for where, count in ((space, np.int64(3)), (plain, 3))
    )
    assert [trial.changes for trial in found.trials] == [trial.changes for trial in expected.trials]
    assert {type(space["model.depth"].low), type(space["train.learning_rate"].low)} == {int, float}


def test_wrong_arguments_are_refused(monkeypatch):
    for num_trials in (0, 2.0, True):
        with pytest.raises(ValueError, match=f"num_trials={num_trials} must be an integer of 1 or more"):
            find(None, SPACE, num_trials=num_trials)
    with pytest.raises(TypeError, match="train returned a NoneType; it must return the History of fit"):
        find(lambda *configs, **watch: None, SPACE, num_trials=1)
    blind = History([{"epoch": 1, "train_loss": 2.0}], is_complete=True)
    with pytest.raises(
        ValueError, match="train measures no val_accuracy, only epoch, train_loss: give fit a val loader"
    ):
        find(lambda *configs, **watch: blind, SPACE, num_trials=1)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match='Optuna is not installed; python -m pip install "optuna>=5"'):
        find(None, SPACE, num_trials=1)


def test_optuna_is_quiet_and_stays_as_it_was(capfd):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    importances(find(made_up(by_learning_rate), SPACE, num_trials=12))
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert capfd.readouterr() == ("", "")


def test_a_fault_of_the_code_is_not_a_failed_training():
    def train(*configs, **watch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        find(train, SPACE, num_trials=3)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("padding=40 is not in 0..31"), "padding=40 is not in 0..31"),
        (OSError("no space left"), "no space left"),
        (TypeError("an int is not a float"), "an int is not a float"),
        (KeyError("fc9"), "KeyError('fc9')"),
        (AssertionError(), "AssertionError()"),
    ],
)
def test_an_error_after_a_training_that_worked_loses_no_trial(error, reason):
    def accuracy(model_config, train_config):
        if train_config.crop_padding == 40:
            raise error
        return 70.0 - train_config.crop_padding

    result = find(made_up(accuracy), {"train.crop_padding": [40, 0, 2]}, num_trials=12)
    states = {trial.changes["train.crop_padding"]: (trial.state, trial.reason) for trial in result.trials}
    assert len(result.trials) == 12 and result.best.changes == {"train.crop_padding": 0}
    assert states[40] == ("failed", reason) and states[0] == ("complete", "")
