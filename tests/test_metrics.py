"""Metrics against published values, closed forms, loops over images, and simulations whose truth is known."""

import inspect
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from vit import analysis
from vit.analysis import metrics


def split(num_images: int = 400, num_classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities (N, K) and labels (N,) of a model that is right more often than not."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_images, num_classes, generator=generator, dtype=torch.float64)
    probabilities = logits.softmax(dim=1)
    return probabilities, torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def right_of(num_right: int, num_images: int) -> tuple[Tensor, Tensor]:
    labels = (torch.arange(num_images) >= num_right).long()  # the guess is 0
    return torch.tensor([[0.9, 0.1]]).expand(num_images, 2), labels


def two_classes(confidence: Tensor, is_right: Tensor) -> tuple[Tensor, Tensor]:
    return torch.stack([confidence, 1 - confidence], dim=1), (~is_right).long()


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]
)
def test_the_interval_is_that_of_a_published_table(right, n, low, high):
    """Newcombe, "Two-sided Confidence Intervals for the Single Proportion", Statistics in Medicine, 1998."""
    assert metrics.accuracy_interval(*right_of(right, n)) == pytest.approx((right / n, low, high), abs=5e-5)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """The exact coverage over all outcomes, averaged over true accuracies; the usual normal interval has less."""
    n, truths = 50, np.linspace(0.5, 0.99, 50)

    def coverage(interval):
        pmf = np.array([[math.comb(n, k) * t**k * (1 - t) ** (n - k) for k in range(n + 1)] for t in truths])
        low, high = np.array([interval(k) for k in range(n + 1)]).T
        return (pmf * ((low <= truths[:, None]) & (truths[:, None] <= high))).sum(axis=1).mean()

    def normal(k):
        half = 1.96 * (k / n * (1 - k / n) / n) ** 0.5
        return k / n - half, k / n + half

    assert coverage(lambda k: metrics.accuracy_interval(*right_of(k, n))[1:]) == pytest.approx(0.95, abs=0.005)
    assert coverage(lambda k: metrics.accuracy_interval(*right_of(k, n), confidence=0.8)[1:]) == pytest.approx(
        0.8, abs=0.02
    )
    assert coverage(normal) < 0.93


