"""Starts of the weights do what their papers say, computed a second time with numpy in float64."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
import torch
from conftest import randomize

import vit
from vit.config import ViTConfig
from vit.model import VisionTransformer, init_mimetic, init_whitened_patches
from vit.model.initialization import natural_components
from vit.normalization import normalize

WIDE = ViTConfig(image_size=8, patch_size=4, embed_dim=100, depth=1, num_heads=2)  # 48 numbers a patch


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Neighboring pixels are alike, as in pictures, channels have different sizes, and the mean is not zero."""
    noise = torch.randn(500, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smooth = noise[..., :8, :8] + noise[..., 1:, :8] + noise[..., :8, 1:]
    return smooth * torch.tensor([1.0, 0.5, 2.0])[:, None, None] + 0.3


def patches_of(images: torch.Tensor, p: int) -> np.ndarray:
    """Every patch as a row, cut out one by one."""
    array = images.numpy()
    sides = range(0, array.shape[2], p)
    return np.stack([image[:, y : y + p, x : x + p].ravel() for image in array for y in sides for x in sides])


def test_responses_to_patches_are_white(images):
    model = VisionTransformer(WIDE).double()
    before = model.patch_embed.proj.weight.detach().clone()
    init_whitened_patches(model, images, eps=0.0)
    tokens = model.patch_embed(images).flatten(0, 1).detach().numpy()
    np.testing.assert_allclose(np.cov(tokens[:, :48], rowvar=False, bias=True), np.eye(48), atol=1e-8)
    np.testing.assert_array_equal(tokens[:, 48:96], -tokens[:, :48])
    assert torch.equal(model.patch_embed.proj.weight[96:], before[96:]), "rows beyond two a pixel and channel stay"


def test_filters_are_scaled_principal_components_of_most_variance_first(images):
    model = VisionTransformer(replace(WIDE, embed_dim=20)).double()
    init_whitened_patches(model, images, eps=0.1)
    filters = model.patch_embed.proj.weight.detach().flatten(1).numpy()
    patches = patches_of(images, 4)
    _, singular, components = np.linalg.svd(patches - patches.mean(axis=0), full_matrices=False)
    expected = components[:10] / np.sqrt(singular[:10, None] ** 2 / len(patches) + 0.1)
    np.testing.assert_allclose(np.abs(filters[:10]), np.abs(expected), atol=1e-8)  # a component has no sign
    np.testing.assert_array_equal(filters[10:], -filters[:10])


def test_patches_are_whitened_as_the_embedding_sees_them(images):
    model = randomize(VisionTransformer(replace(WIDE, patch_norm=True)).double())
    with torch.no_grad():
        model.patch_embed.norm_out = torch.nn.Identity()
        init_whitened_patches(model, images, eps=1e-12)
        tokens = model.patch_embed(images).flatten(0, 1).numpy()
    variances = np.var(tokens[:, :48], axis=0)
    np.testing.assert_allclose(variances[:45], 1, atol=1e-6)


def test_images_must_be_those_of_the_model(images):
    model = VisionTransformer(WIDE)
    with pytest.raises(TypeError, match="images are uint8"):
        init_whitened_patches(model, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="eps=-1.0 must be 0 or more"):
        init_whitened_patches(model, images.float(), eps=-1.0)
    before = model.patch_embed.proj.weight.clone()
    broken = images.float()
    broken[0, 0, 0, 0] = float("nan")
    for odd in (images.float()[:0], broken):
        with pytest.raises(ValueError, match=r"must be one or more, and all of their pixels finite"):
            init_whitened_patches(model, odd)
    with pytest.raises(ValueError, match="eps=0 leaves a component without variance, which cannot be scaled to 1"):
        init_whitened_patches(model, images.float()[:, :1].expand(-1, 3, -1, -1), eps=0)
    assert torch.equal(model.patch_embed.proj.weight, before)


def test_the_layout_in_memory_does_not_matter(images):
    plain = VisionTransformer(WIDE)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    for model in (plain, last):
        init_whitened_patches(model, images.float())
    assert torch.equal(plain.patch_embed.proj.weight, last.patch_embed.proj.weight)


def natural_covariance(image_size: tuple[int, int], p: int, channels: int) -> np.ndarray:
    """The stated formula, one pair of pixels at a time."""
    pixels = [(c, y, x) for c in range(channels) for y in range(p) for x in range(p)]
    side = min(image_size)
    return np.array([
        [(1 if c == d else 0.9) * math.exp(-((5 * math.hypot(y - v, x - u) / side) ** 1.5)) for d, v, u in pixels]
        for c, y, x in pixels
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("image_size", "p", "channels"), [((32, 32), 4, 3), ((12, 20), 4, 1), ((224, 224), 7, 3), ((8, 8), 1, 4)]
)
def test_natural_components_are_cosines_with_the_variances_of_the_stated_formula(image_size, p, channels):
    components, variances = (found.numpy() for found in natural_components(image_size, p, channels))
    n = channels * p * p
    unit = np.eye(n).reshape(n, channels, p, p)
    waves = scipy.fft.dctn(unit, axes=(1, 2, 3), norm="ortho").reshape(n, n).T  # one a row
    taken = np.abs(components @ waves.T).argmax(axis=1)
    assert sorted(taken) == list(range(n))
    np.testing.assert_allclose(components, waves[taken], atol=1e-12)
    covariance = natural_covariance(image_size, p, channels)
    np.testing.assert_allclose(variances, [c @ covariance @ c for c in components], rtol=1e-9)
    assert (np.diff(variances) <= 1e-9).all() and variances[-1] > 0
    assert variances.sum() == pytest.approx(n), "each pixel has a variance of 1"


def test_natural_components_are_almost_the_principal_ones_of_the_formula():
    covariance = natural_covariance((32, 32), 4, 3)
    components, variances = (found.numpy() for found in natural_components((32, 32), 4, 3))
    white = components / np.sqrt(variances)[:, None]
    np.testing.assert_allclose(variances, np.linalg.eigvalsh(covariance)[::-1], rtol=0.25)
    found = np.linalg.eigvalsh(white @ covariance @ white.T)
    assert found[0] > 0.5 and found[-1] < 2


def test_a_config_starts_with_whitened_patches_and_else_as_without():
    models = {}
    for start in ("xavier", "whitened"):
        torch.manual_seed(0)
        models[start] = VisionTransformer(replace(WIDE, image_size=32, patch_init=start))
    weights = {start: dict(model.named_parameters()) for start, model in models.items()}
    differing = [name for name in weights["xavier"] if not torch.equal(*(w[name] for w in weights.values()))]
    assert differing == ["patch_embed.proj.weight"]
    plain, white = (w["patch_embed.proj.weight"].detach().flatten(1) for w in weights.values())
    components, variances = natural_components((32, 32), 4, 3)
    torch.testing.assert_close(white[:48], (components / (variances + 5e-4).sqrt()[:, None]).float())
    assert torch.equal(white[48:96], -white[:48]) and torch.equal(white[96:], plain[96:])


@pytest.mark.cifar10
def test_filters_for_natural_images_whiten_those_of_cifar10():
    data = vit.load_data("cifar10")
    patches = patches_of(normalize(data.train.images[:2000], data.mean, data.std).double(), 4)
    model = VisionTransformer(replace(WIDE, image_size=32, patch_init="whitened"))
    filters = model.patch_embed.proj.weight.detach().double().flatten(1)[:48].numpy()
    raw, white = (np.linalg.eigvalsh(np.cov(p, rowvar=False)) for p in (patches, patches @ filters.T))
    assert raw[-1] / raw[0] > 2e5 and white[-1] / white[0] < 80
    assert white[0] > 0.03 and white[-1] < 4, "and their responses are about as large as those of the model"


@pytest.fixture(scope="module")
def mimetic() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(ViTConfig(embed_dim=96, num_heads=3, depth=2)).double()
    init_mimetic(model)
    return model


def test_products_are_identities_and_noise_of_the_published_sizes(mimetic):
    D, d = 96, 32
    for block in mimetic.encoder.blocks:
        q, k, v = block.attn.qkv.weight.detach().numpy().reshape(3, 3, d, D)
        for product in np.einsum("hdi,hdj->hij", q, k):
            assert np.linalg.matrix_rank(product) == d
            # The largest third of the directions keeps more than its share of 0.7, and not all of it.
            assert 0.7 / 3 < np.diag(product).mean() < 0.7
        gathered = v.reshape(D, D).T @ block.attn.proj.weight.detach().numpy().T
        assert np.diag(gathered).mean() == pytest.approx(-0.4, abs=0.02)
        others = gathered[~np.eye(D, dtype=bool)]
        assert others.std() == pytest.approx(0.4 / D**0.5, rel=0.03) and abs(others.mean()) < 0.002


def test_with_known_noise_they_are_the_best_matrices_of_their_rank(monkeypatch):
    """numpy's own SVD, cut off at the head's width; no matrix of that rank is nearer (Eckart & Young, 1936)."""
    model, D, d, drawn = VisionTransformer(ViTConfig(embed_dim=24, num_heads=3, depth=2)).double(), 24, 8, []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, **kind: drawn.append(randn(*shape, **kind)) or drawn[-1])
    init_mimetic(model)
    noise = iter(z.numpy() / D**0.5 for z in drawn)
    assert len(drawn) == 2 * (3 + 1), "every head and block has its own"
    for block in model.encoder.blocks:
        q, k, v = block.attn.qkv.weight.detach().numpy().reshape(3, 3, d, D)
        for h in range(3):
            U, S, Vh = np.linalg.svd(0.7 * next(noise) + 0.7 * np.eye(D))
            np.testing.assert_allclose(q[h].T @ k[h], (U[:, :d] * S[:d]) @ Vh[:d], atol=1e-12)
            np.testing.assert_allclose(np.linalg.norm(q[h], axis=1), np.linalg.norm(k[h], axis=1), atol=1e-12)
        out = block.attn.proj.weight.detach().numpy()
        np.testing.assert_allclose(v.reshape(D, D).T @ out.T, 0.4 * next(noise) - 0.4 * np.eye(D), atol=1e-12)


def test_with_mimetic_weights_a_token_attends_to_what_is_like_it_and_loses_it(mimetic):
    """The products are meant as scores x W_q^T W_k x^T and outputs x W_v^T W_proj^T: a transposed weight would fail."""
    attn = mimetic.encoder.blocks[0].attn.requires_grad_(False)
    x = torch.randn(1, 200, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q, k, v = attn._qkv(x, None)
    scores = (q @ k.mT).mean(dim=1)[0]
    own, others = scores.diagonal().mean(), scores[~torch.eye(200, dtype=torch.bool)].mean()
    assert own > 30 and others.abs() < 1
    alone = attn.proj(v.transpose(1, 2).flatten(2))  # as if every token saw itself alone
    assert (alone * x).mean() / (x * x).mean() == pytest.approx(-0.4, abs=0.02)


def test_weights_start_as_said():
    """Bounds of Xavier's uniform distribution, from its formula: nearly reached and never passed."""
    torch.manual_seed(0)
    width, config = 192, ViTConfig(embed_dim=192, num_heads=3, depth=3, num_registers=200)
    model = VisionTransformer(config)

    def check(weight: torch.Tensor, fan_in: int, fan_out: int) -> None:
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound

    for block in model.encoder.blocks:
        for part in block.attn.qkv.weight.chunk(3):
            check(part, width, width)
        check(block.mlp.fc1.weight, width, 4 * width)
        assert not block.attn.proj.weight.any() and not block.mlp.fc2.weight.any()
    check(model.patch_embed.proj.weight, 48, width)
    assert model.reg_token.std().item() == pytest.approx(1, abs=0.02)
    assert model.cls_token.std().item() == pytest.approx(1, abs=0.2)
    columns = torch.arange(8).repeat(8).float()
    torch.testing.assert_close(model.pos_embed[0, :, 0], columns.sin())  # the fastest wave runs over columns
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert biases and not any(bias.any() for bias in biases)
