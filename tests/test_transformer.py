"""Attention, blocks and the encoder, against torch's own multi-head attention and what must hold for any of them."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import randomize
from torch import Tensor

from vit.model.pos_embed import rope2d_table
from vit.model.transformer import Attention, Block, DropPath, Encoder, Mlp


def reference_attention(attention: Attention, x: Tensor, attn_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """torch's multi-head attention with the same weights; its boolean masks say where one may NOT look."""
    output, weights = F.multi_head_attention_forward(
        *[x.transpose(0, 1)] * 3,
        embed_dim_to_check=x.shape[-1],
        num_heads=attention.num_heads,
        in_proj_weight=attention.qkv.weight,
        in_proj_bias=attention.qkv.bias,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.proj.weight,
        out_proj_bias=attention.proj.bias,
        attn_mask=None if attn_mask is None else ~attn_mask,
        average_attn_weights=False,
    )
    return output.transpose(0, 1), weights


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_equals_torchs(qkv_bias, masked):
    attention = randomize(Attention(24, 3, qkv_bias=qkv_bias).double())
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    mask = torch.ones(7, 7, dtype=torch.bool).tril() if masked else None
    output, weights = reference_attention(attention, x, mask)
    torch.testing.assert_close(attention(x, attn_mask=mask), output, rtol=0, atol=1e-12)
    torch.testing.assert_close(attention.weights(x, attn_mask=mask), weights, rtol=0, atol=1e-12)


def test_a_wrong_attention_would_be_noticed():
    attention = randomize(Attention(24, 3).double())
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    right = attention(x)
    q, k, v = attention.qkv.weight.data.chunk(3)
    attention.qkv.weight.data = torch.cat([k, q, v])
    assert (attention(x) - right).abs().max() > 1e-3


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("with_rope", [True, False])
def test_weights_times_values_is_what_forward_computes(qk_norm, with_rope):
    attention = randomize(Attention(16, 2, qk_norm=qk_norm))
    x = torch.randn(3, 8, 16)
    rope = rope2d_table((2, 3), 8) if with_rope else None
    weights = attention.weights(x, rope)
    assert weights.shape == (3, 2, 8, 8) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 8))
    v = attention.qkv(x).view(3, 8, 3, 2, 8)[:, :, 2].transpose(1, 2)
    explicit = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, rope), explicit, rtol=0, atol=1e-5)


def test_a_constant_added_to_the_key_bias_changes_nothing():
    attention = randomize(Attention(16, 2).double())
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    before = attention(x)
    attention.qkv.bias.data[16:32] += torch.randn(16, dtype=torch.float64)
    torch.testing.assert_close(attention(x), before, rtol=0, atol=1e-12)


def test_a_float_mask_is_added_and_a_bool_mask_forbids():
    encoder = randomize(Encoder(16, 2, 2, 32))
    x = torch.randn(2, 5, 16)
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    added = torch.zeros(5, 5).masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(encoder(x, attn_mask=allowed), encoder(x, attn_mask=added))
    changed = x.clone()
    changed[:, 4] = torch.randn(16)
    causal, causal_changed = encoder(x, attn_mask=allowed), encoder(changed, attn_mask=allowed)
    torch.testing.assert_close(causal[:, :4], causal_changed[:, :4])
    assert not torch.allclose(encoder(x)[:, :4], encoder(changed)[:, :4]), "without a mask token 4 must be seen"


@pytest.mark.parametrize("is_bool", [True, False])
def test_a_query_that_may_look_at_nothing_has_weights_of_zero_as_in_forward(is_bool):
    attention = randomize(Attention(16, 2).double())
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    allowed[2] = False
    mask = allowed if is_bool else torch.zeros(5, 5).double().masked_fill(~allowed, -torch.inf)
    weights = attention.weights(x, attn_mask=mask)
    assert (weights[:, :, 2] == 0).all()
    torch.testing.assert_close(weights.sum(-1)[:, :, [0, 1, 3, 4]], torch.ones(2, 2, 4).double())
    _, _, v = attention._qkv(x, None)
    explicit, fused = attention.proj((weights @ v).transpose(1, 2).flatten(2)), attention(x, attn_mask=mask)
    torch.testing.assert_close(explicit, fused, rtol=0, atol=1e-12)
    direction = torch.randn_like(fused)
    of_explicit, of_fused = (torch.autograd.grad(y, x, direction)[0] for y in (explicit, fused))
    torch.testing.assert_close(of_explicit, of_fused, rtol=0, atol=1e-12)


def test_a_mask_of_integers_is_refused():
    attention, x = Attention(16, 2), torch.randn(2, 5, 16)
    mask = torch.ones(5, 5, dtype=torch.long).tril()
    with pytest.raises(TypeError, match=r"attn_mask is torch.int64: use attn_mask.bool\(\), True"):
        attention.weights(x, attn_mask=mask)
    with pytest.raises(RuntimeError, match="attn_mask dtype to be bool or float"):
        attention(x, attn_mask=mask)


