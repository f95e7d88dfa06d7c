"""Plots: numbers in, matplotlib Figures out. Never runs a model."""

from vit.plots.curves import plot_class_accuracy, plot_history
from vit.plots.images import plot_images, plot_predictions

__all__ = ["plot_class_accuracy", "plot_history", "plot_images", "plot_predictions"]
