"""Fashion-MNIST: read from files in its format, checked by hash, made to fit networks for CIFAR-10."""

import gzip
import hashlib

import numpy as np
import pytest
import torch

import vit
from vit.data import fashion_mnist
from vit.data.fashion_mnist import DEBIAN, FILES, load_fashion_mnist


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small set in the same format, with its own hashes."""
    random, known = np.random.default_rng(0), {}
    for name in FILES:
        count = 30 if "train" in name else 10
        if "images" in name:
            header, values = [0x803, count, 28, 28], random.integers(256, size=(count, 28, 28), dtype=np.uint8)
        else:
            header, values = [0x801, count], (np.arange(count) % 10).astype(np.uint8)
        content = np.array(header, dtype=">u4").tobytes() + values.tobytes()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        known[name] = (len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(fashion_mnist, "FILES", known)
    return tmp_path


def test_images_have_a_margin_and_three_equal_channels(folder):
    data = load_fashion_mnist(folder, val_size=5)
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (25, 5, 10, 10)
    content = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    for row, column in ((0, 0), (3, 27), (27, 5)):
        pixel = content[16 + 7 * 784 + 28 * row + column]
        assert data.test.images[7, :, row + 2, column + 2].tolist() == [pixel] * 3
    for margin in (data.test.images[..., :2], data.test.images[..., 30:, :]):
        assert margin.max() == 0
    assert data.test.labels.tolist() == list(range(10))


def test_validation_is_cut_from_train_by_the_seed(folder):
    a, b, c = (load_fashion_mnist(folder, val_size=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.val.images, b.val.images) and not torch.equal(a.val.images, c.val.images)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"<html>", lambda b: gzip.compress(b"other")])
def test_damaged_files_are_refused(folder, damage):
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz is (damaged|not the official file)"):
        load_fashion_mnist(folder)


def test_a_bomb_is_not_unpacked(folder):
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(10**8)))
    with pytest.raises(ValueError, match="not the official file"):
        load_fashion_mnist(folder)


def test_missing_files_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        load_fashion_mnist(tmp_path)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_debian_package_holds_it():
    data = load_fashion_mnist(DEBIAN)
    assert (len(data.train), len(data.val), len(data.test)) == (55_000, 5_000, 10_000)
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.mean[0] == pytest.approx(0.2860 * 784 / 1024, abs=1e-3)  # the authors' mean, without the margin


def test_statistics_are_those_of_the_training_pixels_with_their_margin(folder):
    data = load_fashion_mnist(folder, val_size=5)
    content = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    pixels = np.pad(np.frombuffer(content, np.uint8).reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2))) / 255
    assert data.mean == pytest.approx([pixels.mean()] * 3) and data.std == pytest.approx([pixels.std()] * 3)


def test_it_is_looked_for_in_the_data_folder(folder, monkeypatch):
    monkeypatch.setenv("VIT_DATA", str(folder.parent))
    folder.rename(folder.parent / "fashion-mnist")
    assert len(vit.load_data("fashion_mnist", val_size=5).train) == 25
