"""The randomization test: scipy's rank correlation, which weights a method may depend on, and what must stay."""

import copy

import pytest
import scipy.stats
import timm
import torch
from conftest import randomize, same_weights

from vit.analysis import METHODS, explain, randomization_curve, rank_correlation, sanity
from vit.config import ViTConfig
from vit.model.vision_transformer import VisionTransformer

SIZES = {"image_size": (12, 16), "patch_size": 4, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2.0}
IMAGES = torch.randn(5, 3, 12, 16, generator=torch.Generator().manual_seed(1))


def make_model(depth: int = 3, **changes) -> VisionTransformer:
    return randomize(VisionTransformer(ViTConfig(depth=depth, **SIZES | changes))).eval()


def test_rank_correlation_is_scipys():
    generator = torch.Generator().manual_seed(0)
    for levels in (3, 7, 10_000):  # many equal values, some, and none
        a, b = (torch.randint(levels, (6, 4, 5), generator=generator).float() for _ in range(2))
        expected = [scipy.stats.spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)]
        torch.testing.assert_close(rank_correlation(a, b).tolist(), expected, rtol=0, atol=1e-6)


def test_rank_correlation_of_the_same_the_reverse_and_no_order():
    heat = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0))
    for other, expected in ((heat**3, 1.0), (-heat, -1.0), (torch.ones_like(heat), 0.0)):
        torch.testing.assert_close(rank_correlation(heat, other), torch.full((3,), expected))
        torch.testing.assert_close(rank_correlation(heat.numpy(), other.numpy()), torch.full((3,), expected))
    one_patch = torch.ones(2, 1, 1)
    assert rank_correlation(one_patch, one_patch).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"heatmaps \(3, 2, 4\) and others \(2, 1, 1\) must both be"):
        rank_correlation(heat, one_patch)


def test_weights_are_lost_from_the_head_down(monkeypatch):
    states = []

    def spy(model, *arguments, **options):
        states.append(copy.deepcopy(model.state_dict()))
        return explain(model, *arguments, **options)

    monkeypatch.setattr(sanity, "explain", spy)
    randomization_curve(make_model(), IMAGES, "rollout")
    parts = ["head.", "encoder.blocks.2.", "encoder.blocks.1.", "encoder.blocks.0.", ""]  # "" is all
    assert len(states) == 1 + len(parts)
    for stage, state in enumerate(states[1:], start=1):
        for name, before in states[0].items():
            if name == "pos_table":
                continue
            is_lost = name.startswith(tuple(parts[:stage]))
            assert torch.equal(state[name], before) != is_lost, (stage, name)
            assert torch.equal(state[name].flatten().sort().values, before.flatten().sort().values), "the same numbers"


def test_both_heads_of_a_distilled_model_are_lost_first(monkeypatch):
    states = []
    monkeypatch.setattr(sanity, "explain", lambda model, *_, **__: states.append(copy.deepcopy(model)) or IMAGES[:, 0])
    sizes = {"img_size": (12, 16), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = randomize(timm.models.deit.VisionTransformerDistilled(**sizes)).eval()
    randomization_curve(model, IMAGES)
    intact, headless = states[0].state_dict(), states[1].state_dict()
    lost = {name for name in intact if not torch.equal(intact[name], headless[name])}
    assert lost == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


@pytest.mark.parametrize("method", METHODS)
def test_a_curve_begins_at_one_and_falls_where_the_method_reads(method):
    curve = randomization_curve(make_model(), IMAGES, method)  # intact, head, blocks 2, 1 and 0, all
    assert curve.shape == (5, 6)
    torch.testing.assert_close(curve[:, 0], torch.ones(5))
    reads_the_head = method in ("gradient_rollout", "relevance")
    assert (curve[:, 1] < 0.99).all() if reads_the_head else torch.equal(curve[:, 1], curve[:, 0])
    assert (curve[:, 2] < 0.99).any(), "all of them read the last block"
    assert curve[:, -1].mean() < 0.6


def test_weights_that_are_all_alike_cannot_be_lost():
    model = make_model()
    with torch.no_grad():
        for parameter in model.encoder.blocks[1].parameters():
            parameter.fill_(0.1)
    curve = randomization_curve(model, IMAGES, "rollout")
    assert torch.equal(curve[:, 3], curve[:, 2]) and not torch.equal(curve[:, 4], curve[:, 3])


def test_the_class_stays_that_of_the_model_itself():
    model = make_model()
    targets = model(IMAGES).argmax(dim=1)
    of_model = randomization_curve(model, IMAGES)
    assert torch.equal(of_model, randomization_curve(model, IMAGES, targets=targets))
    assert not torch.equal(of_model, randomization_curve(model, IMAGES, targets=(targets + 1) % 10))


def test_the_model_and_the_random_numbers_of_others_stay():
    model = make_model().train()
    before, state = copy.deepcopy(model), torch.get_rng_state()
    first = randomization_curve(model, IMAGES)
    assert same_weights(model, before) and model.training and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, randomization_curve(model, IMAGES))
    assert not torch.equal(first, randomization_curve(model, IMAGES, seed=1))
    with torch.inference_mode():
        assert torch.equal(first, randomization_curve(model, IMAGES)), "gradients are its own affair"


def test_models_of_timm_and_frozen_ones():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    curve = randomization_curve(randomize(model).requires_grad_(False).eval(), torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(curve[:, 0], torch.ones(2))
    assert curve.shape == (2, 5) and (curve[:, 1:] < 1).all()
