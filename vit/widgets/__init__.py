"""Widgets: thin panels over public functions. Nothing is computed here that a cell could not ask for."""

from vit.widgets.attention_explorer import AttentionExplorer

__all__ = ["AttentionExplorer"]
