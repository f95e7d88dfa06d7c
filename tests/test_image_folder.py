"""A folder of pictures becomes three splits: counted by hand, resized by PIL, and the same on every disk."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vit
from vit.config import TrainConfig
from vit.data import load_data, load_image_folder, make_shapes, save_image_folder
from vit.data.cifar10 import CIFAR10_CLASSES
from vit.data.fashion_mnist import FASHION_CLASSES
from vit.data.splits import Split


def save_pictures(folder: Path, count: int, *, seed: int = 0, size: tuple[int, int] = (20, 20), kind: str = "png"):
    """Noise of `count` seeds; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    random, paths = np.random.default_rng(seed), []
    for i in range(count):
        paths.append(folder / f"{i:02d}.{kind}")
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def photos(tmp_path) -> Path:
    root = tmp_path / "photos"
    for seed, (name, count) in enumerate({"dog": 20, "ape": 10, "cat": 7}.items()):
        save_pictures(root / name, count, seed=seed)
    return root


def same(a, b) -> bool:
    return all(
        torch.equal(getattr(getattr(a, split), field), getattr(getattr(b, split), field))
        for split in ("train", "val", "test")
        for field in ("images", "labels")
    )


def members(split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def test_every_class_is_split_in_the_same_shares(photos):
    data = load_image_folder(photos, val_fraction=0.2, test_fraction=0.3)
    assert data.class_names == ("ape", "cat", "dog") and data.name == "photos"
    counts = {split: getattr(data, split).labels.bincount().tolist() for split in ("train", "val", "test")}
    assert counts == {"train": [5, 4, 10], "val": [2, 1, 4], "test": [3, 2, 6]}  # of 10, 7 and 20
    labels = data.train.labels.tolist()
    assert labels != sorted(labels), "the classes come mixed"


def test_each_picture_is_in_one_split_with_its_own_label(photos):
    data = load_image_folder(photos, image_size=20)  # the size of the files: pixels stay as they are
    found = {}
    for split in (data.train, data.val, data.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert image.numpy().tobytes() not in found
            found[image.numpy().tobytes()] = data.class_names[label]
    expected = {
        np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes(): path.parent.name for path in photos.rglob("*.png")
    }
    assert found == expected and len(found) == 37


def test_mean_and_std_are_those_of_the_train_images(photos):
    data = load_image_folder(photos)
    pixels = data.train.images.double() / 255
    np.testing.assert_allclose(data.mean, pixels.mean(dim=(0, 2, 3)))
    np.testing.assert_allclose(data.std, pixels.std(dim=(0, 2, 3), correction=0))


def test_a_channel_that_never_changes_can_be_normalized(tmp_path):
    for name, red in (("a", 10), ("b", 200)):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8), (red + i, 0, 0)).save(tmp_path / name / f"{i}.png")
    data = load_image_folder(tmp_path, image_size=8)
    batch, _ = vit.make_eval_loader(data, data.train, device="cpu").batch(0, 0)
    assert batch.isfinite().all()


def test_the_seed_alone_decides(photos, tmp_path, monkeypatch):
    """Neither the order of the disk, nor the place of the folder, nor another class."""
    data = load_image_folder(photos, seed=3)
    assert members(data.test) != members(load_image_folder(photos, seed=4).test)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(list(listed(self))))
    assert same(data, load_image_folder(photos, seed=3))
    monkeypatch.undo()
    elsewhere = shutil.copytree(photos, tmp_path / "elsewhere")
    assert same(data, load_image_folder(elsewhere, seed=3))
    save_pictures(elsewhere / "ant", 5, seed=9)
    more = load_image_folder(elsewhere, seed=3)
    for split in ("train", "val", "test"):
        assert members(getattr(data, split)) < members(getattr(more, split))


def test_classes_of_one_size_are_split_unlike(tmp_path):
    """Else the same numbers would be tested in each class, and numbers may mean something, such as the hour."""
    for k, name in enumerate(("ape", "bee", "cat")):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("RGB", (8, 8), (i, k, 0)).save(tmp_path / name / f"{i:02d}.png")
    test = load_image_folder(tmp_path, image_size=8, test_fraction=0.3).test
    numbers = [frozenset(test.images[test.labels == k, 0, 0, 0].tolist()) for k in range(3)]
    assert [len(n) for n in numbers] == [6, 6, 6] and len(set(numbers)) == 3


