"""Analysis: a trained model and images in, numbers out."""

from vit.analysis.attention import attention_from, attention_maps, record_attention
from vit.analysis.cost import count_parameters, forward_flops, train_flops
from vit.analysis.estimate import TrainingMemory, measure_rate, training_memory
from vit.analysis.explain import (
    METHODS,
    attention_gradients,
    attention_rollout,
    explain,
    gradient_rollout,
    relevance,
)
from vit.analysis.faithfulness import (
    area,
    deletion_curve,
    insertion_curve,
    mask_area,
    mask_share,
    pointing_chance,
    pointing_game,
)
from vit.analysis.features import features
from vit.analysis.forecast import Forecast, Speed, forecast, measure_speed
from vit.analysis.inputs import prepare_images
from vit.analysis.layout import TokenLayout, token_layout
from vit.analysis.metrics import (
    Reliability,
    accuracy_interval,
    apply_temperature,
    confusion_cell,
    confusion_matrix,
    expected_calibration_error,
    fit_temperature,
    most_confused_pairs,
    per_class_accuracy,
    reliability,
    worst_errors,
)
from vit.analysis.predict import predict
from vit.analysis.probes import knn, linear_probe, pixels
from vit.analysis.representations import (
    block_outputs,
    cka,
    layer_similarity,
    logit_lens,
    patch_filters,
    pos_embed_similarity,
    token_norms,
    token_pca,
)
from vit.analysis.sanity import randomization_curve, rank_correlation
from vit.analysis.statistics import attention_entropy, head_similarity, mean_attention_distance

__all__ = [
    "METHODS",
    "Forecast",
    "Reliability",
    "Speed",
    "TokenLayout",
    "TrainingMemory",
    "accuracy_interval",
    "apply_temperature",
    "area",
    "attention_entropy",
    "attention_from",
    "attention_gradients",
    "attention_maps",
    "attention_rollout",
    "block_outputs",
    "cka",
    "confusion_cell",
    "confusion_matrix",
    "count_parameters",
    "deletion_curve",
    "expected_calibration_error",
    "explain",
    "features",
    "fit_temperature",
    "forecast",
    "forward_flops",
    "gradient_rollout",
    "head_similarity",
    "insertion_curve",
    "knn",
    "layer_similarity",
    "linear_probe",
    "logit_lens",
    "mask_area",
    "mask_share",
    "mean_attention_distance",
    "measure_rate",
    "measure_speed",
    "most_confused_pairs",
    "patch_filters",
    "per_class_accuracy",
    "pixels",
    "pointing_chance",
    "pointing_game",
    "pos_embed_similarity",
    "predict",
    "prepare_images",
    "randomization_curve",
    "rank_correlation",
    "record_attention",
    "relevance",
    "reliability",
    "token_layout",
    "token_norms",
    "token_pca",
    "train_flops",
    "training_memory",
    "worst_errors",
]
