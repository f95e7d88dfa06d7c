"""Weights that come with the library are what their metadata says, down to the last test image."""

import pytest

import vit
from vit.data import keep_classes
from vit.pretrained.weights import SHIPPED

FACTS = {
    "dataset",
    "class_names",
    "mean",
    "std",
    "trained_on",
    "test_accuracy",
    "val_accuracy",
    "train_config",
    "command",
}
TEST_SPLITS = {
    "vit_fast6_wide_patch4_32.cifar10": lambda: vit.load_data("cifar10"),
    "vit_nano_patch4_32.cifar10": lambda: vit.load_data("cifar10"),
    "vit_nano_patch4_32.cifar10_0to4": lambda: keep_classes(vit.load_data("cifar10"), range(5)),
    "vit_nano_patch4_32.shapes": lambda: vit.load_data("shapes", num_train=1000, num_val=1, num_test=2000),
}


def test_each_is_small_and_says_where_it_comes_from():
    assert vit.pretrained.list_weights() == sorted(TEST_SPLITS)
    for name in vit.pretrained.list_weights():
        model = vit.load(name)
        assert set(model.metadata) >= FACTS, name
        assert not model.metadata["commit"].endswith("+"), f"{name} was trained with code that is in no commit"
        assert model.metadata["command"] == f"python benchmarks/shipped_weights.py {name}"
        assert (SHIPPED / f"{name}.safetensors").stat().st_size < 5e6


@pytest.mark.cifar10
@pytest.mark.parametrize("name", sorted(TEST_SPLITS))
def test_the_stated_accuracy_is_reached_exactly(name):
    model, data = vit.load(name), TEST_SPLITS[name]()
    assert data.class_names == tuple(model.metadata["class_names"])
    if data.name == "cifar10":
        assert [*data.mean, *data.std] == [*model.metadata["mean"], *model.metadata["std"]]
    test = vit.evaluate(model, vit.make_eval_loader(data, data.test, device="cpu", model=model))
    assert round(test.accuracy, 2) == model.metadata["test_accuracy"]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"shipped by name: .*vit_nano_patch4_32\.cifar10,"):
        vit.load("vit_nano_patch4_32.cifar100")
