"""A search for better hyperparameters, and which of them mattered. It knows neither models nor data: it calls a
function that trains.

Sources: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011 (the tree-structured Parzen
estimator, which suggests); Golovin et al., "Google Vizier", KDD 2017 (the median rule, which prunes); Watanabe et al.,
"PED-ANOVA", IJCAI 2023 (importance); Akiba et al., "Optuna", KDD 2019, the library that holds all three.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vit.arguments import as_integer
from vit.config import TrainConfig, ViTConfig
from vit.progress import progress_bar, say
from vit.training.history import History
from vit.training.interrupt import stop_on_interrupt
from vit.training.search_space import Range, Space, change_configs, check_space, make_distributions, read_suggestion
from vit.training.search_trial import Trial, Watch

MAX_REFUSED = 100  # in a row; then the space holds hardly a combination that the configs allow
MIN_TRIALS = 10  # with fewer, importances are mostly chance
BEST_SHARE = 0.3  # of the trials count as the best ones for importances


@dataclass(frozen=True)
class SearchResult:
    """All trials of a search, in their order.

    Attributes:
        model_config, train_config: what the trials changed.
        study: Optuna's record, in which choices are texts, and refused and failed trials stand as pruned ones.
    """

    trials: list[Trial]
    space: Space
    model_config: ViTConfig
    train_config: TrainConfig
    study: Any

    @property
    def best(self) -> Trial:
        """The complete trial with the highest validation accuracy. The best of many was also lucky: train it again with
        other seeds before you believe its accuracy."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        if not complete:
            states = ", ".join(sorted({trial.state for trial in self.trials})) or "none"
            raise ValueError(f"none of {len(self.trials)} trials is complete (states: {states}), so there is no best")
        return max(complete, key=lambda trial: trial.value)

    @property
    def best_configs(self) -> tuple[ViTConfig, TrainConfig]:
        return change_configs(self.model_config, self.train_config, self.best.changes)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dict a trial, as tables and plots take them."""
        return [
            {
                "trial": trial.number,
                "state": trial.state,
                "val_accuracy": trial.value,
                "epochs": len(trial.history),
                **trial.changes,
                "reason": trial.reason,
            }
            for trial in self.trials
        ]

    @property
    def log_names(self) -> list[str]:
        """The names in the space with a logarithmic range."""
        return [name for name, values in self.space.items() if isinstance(values, Range) and values.log]


def search(
    train: Callable[..., History],
    space: Space,
    model_config: ViTConfig,
    train_config: TrainConfig,
    *,
    num_trials: int,
    seed: int = 0,
    prune: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    make_bar: Callable[..., Any] = progress_bar,
) -> SearchResult:
    """Trains again and again with values from `space`, more and more of them near the best validation accuracy.

    Ctrl-C, as in `fit`, ends the search with the trials so far. A combination that the configs refuse is drawn anew; a
    training that fails counts as one, and the search goes on; what fails before any training has worked is raised.

    Args:
        train: called as `train(model_config, train_config, **watch)`; builds a model and loaders and returns
            `fit(model, train_loader, val_loader, train_config, **watch)`.
        space: for names such as "train.learning_rate" or "model.depth" a `Range` or a list of choices.
        model_config, train_config: everything else.
        num_trials: trainings, 1 or more; the first ten suggestions are random.
        seed: of the suggestions. Trainings have the seed of their config.
        prune: whether to end a training after an epoch if its best accuracy is below the median of the complete ones at
            that epoch, once there are five. That favors what learns fast at first. Off if "train.epochs" is in the
            space: at the same epoch, a short schedule is always ahead of a long one.
        should_stop: asked during trainings; a yes is like Ctrl-C.
        on_trial: called with each trial as it ends.
        make_bar: what shows the progress; called and used as `progress_bar` is, for each training with `disable=True`.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: an argument is wrong, the configs refuse everything, or `train` measures no validation accuracy.
    """
    num_trials = as_integer("num_trials", num_trials, 1)
    check_space(space)
    trials: list[Trial] = []
    num_trained = num_refused = 0
    with (
        _quiet_optuna() as optuna,
        stop_on_interrupt(should_stop) as should_stop,
        make_bar(total=num_trials, unit="trial", desc="search") as bar,
    ):
        pruner = optuna.pruners.MedianPruner() if prune and "train.epochs" not in space else optuna.pruners.NopPruner()
        sampler = optuna.samplers.TPESampler(seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        distributions = make_distributions(space)
        while num_trained < num_trials and num_refused < MAX_REFUSED and not should_stop():
            asked = study.ask(distributions)
            changes = read_suggestion(space, asked.params)
            try:
                configs = change_configs(model_config, train_config, changes)
            except ValueError as error:
                trial = Trial(asked.number, changes, "refused", str(error), History())
            else:
                watch = Watch(asked, should_stop, functools.partial(make_bar, disable=True))
                is_proven = any(trial.state in ("complete", "pruned") for trial in trials)
                state, reason = watch.train(train, configs, is_proven=is_proven)
                trial = Trial(asked.number, changes, state, reason, watch.history)
            trials.append(trial)
            _tell(study, asked, trial)
            on_trial(trial)
            if trial.state == "stopped":
                break
            if trial.state == "refused":
                num_refused += 1
            else:
                num_trained, num_refused = num_trained + 1, 0
                bar.update()
                _describe(bar, trials)
    if refused := [trial for trial in trials if trial.state == "refused"]:
        what = f"the configs refused {len(refused)} of {len(trials)} suggestions; the last: {refused[-1].reason}"
        if len(refused) == len(trials) == MAX_REFUSED:
            raise ValueError(f"{what}; change the space, or the configs that it changes")
        say(what)
    return SearchResult(trials, dict(space), model_config, train_config, study)


def _describe(bar: Any, trials: list[Trial]) -> None:
    """What stands before the bar: the best validation accuracy so far."""
    complete = [trial.value for trial in trials if trial.state == "complete"]
    bar.set_description("search" + (f", best val {max(complete):.1f} %" if complete else ""))


def _tell(study: Any, asked: Any, trial: Trial) -> None:
    """Refused and failed trials are told as pruned: Optuna forgets failed ones, and would suggest the like again."""
    from optuna.trial import TrialState

    asked.set_user_attr("state", trial.state)
    asked.set_user_attr("reason", trial.reason)
    if trial.state == "complete":
        study.tell(asked, trial.value)
    else:
        study.tell(asked, state=TrialState.FAIL if trial.state == "stopped" else TrialState.PRUNED)


def importances(result: SearchResult) -> dict[str, float]:
    """How much each name in the space decides whether a trial is among the best; shares of 1, the largest first.

    Found by PED-ANOVA, which compares the values of the best trials (BEST_SHARE of all) with those of all. Since it
    asks no more than which trials are the best, pruned and failed ones take part: without them, a learning rate whose
    bad values are always pruned would seem to matter little. A pruned one was behind half of the others when it ended,
    so where there are some, no more than the better half of the complete ones are the best. Shares are rough: of
    twenty trials, believe the first, and the order of the rest from more.

    Raises:
        ValueError: there are too few trials that are complete or pruned, or too many of the same accuracy.
    """
    complete = [trial.value for trial in result.trials if trial.state == "complete"]
    num_measured = len(complete) + sum(trial.state == "pruned" for trial in result.trials)
    if num_measured < MIN_TRIALS:
        raise ValueError(f"importances need {MIN_TRIALS} trials that are complete or pruned, got {num_measured}")
    values = {
        trial.number: trial.value if trial.state == "complete" else min(complete) - 1
        for trial in result.trials
        if trial.state in ("complete", "pruned", "failed")
    }
    num_best = min(math.ceil(BEST_SHARE * len(values)), len(complete))
    if num_measured > len(complete):
        num_best = min(num_best, math.ceil(len(complete) / 2))
    if sorted(complete)[-num_best] == min(values.values()):
        raise ValueError(f"none of {len(values)} trials are the best: too many have an accuracy of {min(complete)} %")
    with _quiet_optuna() as optuna:
        study, told = optuna.create_study(direction="maximize"), result.study.trials
        for number, value in values.items():
            suggestion = {"params": told[number].params, "distributions": told[number].distributions}
            study.add_trial(optuna.trial.create_trial(**suggestion, value=value))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=(num_best - 0.5) / len(values))
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[Any]:
    """Optuna, which within the block logs nothing below an error."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError('Optuna is not installed; python -m pip install "optuna>=5"') from error
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(verbosity)
