"""A standard pre-norm Transformer encoder: tokens in, tokens out. It knows nothing of images.

Layers take plain numbers, so that anything built on tokens can use them alone. Attention is fused; its
probabilities leave by `Attention.weights`, a second method on the same queries and keys, never by a flag.
Sources: Vaswani et al., "Attention Is All You Need", 2017, Eq. 1; Dosovitskiy et al., ICLR 2021, Eq. 2-3.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.arguments import check_choice
from vit.model.pos_embed import apply_rope


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: token width D, a multiple of `num_heads`.
        qk_norm: LayerNorm on each head's queries and keys.
        attn_drop, proj_drop: dropout on the probabilities and on the output, in [0, 1).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}"

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, num_outputs: int | None = None
    ) -> Tensor:
        """Tokens (B, T, D) to tokens (B, T, D), or (B, num_outputs, D).

        Args:
            rope: angles of the last N tokens, (N, 1, d) or up to (B, N, h, d), see `apply_rope`.
            attn_mask: broadcastable to (B, h, T, T); bool, True where a query may look, or float, added to the scores.
            num_outputs: only so many first tokens ask, although they look at all; default all T.
        """
        dropout = self.attn_drop if self.training else 0.0
        if num_outputs is not None and rope is attn_mask is None and not dropout and self._is_one_linear_map():
            return self.proj_drop(self.proj(self._gather(x, num_outputs)))
        q, k, v = self._qkv(x, rope)  # 3 x (B, h, T, d)
        if num_outputs is not None:
            q = q[:, :, :num_outputs]  # (B, h, num_outputs, d)
            attn_mask = None if attn_mask is None else attn_mask[..., :num_outputs, :]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)  # (B, h, num_outputs, d)
        x = x.transpose(1, 2).flatten(2)  # (B, num_outputs, D)
        return self.proj_drop(self.proj(x))

    def weights(self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """The attention probabilities (B, h, T, T) that `forward` uses for the same input, before dropout; zeros for a
        query that a mask lets look at nothing."""
        q, k, _ = self._qkv(x, rope)  # (B, h, T, d)
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5  # (B, h, T, T)
        if attn_mask is None:
            return scores.softmax(dim=-1)
        is_bool = attn_mask.dtype == torch.bool
        if not is_bool and not attn_mask.is_floating_point():
            raise TypeError(
                f"attn_mask is {attn_mask.dtype}: use attn_mask.bool(), True where a query may look, or floats"
            )
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_bool else scores + attn_mask
        is_blind = (scores == -torch.inf).all(dim=-1, keepdim=True)  # (B, h, T, 1)
        # Filled on both sides, so that the gradient is not NaN either.
        return scores.masked_fill(is_blind, 0).softmax(dim=-1).masked_fill(is_blind, 0)

    def _qkv(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x.shape
        parts = self.qkv(x).chunk(3, dim=-1)  # 3 x (B, T, D): their gradients join in one copy
        q, k, v = (part.view(B, T, self.num_heads, self.head_dim) for part in parts)  # 3 x (B, T, h, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # 3 x (B, h, T, d)

    def _is_one_linear_map(self) -> bool:
        """Whether queries, keys and values are no more than `qkv` of the tokens, and no hook waits for its call."""
        hooks = [getattr(self.qkv, f"_{when}_hooks") for when in ("forward_pre", "forward", "backward_pre", "backward")]
        is_plain = all(isinstance(norm, nn.Identity) for norm in (self.q_norm, self.k_norm))
        shares_qkv = type(self)._qkv is Attention._qkv  # which a subclass may override
        return type(self.qkv) is nn.Linear and not any(hooks) and is_plain and shares_qkv

    def _gather(self, x: Tensor, num_outputs: int) -> Tensor:
        """What the first tokens collect by attention, (B, num_outputs, D), without the key or value of any token.

        Products of matrices may be taken in another order: q . (W_k x) = (W_k^T q) . x, and the mean of the values is
        W_v times the mean of the tokens. For a CLS token that is hardly any work. A key's bias adds the same to all
        scores of a query, which softmax does not see.
        """
        B, _, D = x.shape
        h, d, n = self.num_heads, self.head_dim, num_outputs
        w_q, w_k, w_v = self.qkv.weight.view(3, h, d, D)  # 3 x (h, d, D)
        b_q, b_v = (None, None) if self.qkv.bias is None else (self.qkv.bias[:D], self.qkv.bias[2 * D :])
        q = F.linear(x[:, :n], w_q.flatten(0, 1), b_q) * d**-0.5  # (B, num_outputs, D)
        q = q.view(B * n, h, d).transpose(0, 1) @ w_k  # (h, B*num_outputs, D)
        scores = q.transpose(0, 1).reshape(B, n * h, D) @ x.mT  # (B, num_outputs*h, T)
        mean = scores.softmax(dim=-1) @ x  # (B, num_outputs*h, D)
        v = mean.view(B * n, h, D).transpose(0, 1) @ w_v.mT  # (h, B*num_outputs, d)
        v = v.transpose(0, 1).reshape(B, n, D)  # (B, num_outputs, D)
        return v if b_v is None else v + b_v


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), a fast stand-in for GELU (Hendrycks & Gimpel, 2016, section 2); OpenAI's CLIP uses it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class SwiGLU(nn.Module):
    """Half of the channels, each times the SiLU of one of the other half (Shazeer, "GLU Variants", 2020, Eq. 6)."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)  # 2 x (B, T, hidden)
        return F.silu(gate) * value


