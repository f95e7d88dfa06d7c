"""Networks and losses of one's own in `fit`: what it refuses, what states keep, what the network within is told."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import vit
import vit.analysis
from vit.config import TrainConfig, ViTConfig
from vit.data import DataSplits, make_loaders, make_shapes
from vit.tasks.mae import MaskedAutoencoder, reconstruction_loss
from vit.training import build_optimizers, evaluate, fit, load_state_weights
from vit.training.optim import Muon

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
CONFIG = TrainConfig.preset("quick", device="cpu", epochs=2, batch_size=32)


def small(**changes) -> vit.VisionTransformer:
    torch.manual_seed(0)
    return vit.VisionTransformer(ViTConfig(**(TINY | changes)))


class Wrapper(nn.Module):
    """A network within another module, which gives what it gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def stop_after(steps: int):
    numbers = iter(range(10**6))
    return lambda: next(numbers) >= steps - 1


def learn_brightness(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict]:
    return (model(batch[0])[:, 0] - batch[0].mean((1, 2, 3))).square().mean(), {}


@pytest.fixture
def loaders(shapes: DataSplits):
    return make_loaders(shapes, CONFIG)


# What decides how a network computes and no shape shows


def test_a_network_within_another_is_compared_like_one_alone(loaders, tmp_path):
    def train(**changes) -> vit.training.History:
        options = {"run_dir": tmp_path, "resume": "auto", "should_stop": stop_after(3)}
        return fit(Wrapper(small(**changes)), *loaders, CONFIG, **options)

    train()
    for change, said in (
        ({"num_heads": 4}, "network.num_heads: saved 2, now 4"),
        ({"act": "gelu_tanh"}, "network.act"),
    ):
        with pytest.raises(ValueError, match=f"belongs to another network, with weights of the same shapes: .*{said}"):
            train(**change)
        with pytest.raises(ValueError, match=said):
            load_state_weights(Wrapper(small(**change)), tmp_path / "state.pt")
    load_state_weights(Wrapper(small(drop_rate=0.1)), tmp_path / "state.pt")  # which no evaluation knows of
    assert train().rows is not None


def test_heads_are_compared_where_there_is_no_config(loaders, tmp_path):
    def autoencoder(heads: int) -> MaskedAutoencoder:
        return MaskedAutoencoder(small(num_heads=heads).config, decoder_dim=32, decoder_depth=1, decoder_heads=2)

    options = {"loss_fn": reconstruction_loss, "run_dir": tmp_path}
    fit(autoencoder(2), loaders[0], None, CONFIG, **options, should_stop=stop_after(3))
    with pytest.raises(ValueError, match=r"num_heads: saved 2, now 4"):
        fit(autoencoder(4), loaders[0], None, CONFIG, **options, resume=True)
    assert fit(autoencoder(2), loaders[0], None, CONFIG, **options, resume=True).is_complete


def test_another_kind_of_loss_is_another_run(loaders, tmp_path):
    options = {"run_dir": tmp_path, "resume": "auto"}
    fit(small(), loaders[0], None, CONFIG, loss_fn=learn_brightness, should_stop=stop_after(3), **options)
    with pytest.raises(ValueError, match="was trained with a loss_fn and is resumed without one"):
        fit(small(), loaders[0], None, CONFIG, **options)
    assert fit(small(), loaders[0], None, CONFIG, loss_fn=learn_brightness, **options).is_complete


# What a state holds


