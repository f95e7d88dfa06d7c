"""Plots: numbers in, matplotlib Figures out. Never runs a model."""

from vit.plots.attention import blend, plot_attention_heads, plot_attention_view, plot_explanations, plot_queries
from vit.plots.curves import plot_class_accuracy, plot_history
from vit.plots.images import plot_images, plot_predictions

__all__ = [
    "blend",
    "plot_attention_heads",
    "plot_attention_view",
    "plot_class_accuracy",
    "plot_explanations",
    "plot_history",
    "plot_images",
    "plot_predictions",
    "plot_queries",
]
