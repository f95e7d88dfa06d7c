"""Visual prompts: nothing at the start, ordinary tokens once their gates are open, and trained alone."""

import numpy as np
import pytest
import torch
from conftest import randomize, same_weights

from vit import analysis
from vit.config import TrainConfig, ViTConfig
from vit.model import VisionTransformer
from vit.tasks import prompts
from vit.training import build_optimizers

KINDS = [{}, {"pool": "mean"}, {"num_registers": 2}, {"pos_embed": "rope", "pool": "mean", "num_registers": 1}]


def make_model(tiny: ViTConfig, **changes) -> VisionTransformer:
    return randomize(VisionTransformer(ViTConfig(**(tiny.to_dict() | changes)))).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_frozen_network(tiny, images, kind):
    model = make_model(tiny, **kind)
    prompted = prompts.add(model, 3)
    torch.testing.assert_close(prompted(images), model(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(prompted.double()(images.double()), model.double()(images.double()), rtol=0, atol=1e-9)
    model = randomize(model)  # weights that float32 would round
    prompted = prompts.add(model, 3)
    torch.testing.assert_close(prompted(images.double()), model(images.double()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_with_open_gates_the_prompts_are_registers(tiny, images, kind, sign):
    """The oracle is a plain network of this library with the prompts among its registers."""
    prompted = prompts.add(make_model(tiny, **kind), 3)
    torch.nn.init.constant_(prompted.encoder.gate, sign)
    plain = VisionTransformer(prompted.config).eval()
    plain.load_state_dict({n: tensor for n, tensor in prompted.state_dict().items() if n != "encoder.gate"})
    torch.testing.assert_close(prompted(images), plain(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(prompted.forward_features(images), plain.forward_features(images), rtol=0, atol=1e-5)


def test_a_gate_weighs_its_token_in_every_softmax(tiny, images):
    """A gate of 2 is the same token twice: each of the two has half of its attention."""
    model = make_model(tiny, pool="mean")
    prompted, twice = prompts.add(model, 1), prompts.add(model, 2)
    with torch.no_grad():
        prompted.encoder.gate.fill_(2)
        twice.encoder.gate.fill_(1)
        twice.reg_token.copy_(prompted.reg_token.expand(-1, 2, -1))
    torch.testing.assert_close(prompted(images), twice(images), rtol=0, atol=1e-5)


def test_layout_maps_and_features_know_the_prompts(tiny, images):
    model = make_model(tiny)
    prompted = prompts.add(model, 3)
    layout = analysis.token_layout(prompted)
    assert (layout.num_prefix_tokens, layout.num_patches, layout.has_cls) == (4, 4, True)
    maps = analysis.attention_maps(prompted, images)
    assert maps.shape == (2, 3, 2, 8, 8)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 3, 2, 8))
    assert maps[..., 1:4].max() < 1e-9, "closed gates are not looked at"
    seen = [0, 4, 5, 6, 7]  # CLS and patches, which look at each other as in the frozen network
    expected = analysis.attention_maps(model, images)
    torch.testing.assert_close(maps[..., seen, :][..., seen], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(analysis.features(prompted, images), analysis.features(model, images))
    torch.nn.init.ones_(prompted.encoder.gate)
    assert analysis.attention_maps(prompted, images)[..., 1:4].max() > 0.01
    assert analysis.block_outputs(prompted, images).shape == (2, 3, 8, 16)


def test_a_step_opens_gates_and_changes_nothing_frozen(tiny, images):
    prompted = prompts.add(make_model(tiny), 3)
    before = {name: p.detach().clone() for name, p in prompted.named_parameters()}
    [optimizer] = build_optimizers(prompted, TrainConfig(optimizer="adamw", learning_rate=0.01, weight_decay=0.0))
    labels = torch.tensor([1, 2, 3])
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(prompted(images), labels)
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in prompted.parameters())
        optimizer.step()
        losses.append(loss.item())
    changed = {name for name, p in prompted.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"reg_token", "encoder.gate"} | {name for name in before if name.startswith("head.")}
    assert prompted.encoder.gate.abs().max() > 1e-4 and losses[-1] < losses[0]


def test_prompts_alone_can_learn(tiny, images):
    prompted = prompts.add(make_model(tiny), 4)
    prompted.head.requires_grad_(False)
    [optimizer] = build_optimizers(prompted, TrainConfig(optimizer="adamw", learning_rate=0.05, weight_decay=0.0))
    labels = torch.tensor([1, 2, 3])
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(prompted(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


def test_the_number_of_trained_parameters_is_its_closed_form(tiny):
    model = make_model(tiny)
    prompted = prompts.add(model, 5)
    head = sum(p.numel() for p in model.head.parameters())
    assert sum(p.numel() for p in prompted.parameters() if p.requires_grad) == 5 * 16 + 5 + head


def test_a_compiled_model_is_taken_for_what_is_in_it(tiny):
    model = make_model(tiny)
    torch.manual_seed(0)
    prompted = prompts.add(model, 2)
    torch.manual_seed(0)
    assert same_weights(prompts.add(torch.compile(model, backend="eager"), np.int64(2)), prompted)


def test_bad_input_is_refused(tiny):
    with pytest.raises(TypeError, match="model must be a VisionTransformer of this library, got torch.nn.*Linear"):
        prompts.add(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="num_prompts=0 must be an integer of 1 or more"):
        prompts.add(make_model(tiny), 0)
    with pytest.raises(ValueError, match="has prompts already"):
        prompts.add(prompts.add(make_model(tiny)))
