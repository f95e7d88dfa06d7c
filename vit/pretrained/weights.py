"""Weights in a file anyone can trust: safetensors, with the config and the facts about the model in its metadata.

The format holds tensors and text only, so that loading it runs no code; a SHA-256 among the text makes damage show.
`load` reads what says all about itself: files of `save`, and models that are fetched by name. Any other library's
files are for `vit.pretrained.load_weights`. Optimizer state is kept elsewhere, by the training loop.
"""

import json
import os
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vit.config import ViTConfig
from vit.device import resolve_device
from vit.files import REPOSITORY, check_json, plain_number, replacing, url_hint
from vit.model.vision_transformer import VisionTransformer, check_own, check_plain
from vit.pretrained.hub import is_hub_name
from vit.pretrained.loading import check_values, fill, load_weights
from vit.pretrained.reading import checksum
from vit.pretrained.sources import read_source

_OTHER_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".npz", ".onnx")
SHIPPED = Path(__file__).resolve().parent / "shipped"


def save(model: VisionTransformer, path: str | Path, **metadata: Any) -> Path:
    """Writes the weights, the config and `model.metadata` updated with `metadata` (anything JSON can hold, and single
    numbers of numpy and torch).

    What `vit.predict` needs, `mean`, `std` and `class_names`, should be among it.

    Raises:
        TypeError: a model of another class, or metadata that JSON cannot hold.
        ValueError: a model that `load` would refuse, or build as another: one with parts that its config does not know,
            such as LoRA or prompts, with fixed tables of positions of its own, one of a class that computes otherwise,
            or one with NaN among its weights; or a path that is a folder or ends as another format's files do. Nothing
            is written then.
    """
    path = _check_path(path)
    model = check_own(model)
    check_plain(model)
    # Copies, since a part may stand in several places, and the format has no tensors that share memory.
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}
    for name, tensor in tensors.items():
        check_values(name, tensor)
    described = model.metadata | metadata
    check_json(described)
    facts = {"config": json.dumps(model.config.to_dict()), "metadata": json.dumps(described, default=plain_number)}
    facts["sha256"] = checksum(tensors, facts)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=facts)
    return path


def _check_path(path: str | Path) -> Path:
    """Refuses a folder, and a name under which others would look for another format."""
    is_folder = str(path).endswith(("/", os.sep))
    path = Path(path).expanduser()
    if is_folder or path.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; save to a file in it, {str(path / 'model.safetensors')!r}")
    if path.suffix.lower() in _OTHER_SUFFIXES:
        raise ValueError(
            f"path={str(path)!r} ends in {path.suffix}, but what is written is safetensors: name it "
            f"{str(path.with_suffix('.safetensors'))!r}"
        )
    return path


def list_weights() -> list[str]:
    """The names of the weights that come with this library; `load` takes them."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def load(path: str | Path, *, config: ViTConfig | None = None, device: torch.device | str = "cpu") -> VisionTransformer:
    """The model saved at `path`, in evaluation mode and in float32, also where it was saved in half precision; one of
    float64 stays so.

    Args:
        path: a file, looked for from the working folder, then from this repository's; the name of weights that come
            with this library (`vit.pretrained.list_weights()`); or one that is fetched, such as
            "timm/vit_tiny_patch16_224.augreg_in21k" (needs timm) or "hf-hub:google/vit-base-patch16-224" (needs
            huggingface_hub).
        config: what the file must hold; without it, whatever the file says.
        device: where the model goes; "auto" is a GPU if there is one.

    Raises:
        TypeError: `path` is no path.
        FileNotFoundError: no such file; the message lists the weights beside it.
        ValueError: not a weights file of this library, or of another network than `config`: nothing is loaded then.
        ImportError, ConnectionError: a name that needs a package, or a network, that is not there.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path={path!r} must be the path of a file, or one of these names: {', '.join(list_weights())}")
    if is_hub_name(path):
        model = load_weights(None, path, report=None)
    else:
        path = SHIPPED / f"{path}.safetensors" if str(path) in list_weights() else Path(path).expanduser()
        if not path.exists() and (REPOSITORY / path).is_file():  # notebooks run in a folder of it, and print such paths
            path = REPOSITORY / path
        if not path.exists():
            beside = sorted(p.name for p in path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
            raise FileNotFoundError(
                f"no weights at {path}{url_hint(path)}; in that folder: {', '.join(beside) or 'none'}; "
                f"shipped by name: {', '.join(list_weights())}"
            )
        source = read_source(path)
        if source.format != "vit":
            remedy = "vit.pretrained.load_weights(None, path) reads other libraries' weights"
            if _is_training_state(path):
                remedy = "it is the state of a training: vit.training.load_state_weights(model, path) reads its weights"
            raise ValueError(f"{path} has no 'config' in its metadata: it was not written by vit.save; {remedy}")
        model = fill(None, source)
    # What the patches began with tells nothing of weights that are there.
    if config is not None and replace(config, patch_init=model.config.patch_init) != model.config:
        table = _differences(config, model.config)
        raise ValueError(f"{path} holds another network than asked for; nothing was loaded\n{table}")
    return model.to(resolve_device(device))


def _is_training_state(path: Path) -> bool:
    """Whether `vit/training/state_file.py` wrote it, by the comment of the archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return archive.comment.startswith(b"vit-state ")


def _differences(asked: ViTConfig, saved: ViTConfig) -> str:
    """A table of the fields in which two configs differ."""
    a, b = asdict(asked), asdict(saved)
    rows = [("field", "asked for", "in the file")] + [(n, repr(a[n]), repr(b[n])) for n in a if a[n] != b[n]]
    return "\n".join(f"  {field:<16} {left:<16} {right}" for field, left, right in rows)
