"""The config of the model to fill: source, caller and model agree, except where the caller says otherwise."""

from collections.abc import Mapping
from typing import Any

from vit.config import ViTConfig
from vit.pretrained.assembly import num_heads_of
from vit.pretrained.report import Report

# Settled elsewhere: by size, by the shapes of tensors, or a matter of training.
_NOT_COMPARED = {"image_size", "num_classes", "head", "mlp_ratio", "layer_scale", "pos_resampling", "patch_init"}
_NOT_COMPARED |= {"drop_rate", "attn_drop_rate", "drop_path_rate"}


def new_config(described: Mapping[str, Any], changes: Mapping[str, Any], log: Report) -> ViTConfig:
    """The config of the model that the source describes.

    Args:
        described: the fields that the source has, with what the caller named where no tensor says otherwise.
        changes: the fields that the caller named.

    Raises:
        ValueError: the caller named what the weights do not have, or nobody says the size of the images.
    """
    num_heads = described.get("num_heads")
    if num_heads is None:
        num_heads = num_heads_of(described["embed_dim"])
        _note_num_heads(num_heads, "as usual at this width", log)
    asked = {name: changes[name] for name in ("image_size", "num_classes") if name in changes}
    if "image_size" not in described | asked:
        raise ValueError("it has no position table to tell the size of its images: pass image_size=")
    has_new_head = asked.get("num_classes", described["num_classes"]) != described["num_classes"]
    # A head that is made anew can be any.
    head = changes.get("head", "linear") if has_new_head else described.get("head", "linear")
    settled = {**described, **asked, "num_heads": num_heads, "head": head}
    if refused := [name for name, value in changes.items() if settled[name] != value]:
        contradictions = (f"{name}={changes[name]!r}, the weights have {settled[name]!r}" for name in refused)
        raise ValueError(
            f"asked for {'; '.join(contradictions)}. Leave it out, or train a network that has it from the start"
        )
    return ViTConfig(**settled)


def check_config(described: Mapping[str, Any], changes: Mapping[str, Any], own: ViTConfig, log: Report) -> None:
    """Raises ValueError if the source describes another network than the model, whose config is `own`; a table says in
    what. Of the fields that the caller named, the source may have others."""
    config = own.to_dict()
    for name, value in changes.items():
        if value != config[name]:
            raise ValueError(f"{name}={value!r} was asked for, but the model has {name}={config[name]!r}")
    differing = [n for n in described if n not in _NOT_COMPARED | set(changes) and described[n] != config[n]]
    if differing:
        rows = [("field", "source", "model"), *((n, str(described[n]), str(config[n])) for n in differing)]
        table = "\n".join(f"  {name:<16} {theirs:<20} {ours}" for name, theirs, ours in rows)
        raise ValueError(f"the model is another network; model=None builds the right one\n{table}")
    if "num_heads" not in described:
        _check_num_heads(config["embed_dim"], config["num_heads"], log)
    if described["num_classes"] != config["num_classes"] and "num_classes" not in changes:
        raise ValueError(
            f"it has {described['num_classes']} classes, the model {config['num_classes']}: "
            f"pass num_classes={config['num_classes']} to give the model a new head"
        )
    its, ours = described.get("image_size"), config["image_size"]
    if described["pos_embed"] == "learned" and its not in (None, ours) and "image_size" not in changes:
        raise ValueError(
            f"it is for images of {its} pixels, the model for {ours}: pass image_size={ours} to resample it"
        )


def _check_num_heads(dim: int, num_heads: int, log: Report) -> None:
    """Other heads fit the same tensors and compute something else, so they must be the usual ones, or named."""
    try:
        usual, why = num_heads_of(dim), "as usual at this width"
    except ValueError:  # there is no usual number at this width
        usual, why = num_heads, "as the model has"
    if num_heads != usual:
        raise ValueError(
            f"it does not say how many heads it has: usually {usual} at a width of {dim}, but the model has "
            f"{num_heads}: pass num_heads={num_heads} if that is right"
        )
    _note_num_heads(num_heads, why, log)


def _note_num_heads(num_heads: int, why: str, log: Report) -> None:
    log.notes.append(f"num_heads={num_heads}, {why}; the source does not say")
