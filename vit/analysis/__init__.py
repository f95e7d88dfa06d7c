"""Analysis: a trained model and images in, numbers out."""

from vit.analysis.cost import count_parameters, forward_flops, train_flops
from vit.analysis.predict import predict

__all__ = ["count_parameters", "forward_flops", "predict", "train_flops"]
