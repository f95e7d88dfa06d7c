"""Where weights come from: a file, a folder, a dictionary or a module, each as tensors by name.

Wrappers of training scripts are taken off here, and said so. What the tensors mean is the business of formats.py.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit.config import ViTConfig
from vit.files import read_json
from vit.model.vision_transformer import VisionTransformer
from vit.modules import unwrap
from vit.pretrained import facts
from vit.pretrained.conversions import unstack
from vit.pretrained.reading import read_file

# Under what checkpoints keep the weights, the best first: DINO's teacher is the network to use, not its student, and
# averaged weights are what a training is evaluated with ("ema" in this library's states, the others of timm and DeiT).
_WRAPPERS = ("teacher", "ema", "state_dict_ema", "model_ema", "model", "state_dict")
_MAX_WRAPPERS = 4  # within one another; a dictionary in a file may contain itself
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_MAX_GROWTH = 2  # of a network over its file: a table of positions for larger images
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass
class Source:
    """Tensors by name, and what came with them.

    Attributes:
        name: what messages call the source.
        facts: fields of ViTConfig that the source states.
        metadata: preprocessing and class names, for `VisionTransformer.metadata`.
        notes: what was done on the way, for the report.
        format: the name of the format, where the source is known to be of one.
        is_owned: nobody else uses the memory of the tensors.
    """

    name: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    format: str | None = None
    is_owned: bool = False


def read_source(source: str | Path | Mapping[str, Tensor] | nn.Module) -> Source:
    """The tensors of a source, without wrappers. Raises as `read_file`, and TypeError for what is no source."""
    if isinstance(source, nn.Module):
        return _from_module(source)
    if isinstance(source, Mapping):
        return _from_mapping("the dictionary", source)
    if not isinstance(source, (str, Path)):
        raise TypeError(f"source must be a path, a dictionary of tensors or a module, got {type(source).__name__}")
    path = Path(source).expanduser()
    return _from_folder(path) if path.is_dir() else _from_file(path)


def timm_model(name: str, *, pretrained: bool = True) -> nn.Module:
    """A model of timm with its weights, which timm finds or fetches, or without them."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{name} needs timm: pip install 'vit-notebooks[pretrained]'") from error
    return timm.create_model(name, pretrained=pretrained)


def _from_module(module: nn.Module) -> Source:
    module = unwrap(module)
    name = f"{type(module).__module__.split('.')[0]}'s {type(module).__name__}"
    tensors = {key: tensor.detach() for key, tensor in module.state_dict().items()}
    if isinstance(module, VisionTransformer):
        return Source(name, tensors, module.config.to_dict(), dict(module.metadata), format="vit")
    known, metadata = facts.of_module(module)
    is_timms = type(module).__module__.startswith("timm.")
    return Source(name, tensors, known, metadata, format="timm" if is_timms else None)


def _from_file(path: Path) -> Source:
    loaded, text = read_file(path)
    source = _from_mapping(str(path), loaded)
    source.is_owned = True
    if "config" in text:
        try:
            source.facts = ViTConfig.from_dict(json.loads(text["config"])).to_dict()
        except ValueError as error:
            raise ValueError(
                f"{path} has a config that cannot be read; was it saved by a newer version? {error}"
            ) from error
        source.metadata = json.loads(text.get("metadata", "{}"))
        source.format = "vit"
    return source


def _from_folder(folder: Path) -> Source:
    """A folder as transformers or timm write it: the weights, config.json and perhaps preprocessor_config.json."""
    file = next((folder / name for name in _FOLDER_FILES if (folder / name).is_file()), None)
    if file is None:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(f"{folder} holds no {' and no '.join(_FOLDER_FILES)}; it holds: {found}")
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    source = _from_file(file)
    if "architecture" in config:
        # Of timm, which alone knows what its names of architectures stand for; it gets a file that was found whole.
        _check_timm_folder(folder, config, source)
        return _from_module(timm_model(f"local-dir:{folder}"))
    if "model_type" in config:
        processor = folder / "preprocessor_config.json"
        source.facts, source.metadata = facts.of_transformers(
            config, read_json(processor) if processor.is_file() else None
        )
    return source


def _check_timm_folder(folder: Path, config: Mapping[str, Any], source: Source) -> None:
    """Refuses a config.json that asks timm for a network that the file does not hold: memory for any size, or random
    weights in the place of missing ones."""
    if odd := [key for key in config.get("model_args") or {} if key.startswith("pretrained")]:
        raise ValueError(
            f"{folder / 'config.json'} sets {', '.join(odd)} in model_args, which is about loading: refused"
        )
    with torch.device("meta"):
        network = timm_model(f"local-dir:{folder}", pretrained=False)
    described, held = (sum(t.numel() for t in tensors) for tensors in (network.parameters(), source.tensors.values()))
    if described > _MAX_GROWTH * held:
        raise ValueError(
            f"{folder / 'config.json'} describes a network of {described:,} numbers, the file holds {held:,}: refused"
        )


def _from_mapping(name: str, loaded: Mapping[str, Any]) -> Source:
    notes = []
    while wrapper := next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None):
        notes.append(f"read what is under {wrapper!r} of {', '.join(map(repr, list(loaded)[:12]))}")
        if len(notes) > _MAX_WRAPPERS:
            raise ValueError(f"{name} has its tensors under more than {_MAX_WRAPPERS} wrappers, or contains itself")
        loaded = loaded[wrapper]
    tensors = {
        key: value.detach()
        for key, value in loaded.items()
        if isinstance(value, Tensor) and isinstance(key, str) and key != "n_averaged"  # torch's AveragedModel counts
    }
    if not tensors:
        raise ValueError(f"{name} holds no tensors; its keys: {', '.join(map(str, list(loaded)[:6])) or 'none'}")
    others = [str(key) for key in loaded if key not in tensors]
    if others:
        notes.append(f"no tensors by name, so not read: {', '.join(others[:6])}")
    for key, tensor in tensors.items():
        _check_size(name, key, tensor)
    tensors = unstack(tensors)
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        notes.append(f"every name began with {prefix!r}, which was taken off")
    inner = {key.removeprefix("backbone."): x for key, x in tensors.items() if key.startswith("backbone.")}
    if inner:
        notes.append(f"only what is under 'backbone.' was read, {len(tensors) - len(inner)} other tensors were not")
    return Source(name, inner or tensors, notes=notes)


def _check_size(name: str, key: str, tensor: Tensor) -> None:
    """Refuses a tensor that repeats its numbers: from a tiny file, a copy of it could fill any memory."""
    if tensor.layout == torch.strided:  # any other is refused with the values
        claimed, stored = math.prod(tensor.shape) * tensor.itemsize, tensor.untyped_storage().nbytes()
        if claimed > stored:
            raise ValueError(
                f"{name}: {key} has {claimed:,} bytes, of which only {stored:,} are stored (it was expanded); refused. "
                "Where you trust it, pass its .contiguous()"
            )
