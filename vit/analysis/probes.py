"""How much features know of classes they were not trained for: nearest neighbors and a linear probe.

Both take features of labeled images and of others and return probabilities of the others, (B, K), as `vit.predict`
does; nothing of the network is trained. `pixels` makes the simplest features, which every other kind has to beat.
Sources: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4,
with the settings of Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021 (the
weighted neighbors of DINO); Alain & Bengio, "Understanding intermediate layers using linear classifier probes", 2016.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from vit.analysis.metrics import as_tensor
from vit.arguments import as_integer

_CHUNK = 1000  # rows of similarities at once


def pixels(images: Tensor) -> Tensor:
    """uint8 images (B, C, H, W) as features (B, C*H*W): their pixels, from -1 to 1."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 (B, C, H, W), got {images.dtype} {tuple(images.shape)}")
    return images.flatten(1).float() / 127.5 - 1


def knn(
    train_features: ArrayLike, train_labels: ArrayLike, features: ArrayLike, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Probabilities (B, K) by the vote of the `k` most similar labeled images.

    Similarity is the cosine s, and a vote weighs exp(s / temperature); with fewer labeled images than `k` all vote.

    Args:
        train_features, train_labels: (M, D) and (M,); classes are counted from 0 to the largest label.
        features: (B, D).
        k: neighbors, 1 or more.
        temperature: more than 0; the smaller it is, the more the nearest decide.
    """
    train_features, train_labels, features = _checked(train_features, train_labels, features)
    k = as_integer("k", k, 1)
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be more than 0")
    num_classes = int(train_labels.max()) + 1
    unit = F.normalize(train_features, dim=1)  # (M, D)
    votes = []
    for part in features.split(_CHUNK):
        similarity, neighbors = (F.normalize(part, dim=1) @ unit.T).topk(min(k, len(unit)), dim=1)  # (b, k)
        weights = (similarity / temperature).softmax(dim=1)  # (b, k)
        empty = weights.new_zeros(len(part), num_classes)
        votes.append(empty.scatter_add_(1, train_labels[neighbors], weights))
    return torch.cat(votes)  # (B, K)


def linear_probe(
    train_features: ArrayLike, train_labels: ArrayLike, features: ArrayLike, *, strength: float = 0.1
) -> Tensor:
    """Probabilities (B, K) by logistic regression on features brought to mean 0 and one common scale.

    Args:
        train_features, train_labels, features: as for `knn`; the labels must hold two classes or more, counted from 0.
        strength: scikit-learn's C, more than 0; the larger it is, the closer the fit to the labeled images. The default
            did best on validation images of CIFAR-10, with 10 and 50 labeled ones of each class.

    Raises:
        ImportError: scikit-learn is missing; the extra `transfer` brings it.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError("linear_probe needs scikit-learn: pip install scikit-learn") from error
    train_features, train_labels, features = _checked(train_features, train_labels, features)
    if not strength > 0:
        raise ValueError(f"strength={strength} must be more than 0")
    classes = train_labels.unique()
    if len(classes) < 2 or not torch.equal(classes, torch.arange(len(classes), device="cpu")):
        raise ValueError(f"train_labels must hold the classes 0, 1, ... without a gap, got {classes.tolist()}")
    if not len(features):
        return torch.zeros(0, len(classes))
    # One scale for all axes: with one image a class, that of a single axis is mostly chance.
    mean = train_features.double().mean(dim=0)
    scale = (train_features.double() - mean).square().mean().sqrt().clamp_min(1e-12)
    train, other = ((x.double() - mean) / scale for x in (train_features, features))
    probe = LogisticRegression(C=strength, max_iter=2000).fit(train.numpy(), train_labels.numpy())
    return torch.from_numpy(probe.predict_proba(other.numpy())).float()  # (B, K)


def _checked(train_features: ArrayLike, train_labels: ArrayLike, features: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
    """All three as tensors on the CPU: features of one floating type, labels int64."""
    train_features, train_labels, features = (as_tensor(x) for x in (train_features, train_labels, features))
    if train_features.ndim != 2 or features.ndim != 2 or train_features.shape[1] != features.shape[1]:
        raise ValueError(
            f"train_features {tuple(train_features.shape)} and features {tuple(features.shape)} must be (M, D) and "
            "(B, D) of one D"
        )
    if train_labels.shape != train_features.shape[:1] or not len(train_labels):
        raise ValueError(
            f"train_labels {tuple(train_labels.shape)} must name the class of each of the {len(train_features)} "
            "train_features, of which there must be one or more"
        )
    if train_labels.is_floating_point() or train_labels.dtype == torch.bool or train_labels.min() < 0:
        raise ValueError(
            f"train_labels must be integers of 0 or more, the numbers of classes, got {train_labels.dtype} from "
            f"{train_labels.min()} on"
        )
    dtype = torch.promote_types(train_features.dtype, features.dtype)
    dtype = dtype if dtype.is_floating_point else torch.float32
    return train_features.to(dtype), train_labels.long(), features.to(dtype)
