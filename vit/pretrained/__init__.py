"""Weights: saving a model with all that is known about it, and loading it again."""

from vit.pretrained.weights import list_weights, load, save

__all__ = ["list_weights", "load", "save"]
