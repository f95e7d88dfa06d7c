"""Widgets: thin panels over public functions. Nothing is computed here that a cell could not ask for."""

from vit.widgets.attention_explorer import AttentionExplorer
from vit.widgets.config_form import ConfigForm
from vit.widgets.confusion_explorer import ConfusionExplorer
from vit.widgets.picture_predictor import PicturePredictor
from vit.widgets.playground import Playground
from vit.widgets.run_table import RunTable

__all__ = ["AttentionExplorer", "ConfigForm", "ConfusionExplorer", "PicturePredictor", "Playground", "RunTable"]