_GELU_TANH = partial(nn.GELU, approximate="tanh")
ACTIVATIONS = {"gelu": nn.GELU, "gelu_tanh": _GELU_TANH, "quick_gelu": QuickGELU, "swiglu": SwiGLU}


class Mlp(nn.Module):
    """Two linear layers with an activation (a name in `ACTIVATIONS`) between them, on each token alone."""

    def __init__(self, dim: int, hidden_dim: int, *, act: str = "gelu", drop: float = 0.0) -> None:
        super().__init__()
        check_choice("act", act, ACTIVATIONS)
        self.fc1 = nn.Linear(dim, 2 * hidden_dim if act == "swiglu" else hidden_dim)
        self.act = ACTIVATIONS[act]()
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(x)))  # (B, T, hidden)
        return self.drop(self.fc2(x))  # (B, T, D)


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a residual branch for a random share of the samples and scales the rest
    so that the mean stays (Huang et al., "Deep Networks with Stochastic Depth", 2016)."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)  # (B, 1, 1)
        return x * (keep / (1 - self.drop_prob))


class Block(nn.Module):
    """Attention, then MLP, each behind a LayerNorm and beside a residual connection."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        act: str = "gelu",
        layer_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(
            dim, num_heads, qkv_bias=qkv_bias, qk_norm=qk_norm, norm_eps=norm_eps, attn_drop=attn_drop, proj_drop=drop
        )
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, mlp_dim, act=act, drop=drop)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, num_outputs: int | None = None
    ) -> Tensor:
        """Tokens (B, T, D) to tokens (B, num_outputs, D): all T of them, or so many first ones alone."""
        attended = self.attn(self.norm1(x), rope, attn_mask, num_outputs)  # (B, num_outputs, D)
        x = x[:, :num_outputs] + self.drop_path1(self.ls1(attended))  # (B, num_outputs, D)
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))  # (B, num_outputs, D)
        return x


class Encoder(nn.Module):
    """`depth` blocks and a final LayerNorm, which `final_norm=False` leaves out. `drop_path` rises linearly from 0 to
    its value in the last block."""

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        act: str = "gelu",
        layer_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads,
                mlp_dim,
                qkv_bias=qkv_bias,
                qk_norm=qk_norm,
                norm_eps=norm_eps,
                act=act,
                layer_scale=layer_scale,
                drop=drop,
                attn_drop=attn_drop,
                drop_path=drop_path * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if final_norm else nn.Identity()

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, num_outputs: int | None = None
    ) -> Tensor:
        """Tokens (B, T, D) to normalized tokens (B, num_outputs, D); `rope` and `attn_mask` go to every attention.

        Args:
            num_outputs: return only so many first tokens, and spare the last block the work on the others, which
                nobody reads; default all.
        """
        for block in self.blocks[:-1]:
            x = block(x, rope, attn_mask)
        return self.norm(self.blocks[-1](x, rope, attn_mask, num_outputs))

    def block_outputs(self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None) -> list[Tensor]:
        """The tokens (B, T, D) after every block, before the final LayerNorm."""
        outputs = []
        for block in self.blocks:
            x = block(x, rope, attn_mask)
            outputs.append(x)
        return outputs
