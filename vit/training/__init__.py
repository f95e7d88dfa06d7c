"""Training: model and batches in, trained weights out."""

from vit.training.background import BackgroundRun, current_run, train_in_background
from vit.training.budget import for_budget
from vit.training.checkpoint import load_state_weights
from vit.training.epoch import train_one_epoch
from vit.training.evaluation import Evaluation, evaluate
from vit.training.history import History
from vit.training.loop import fit
from vit.training.lr_finder import LearningRateCurve, find_learning_rate
from vit.training.optim import Muon, build_optimizers, learning_rate_factor
from vit.training.run_folder import new_run_folder, write_summary
from vit.training.runs import (
    Run,
    compare_runs,
    delete_run,
    list_runs,
    load_run,
    log_to_tensorboard,
    rename_run,
    skipped_folders,
    sort_runs,
)
from vit.training.search import SearchResult, importances, search
from vit.training.search_space import Range
from vit.training.search_trial import Trial

__all__ = [
    "BackgroundRun",
    "Evaluation",
    "History",
    "LearningRateCurve",
    "Muon",
    "Range",
    "Run",
    "SearchResult",
    "Trial",
    "build_optimizers",
    "compare_runs",
    "current_run",
    "delete_run",
    "evaluate",
    "find_learning_rate",
    "fit",
    "for_budget",
    "importances",
    "learning_rate_factor",
    "list_runs",
    "load_run",
    "load_state_weights",
    "log_to_tensorboard",
    "new_run_folder",
    "rename_run",
    "search",
    "skipped_folders",
    "sort_runs",
    "train_in_background",
    "train_one_epoch",
    "write_summary",
]
