"""Neighbors and linear probes against float64 loops and scikit-learn."""

import math

import numpy as np
import pytest
import torch

from vit import analysis


@pytest.fixture
def points() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centers = 2 * torch.randn(4, 6, generator=generator)
    labels = torch.arange(60) % 4
    train = centers[labels] + torch.randn(60, 6, generator=generator)
    return train, labels, torch.randn(25, 6, generator=generator)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 1.0), (60, 0.07), (1000, 0.3)])
def test_neighbors_are_those_of_a_float64_loop(points, k, temperature):
    train, labels, others = points
    for row, found in zip(others.double().tolist(), analysis.knn(*points, k=k, temperature=temperature), strict=True):
        votes = []
        for known, label in zip(train.double().tolist(), labels.tolist(), strict=True):
            cosine = sum(a * b for a, b in zip(row, known, strict=True)) / (math.hypot(*row) * math.hypot(*known))
            votes.append((cosine, label))
        scores = [0.0] * 4
        for cosine, label in sorted(votes, reverse=True)[:k]:
            scores[label] += math.exp(cosine / temperature)
        assert found.tolist() == pytest.approx([score / sum(scores) for score in scores], abs=1e-5)


def test_neighbors_are_those_of_scikit_learn(points):
    neighbors = pytest.importorskip("sklearn.neighbors")
    train, labels, others = (x.numpy() for x in points)
    weigh = lambda distances: np.exp((1 - distances) / 0.07)  # noqa: E731
    theirs = neighbors.KNeighborsClassifier(7, metric="cosine", weights=weigh).fit(train, labels)
    ours = analysis.knn(*points, k=7)
    assert ours.numpy() == pytest.approx(theirs.predict_proba(others), abs=1e-4)
    unweighted = neighbors.KNeighborsClassifier(7, metric="cosine").fit(train, labels).predict_proba(others)
    assert abs(ours.numpy() - unweighted).max() > 0.1, "the weights must matter"


def test_a_cosine_does_not_see_lengths(points):
    train, labels, others = points
    torch.testing.assert_close(analysis.knn(3 * train, labels, others / 5), analysis.knn(*points))


def test_chunks_do_not_show(points, monkeypatch):
    whole = analysis.knn(*points)
    monkeypatch.setattr("vit.analysis.probes._CHUNK", 4)
    torch.testing.assert_close(analysis.knn(*points), whole)


def test_a_linear_probe_is_the_minimum_of_its_loss(points):
    """The gradient of scikit-learn's objective is zero, written down anew; one scale for all axes."""
    train, labels, others = points
    strength = 0.3
    mean = train.double().mean(dim=0)
    scale = ((train.double() - mean) ** 2).mean().sqrt()
    x, y = (train.double() - mean) / scale, (others.double() - mean) / scale
    weight = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        fit = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels, reduction="sum")
        value = strength * fit + weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    expected = (y @ weight.T + bias).softmax(dim=1).detach().float()
    torch.testing.assert_close(analysis.linear_probe(*points, strength=strength), expected, rtol=0, atol=2e-3)
    assert (analysis.linear_probe(*points, strength=100.0) - expected).abs().max() > 0.05, "strength must matter"


def test_one_image_a_class_is_enough(points):
    train, labels, _ = points
    for probe in (analysis.knn, analysis.linear_probe):
        assert probe(train[:4], labels[:4], train[:4]).argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_labels_that_mean_nothing_teach_nothing():
    """A negative control: features without a class in them are at chance."""
    generator = torch.Generator().manual_seed(1)
    train, others = torch.randn(400, 8, generator=generator), torch.randn(2000, 8, generator=generator)
    labels, truth = torch.arange(400) % 5, torch.arange(2000) % 5
    for probe in (analysis.knn, analysis.linear_probe):
        accuracy = 100 * (probe(train, labels, others).argmax(dim=1) == truth).float().mean()
        assert abs(accuracy - 20) < 4  # 4.5 standard deviations


def test_pixels_are_every_pixel_from_minus_one_to_one():
    images = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8)
    found = analysis.pixels(images)
    assert found.shape == (2, 60)
    assert found[1, 23].item() == pytest.approx((images[1, 1, 0, 3].item() - 127.5) / 127.5, abs=1e-6)
    with pytest.raises(ValueError, match=r"images must be uint8 \(B, C, H, W\), got torch.float32"):
        analysis.pixels(images.float())


@pytest.mark.parametrize("probe", [analysis.knn, analysis.linear_probe])
def test_features_that_do_not_fit_are_refused(points, probe):
    train, labels, others = points
    with pytest.raises(ValueError, match=r"train_features \(60, 6\) and features \(25, 5\) must be"):
        probe(train, labels, others[:, :5])
    with pytest.raises(ValueError, match=r"train_labels \(59,\)"):
        probe(train, labels[1:], others)
    with pytest.raises(ValueError, match="there must be one or more"):
        probe(train[:0], labels[:0], others)
    for wrong, message in (
        (labels - 1, "torch.int64 from -1 on"),
        (labels.float(), "torch.float32"),
        (labels > 0, "bool"),
    ):
        with pytest.raises(ValueError, match=f"train_labels must be integers of 0 or more, .* got .*{message}"):
            probe(train, wrong, others)


@pytest.mark.parametrize("probe", [analysis.knn, analysis.linear_probe])
def test_features_and_labels_of_any_kind_are_taken(points, probe):
    train, labels, others = points
    expected = probe(*points)
    for given in (
        (train, labels.to(torch.uint8), others),
        (train, labels.to(torch.int16), others.double()),
        (train.double(), labels, others),
        (train.numpy(), labels.numpy().astype(np.int32), others.numpy()),
        (train.tolist(), labels.tolist(), others.tolist()),
        (train.clone().requires_grad_(), labels, others.clone().requires_grad_()),
    ):
        found = probe(*given)
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-5)
        assert not found.requires_grad
    assert probe(train, labels, others[:0]).shape == (0, 4)
    whole = (10 * train).round().int()
    torch.testing.assert_close(probe(whole, labels, whole), probe(whole.float(), labels, whole.float()))


def test_numpys_numbers_of_neighbors_are_numbers(points):
    assert torch.equal(analysis.knn(*points, k=np.int64(7)), analysis.knn(*points, k=7))


def test_bad_settings_are_refused(points):
    train, labels, others = points
    for k in (0, 2.5, True):
        with pytest.raises(ValueError, match=rf"k={k} must be an integer of 1 or more"):
            analysis.knn(*points, k=k)
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be more than 0"):
        analysis.knn(*points, temperature=0.0)
    with pytest.raises(ValueError, match=r"strength=-1\.0 must be more than 0"):
        analysis.linear_probe(*points, strength=-1.0)
    with pytest.raises(ValueError, match=r"without a gap, got \[0, 2, 4, 6\]"):
        analysis.linear_probe(train, 2 * labels, others)


def test_without_scikit_learn_the_remedy_is_named(points, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        analysis.linear_probe(*points)
