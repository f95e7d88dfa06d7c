"""Every attention map of a Vision Transformer, at no cost while nobody looks.

Fused attention never holds its probabilities, so a hook on a softmax or a dropout finds nothing. `record_attention`
asks each attention for them a second time, for exactly the tokens it is given, and leaves the forward pass as it was.
It works on this library's models, on anything built of its `Attention`, and on timm's models, whose fused kernel
it switches off inside the `with` and back on after it.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from vit.analysis.inputs import Images, prepare_images
from vit.analysis.layout import TokenLayout, blocks_of, layer_indices, pooled_row, token_layout
from vit.model.transformer import Attention
from vit.modules import eval_mode, unwrap

LARGE_MAPS = 1e9  # bytes; above it `attention_maps` says how much it will take before it starts


@contextmanager
def record_attention(
    model: nn.Module, layers: int | Sequence[int] | None = None, *, with_grad: bool = False
) -> Iterator[dict[int, Tensor]]:
    """Records the attention probabilities of every forward pass inside the `with`.

        with record_attention(model) as maps:
            logits = model(images)
        maps[0]  # first layer, (B, h, T, T)

    A second pass replaces the maps of the first. Probabilities are those before dropout, also in training mode; there,
    other dropout still changes what later layers are given. Passes of another thread are recorded too: let one thread
    at a time use a model, and give each of several a `copy.deepcopy` of its own.

    Args:
        layers: an index or several, 0 the first and -1 the last; default all.
        with_grad: maps that are part of the computation, so that a gradient can be taken with respect to them; the
            forward pass is then computed with plain matrix products, equal up to rounding.
    Raises:
        TypeError: an attention of another kind, or a subclass of this library's with a `forward` of its own, unless it
            has its own `weights` too; `with_grad` takes none of these.
        RuntimeError: at the end, if no forward pass reached one of the layers. Compiled code runs past every hook:
            call what is inside the wrapper, `model._orig_mod`, or put
            `with torch.compiler.set_stance("force_eager"):` around it.
    """
    blocks = blocks_of(model)
    indices = layer_indices(layers, len(blocks))
    maps: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for i in sorted(set(indices)):
            stack.enter_context(_recorder(blocks[i].attn, i, maps, with_grad))
        yield maps
    missing = [i for i in indices if i not in maps]
    if missing:
        raise RuntimeError(
            f"no attention was recorded for layers {missing}: no forward pass reached them inside the `with`, or it "
            "ran compiled code, which no hook can see. With torch.compile, call model._orig_mod(images), or put "
            '`with torch.compiler.set_stance("force_eager"):` around it'
        )


def attention_maps(
    model: nn.Module,
    images: Images,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    *,
    to: torch.device | str = "cpu",
) -> Tensor:
    """Attention probabilities (L, B, h, T, T) of the model in evaluation mode, at least float32; every row sums to 1.

    Args:
        images: anything `prepare_images` takes: a uint8 or normalized batch (B, C, H, W), or pictures.
        layers, heads: an index or several, 0 the first and -1 the last, returned in the order given; default all.
        to: the device that keeps the maps.

    Warns:
        of maps that will take more than `LARGE_MAPS`, with their size, before any work.
    """
    model = unwrap(model)
    blocks = blocks_of(model)
    indices = layer_indices(layers, len(blocks))
    num_heads = blocks[indices[0]].attn.num_heads
    head_indices = layer_indices(heads, num_heads, "heads")
    images = prepare_images(model, images)
    num_tokens = token_layout(model).num_tokens
    dtype = torch.promote_types(images.dtype, torch.float32)  # bfloat16 is a type that no array can have
    size = len(indices) * len(images) * num_heads * num_tokens**2 * dtype.itemsize
    if size > LARGE_MAPS:
        warnings.warn(
            f"{len(indices)} layers x {len(images)} images x {num_heads} heads of {num_tokens}x{num_tokens} tokens "
            f"take {size / 1e6:,.0f} MB; choose fewer layers= or images",
            stacklevel=2,
        )
    maps = maps_of_prepared(model, images, indices)
    return torch.stack([maps[i][:, head_indices].to(to, dtype) for i in indices])  # (L, B, h, T, T)


@torch.no_grad()
def maps_of_prepared(model: nn.Module, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """The maps (B, h, T, T) of these layers, by layer, for images that are prepared."""
    with eval_mode(model), record_attention(model, layers) as maps:
        # Not model(images): a module compiled in place would run code that no hook can see.
        model.forward(images)
    return maps


def attention_from(maps: Tensor, layout: TokenLayout, query: str | int | tuple[int, int] = "head") -> Tensor:
    """How much one token attends to each patch: maps (..., T, T) to grids (..., rows, columns).

    Args:
        query: "cls", a patch (row, column), a token's index, or "head": what the head reads, which is CLS, or the
            mean of all patches if the model pools those.
    """
    row = pooled_row(maps, layout) if query == "head" else maps[..., layout.token_idx(query), :]  # (..., T)
    return layout.to_grid(row)


@contextmanager
def _recorder(attn: nn.Module, i: int, maps: dict[int, Tensor], with_grad: bool) -> Iterator[None]:
    """Puts the maps of one attention module into `maps[i]`, and leaves the module as it was."""
    if isinstance(attn, Attention):
        _check_forward(attn, i, with_grad)
        yield from _record_ours(attn, i, maps, with_grad)
    elif hasattr(attn, "fused_attn") and isinstance(getattr(attn, "attn_drop", None), nn.Module):
        yield from _record_timm(attn, i, maps, with_grad)
    else:
        raise TypeError(
            f"layer {i}: {type(attn).__module__}.{type(attn).__qualname__} is neither this library's Attention nor one "
            "of timm's with `fused_attn` and `attn_drop`"
        )


def _check_forward(attn: Attention, i: int, with_grad: bool) -> None:
    """Raises TypeError for a subclass that computes otherwise, whose maps would be those of another network."""
    kind = type(attn)
    if kind.forward is Attention.forward or (kind.weights is not Attention.weights and not with_grad):
        return
    name = f"layer {i}: {kind.__module__}.{kind.__qualname__} has a `forward` of its own"
    if with_grad:
        raise TypeError(f"{name}, which with_grad=True would replace by that of Attention")
    raise TypeError(f"{name}, whose probabilities nobody knows: give it a method `weights` that returns them")


def _record_ours(attn: Attention, i: int, maps: dict[int, Tensor], with_grad: bool) -> Iterator[None]:
    @torch.no_grad()
    def ask(module: Attention, args: tuple, kwargs: dict) -> None:
        # All rows of the map, although `forward` may be asked for the first `num_outputs` alone.
        maps[i] = module.weights(*args[:3], **{name: v for name, v in kwargs.items() if name != "num_outputs"})

    def attend(
        x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, num_outputs: int | None = None
    ) -> Tensor:
        maps[i] = attn.weights(x, rope, attn_mask)  # (B, h, T, T)
        dropped = nn.functional.dropout(maps[i], attn.attn_drop, attn.training)  # (B, h, T, T)
        _, _, v = attn._qkv(x, rope)  # (B, h, T, d)
        x = (dropped[:, :, :num_outputs] @ v).transpose(1, 2).flatten(2)  # (B, num_outputs, D)
        return attn.proj_drop(attn.proj(x))

    if with_grad:
        previous = vars(attn).get("forward")  # of a recorder around this one
        attn.forward = attend
        try:
            yield
        finally:
            del attn.forward
            if previous is not None:
                attn.forward = previous
    else:
        hook = attn.register_forward_pre_hook(ask, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def _record_timm(attn: nn.Module, i: int, maps: dict[int, Tensor], with_grad: bool) -> Iterator[None]:
    def keep(module: nn.Module, args: tuple[Tensor]) -> None:
        maps[i] = args[0] if with_grad else args[0].detach()

    was_fused = attn.fused_attn
    hook = attn.attn_drop.register_forward_pre_hook(keep)
    attn.fused_attn = False
    try:
        yield
    finally:
        attn.fused_attn = was_fused
        hook.remove()
