"""Widgets: thin panels over public functions. Nothing is computed here that a cell could not ask for."""

from importlib.metadata import PackageNotFoundError, version

try:
    _found = version("ipywidgets")
except PackageNotFoundError:
    _found = "none"
if _found == "none" or int(_found.split(".")[0]) < 8:
    raise ImportError(f"vit.widgets needs ipywidgets 8 or newer, found {_found}; python -m pip install 'ipywidgets>=8'")

from vit.widgets.attention_explorer import AttentionExplorer
from vit.widgets.config_form import ConfigForm
from vit.widgets.confusion_explorer import ConfusionExplorer
from vit.widgets.picture_predictor import PicturePredictor
from vit.widgets.playground import Playground
from vit.widgets.run_table import RunTable

__all__ = ["AttentionExplorer", "ConfigForm", "ConfusionExplorer", "PicturePredictor", "Playground", "RunTable"]


def __dir__() -> list[str]:
    return sorted(__all__)
