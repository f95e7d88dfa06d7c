"""Weights: ours and everyone's, in and out, with all that is known about them."""

from vit.pretrained.loading import load_weights
from vit.pretrained.weights import list_weights, load, save

__all__ = ["list_weights", "load", "load_weights", "save"]
