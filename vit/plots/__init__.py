"""Plots: numbers in, matplotlib Figures out. Never runs a model."""

from vit.plots.ablations import plot_differences
from vit.plots.attention import blend, plot_attention_heads, plot_attention_view, plot_explanations, plot_queries
from vit.plots.comparison import plot_accuracy_and_work, plot_time_to_accuracy
from vit.plots.curves import plot_class_accuracy, plot_history, plot_progress
from vit.plots.evaluation import (
    confusion_colors,
    plot_confusion_cell,
    plot_confusion_matrix,
    plot_errors,
    plot_reliability,
    plot_robustness,
)
from vit.plots.faithfulness import plot_deletion_insertion, plot_randomization, plot_scores
from vit.plots.images import plot_images, plot_predictions
from vit.plots.inside import (
    plot_attention_distance,
    plot_attention_entropy,
    plot_head_similarity,
    plot_layer_similarity,
    plot_logit_lens,
    plot_patch_filters,
    plot_pos_embed_similarity,
    plot_token_norms,
    plot_token_pca,
)
from vit.plots.patches import (
    plot_patch_token,
    plot_patches,
    plot_position_table,
    plot_similarity,
    plot_token_sequence,
)
from vit.plots.predictions import plot_top_classes
from vit.plots.runs import plot_learning_rates, plot_runs
from vit.plots.scaling import plot_growth
from vit.plots.search import plot_importances, plot_trials
from vit.plots.transfer import plot_shots

__all__ = [
    "blend",
    "confusion_colors",
    "plot_accuracy_and_work",
    "plot_attention_distance",
    "plot_attention_entropy",
    "plot_attention_heads",
    "plot_attention_view",
    "plot_class_accuracy",
    "plot_confusion_cell",
    "plot_confusion_matrix",
    "plot_deletion_insertion",
    "plot_differences",
    "plot_errors",
    "plot_explanations",
    "plot_growth",
    "plot_head_similarity",
    "plot_history",
    "plot_images",
    "plot_importances",
    "plot_layer_similarity",
    "plot_learning_rates",
    "plot_logit_lens",
    "plot_patch_filters",
    "plot_patch_token",
    "plot_patches",
    "plot_pos_embed_similarity",
    "plot_position_table",
    "plot_predictions",
    "plot_progress",
    "plot_queries",
    "plot_randomization",
    "plot_reliability",
    "plot_robustness",
    "plot_runs",
    "plot_scores",
    "plot_shots",
    "plot_similarity",
    "plot_time_to_accuracy",
    "plot_token_norms",
    "plot_token_pca",
    "plot_token_sequence",
    "plot_top_classes",
    "plot_trials",
]
