"""Analysis: a trained model and images in, numbers out."""

from vit.analysis.attention import attention_from, attention_maps, record_attention
from vit.analysis.cost import count_parameters, forward_flops, train_flops
from vit.analysis.explain import (
    METHODS,
    attention_gradients,
    attention_rollout,
    explain,
    gradient_rollout,
    relevance,
)
from vit.analysis.layout import TokenLayout, token_layout
from vit.analysis.predict import predict

__all__ = [
    "METHODS",
    "TokenLayout",
    "attention_from",
    "attention_gradients",
    "attention_maps",
    "attention_rollout",
    "count_parameters",
    "explain",
    "forward_flops",
    "gradient_rollout",
    "predict",
    "record_attention",
    "relevance",
    "token_layout",
    "train_flops",
]