def test_a_block_works_alone_and_adds_two_residual_branches():
    block = randomize(Block(16, 2, 32, layer_scale=0.1))
    x = torch.randn(2, 5, 16)
    y = x + block.ls1.gamma * block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), y + block.ls2.gamma * block.mlp(block.norm2(y)))


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    drop_path = DropPath(0.25)
    x = torch.ones(4000, 3, 2)
    dropped = drop_path.train()(x)
    per_sample = dropped.flatten(1)
    assert ((per_sample == 0).all(1) | (per_sample == 1 / 0.75).all(1)).all()
    assert abs(dropped.mean() - 1) < 4 * (0.25 / 0.75 / 4000) ** 0.5, "more than four standard errors from 1"
    assert torch.equal(drop_path.eval()(x), x)


def test_drop_path_rises_linearly():
    encoder = Encoder(16, 5, 2, 32, drop_path=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_block_outputs_end_where_forward_does():
    encoder = randomize(Encoder(16, 3, 2, 32))
    x = torch.randn(2, 5, 16)
    outputs = encoder.block_outputs(x)
    assert len(outputs) == 3
    torch.testing.assert_close(encoder.norm(outputs[-1]), encoder(x))


@pytest.mark.parametrize("with_rope", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("qk_norm", "qkv_bias"), [(True, True), (False, True), (False, False)])
def test_the_first_outputs_alone_are_those_of_the_whole(with_rope, masked, qk_norm, qkv_bias):
    encoder = randomize(Encoder(16, 3, 2, 32, qk_norm=qk_norm, qkv_bias=qkv_bias).double())
    x = torch.randn(2, 8, 16, dtype=torch.float64)
    rope = rope2d_table((2, 3), 8) if with_rope else None
    mask = torch.rand(2, 1, 8, 8) < 0.7 if masked else None
    if masked:
        mask |= torch.eye(8, dtype=torch.bool)
    whole = encoder(x, rope, mask)
    for count in (1, 3):
        torch.testing.assert_close(encoder(x, rope, mask, num_outputs=count), whole[:, :count], rtol=0, atol=1e-12)


def test_the_first_outputs_alone_have_the_gradients_of_the_whole():
    encoder = randomize(Encoder(16, 2, 2, 32).double())
    x = torch.randn(2, 8, 16, dtype=torch.float64, requires_grad=True)
    learned = [x, *encoder.parameters()]
    for count in (1, 3):
        direction = torch.randn(2, count, 16, dtype=torch.float64)
        whole = torch.autograd.grad(encoder(x)[:, :count], learned, direction)
        torch.testing.assert_close(
            torch.autograd.grad(encoder(x, num_outputs=count), learned, direction), whole, rtol=0, atol=1e-12
        )


def test_the_first_outputs_alone_call_a_hooked_layer_and_drop_as_told():
    """Without a key or value the work is less, but whoever wants to see them, or drop a probability, gets them."""
    attention = randomize(Attention(16, 2, attn_drop=0.5).double()).eval()
    x = torch.randn(2, 8, 16, dtype=torch.float64)
    without, seen = attention(x, num_outputs=1), []
    hook = attention.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(attention(x, num_outputs=1), without, rtol=0, atol=1e-12)
    assert seen[0].shape == (2, 8, 48)
    hook.remove()
    attention(x, num_outputs=1)
    assert len(seen) == 1
    assert (attention.train()(x, num_outputs=1) - without).abs().max() > 1e-3


class Scaled(Attention):
    def _qkv(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super()._qkv(x, rope)
        return 3 * q, k, v


def with_norm(name: str) -> Attention:
    attention = Attention(16, 2)
    setattr(attention, name, torch.nn.LayerNorm(8))
    return attention


@pytest.mark.parametrize("make", [partial(Scaled, 16, 2), partial(with_norm, "q_norm"), partial(with_norm, "k_norm")])
def test_the_first_outputs_alone_are_those_of_an_attention_that_was_changed(make):
    attention = randomize(make().double())
    x = torch.randn(2, 8, 16, dtype=torch.float64)
    torch.testing.assert_close(attention(x, num_outputs=1), attention(x)[:, :1], rtol=0, atol=1e-12)
    plain = Attention(16, 2).double()
    plain.load_state_dict(attention.state_dict(), strict=False)
    assert (plain(x) - attention(x)).abs().max() > 1e-3, "or it would do no harm"


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim=16 is not a multiple of num_heads=3"):
        Attention(16, 3)


def test_an_unknown_activation_lists_the_known_ones():
    with pytest.raises(ValueError, match="act='relu' is not a choice; .*allowed: gelu, gelu_tanh, quick_gelu, swiglu"):
        Mlp(8, 8, act="relu")
