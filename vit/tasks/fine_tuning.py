"""A trained network, trained on for other classes; and how to be sure that it has never seen them.

The classes that weights have learned from are in their metadata, so that an experiment can refuse a network that
already knows its answers. What is trained is what `requires_grad` says: everything, or what `vit.tasks.lora` and
`vit.tasks.prompts` leave unfrozen. Sources: Dosovitskiy et al., ICLR 2021, section 3.2 (a fresh linear head, and
higher resolution); Bao et al., "BEiT", ICLR 2022 (layer-wise decay of the rates).
"""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from vit.config import TrainConfig
from vit.data import DataSplits, make_loaders
from vit.metadata import PREPROCESSING, learned_from
from vit.model.vision_transformer import VisionTransformer, check_own, check_plain
from vit.modules import unwrap
from vit.training import History, build_optimizers, fit


def with_new_head(model: VisionTransformer, data: DataSplits) -> VisionTransformer:
    """A copy of the model with a fresh linear head for the classes of `data`, all of it to be trained.

    Its metadata names the new classes, says as before how pictures are prepared, and lists under "pretrained_on" what
    the weights have learned from so far; accuracies and the rest were true of the old network only.
    """
    model = check_own(model)
    check_plain(model, except_head=True)
    copy = VisionTransformer(replace(model.config, num_classes=data.num_classes, head="linear"))
    copy = copy.to(next(model.parameters()))
    body = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    copy.load_state_dict(body | copy.head.state_dict(prefix="head."))
    copy.metadata = {name: model.metadata[name] for name in PREPROCESSING if name in model.metadata} | {
        "dataset": data.name,
        "class_names": data.class_names,
        "pretrained_on": learned_from(model.metadata),
    }
    return copy


def check_unseen(model: nn.Module, data: DataSplits) -> None:
    """Raises ValueError if the weights have learned from any class of `data`, or do not say what they learned from."""
    for seen in learned_from(getattr(unwrap(model), "metadata", None) or {}):  # a network of timm has none
        if seen["dataset"] == "unknown":
            raise ValueError(
                "model.metadata does not say what the weights learned from; if you know it, set its "
                '"dataset" and "class_names" to those of that training'
            )
        both = [name for name in data.class_names if name in seen["class_names"]]
        if both and seen["dataset"] == data.name:
            raise ValueError(
                f"the model has learned from {', '.join(both)} of {data.name} already: what it knows of them is no "
                "transfer; take weights of other classes"
            )


def fine_tune(
    model: nn.Module,
    data: DataSplits,
    config: TrainConfig,
    *,
    layer_decay: float = 1.0,
    validate: bool = True,
    **options: Any,
) -> History:
    """Trains the model in place on `data`, with the normalization that the model was made with.

    Args:
        model: of `with_new_head`, so that its head fits the data; or a network of timm, which says in its
            `pretrained_cfg` how its images were normalized.
        config: how; small rates and few epochs. Muon forgets faster than AdamW, which is what all LoRA work uses.
        layer_decay: rates fall by this factor from each layer to the one below; see `build_optimizers`.
        validate: whether to measure the val split after every epoch; else it may be empty.
        options: of `vit.fit`, such as `run_dir` and `resume`, but not `make_optimizers`. To resume, build the model in
            the same way again; all its weights, the head included, are then loaded from the saved state.

    Raises:
        ValueError: the model does not say how its images were normalized.
        TypeError: `make_optimizers` is among the options.
    """
    if "make_optimizers" in options:
        raise TypeError(
            "make_optimizers is not an option of fine_tune, which builds optimizers with layer_decay: for others, call "
            "vit.fit with the loaders of vit.make_loaders(data, config, model=model)"
        )
    val = data.val if validate else data.train.subset(slice(1))  # which stands in where nobody looks
    train_loader, val_loader = make_loaders(replace(data, val=val), config, model=model)
    return fit(
        model,
        train_loader,
        val_loader if validate else None,
        config,
        make_optimizers=partial(build_optimizers, layer_decay=layer_decay),
        **options,
    )
