"""Training: model and batches in, trained weights out."""

from vit.training.budget import for_budget
from vit.training.evaluation import Evaluation, evaluate
from vit.training.history import History
from vit.training.loop import fit, train_one_epoch
from vit.training.optim import Muon, build_optimizers, learning_rate_factor
from vit.training.run_folder import new_run_folder, write_summary

__all__ = [
    "Evaluation",
    "History",
    "Muon",
    "build_optimizers",
    "evaluate",
    "fit",
    "for_budget",
    "learning_rate_factor",
    "new_run_folder",
    "train_one_epoch",
    "write_summary",
]
