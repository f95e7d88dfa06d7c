"""Masked autoencoders: who is hidden, what the loss counts, against a loop over pixels, and what is handed on."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import randomize
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vit.config import TrainConfig, ViTConfig
from vit.data import make_loaders
from vit.tasks.fine_tuning import fine_tune
from vit.tasks.mae import MaskedAutoencoder, reconstruction_loss, to_classifier
from vit.training import fit

CONFIG = ViTConfig(image_size=(12, 16), patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0, pool="mean")
DECODER = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}


def make(config: ViTConfig = CONFIG, **changes) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return randomize(MaskedAutoencoder(config, **(DECODER | changes)))


def random_images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 12, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("mask_rate", "num_hidden"), [(0.75, 9), (0.5, 6), (0.9, 11), (0.05, 1)])
def test_shown_and_hidden_places_are_all_places_once(mask_rate, num_hidden):
    shown, hidden = make(mask_rate=mask_rate).draw_places(random_images(64))
    assert hidden.shape == (64, num_hidden)
    for mine, others in zip(shown.tolist(), hidden.tolist(), strict=True):
        assert sorted(mine + others) == list(range(12)) and mine == sorted(mine) and others == sorted(others)


def test_places_are_drawn_for_each_image_and_evenly():
    _, hidden = make().draw_places(random_images(1).expand(4000, -1, -1, -1))
    assert len(hidden.unique(dim=0)) > 150, "of the 220 ways to hide 9 of 12"
    share = torch.bincount(hidden.flatten(), minlength=12) / 4000
    assert (share - 0.75).abs().max() < 0.04


def change_patch(images: torch.Tensor, place: int) -> torch.Tensor:
    """The same images with noise in one patch of the first, cut by hand: 4 columns of patches."""
    row, column = divmod(place, 4)
    images = images.clone()
    images[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += torch.randn(3, 4, 4)
    return images


@pytest.mark.parametrize("changes", [{}, {"pos_embed": "rope"}, {"pool": "cls", "num_registers": 2}])
def test_the_encoder_sees_what_is_shown_and_nothing_else(changes):
    model, images = make(replace(CONFIG, **changes)).eval(), random_images()
    shown, hidden = model.draw_places(images)
    tokens = model.encode(images, shown)
    assert tokens.shape == (3, model.vit.config.num_prefix_tokens + 3, 16)
    assert torch.equal(model.encode(change_patch(images, int(hidden[0, 4])), shown), tokens)
    other = model.encode(change_patch(images, int(shown[0, 1])), shown)
    assert not torch.equal(other[0], tokens[0]) and torch.equal(other[1:], tokens[1:])


@pytest.mark.parametrize("changes", [{}, {"pos_embed": "rope"}, {"pool": "cls_mean", "pos_embed": "sincos2d"}])
def test_with_every_patch_shown_the_encoder_is_the_network_itself(changes):
    model, images = make(replace(CONFIG, **changes)).double().eval(), random_images().double()
    places = torch.arange(12).expand(3, -1)
    torch.testing.assert_close(model.encode(images, places), model.vit.forward_features(images), rtol=0, atol=1e-12)
    # Positions go with the patches: in another order only the order of the tokens changes.
    order = torch.randperm(12)
    prefix = model.vit.config.num_prefix_tokens
    shuffled = model.encode(images, places[:, order])[:, prefix:]
    torch.testing.assert_close(shuffled, model.vit.forward_features(images)[:, prefix:][:, order], rtol=0, atol=1e-12)


def test_the_decoder_gets_every_token_in_its_place():
    model, images = make(replace(CONFIG, pool="cls")), random_images()
    shown, hidden = model.draw_places(images)
    tokens = torch.randn(3, 1 + 3, 8)
    whole = model._with_hidden(tokens, shown)
    assert torch.equal(whole[:, 0], tokens[:, 0])
    for b in range(3):
        for k, place in enumerate(shown[b].tolist()):
            torch.testing.assert_close(whole[b, 1 + place], tokens[b, 1 + k] + model.decoder_pos[0, place])
        for place in hidden[b].tolist():
            torch.testing.assert_close(whole[b, 1 + place], model.mask_token[0, 0] + model.decoder_pos[0, place])


def test_the_loss_is_that_of_a_loop_over_hidden_patches():
    model, images = make().double(), random_images().double()
    torch.manual_seed(5)
    painted, hidden = model(images)
    torch.manual_seed(5)
    loss, metrics = reconstruction_loss(model, (images, torch.zeros(3)))
    errors = []
    for b in range(3):
        for m, place in enumerate(hidden[b].tolist()):
            row, column = divmod(place, 4)
            pixels = [
                images[b, channel, 4 * row + y, 4 * column + x].item()
                for channel in range(3)
                for y in range(4)
                for x in range(4)
            ]
            mean = sum(pixels) / 48
            deviation = (sum((pixel - mean) ** 2 for pixel in pixels) / 47 + 1e-6) ** 0.5
            wanted = [(pixel - mean) / deviation for pixel in pixels]
            errors += [(got - want) ** 2 for got, want in zip(painted[b, m].tolist(), wanted, strict=True)]
    assert len(errors) == 3 * 9 * 48
    assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-12) and metrics == {}


class Stubborn(torch.nn.Module):
    """Paints the same whatever it sees, at fixed places."""

    def __init__(self, hidden: torch.Tensor):
        super().__init__()
        self.vit, self.hidden = make().vit, hidden

    def forward(self, images):
        return torch.linspace(-1, 2, self.hidden.numel() * 48).view(*self.hidden.shape, 48), self.hidden


def test_the_loss_looks_at_hidden_patches_only():
    images, hidden = random_images(1), torch.tensor([[0, 2, 3, 7, 11]])
    loss = reconstruction_loss(Stubborn(hidden), (images, None))[0]
    for place in range(12):
        changed = reconstruction_loss(Stubborn(hidden), (change_patch(images, place), None))[0]
        assert torch.equal(changed, loss) == (place not in hidden), place


@pytest.mark.parametrize("changes", [{}, {"pool": "cls", "num_registers": 1, "qk_norm": True, "layer_scale": 0.1}])
def test_gradient_reaches_everything(changes):
    model = make(replace(CONFIG, **changes))
    reconstruction_loss(model, (random_images(), None))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def train(shapes, **changes) -> tuple[MaskedAutoencoder, list[float]]:
    config = TrainConfig.preset("quick", device="cpu", epochs=6, batch_size=50, **changes)
    torch.manual_seed(0)
    model = MaskedAutoencoder(replace(CONFIG, image_size=16), **DECODER)
    history = fit(model, make_loaders(shapes, config)[0], None, config, loss_fn=reconstruction_loss)
    return model, history["train_loss"]


def test_training_lowers_the_loss(shapes):
    _, losses = train(shapes, muon_learning_rate=0.02)
    assert losses[0] < 1.6 and losses[-1] < 0.9 * losses[0]
    _, control = train(shapes, muon_learning_rate=0.0, learning_rate=0.0)
    assert control[-1] > 0.95 * control[0]


def test_the_classifier_starts_from_the_encoder(shapes):
    model, _ = train(shapes)
    model.vit.metadata = shapes.metadata
    config = replace(model.vit.config, num_classes=10, drop_path_rate=0.2)
    classifier = to_classifier(model, config).eval()
    assert classifier.config == config and classifier.metadata == shapes.metadata
    body = {name: tensor for name, tensor in classifier.state_dict().items() if not name.startswith("head.")}
    assert body.keys() == model.vit.state_dict().keys()
    for name, tensor in model.vit.state_dict().items():
        assert torch.equal(body[name], tensor) and body[name].data_ptr() != tensor.data_ptr(), name
    images = random_images()[..., :12].repeat(1, 1, 2, 2)[..., :16, :16]
    every = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(classifier.forward_features(images), model.eval().encode(images, every))
    untrained = MaskedAutoencoder(model.vit.config, **DECODER).eval()
    assert not torch.allclose(classifier.forward_features(images), untrained.encode(images, every), atol=1e-2)


def test_the_classifier_knows_how_the_encoders_images_were_normalized(shapes):
    """And so is ready for fine-tuning, which normalizes as the model was made with."""
    model, _ = train(shapes)
    classifier = to_classifier(model, replace(model.vit.config, num_classes=10))
    assert classifier.metadata == {"mean": shapes.mean, "std": shapes.std}
    other = replace(shapes, mean=(0.1,) * 3, std=(0.9,) * 3)
    seen = []
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean().item()))
    fine_tune(classifier, other, TrainConfig(epochs=1, batch_size=50), validate=False)
    assert all(abs(mean) < 0.3 for mean in seen) and classifier.metadata["class_names"] == shapes.class_names


def test_how_patches_began_is_past(shapes):
    assert to_classifier(make(), replace(CONFIG, patch_init="whitened")).config.patch_init == "whitened"


def test_it_can_be_made_without_memory(monkeypatch):
    config = replace(CONFIG, pos_embed="sincos2d")
    with torch.device("meta"):
        model = make(config)
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **options: torch.full_like(tensor, math.nan, **options))
    model, expected = model.to_empty(device="cpu"), make(config)
    assert torch.equal(model.decoder_pos, expected.decoder_pos)
    assert torch.equal(model.vit.pos_table, expected.vit.pos_table)
    assert model.mask_token.isnan().all(), "what is learned comes from the state"


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="depth: 2 in the encoder, 3 in config; only the head and dropouts may differ"):
        to_classifier(make(), replace(CONFIG, depth=3))
    for mask_rate in (0.0, 1.0, 0.99, 0.01, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"mask_rate={mask_rate} must be in \(0, 1\) and leave a patch of 12"):
            make(mask_rate=mask_rate)
    with pytest.raises(ValueError, match="decoder_dim=10 must be a multiple of 4 and of decoder_heads=2"):
        make(decoder_dim=10)
    for name, value in (("decoder_depth", 0), ("decoder_heads", 0), ("decoder_heads", 2.0), ("decoder_dim", 0)):
        with pytest.raises(ValueError, match=f"{name}={value} must be an integer of . or more"):
            make(**{name: value})


def test_it_compiles_as_one_graph():
    model, images = make(replace(CONFIG, pos_embed="rope")), random_images()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    losses = []
    for network in (model, compiled):
        torch.manual_seed(3)
        losses.append(reconstruction_loss(network, (images, None))[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_loss_reads_the_sizes_within_what_several_processes_wrap_around():
    model, images = make(), random_images()
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)  # without the processes that it asks for
    nn.Module.__init__(wrapped)
    wrapped.module, wrapped.forward = model, model.forward
    losses = []
    for network in (model, wrapped):
        torch.manual_seed(0)
        losses.append(reconstruction_loss(network, (images, None))[0])
    assert torch.equal(*losses)
