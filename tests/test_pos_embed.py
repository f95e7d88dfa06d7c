"""Positions: closed forms, the relative nature of rotary angles, and resampling against timm and the identity."""

import math

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from vit.model.pos_embed import apply_rope, grid_positions, resample_pos_embed, rope2d_table, sincos2d_table
from vit.model.transformer import Attention


def test_the_grid_is_counted_row_by_row():
    rows, columns = grid_positions((2, 3))
    assert rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert columns.tolist() == [0, 1, 2, 0, 1, 2]


def test_sincos_table_equals_its_formula():
    table = sincos2d_table((2, 3), 16)
    for row in range(2):
        for column in range(3):
            for k in range(4):
                frequency = 10_000 ** -(k / 3)
                entry = table[0, 3 * row + column, k::4]
                x, y = column * frequency, row * frequency
                expected = torch.tensor([math.sin(x), math.cos(x), math.sin(y), math.cos(y)])
                torch.testing.assert_close(entry, expected, rtol=0, atol=1e-6)


def test_rope_scores_depend_on_the_offset_alone():
    """Turning queries and keys makes q.k a function of the distance in rows and columns (Su et al., Eq. 11)."""
    grid, d = (4, 5), 16
    rope = rope2d_table(grid, d).double()
    q, k = torch.randn(2, 1, 1, 1, d, dtype=torch.float64).expand(2, 1, 20, 1, d)
    q, k = (apply_rope(x, rope)[0, :, 0] for x in (q, k))  # (N, d)
    scores = (q @ k.T).view(*grid, *grid)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3], rtol=0, atol=1e-5)
    torch.testing.assert_close(scores[1, 3, 0, 0], scores[3, 4, 2, 1], rtol=0, atol=1e-5)
    assert (scores[0, 0, 1, 2] - scores[0, 0, 2, 1]).abs() > 1e-3, "rows and columns must not be confused"


def test_rope_turns_pairs_as_rotation_matrices_turn():
    """RoFormer's Eq. 13: channels 2i and 2i + 1 are a point of the plane, turned by the angle, in every head alike."""
    x = torch.randn(2, 7, 3, 8, dtype=torch.float64)
    turned = apply_rope(x, rope2d_table((2, 3), 8).double())
    for place in range(6):
        row, column = divmod(place, 3)
        for i, angle in enumerate((row, row * 0.1, column, column * 0.1)):
            matrix = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
            before, after = (y[:, place + 1, :, 2 * i : 2 * i + 2] for y in (x, turned))
            torch.testing.assert_close(after, before @ matrix.T, rtol=0, atol=1e-6)
    assert torch.equal(turned[:, :1], x[:, :1])


def test_rope_keeps_lengths_and_leaves_prefix_tokens():
    rope = rope2d_table((2, 3), 8)
    x = torch.randn(2, 8, 3, 8)
    turned = apply_rope(x, rope)
    assert torch.equal(turned[:, :2], x[:, :2])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(turned[:, 3:], x[:, 3:])


@pytest.mark.parametrize("tokens", [6, 8])  # without a prefix, and with one
def test_rope_is_the_same_compiled_and_in_half_precision(tokens):
    """Written with complex numbers on the CPU, and without them for compilers and for half precision."""
    rope, x = rope2d_table((2, 3), 8), torch.randn(2, tokens, 3, 8, requires_grad=True)
    turn = torch.compile(apply_rope, backend="aot_eager", fullgraph=True, dynamic=True)
    right, direction = apply_rope(x, rope), torch.randn(2, tokens, 3, 8)
    torch.testing.assert_close(turn(x, rope), right)
    torch.testing.assert_close(
        torch.autograd.grad(turn(x, rope), x, direction), torch.autograd.grad(right, x, direction)
    )
    torch.testing.assert_close(apply_rope(x.bfloat16(), rope).float(), right, rtol=0.02, atol=0.02)
    per_image = rope.expand(2, 6, 3, 8).contiguous()
    torch.testing.assert_close(apply_rope(x, per_image), right)
    torch.testing.assert_close(apply_rope(x.bfloat16(), per_image), apply_rope(x.bfloat16(), rope))


def test_a_rotary_table_of_more_patches_than_tokens_is_refused():
    rope = rope2d_table((2, 3), 8)
    for tokens in (5, 1):
        with pytest.raises(ValueError, match=f"rope is a table of 6 patches and x has {tokens} tokens"):
            apply_rope(torch.randn(2, tokens, 3, 8), rope)
        with pytest.raises(ValueError, match="rope is a table of 6 patches"):
            Attention(16, 2).weights(torch.randn(2, tokens, 16), rope)


def test_resampling_agrees_with_timm_and_the_native_grid_is_the_identity():
    table = torch.randn(1, 6, 8)
    assert resample_pos_embed(table, (2, 3), (2, 3)) is table
    for new_grid in ((4, 6), (5, 3), (1, 2)):
        expected = resample_abs_pos_embed(table, new_grid, old_size=(2, 3), num_prefix_tokens=0)
        torch.testing.assert_close(resample_pos_embed(table, (2, 3), new_grid), expected)
    constant = torch.full((1, 6, 8), 3.0)
    torch.testing.assert_close(resample_pos_embed(constant, (2, 3), (7, 5)), torch.full((1, 35, 8), 3.0))


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="embed_dim=6 must be a multiple of 4"):
        sincos2d_table((2, 2), 6)
    with pytest.raises(ValueError, match="head_dim=6 must be a multiple of 4"):
        rope2d_table((2, 2), 6)
    with pytest.raises(ValueError, match=r"shape \(1, 7, 8\) does not fill old_grid=\(2, 3\)"):
        resample_pos_embed(torch.zeros(1, 7, 8), (2, 3), (4, 6))
    with pytest.raises(ValueError, match="resampling='lanczos' is not a choice; allowed: bi"):
        resample_pos_embed(torch.zeros(1, 6, 8), (2, 3), (4, 6), "lanczos")
