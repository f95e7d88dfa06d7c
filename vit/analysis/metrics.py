"""What the class probabilities of a whole split are worth: accuracy, confusions, errors, calibration.

Functions take probabilities (N, K) and the true labels (N,), as `vit.evaluate` returns them, and never run a model.
Shares and accuracies lie in [0, 1]; sums are taken in float64. The guess is the class with the largest probability,
and the confidence is that probability.
Sources: Wilson, "Probable Inference", JASA 1927 (interval); Guo et al., "On Calibration of Modern Neural Networks",
ICML 2017 (reliability diagram, expected calibration error, temperature scaling).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vit.arguments import as_integer

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_SMALLEST = torch.finfo(torch.float32).tiny  # a probability that float32 rounds to 0 counts as this


class Reliability(NamedTuple):
    """Mean confidence, accuracy (NaN where a bin is empty) and number of images, (bins,) each."""

    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def accuracy_interval(
    probabilities: ArrayLike, labels: ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Accuracy, and the lower and upper end of its Wilson interval: shares in [0, 1], not percent as in `vit.evaluate`.

    The interval speaks of other images of the same kind, not of other training runs.

    Args:
        confidence: in (0, 1), how often such intervals hold the true accuracy, about.
    """
    p, y = _checked(probabilities, labels)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} must lie between 0 and 1; try 0.95")
    n, right = len(y), int((p.argmax(dim=1) == y).sum())
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center = (right + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * (right * (n - right) / n + z**2 / 4) ** 0.5
    return right / n, max(center - half, 0.0), min(center + half, 1.0)


def confusion_matrix(probabilities: ArrayLike, labels: ArrayLike) -> Tensor:
    """Counts (K, K), int64: images of class `row` taken for class `column`."""
    p, y = _checked(probabilities, labels)
    K = p.shape[1]
    return torch.bincount(y * K + p.argmax(dim=1), minlength=K * K).view(K, K)


def per_class_accuracy(probabilities: ArrayLike, labels: ArrayLike) -> Tensor:
    """The share (K,) of the images of each class that are recognized, in [0, 1]; NaN for a class without images.

    Its `nanmean()` is the balanced accuracy. (`vit.evaluate(...).accuracy` is in percent.)
    """
    counts = confusion_matrix(probabilities, labels)
    return (counts.diagonal() / counts.sum(dim=1)).float()


def most_confused_pairs(probabilities: ArrayLike, labels: ArrayLike, num: int = 10) -> list[tuple[int, int, int]]:
    """The `num` most frequent errors as (truth, guess, count), most frequent first, or all if they are fewer."""
    num = as_integer("num", num, 1)
    counts = confusion_matrix(probabilities, labels).fill_diagonal_(0)
    flat, K = counts.flatten(), len(counts)
    order = flat.argsort(descending=True, stable=True)[:num].tolist()
    return [(i // K, i % K, int(flat[i])) for i in order if flat[i]]


def confusion_cell(probabilities: ArrayLike, labels: ArrayLike, truth: int, guess: int) -> Tensor:
    """Which images of class `truth` are taken for class `guess`: their indices, most confident first."""
    p, y = _checked(probabilities, labels)
    for name, value in (("truth", truth), ("guess", guess)):
        as_integer(name, value, 0, p.shape[1] - 1, remedy=", a class")
    return _sorted_by(p[:, guess], (y == truth) & (p.argmax(dim=1) == guess))


def worst_errors(probabilities: ArrayLike, labels: ArrayLike, num: int | None = None) -> Tensor:
    """The indices of wrong answers, largest loss first: where the true class got the least. The first `num`, or all."""
    if num is not None:
        num = as_integer("num", num, 1)
    p, y = _checked(probabilities, labels)
    of_truth = p.gather(1, y[:, None])[:, 0]  # (N,), its negative log is the loss
    return _sorted_by(-of_truth, p.argmax(dim=1) != y)[:num]


def reliability(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15) -> Reliability:
    """How often answers of like confidence are right, in bins of equal width: bin m holds ((m - 1) / M, m / M].

    Source: Guo et al. 2017, section 2.
    """
    num_bins = as_integer("num_bins", num_bins, 1)
    p, y = _checked(probabilities, labels)
    confidence, guess = p.max(dim=1)
    edges = torch.arange(1, num_bins, dtype=p.dtype, device=p.device) / num_bins
    bins = torch.bucketize(confidence, edges)  # (N,), a value on an edge belongs below it
    count = torch.bincount(bins, minlength=num_bins)
    sums = [torch.bincount(bins, weights=values, minlength=num_bins) for values in (confidence, (guess == y).double())]
    return Reliability(*(total / count for total in sums), count)


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15) -> float:
    """The gap between confidence and accuracy, weighted by the share of images in each bin of `reliability`.

    The plug-in estimator of Guo et al. 2017, Eq. 3. It counts the noise within each bin as error, so a perfectly
    calibrated model has more than 0, about 0.4 sqrt(bins / N) at most: compare values of the same N and bins.
    """
    confidence, accuracy, count = reliability(probabilities, labels, num_bins)
    return float(((confidence - accuracy).abs().nan_to_num() * count).sum() / count.sum())


def fit_temperature(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T that gives probabilities softmax(logits / T) the smallest cross-entropy on these labels.

    Above 1 the model was too sure, below 1 not sure enough. Fit it on val, apply it to test. It lies in 0.05..20, and
    at an end if the cross-entropy falls up to there, as it does for labels that are all right.

    Source: Guo et al. 2017, section 4.2.
    """
    p, y = _checked(probabilities, labels)
    logits = p.clamp(min=_SMALLEST).log()  # (N, K), up to a constant an image, which no softmax sees
    of_truth = logits.gather(1, y[:, None])[:, 0].mean()
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    # In 1 / T the cross-entropy is convex, so its slope changes sign once: halve until float64 has no more digits.
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((middle * logits).softmax(dim=1) * logits).sum(dim=1).mean() - of_truth
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 2 / (low + high)


def apply_temperature(probabilities: ArrayLike, temperature: float) -> Tensor:
    """softmax(log p / T), float32 (N, K): flatter for T above 1, sharper below; no guess changes."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature!r} must be a positive number; 1 changes nothing")
    p = _checked_probabilities(probabilities)
    return (p.clamp(min=_SMALLEST).log() / temperature).softmax(dim=1).float()


def _sorted_by(score: Tensor, is_chosen: Tensor) -> Tensor:
    """The indices that are chosen, highest score first, equal ones in their own order."""
    index = is_chosen.nonzero()[:, 0]
    return index[score[index].argsort(descending=True, stable=True)]


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Tensor, Tensor]:
    """Both on the CPU, float64 and int64."""
    p, y = _checked_probabilities(probabilities), as_tensor(labels)
    N, K = p.shape
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(f"labels are {y.dtype}; they must be integers, the numbers of the true classes")
    if y.shape != (N,):
        raise ValueError(f"labels have shape {tuple(y.shape)}, not ({N},): one for each row of probabilities")
    wrong = ((y < 0) | (y >= K)).nonzero()
    if len(wrong):
        raise ValueError(f"labels[{int(wrong[0])}]={int(y[wrong[0]])} is not one of the {K} classes, 0..{K - 1}")
    return p, y.long()


def _checked_probabilities(probabilities: ArrayLike) -> Tensor:
    p = as_tensor(probabilities).double()
    if p.ndim != 2 or not len(p) or p.shape[1] < 2:
        raise ValueError(f"probabilities must be (N, K), N at least 1 and K at least 2, got {tuple(p.shape)}")
    is_wrong = ~((p >= 0).all(dim=1) & ((p.sum(dim=1) - 1).abs() < 1e-2))  # NaN is wrong; bfloat16 is near enough
    if is_wrong.any():
        row = int(is_wrong.nonzero()[0])
        raise ValueError(
            f"probabilities[{row}] is not a distribution: it sums to {p[row].sum():.4g}, its smallest is "
            f"{p[row].min():.4g}; of logits take logits.softmax(1)"
        )
    return p


def as_tensor(values: ArrayLike) -> Tensor:
    """Numbers of any kind as a tensor on the CPU, without a gradient."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = np.asarray(values)  # a list too, since numpy keeps all digits of its numbers
    if array.dtype.kind == "u":
        array = array.astype(np.int64)  # of most unsigned integers torch has little more than the names
    return torch.tensor(np.require(array, array.dtype.newbyteorder("="), "C"), device="cpu")