def test_sizes_and_formats_may_be_mixed(tmp_path):
    """PIL's own resize of the middle, whatever the file."""
    sizes = {"png": (40, 40), "bmp": (40, 80), "webp": (60, 40), "jpg": (33, 90), "jpeg": (10, 12)}
    for name in ("a", "b"):
        for i, (kind, size) in enumerate(sizes.items()):
            save_pictures(tmp_path / name / "x", 1, seed=10 * i + (name == "b"), size=size, kind=kind)
            os.rename(tmp_path / name / "x" / f"00.{kind}", tmp_path / name / f"{i}.{kind.upper()}")
        os.rmdir(tmp_path / name / "x")
    data = load_image_folder(tmp_path, image_size=(20, 20))
    images = torch.cat([data.train.images, data.val.images, data.test.images]).permute(0, 2, 3, 1).int().numpy()
    assert images.shape == (10, 20, 20, 3)
    for path in tmp_path.glob("*/*"):
        picture = Image.open(path).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        box = (left, top, left + side, top + side)
        expected = np.asarray(picture.resize((20, 20), Image.Resampling.BICUBIC, box=box)).astype(int)
        assert (images == expected).all(axis=(1, 2, 3)).sum() == 1, path


def test_a_shape_that_is_not_square(photos):
    assert load_image_folder(photos, image_size=(16, 24)).train.images.shape[1:] == (3, 16, 24)


def test_load_data_knows_folders(photos):
    assert same(load_data("folder", path=str(photos), seed=1), load_image_folder(photos, seed=1))
    with pytest.raises(ValueError, match="allowed: cifar10, fashion_mnist, shapes, folder"):
        load_data("folders")


def test_hidden_files_and_leftovers_are_no_pictures(photos):
    before = load_image_folder(photos)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._00.png"):
        (photos / "cat" / name).write_bytes(b"\0\0\0\1Bud1")
    (photos / ".git").mkdir()
    (photos / "cat" / ".ipynb_checkpoints").mkdir()
    (photos / "__MACOSX").mkdir()
    (photos / "README.txt").write_text("my photos")
    assert same(before, load_image_folder(photos))


def test_linked_classes_are_read(photos, tmp_path):
    root = tmp_path / "links"
    root.mkdir()
    for folder in photos.iterdir():
        (root / folder.name).symlink_to(folder, target_is_directory=True)
    assert same(load_image_folder(photos), load_image_folder(root))


def test_copies_are_used_once(photos, capsys):
    """Also when a copy is of another format or has another name."""
    before = load_image_folder(photos)
    picture = Image.open(photos / "cat" / "00.png")
    picture.save(photos / "cat" / "zz.bmp")
    shutil.copy(photos / "cat" / "01.png", photos / "cat" / "copy of 01.png")
    capsys.readouterr()
    assert same(before, load_image_folder(photos))
    notice = capsys.readouterr().err
    assert "2 pictures are copies of others at this size, and left out:" in notice
    assert "zz.bmp (as 00.png)" in notice and "copy of 01.png (as 01.png)" in notice


def test_one_picture_in_two_classes_is_a_fault(photos):
    shutil.copy(photos / "cat" / "00.png", photos / "dog" / "my.png")
    with pytest.raises(ValueError, match=r"cat/00\.png and .*dog/my\.png are the same picture in two classes"):
        load_image_folder(photos)


