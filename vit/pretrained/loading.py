"""Anyone's weights into this library's model: recognized, translated, checked, and only then copied.

Strict without a way to be lenient, since `load_state_dict(strict=False)` on names with a prefix loads nothing and
says nothing. What may differ between source and model is what the caller names.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit.arguments import check_choice, did_you_mean
from vit.config import ViTConfig
from vit.metadata import PREPROCESSING, learned_from
from vit.model.head import build_head
from vit.model.initialization import init_head
from vit.model.pos_embed import resample_pos_embed
from vit.model.vision_transformer import VisionTransformer, blank_model
from vit.pretrained.agreement import check_config, new_config
from vit.pretrained.assembly import describe, join_tokens, own_name
from vit.pretrained.conversions import Tensors
from vit.pretrained.formats import FORMATS, Format, recognize
from vit.pretrained.hub import fetch, is_hub_name
from vit.pretrained.report import Report
from vit.pretrained.sources import Source, read_source

_HALVES = (torch.float16, torch.bfloat16)
_FLOATS = (*_HALVES, torch.float32, torch.float64)


def load_weights(
    model: VisionTransformer | None,
    source: str | Path | Mapping[str, Tensor] | nn.Module,
    *,
    format: str | None = None,
    source_grid: tuple[int, int] | None = None,
    report: Callable[[Report], Any] | None = print,
    **changes: Any,
) -> VisionTransformer:
    """Fills a model with weights of this or another library; nothing is copied until everything fits.

    Args:
        model: what to fill; None builds the model that the weights describe, on the CPU, in evaluation mode.
        source: a file (.safetensors, .pt, .pth, .npz), a folder of transformers or timm, a dictionary of tensors, a
            module of timm, transformers, torchvision or vit-pytorch, or a name that `vit.load` would fetch.
        format: a name in `vit.pretrained.formats.FORMATS`, where the names of the tensors fit several: "timm" for a
            file of timm without a head, which looks like DINO's.
        source_grid: (rows, columns) of the source's patches, where its position table fits several.
        report: called with the `Report`; None for no table.
        changes: fields of ViTConfig that the caller decides: `num_classes` for a new head, `image_size` for positions
            resampled by the source's own rule, and what a source may not say, such as `num_heads` or `norm_eps`.

    Returns:
        The model; its `metadata` says how the source's images were prepared, if that is known. With a new head, what
        the weights have learned from is under "pretrained_on", and accuracies, of the old head, are left out.

    Raises:
        FileNotFoundError, TypeError, ValueError: no source, not a source, or weights that do not fit; the message says
            what was found and what to do, and the model is as it was.
        ImportError, ConnectionError: a name that needs a package, or a network, that is not there.
    """
    known = [f.name for f in fields(ViTConfig)]
    for name in changes:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"load_weights has no argument {name!r}; {hint}fields of ViTConfig: {', '.join(known)}")
    if format is not None:
        check_choice("format", format, FORMATS)
    if model is not None and not isinstance(model, VisionTransformer):
        raise TypeError(f"model must be a VisionTransformer of this library or None, got {type(model).__name__}")
    if "image_size" in changes:
        changes["image_size"] = ViTConfig(image_size=changes["image_size"], patch_size=1).image_size
    found = fetch(source) if is_hub_name(source) else read_source(source)
    found.format = format or found.format
    return fill(model, found, source_grid, report, changes)


def fill(
    model: VisionTransformer | None,
    found: Source,
    source_grid: tuple[int, int] | None = None,
    report: Callable[[Report], Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> VisionTransformer:
    """`load_weights` from a source that was read already, and is empty afterwards."""
    name = found.format or recognize(found.tensors, found.name)
    log = Report(found.name, name, found.notes)
    try:
        state, config = _prepare(found, FORMATS[name], log, model, changes or {}, source_grid)
    except ValueError as error:
        raise ValueError(f"{found.name} (format {name}) was not loaded: {error}") from error
    except (RuntimeError, LookupError, ArithmeticError) as error:  # tensors that do not go together
        raise ValueError(f"{found.name} (format {name}) was not loaded: its shapes are odd ({error})") from error
    if not log.is_good:
        raise ValueError(f"the weights do not fit, and nothing was loaded\n{log}")
    metadata = _metadata(model.metadata if model else {}, found.metadata, FORMATS[name], log)
    if report is not None:
        report(log)
    if model is None:
        model = blank_model(config)
        model.load_state_dict(state, assign=True)
        model.to(next(model.parameters())).eval()  # the fixed tables follow the weights
    else:
        model.load_state_dict(state)
    model.metadata = metadata
    return model


def check_values(name: str, tensor: Tensor) -> None:
    """Raises ValueError for what cannot be a weight: whole numbers, NaN, infinity."""
    if tensor.dtype not in _FLOATS or tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}; weights are floating-point numbers")
    # The sum is fast, and finite unless there is something to find; a Mac's GPU has no float64.
    exact = torch.float32 if tensor.device.type == "mps" else torch.float64
    if not tensor.sum(dtype=exact).isfinite() and not tensor.isfinite().all():
        kind = "NaN" if tensor.isnan().any() else "infinity"
        raise ValueError(f"{name} holds {kind}: training diverged or the file is damaged")


def _metadata(old: Mapping[str, Any], new: Mapping[str, Any], fmt: Format, log: Report) -> dict[str, Any]:
    """What is true of a model with new weights: of its old facts, those about a head that it kept."""
    images = {name: new[name] for name in PREPROCESSING if name in new}
    if "mean" not in images and fmt.images:
        images = {**fmt.images, **images}
        log.notes.append("images should be prepared as the format's own code does; the source does not say")
    elif not images:
        images = {name: old[name] for name in PREPROCESSING if name in old}
        if images:
            log.notes.append("images are prepared as the model's metadata said before; the source does not say")
    facts = {name: fact for name, fact in new.items() if name not in PREPROCESSING}
    if log.tensors["re-initialized"]:  # accuracies and classes were those of the head that is gone
        facts = {name: fact for name, fact in old.items() if name not in PREPROCESSING}
        facts["pretrained_on"] = learned_from(new)
    elif gone := [name for name in old if name not in PREPROCESSING and name not in facts]:
        log.notes.append(
            f"{', '.join(gone)} of the model's metadata were about its weights before, and are left out; where they "
            "are true of these too, set them again"
        )
    return facts | images


def _prepare(
    found: Source,
    fmt: Format,
    log: Report,
    model: VisionTransformer | None,
    changes: Mapping[str, Any],
    source_grid: tuple[int, int] | None,
) -> tuple[Tensors, ViTConfig]:
    """The state to load, and the config of the model that takes it. Fills the report."""
    if fmt is FORMATS["vit"] and not found.facts:
        if model is None:
            raise ValueError("its names are this library's, but no config came with it: build the model and pass it")
        found.facts = model.config.to_dict()
    # Under timm's names, meaning what timm's mean.
    tensors, dtypes = _translate(found, fmt, log)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    own_size = found.facts.pop("image_size", None)
    asked = {name: value for name, value in changes.items() if name not in ("image_size", "num_classes")}
    log.notes += [note for name, note in fmt.assumed.items() if name not in found.facts | asked]
    facts = {**fmt.fields, **found.facts, **asked}
    fmt.convert(tensors, facts)
    # As this model has its tokens, with positions for its grid.
    target = changes.get("image_size", model.config.image_size if model else None)
    patch = tensors["patch_embed.proj.weight"].shape[-1] if "patch_embed.proj.weight" in tensors else 1
    own_grid = source_grid or _grid(own_size, patch)
    grid = join_tokens(tensors, facts, fmt.slots, own_grid, _grid(target, patch)) or own_grid
    if source_grid and grid != tuple(source_grid):
        raise ValueError(f"source_grid={source_grid} does not fit its table of {grid} patches")
    described = describe(tensors, facts, grid)
    if model is None:
        config = new_config(described, changes, log)
    else:
        config = model.config
        check_config(described, changes, config, log)
    if "pos_embed" in tensors and grid is not None:
        if shapes["pos_embed"][-2] > math.prod(grid):
            shapes.pop("cls_token", None)  # it took its position along
        elif fmt.slots == "any" and config.num_prefix_tokens:
            log.notes.append(f"positions were read as {grid} patches, none of them for CLS; see source_grid")
        _resize(tensors, grid, config, described["pos_resampling"], log)
    # Under this model's names, with its head, and compared.
    reshaped = {own_name(name, described) for name, tensor in tensors.items() if shapes.get(name) != tensor.shape}
    state = {own_name(name, described): tensor for name, tensor in tensors.items()}
    if config.num_classes != described["num_classes"]:
        _change_head(state, config, model, log)
    expected = (model or blank_model(config)).state_dict()
    log.compare(state, expected, reshaped)
    reference = next(iter(expected.values()))
    return _owned(state, dtypes, found, log, reference if model else None), config


def _translate(found: Source, fmt: Format, log: Report) -> tuple[Tensors, set[torch.dtype]]:
    """The source's tensors under timm's names, and its precisions. Empties the source, so that what was repacked can
    be freed. Half precision becomes float32 before anything is added up, since sums in it would be rounded."""
    tensors, dtypes = {}, set()
    for key in list(found.tensors):
        tensor = found.tensors.pop(key)
        try:
            name = fmt.translate(key)
        except KeyError:
            log.tensors["unexpected"].append(key)
            continue
        if name is None:
            log.tensors["left out"].append(key)
        elif name in tensors:
            raise ValueError(f"{key} is a second {name}")
        else:
            check_values(key, tensor)
            dtypes.add(tensor.dtype)
            tensors[name] = tensor.float() if tensor.dtype in _HALVES else tensor
    return tensors, dtypes


def _resize(tensors: Tensors, grid: tuple[int, int], config: ViTConfig, rule: str, log: Report) -> None:
    if grid != config.grid_size:
        tensors["pos_embed"] = resample_pos_embed(tensors["pos_embed"], grid, config.grid_size, rule)
        log.tensors["resized"].append("pos_embed")
        log.notes.append(f"positions resampled from {grid} to {config.grid_size}, {rule}")


def _change_head(state: Tensors, config: ViTConfig, model: VisionTransformer | None, log: Report) -> None:
    """The model's own head, or a new one, in place of the source's."""
    for name in [name for name in state if name.startswith("head.")]:
        del state[name]
        log.tensors["left out"].append(name)
    head = model.head if model else build_head(config)
    if model is None:
        init_head(head)
    for name, tensor in head.state_dict(prefix="head.").items():
        state[name] = tensor
        log.tensors["re-initialized"].append(name)


def _owned(state: Tensors, dtypes: set[torch.dtype], found: Source, log: Report, reference: Tensor | None) -> Tensors:
    """The state in the model's precision, or float32 for a new one; there, each tensor with memory of its own."""
    if reference is not None:
        dtype = reference.dtype  # what is copied into a model needs nothing else
    else:
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        taken = set()  # one tensor may be in a file under two names
        for name, tensor in state.items():
            state[name] = tensor.to("cpu", dtype).contiguous()
            is_shared = not found.is_owned or tensor.untyped_storage().nbytes() != tensor.nbytes
            if (is_shared and state[name].data_ptr() == tensor.data_ptr()) or state[name].data_ptr() in taken:
                state[name] = state[name].clone()
            taken.add(state[name].data_ptr())
    if others := dtypes - {dtype}:
        names = [str(each).removeprefix("torch.") for each in (*others, dtype)]
        log.notes.append(f"{', '.join(names[:-1])} became {names[-1]}")
    return state


def _grid(size: tuple[int, int] | None, patch: int) -> tuple[int, int] | None:
    return None if size is None else (size[0] // patch, size[1] // patch)