def test_parameters_outside_the_model_are_in_no_state(loaders, tmp_path):
    head = nn.Linear(10, 10)

    def both(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
        return [*build_optimizers(model, config), torch.optim.AdamW(head.parameters())]

    with pytest.raises(ValueError, match="optimizers of 2 parameters that are not the model's: no state in run_dir"):
        fit(small(), *loaders, CONFIG, make_optimizers=both, run_dir=tmp_path)
    assert not list(tmp_path.glob("*.pt"))
    assert fit(small(), *loaders, CONFIG, make_optimizers=both).is_complete, "nothing is kept, so nothing is missed"


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_after_epoch_cannot_change_the_model_unseen(loaders, ema_decay):
    config = TrainConfig.from_dict(CONFIG.to_dict() | {"ema_decay": ema_decay})

    @torch.no_grad()
    def change(model: nn.Module, row: dict) -> None:
        model.head.bias.add_(0.0)

    with pytest.raises(RuntimeError, match="after_epoch has changed the model, after its state was saved"):
        fit(small(head="linear"), *loaders, config, after_epoch=change)
    assert fit(small(), *loaders, config, after_epoch=lambda model, row: evaluate(model, loaders[1])).is_complete


def test_after_epoch_sees_a_model_that_knows_its_data(shapes):
    config, loaders = replace(CONFIG, ema_decay=0.9), make_loaders(shapes, replace(CONFIG, ema_decay=0.9))
    model, seen = small(), []

    def watch(model: nn.Module, row: dict) -> None:
        seen.append(vit.analysis.attention_maps(model, shapes.val.images[:2]))  # uint8, which it has to normalize
        assert model.metadata["mean"] == shapes.mean and model.metadata["class_names"] == shapes.class_names

    assert fit(model, *loaders, config, after_epoch=watch).is_complete
    assert len(seen) == 2 and model.metadata["mean"] == shapes.mean


def test_a_model_of_another_precision_gets_images_of_its_own(loaders):
    model, same = small().double(), small()
    history, expected = fit(model, *loaders, CONFIG), fit(same, *loaders, CONFIG)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert history.last["train_loss"] == pytest.approx(expected.last["train_loss"], rel=1e-3)


def test_sums_are_of_a_kind_that_holds_them():
    """In bfloat16 a sum of ones ends at 256, and in uint8 one of hundreds after two of them."""
    data = make_shapes(num_train=1200, num_val=1, num_test=1, image_size=16)
    config = replace(CONFIG, epochs=1, batch_size=2, flip="none")

    def loss_fn(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict]:
        zero = 0 * model(batch[0]).sum()
        return (zero + 1).to(torch.bfloat16), {"marks": torch.tensor(200, dtype=torch.uint8)}

    row = fit(small(head="linear"), make_loaders(data, config)[0], None, config, loss_fn=loss_fn).last
    assert row["train_loss"] == 1 and row["train_marks"] == 100


def test_an_extra_state_goes_on(loaders, tmp_path):
    class Counting(Wrapper):
        count = 0

        def forward(self, images: Tensor) -> Tensor:
            self.count += self.training
            return super().forward(images)

        def get_extra_state(self) -> dict[str, int]:
            return {"count": self.count}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.count = state["count"]

    whole, stopped, resumed = (Counting(small()) for _ in range(3))
    fit(whole, *loaders, CONFIG)
    fit(stopped, *loaders, CONFIG, run_dir=tmp_path, should_stop=stop_after(3))
    fit(resumed, *loaders, CONFIG, run_dir=tmp_path, resume=True)
    assert resumed.count == whole.count > stopped.count > 0


def test_an_epoch_outlives_a_validation_that_fails(loaders, tmp_path):
    train, val = loaders
    broken = SimpleNamespace(epoch=lambda *_: iter([val.batch(0, 0), (*val.batch(0, 0)[:1], 10 + val.batch(0, 0)[1])]))
    broken = type("Broken", (), {"__len__": lambda self: 2, "epoch": staticmethod(broken.epoch)})()
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        fit(small(), train, broken, CONFIG, run_dir=tmp_path)
    resumed, whole = small(), small()
    steps = []
    history = fit(resumed, train, val, CONFIG, run_dir=tmp_path, resume=True, should_stop=lambda: steps.append(1))
    assert history.is_complete and fit(whole, train, val, CONFIG).last["train_loss"] == history.last["train_loss"]
    assert [row["epoch"] for row in history.rows] == [1, 2]
    assert torch.equal(resumed.patch_embed.proj.weight, whole.patch_embed.proj.weight)


# What the network within is told, and what is asked of it


def test_the_network_within_keeps_its_normalization_and_may_have_other_classes(loaders):
    known = small()
    known.metadata = {"mean": (0.1, 0.1, 0.1), "std": (0.2, 0.2, 0.2), "class_names": ("a", "b")}
    with pytest.raises(ValueError, match=r"model.metadata has mean=\(0.1, 0.1, 0.1\), the loader normalizes with"):
        fit(Wrapper(known), *loaders, CONFIG)
    fresh = small()
    fit(Wrapper(fresh), *loaders, CONFIG)
    assert fresh.metadata == {"mean": tuple(loaders[0].mean), "std": tuple(loaders[0].std)}
    fresh.metadata |= {"class_names": ("a", "b")}
    assert fit(Wrapper(fresh), *loaders, CONFIG).is_complete


def test_a_forgotten_loss_is_said_before_the_first_step():
    images = torch.randn(32, 3, 16, 16)

    def loader(*batch: Tensor):
        return type("Own", (), {"__len__": lambda self: 1, "epoch": lambda self, *_: iter([batch])})()

    class Dense(Wrapper):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, :2]

    numbers = torch.randint(2, (32,))
    for model, batch, said in (
        (Dense(small()), (images, torch.randint(2, (32, 16, 16))), r"outputs of shape \(32, 2, 16, 16\), which are no"),
        (small(num_classes=1), (images, torch.randn(32, 1)), r"outputs of shape \(32, 1\), which are no logits"),
        (small(), (images, numbers, numbers), r"batches of 3 tensors, not \(images, labels\): give a loss_fn"),
        (small(), (images, torch.randn(32, 3)), r"labels of shape \(32, 3\) for logits \(32, 10\)"),
    ):
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(ValueError, match=said):
            fit(model, loader(*batch), None, CONFIG)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(ValueError, match="no logits of two or more classes"):
        evaluate(small(num_classes=1), loader(images, torch.zeros(32).long()))


def test_muon_takes_weights_and_splits_only_what_has_three_parts():
    blocks = nn.ModuleList([nn.ModuleDict({"qkv": nn.Linear(32, 64), "table": nn.Embedding(15, 2)})])
    model = nn.ModuleDict({"blocks": blocks})
    adam, muon = build_optimizers(model, TrainConfig(optimizer="muon"))
    assert isinstance(muon, Muon) and [(g["num_splits"], len(g["params"])) for g in muon.param_groups] == [(1, 1)]
    assert muon.param_groups[0]["params"][0] is blocks[0]["qkv"].weight
    assert {len(p) for g in adam.param_groups for p in g["params"]} == {15, 64}
