"""Statistics of attention: maps whose distance, entropy and similarity are known by hand, and a loop over patches."""

import math

import numpy as np
import pytest
import torch

from vit.analysis.layout import TokenLayout
from vit.analysis.statistics import attention_entropy, head_similarity, mean_attention_distance, patch_distances

# 3 rows of 4 pixels, 5 columns of 6 pixels; CLS and one register before them.
LAYOUT = TokenLayout((12, 30), (3, 5), (4, 6), num_prefix_tokens=2, has_cls=True, pool="cls")
N, T = LAYOUT.num_patches, LAYOUT.num_tokens


def with_prefix(attn: torch.Tensor, share: float = 0.3) -> torch.Tensor:
    """Maps of patches (..., N, N) among all tokens (..., T, T): `share` of every patch's attention goes to CLS, and the
    prefix tokens look at themselves."""
    maps = torch.eye(T).repeat(*attn.shape[:-2], 1, 1)
    maps[..., 2:, 2:] = attn * (1 - share)
    maps[..., 2:, 0] = share
    return maps


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).softmax(dim=-1)


def distance_by_loops(attn: np.ndarray) -> float:
    """Mean distance of maps (B, N, N) in float64, patch by patch, by the corners of the patches."""
    total = 0.0
    for one in attn:
        for q in range(N):
            for k in range(N):
                dy, dx = 4 * (q // 5) - 4 * (k // 5), 6 * (q % 5) - 6 * (k % 5)
                total += one[q, k] / one[q].sum() * math.sqrt(dy * dy + dx * dx)
    return total / (len(attn) * N)


def test_distance_equals_a_loop_over_patches():
    attn = random_maps(2, 3, 4, N, N)  # (L, B, h, N, N)
    distances = mean_attention_distance(with_prefix(attn), LAYOUT)
    assert distances.shape == (2, 4) and distances.dtype == torch.float32
    for layer in range(2):
        for head in range(4):
            expected = distance_by_loops(attn[layer, :, head].double().numpy())
            assert distances[layer, head].item() == pytest.approx(expected, rel=1e-5)


def test_uniform_attention_looks_as_far_as_patches_are_apart():
    uniform = torch.full((1, 2, 1, T, T), 1 / T)
    expected = distance_by_loops(np.full((1, N, N), 1 / N))
    assert mean_attention_distance(uniform, LAYOUT).item() == pytest.approx(expected, rel=1e-5)
    assert patch_distances(LAYOUT).mean().item() == pytest.approx(expected, rel=1e-5)
    # In one dimension there is a closed form: (n^2 - 1) / (3 n) patches.
    line = TokenLayout((8, 35), (1, 7), (8, 5), num_prefix_tokens=0, has_cls=False, pool="mean")
    assert patch_distances(line).mean().item() == pytest.approx(5 * 48 / 21, rel=1e-6)


def test_distance_of_steps_is_the_size_of_a_patch_and_rows_are_not_columns():
    index = torch.arange(N).view(3, 5)
    steps = {"self": index, "down": index.roll(-1, 0), "right": index.roll(-1, 1)}
    attn = torch.stack([torch.eye(N)[to.flatten()] for to in steps.values()])[None, None]  # (1, 1, h, N, N)
    # Down: two of three rows step 4 pixels, the last goes back 8. Right: four columns step 6, the last goes back 24.
    expected = torch.tensor([[0.0, (2 * 4 + 8) / 3, (4 * 6 + 24) / 5]])
    torch.testing.assert_close(mean_attention_distance(with_prefix(attn), LAYOUT), expected)


def test_what_the_prefix_gets_does_not_change_distance():
    attn = random_maps(1, 2, 3, N, N, seed=1)
    little, much = (mean_attention_distance(with_prefix(attn, share), LAYOUT) for share in (0.0, 0.9))
    torch.testing.assert_close(little, much)
    maps = with_prefix(attn)
    maps[:, :, :, 2] = torch.eye(T)[0]  # the first patch looks at CLS alone
    left = mean_attention_distance(maps, LAYOUT)
    assert left.isfinite().all()
    shares = attn[0, :, :, 1:] @ patch_distances(LAYOUT)[1:].T  # the other patches by hand: (B, h, N-1, N-1)
    torch.testing.assert_close(left[0], shares.diagonal(dim1=-2, dim2=-1).mean(dim=(0, 2)))


def test_entropy_is_log2_of_the_tokens_looked_at():
    uniform, single = torch.full((T, T), 1 / T), torch.eye(T)
    four = torch.zeros(T, T)
    four[:, 5:9] = 0.25
    maps = torch.stack([uniform, single, four])[None, None]  # (1, 1, h, T, T)
    entropy = attention_entropy(maps)
    torch.testing.assert_close(entropy, torch.tensor([[math.log2(T), 0.0, 2.0]]), rtol=1e-6, atol=0)
    maps = random_maps(2, 3, 4, T, T)
    p = maps.double().numpy()
    np.testing.assert_allclose(attention_entropy(maps), -(p * np.log2(p)).sum(-1).mean((1, 3)), rtol=1e-5)


def test_heads_alike_and_heads_apart():
    here, there, both = torch.zeros(3, 4, 4)
    here[:, 0] = 1
    there[:, 1] = 1
    both[:, :2] = 0.5
    # One half of `both` is `here`: JSD = H(3/4, 1/4) - (0 + 1) / 2 bits.
    half = 1 - (2 - 0.75 * math.log2(3) - 0.5)
    maps = torch.stack([torch.stack([here, there]), torch.stack([both, here])])[:, None]  # (L, 1, h, T, T)
    expected = torch.tensor([[1, 0, half, 1], [0, 1, half, 0], [half, half, 1, half], [1, 0, half, 1]])
    torch.testing.assert_close(head_similarity(maps), expected, rtol=0, atol=1e-6)


def test_similarity_equals_its_definition_by_kullback_and_leibler():
    maps = random_maps(2, 3, 2, T, T, seed=2)
    similarity = head_similarity(maps)
    heads = maps.double().mean(dim=1).flatten(0, 1).numpy()
    for i, p in enumerate(heads):
        for j, q in enumerate(heads):
            divergences = [(r * np.log2(2 * r / (p + q))).sum(axis=-1) for r in (p, q)]
            expected = 1 - np.mean(divergences)
            assert similarity[i, j].item() == pytest.approx(expected, abs=1e-5)
    assert similarity[~torch.eye(4, dtype=torch.bool)].max() < 0.9, "heads drawn at random are not alike"


@pytest.mark.parametrize(
    "statistic", [attention_entropy, head_similarity, lambda m: mean_attention_distance(m, LAYOUT)]
)
def test_half_precision_is_computed_in_single(statistic):
    maps = random_maps(1, 2, 2, T, T).half()
    assert torch.equal(statistic(maps), statistic(maps.float()))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"maps must be a tensor \(L, B, h, T, T\), .* got \(2, 5, 5\)"):
        attention_entropy(torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match="are empty"):
        head_similarity(torch.zeros(1, 0, 1, 5, 5))
    with pytest.raises(ValueError, match="maps have 5 tokens, the layout has 17"):
        mean_attention_distance(torch.zeros(1, 1, 1, 5, 5), LAYOUT)