def test_the_interval_stays_inside_and_narrows():
    for right in (0, 10):
        accuracy, low, high = metrics.accuracy_interval(*right_of(right, 10))
        assert 0 <= low < accuracy + 1e-12 and accuracy - 1e-12 < high <= 1
    widths = [np.ptp(metrics.accuracy_interval(*right_of(n // 2, n))[1:]) for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)


def test_counts_against_a_loop():
    p, y = split()
    cells = Counter((int(truth), int(row.argmax())) for row, truth in zip(p, y, strict=True))
    counts = metrics.confusion_matrix(p, y)
    assert {cell: int(counts[cell]) for cell in np.ndindex(5, 5)} == {cell: cells[cell] for cell in np.ndindex(5, 5)}
    accuracy = [cells[k, k] / int((y == k).sum()) for k in range(5)]
    torch.testing.assert_close(metrics.per_class_accuracy(p, y), torch.tensor(accuracy))

    errors = {cell: count for cell, count in cells.items() if cell[0] != cell[1]}
    pairs = metrics.most_confused_pairs(p, y, 100)
    assert {(truth, guess): count for truth, guess, count in pairs} == errors
    assert [pair[2] for pair in pairs] == sorted(errors.values(), reverse=True)
    assert metrics.most_confused_pairs(p, y, 3) == pairs[:3]

    for truth, guess in [(2, 1), (3, 3)]:
        chosen = [i for i in range(400) if y[i] == truth and p[i].argmax() == guess]
        expected = sorted(chosen, key=lambda i: -p[i, guess])
        assert metrics.confusion_cell(p, y, truth, guess).tolist() == expected


def test_a_class_without_images_has_no_accuracy():
    accuracy = metrics.per_class_accuracy([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2]], [1, 1])
    assert accuracy[1] == 0.5 and accuracy[[0, 2]].isnan().all()


def test_worst_errors_are_wrong_and_sorted_by_loss():
    p, y = split()
    losses = {i: -math.log(p[i, y[i]]) for i in range(len(y)) if p[i].argmax() != y[i]}
    expected = sorted(losses, key=losses.get, reverse=True)
    assert metrics.worst_errors(p, y).tolist() == expected
    assert metrics.worst_errors(p, y, 7).tolist() == expected[:7]
    assert metrics.worst_errors(*right_of(5, 5)).tolist() == []
    assert metrics.worst_errors(*right_of(2, 5)).tolist() == [2, 3, 4], "equal losses keep their order"


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_reliability_against_a_loop(num_bins):
    p, y = split(seed=1)
    bins = metrics.reliability(p, y, num_bins)
    gap = 0.0
    for m in range(num_bins):
        inside = [i for i in range(len(y)) if m / num_bins < p[i].max() <= (m + 1) / num_bins]
        assert bins.count[m] == len(inside)
        if not inside:
            assert bins.accuracy[m].isnan() and bins.confidence[m].isnan()
            continue
        confidence = np.mean([float(p[i].max()) for i in inside])
        accuracy = np.mean([float(p[i].argmax() == y[i]) for i in inside])
        assert (float(bins.confidence[m]), float(bins.accuracy[m])) == pytest.approx((confidence, accuracy))
        gap += len(inside) / len(y) * abs(confidence - accuracy)
    assert metrics.expected_calibration_error(p, y, num_bins) == pytest.approx(gap)


def test_a_confidence_on_an_edge_belongs_below_it():
    p = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert metrics.reliability(p, [0, 0, 0], 4).count.tolist() == [0, 1, 1, 1]


def test_calibration_error_of_known_models():
    generator = torch.Generator().manual_seed(2)
    chance = torch.rand(100_000, generator=generator, dtype=torch.float64)
    confidence = 0.6 + 0.4 * torch.rand(100_000, generator=generator, dtype=torch.float64)
    calibrated = two_classes(confidence, chance < confidence)
    overconfident = two_classes(confidence, chance < confidence - 0.15)
    assert metrics.expected_calibration_error(*calibrated) < 0.4 * (15 / 100_000) ** 0.5
    assert metrics.expected_calibration_error(*overconfident) == pytest.approx(0.15, abs=0.005)
    exact = two_classes(torch.full((10,), 0.9, dtype=torch.float64), torch.arange(10) < 6)
    assert metrics.expected_calibration_error(*exact) == pytest.approx(0.3)


def test_temperature_of_one_confidence_is_a_closed_form():
    """All answers are as sure as c and a share a is right: sigmoid(logit(c) / T) = a."""
    for c, a in [(0.95, 0.7), (0.6, 0.8)]:
        p, y = two_classes(torch.full((100,), c, dtype=torch.float64), torch.arange(100) < round(100 * a))
        expected = math.log(c / (1 - c)) / math.log(a / (1 - a))
        assert metrics.fit_temperature(p, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.5])
def test_temperature_undoes_the_scaling_of_logits(factor):
    p, y = split(20_000)
    scaled = metrics.apply_temperature(p, 1 / factor)
    fitted = metrics.fit_temperature(scaled, y)
    assert fitted == pytest.approx(factor, rel=0.05)
    assert fitted == pytest.approx(factor * metrics.fit_temperature(p, y), rel=1e-4), "float32 beside float64"
    before, after = (
        metrics.expected_calibration_error(q, y) for q in (scaled, metrics.apply_temperature(scaled, fitted))
    )
    assert after < 0.4 * (15 / 20_000) ** 0.5 and (factor == 1.0 or before > 5 * after)


def test_temperature_has_the_smallest_loss_of_all():
    p, y = split(300, seed=4)
    p = (0.5 * p.log()).softmax(dim=1)

    def loss(temperature):
        return -(p.log() / temperature).log_softmax(dim=1)[torch.arange(300), y].mean()

    best = metrics.fit_temperature(p, y)
    assert all(loss(best) < loss(best * factor) for factor in (0.01, 0.5, 0.99, 1.01, 2, 100))


def test_temperature_ends_where_the_loss_still_falls():
    assert metrics.fit_temperature(*right_of(9, 9)) == pytest.approx(metrics.MIN_TEMPERATURE)
    assert metrics.fit_temperature(*right_of(0, 9)) == pytest.approx(metrics.MAX_TEMPERATURE)
    assert 1 < metrics.fit_temperature([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 1, 1]) <= 20, "log of 0"


def test_applying_a_temperature():
    logits = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(5))
    p = logits.softmax(dim=1)
    torch.testing.assert_close(metrics.apply_temperature(p, 1.7), (logits / 1.7).softmax(dim=1))
    torch.testing.assert_close(metrics.apply_temperature(p, 1), p)
    assert torch.equal(metrics.apply_temperature(p, 9).argmax(1), p.argmax(1))


def test_arrays_and_tensors_of_any_kind_are_taken():
    p, y = split(50)
    expected = metrics.reliability(p, y)
    big_endian, backward = p.numpy().astype(">f8"), (p.numpy()[::-1].copy()[::-1], y.numpy()[::-1].copy()[::-1])
    of_numpy = [(p.numpy(), y.numpy()), (big_endian, y.numpy().astype(np.uint16)), backward]
    for q, labels in [*of_numpy, (p.requires_grad_(), y.to(torch.uint8)), (p.tolist(), y.tolist())]:
        torch.testing.assert_close(
            tuple(metrics.reliability(q, labels)), tuple(expected), rtol=0, atol=0, equal_nan=True
        )


def test_numpys_integers_are_integers():
    p, y = split(50)
    for call in (
        lambda n: metrics.most_confused_pairs(p, y, n),
        lambda n: metrics.worst_errors(p, y, n).tolist(),
        lambda n: metrics.confusion_cell(p, y, n, n).tolist(),
        lambda n: [values.nan_to_num().tolist() for values in metrics.reliability(p, y, n)],
        lambda n: metrics.expected_calibration_error(p, y, n),
    ):
        assert call(np.int64(3)) == call(np.uint8(3)) == call(3)


@pytest.mark.parametrize(
    ("probabilities", "labels", "error", "message"),
    [
        (np.zeros((0, 3)), [], ValueError, r"must be \(N, K\), N at least 1"),
        ([0.5, 0.5], [0], ValueError, r"must be \(N, K\).*got \(2,\)"),
        ([[0.5, 0.5], [3.0, -1.0]], [0, 1], ValueError, r"probabilities\[1\] is not a distribution: it sums to 2"),
        ([[0.5, float("nan")]], [0], ValueError, r"probabilities\[0\] is not"),
        ([[2.0, -1.0]], [0], ValueError, r"its smallest is -1; of logits take logits.softmax\(1\)"),
        ([[0.5, 0.5]], [0, 1], ValueError, r"labels have shape \(2,\), not \(1,\)"),
        ([[0.5, 0.5]], [0.0], TypeError, "labels are torch.float64; they must be integers"),
        ([[0.5, 0.5], [0.5, 0.5]], [1, 2], ValueError, r"labels\[1\]=2 is not one of the 2 classes, 0..1"),
        ([[0.5, 0.5]], [-1], ValueError, r"labels\[0\]=-1"),
    ],
)
@pytest.mark.parametrize("name", ["accuracy_interval", "confusion_matrix", "worst_errors", "fit_temperature"])
def test_what_is_no_measurement_is_refused(name, probabilities, labels, error, message):
    with pytest.raises(error, match=message):
        getattr(metrics, name)(probabilities, labels)


def test_arguments_out_of_range_are_named():
    p, y = right_of(1, 2)
    for wrong in (0, 2.0, True):
        with pytest.raises(ValueError, match=f"num={wrong!r} must be an integer of 1 or more"):
            metrics.worst_errors(p, y, wrong)
        with pytest.raises(ValueError, match="num=.* must be an integer"):
            metrics.most_confused_pairs(p, y, wrong)
        with pytest.raises(ValueError, match="num_bins=.* must be an integer"):
            metrics.expected_calibration_error(p, y, wrong)
    with pytest.raises(ValueError, match="confidence=95 must lie between 0 and 1"):
        metrics.accuracy_interval(p, y, confidence=95)
    with pytest.raises(ValueError, match=r"guess=2 must be an integer in 0\.\.1, a class"):
        metrics.confusion_cell(p, y, 0, 2)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a positive number"):
            metrics.apply_temperature(p, wrong)


def test_the_help_of_metrics_and_probes_can_be_read():
    for function in (analysis.accuracy_interval, analysis.reliability, analysis.knn, analysis.linear_probe):
        assert "_SupportsArray" not in str(inspect.signature(function)), "the whole of ArrayLike"
