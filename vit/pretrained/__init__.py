"""Weights: saving a model with all that is known about it, and loading it again."""

from vit.pretrained.weights import load, save

__all__ = ["load", "save"]
