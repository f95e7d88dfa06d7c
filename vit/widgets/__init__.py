"""Widgets: thin panels over public functions. Nothing is computed here that a cell could not ask for."""

from vit.widgets.attention_explorer import AttentionExplorer
from vit.widgets.confusion_explorer import ConfusionExplorer
from vit.widgets.picture_predictor import PicturePredictor

__all__ = ["AttentionExplorer", "ConfusionExplorer", "PicturePredictor"]