def test_what_is_saved_is_loaded(tmp_path):
    """Pixels and labels come back, in another order; a grey split becomes RGB."""
    split = make_shapes(30, 10, 10, image_size=12).train
    names = tuple(f"class {k}" for k in range(10))
    data = load_image_folder(save_image_folder(split, names, tmp_path / "saved"), image_size=12)
    back = {
        image.numpy().tobytes(): int(label)
        for part in (data.train, data.val, data.test)
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert back == {image.numpy().tobytes(): int(k) for image, k in zip(split.images, split.labels, strict=True)}
    grey = Split(split.images[:, :1], split.labels)
    save_image_folder(grey, names, tmp_path / "grey")
    before = sorted(tmp_path.rglob("*.png"))
    with pytest.raises(FileExistsError, match="grey is not empty: take a new folder"):
        save_image_folder(split, names, tmp_path / "grey")
    assert sorted(tmp_path.rglob("*.png")) == before
    saved = np.asarray(Image.open(next((tmp_path / "grey" / names[split.labels[7]]).glob("00007.png"))))
    np.testing.assert_array_equal(saved, split.images[7, :1].permute(1, 2, 0).expand(-1, -1, 3).numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({1: "../escaped"}, r"class_names\[1\]='../escaped' cannot name a class folder"),
        ({0: "T-shirt/top"}, r"class_names\[0\]='T-shirt/top' .* without / and"),
        *(({1: name}, r"class_names\[1\]=.* cannot name") for name in ("..", ".hid", "", "a\\b", "__MACOSX", "\0", 1)),
        ({1: "class 0"}, "names a class twice"),
        ({2: None}, r"with these class_names labels must lie in 0..1; record \d+ has label 2"),
        ({"channels": 4}, "images of 4 channels: pictures are gray or RGB"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, changes, message):
    names = [name for k in range(3) if (name := changes.get(k, f"class {k}")) is not None]
    split = Split(torch.zeros(9, changes.get("channels", 3), 4, 4, dtype=torch.uint8), torch.arange(9) % 3)
    with pytest.raises(ValueError, match=message):
        save_image_folder(split, names, tmp_path / "in" / "it")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [FASHION_CLASSES, CIFAR10_CLASSES])
def test_classes_of_the_library_come_back(tmp_path, names):
    images = torch.randint(256, (40, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_image_folder(Split(images, torch.arange(40) % 10), names, tmp_path)
    assert load_image_folder(tmp_path, image_size=4).class_names == tuple(sorted(names))


# Split already


def pixels_of(folder: Path) -> set[bytes]:
    return {np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes() for path in folder.glob("*/*.png")}


@pytest.mark.parametrize("given", [("val", "test"), ("Valid",), ("validation",), ("Test",)])
def test_splits_are_taken_as_they_are_and_the_missing_one_is_cut_from_train(photos, tmp_path, given):
    root = tmp_path / "split"
    shutil.copytree(photos, root / "train")
    for seed, folder in enumerate(given, start=10):
        save_pictures(root / folder / "cat", 3, seed=seed)
        save_pictures(root / folder / "dog", 2, seed=seed + 10)
    data = load_image_folder(root, image_size=20, val_fraction=0.2, test_fraction=0.3)
    assert data.name == "split" and data.class_names == ("ape", "cat", "dog")
    for folder in given:
        name = {"valid": "val", "validation": "val"}.get(folder.lower(), folder.lower())
        split = getattr(data, name)
        assert members(split) == pixels_of(root / folder) and split.labels.bincount().tolist() == [0, 3, 2]
    cut = {"val": [2, 1, 4], "test": [3, 2, 6]}
    missing = [name for name in cut if not any(folder.lower().startswith(name) for folder in given)]
    for name in missing:
        assert getattr(data, name).labels.bincount().tolist() == cut[name]
        assert members(getattr(data, name)) < pixels_of(root / "train")
    left = pixels_of(root / "train").difference(*(members(getattr(data, name)) for name in missing))
    assert members(data.train) == left
    assert same(data, load_image_folder(root, image_size=20, val_fraction=0.2, test_fraction=0.3))


def test_a_picture_of_the_test_is_not_trained_on(photos, tmp_path, capsys):
    root = tmp_path / "split"
    shutil.copytree(photos, root / "train")
    for name in ("ape", "cat"):
        (root / "test" / name).mkdir(parents=True)
        shutil.copy(photos / name / "03.png", root / "test" / name / "x.png")
    save_pictures(root / "val" / "ape", 2, seed=20)
    save_pictures(root / "val" / "cat", 2, seed=21)
    shutil.copy(photos / "cat" / "03.png", root / "val" / "ape")
    with pytest.raises(ValueError, match=r"test/cat/x\.png and .*val/ape/03\.png are the same picture in two classes"):
        load_image_folder(root, image_size=20)
    (root / "val" / "ape" / "03.png").unlink()
    capsys.readouterr()
    data = load_image_folder(root, image_size=20)
    assert members(data.test) == pixels_of(root / "test") and len(data.train) == 37 - 2
    assert not members(data.train) & members(data.test)
    assert re.search(r"train/cat/03\.png \(as .*test/cat/x\.png\)", capsys.readouterr().err)


def test_splits_that_do_not_fit_are_refused(photos, tmp_path):
    root = tmp_path / "split"
    shutil.copytree(photos, root / "train")
    shutil.copytree(photos, root / "test")
    with pytest.raises(ValueError, match="class 'ape' has 0 different pictures"):  # all of them are in the test
        load_image_folder(root)
    (root / "test" / "ape").rename(root / "test" / "bee")
    with pytest.raises(ValueError, match=r"split/test has classes that .*split/train has not: bee"):
        load_image_folder(root)
    shutil.rmtree(root / "test")
    for name in ("val", "valid"):
        shutil.copytree(photos, root / name)
    with pytest.raises(ValueError, match=r"val and .*valid are both for val; keep one of them"):
        load_image_folder(root)
    for name in ("val", "valid"):
        shutil.rmtree(root / name)
    if not (root / "TRAIN").exists():  # on a disk that tells them apart
        shutil.copytree(photos, root / "Train")
        shutil.copytree(photos, root / "test")
        with pytest.raises(ValueError, match=r"Train and .*train are both for train; keep one of them"):
            load_image_folder(root)
        for name in ("Train", "test"):
            shutil.rmtree(root / name)
    for split in ("val", "test"):  # the same two pictures
        for name in ("ape", "cat"):
            (root / split / name).mkdir(parents=True)
            shutil.copy(photos / name / "00.png", root / split / name)
    with pytest.raises(ValueError, match="no picture of val can be used: they cannot be read, or are in another split"):
        load_image_folder(root)


def test_classes_may_have_the_names_of_splits(photos):
    for old, new in (("ape", "train"), ("cat", "test")):
        (photos / old).rename(photos / new)
    assert load_image_folder(photos).class_names == ("dog", "test", "train")
    (photos / "dog").rename(photos / "val")
    assert load_image_folder(photos).class_names == ("test", "train", "val")


# Faults


def test_all_bad_files_are_listed_with_reasons_and_formats(photos):
    (photos / "ape" / "notes.txt").write_text("remember the ape")
    (photos / "cat" / "empty.png").touch()
    Image.new("RGB", (8, 8)).save(photos / "cat" / "moving.gif")
    (photos / "dog" / "gone.png").symlink_to(photos / "nowhere.png")
    cut = (photos / "dog" / "05.png").read_bytes()
    (photos / "dog" / "05.png").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(ValueError, match="5 of 41 pictures cannot be used:") as caught:
        load_image_folder(photos)
    *lines, hint = str(caught.value).splitlines()[1:]
    assert hint == "Pass skip_unreadable=True to leave out those that cannot be read."
    reasons = {
        "ape/notes.txt": "it is no known picture (it starts with b'remember the')",
        "cat/empty.png": "it is empty",
        "cat/moving.gif": "it is a GIF file",
        "dog/05.png": "it is damaged or cut off",
        "dog/gone.png": "there is no file at",
    }
    for line, (path, reason) in zip(lines, reasons.items(), strict=True):
        assert path in line and reason in line
        assert "no file" in line or "allowed: PNG, JPEG, WEBP, BMP" in line


def test_a_long_list_of_bad_files_is_cut(photos):
    for i in range(7):
        (photos / "cat" / f"bad{i}.png").touch()
    with pytest.raises(ValueError, match="7 of 44 pictures") as caught:
        load_image_folder(photos)
    lines = str(caught.value).splitlines()
    assert len(lines) == 8 and lines[-2].endswith("- and 2 more")


def test_files_that_cannot_be_read_are_left_out_on_request(photos, capsys):
    before = load_image_folder(photos)
    (photos / "cat" / "bad.png").touch()
    (photos / "dog" / "notes.txt").write_text("remember the dog")
    capsys.readouterr()
    assert same(before, load_image_folder(photos, skip_unreadable=True))
    notice = capsys.readouterr().err
    assert "2 of 39 files cannot be read as pictures, and are left out:" in notice
    assert "bad.png" in notice and "notes.txt" in notice
    shutil.copy(photos / "cat" / "00.png", photos / "dog" / "my.png")
    with pytest.raises(ValueError, match="1 of 40 pictures cannot be used:.*\n.*same picture in two classes"):
        load_image_folder(photos, skip_unreadable=True)


def test_a_huge_picture_and_a_thread_are_named(photos, monkeypatch):
    Image.new("RGB", (30, 40)).save(photos / "cat" / "large.png")
    Image.new("RGB", (900, 1)).save(photos / "cat" / "thread.png")
    monkeypatch.setattr("vit.pictures.MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="2 of 39 pictures") as caught:
        load_image_folder(photos)
    assert "large.png cannot be read: it has 30x40 pixels" in str(caught.value)
    assert "thread.png is too long and thin" in str(caught.value)


def test_folders_that_are_no_dataset(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder at .*missing"):
        load_image_folder(tmp_path / "missing")
    (photos / "README").mkdir()
    with pytest.raises(ValueError, match=r"holds no class folder; .* expected as .*/<class>/<picture>"):
        load_image_folder(photos / "README")
    with pytest.raises(ValueError, match=r"class folder .*README holds no picture; fill it or remove it"):
        load_image_folder(photos)
    (photos / "README").rmdir()
    with pytest.raises(ValueError, match=r"cat/00\.png is in no class folder; pictures are expected as"):
        load_image_folder(photos / "cat")
    only = tmp_path / "only"
    save_pictures(only / "cat", 5)
    with pytest.raises(ValueError, match="holds one class folder, 'cat'; a classifier needs two or more"):
        load_image_folder(only)
    save_pictures(only / "dog", 2, seed=1)
    with pytest.raises(ValueError, match="class 'dog' has 2 different pictures: .* it needs 3 or more"):
        load_image_folder(only)


def test_copies_do_not_fill_a_class(tmp_path):
    save_pictures(tmp_path / "a", 4)
    paths = save_pictures(tmp_path / "b", 2, seed=1)
    shutil.copy(paths[0], tmp_path / "b" / "again.png")
    with pytest.raises(ValueError, match="class 'b' has 2 different pictures"):
        load_image_folder(tmp_path)


def test_loops_are_not_followed(photos):
    (photos / "ape" / "up").symlink_to(photos, target_is_directory=True)
    with pytest.raises(ValueError, match="class folder .*ape holds a folder, 'up'"):
        load_image_folder(photos)
    (photos / "ape" / "up").unlink()
    (photos / "self").symlink_to(photos / "self")
    with pytest.raises(ValueError, match="self is a link that leads nowhere"):
        load_image_folder(photos)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are not files here")
def test_pipes_are_not_waited_for(photos):
    os.mkfifo(photos / "cat" / "pipe.png")
    with pytest.raises(ValueError, match=r"there is no file at .*pipe\.png"):
        load_image_folder(photos)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"image_size": 0}, "image_size=0 must be one or two integers"),
        ({"image_size": "32"}, "image_size='32' must be"),
        ({"image_size": (32, 32, 3)}, r"image_size=\(32, 32, 3\) must be"),
        ({"val_fraction": 0}, "val_fraction=0 must be a number between 0 and 1"),
        ({"test_fraction": 1.5}, "test_fraction=1.5 must be"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"seed": -1}, "seed=-1 must be an integer of 0 or more"),
        ({"seed": True}, "seed=True must be"),
    ],
)
def test_bad_arguments_are_refused_before_any_file_is_read(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_image_folder(tmp_path / "missing", **options)


def test_numpys_fractions_are_fractions(photos):
    by_numpy = load_image_folder(photos, val_fraction=np.float32(0.25), test_fraction=np.float64(0.2))
    assert same(by_numpy, load_image_folder(photos, val_fraction=0.25, test_fraction=0.2))


def test_what_is_no_path_is_refused(monkeypatch, photos):
    monkeypatch.chdir(photos)
    with pytest.raises(ValueError, match="path='' names no folder"):  # nor the working folder
        load_data("folder", path="")
    with pytest.raises(TypeError, match="path=3 must be the path of a folder"):
        load_data("folder", path=3)
    with pytest.raises(ValueError, match=r"name=.* is not a choice; did you mean 'folder'\? allowed: cifar10, fashion"):
        load_data(["folder"])
    with pytest.raises(ValueError, match="name='Fashion-MNIST' is not a choice; did you mean 'fashion_mnist'"):
        load_data("Fashion-MNIST")


def test_options_that_a_dataset_does_not_have_are_named():
    no_option, known = (
        r"is no option of load_data\('shapes'\)",
        "allowed: num_train, num_val, num_test, image_size, seed$",
    )
    with pytest.raises(ValueError, match=rf"^n_train=3 {no_option}; did you mean 'num_train'\? {known}"):
        load_data("shapes", n_train=3)
    with pytest.raises(ValueError, match=rf"^x=1 {no_option}; {known}"):
        load_data("shapes", x=1)
    with pytest.raises(ValueError, match=r"^load_data\('folder'\) needs path=\.\.\.; allowed: path, image_size, val_"):
        load_data("folder", seed=1)


def test_a_network_learns_a_folder_and_predicts_its_files(tmp_path):
    """From files to a prediction of a file: two colors under noise are told apart."""
    random = np.random.default_rng(0)
    for name, color in (("blue", (40, 60, 160)), ("red", (160, 60, 40))):
        (tmp_path / name).mkdir()
        for i in range(40):
            pixels = np.array(color) + random.normal(0, 30, (24, 36, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    data = load_image_folder(tmp_path, image_size=16)
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = vit.VisionTransformer(vit.ViTConfig(**sizes, num_classes=2))
    model.metadata = data.metadata
    config = TrainConfig(epochs=5, batch_size=8, device="cpu")
    vit.fit(model, *vit.make_loaders(data, config), config)
    assert vit.evaluate(model, vit.make_eval_loader(data, data.test), config).accuracy == 100
    guesses = vit.predict(model, [tmp_path / "blue" / "3.png", tmp_path / "red" / "3.png"]).argmax(dim=1)
    assert [data.class_names[k] for k in guesses] == ["blue", "red"]
