"""Datasets made of another: some of its classes, a few images of each, or all at another size.

Which images are drawn depends on the labels, the seed and the number of the draw alone. Normalization is that of the
images that are kept: a model that is to know nothing of the other classes must not know their mean either.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from vit.arguments import as_integer, as_size, is_integer
from vit.data.splits import DataSplits, Split
from vit.normalization import channel_statistics


def keep_classes(data: DataSplits, classes: Iterable[str | int]) -> DataSplits:
    """The dataset without its other classes. A split that is empty stays so.

    Args:
        classes: names or numbers, each once; they become 0, 1, ... in this order.

    Raises:
        ValueError: a class that the data does not have, one named twice, or a split left without an image.
    """
    names = data.class_names
    known = {name: i for i, name in enumerate(names)} | {i: i for i in range(len(names))}
    given = classes.tolist() if isinstance(classes, torch.Tensor) else classes
    given = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
    if not given or any(not (isinstance(c, str) or is_integer(c)) or c not in known for c in given):
        raise ValueError(f"classes={given or classes!r} must be some of {', '.join(names)}, or of 0..{len(names) - 1}")
    kept = [known[c] for c in given]
    if len(set(kept)) < len(kept):
        raise ValueError(f"classes={given} names a class twice")
    new_label = torch.full((len(names),), -1, device=data.train.labels.device)
    new_label[kept] = torch.arange(len(kept), device=new_label.device)
    splits = {}
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        chosen = split.subset((new_label[split.labels] >= 0).nonzero().flatten())
        if len(split) and not len(chosen):
            raise ValueError(f"classes={given} leave no image in the {name} split")
        splits[name] = replace(chosen, labels=new_label[chosen.labels])
    mean, std = channel_statistics(splits["train"].images)
    return replace(data, **splits, class_names=tuple(names[i] for i in kept), mean=mean, std=std)


def sample_shots(split: Split, shots: int, *, draw: int = 0, seed: int = 0) -> Split:
    """`shots` images of every class, class by class.

    One draw is nested: its 5 shots are among its 10. Different draws are independent of each other and may overlap.

    Args:
        shots: images of each class, 1 up to what the rarest class has.
        draw, seed: which random choice, each 0 or more.
    """
    shots, draw, seed = as_integer("shots", shots, 1), as_integer("draw", draw), as_integer("seed", seed)
    if not len(split):
        raise ValueError("split holds no image: there is nothing to draw from")
    counts = torch.bincount(split.labels)
    fewest = int(counts[counts > 0].min())
    if shots > fewest:
        raise ValueError(f"shots={shots} is more than the {fewest} images of the rarest class")
    random = np.random.default_rng((seed, draw))
    chosen = []
    for label in counts.nonzero().flatten():
        members = (split.labels == label).nonzero().flatten()
        chosen.append(members[torch.from_numpy(random.permutation(len(members))[:shots])])
    return split.subset(torch.cat(chosen))


def resize(data: DataSplits, image_size: int | tuple[int, int]) -> DataSplits:
    """The same images at another size (bicubic, antialiased), as a network of that size takes them; masks follow.

    Args:
        image_size: pixels, one side of a square or (height, width), each 1 or more.
    """
    size = as_size(image_size, example=48)

    def resized(split: Split) -> Split:
        images = F.interpolate(split.images, size=size, mode="bicubic", antialias=True)  # (N, C, H, W)
        masks = split.masks
        if masks is not None:
            masks = F.interpolate(masks[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0.5  # (N, H, W)
        return Split(images, split.labels, masks)

    return replace(data, **{name: resized(getattr(data, name)) for name in ("train", "val", "test")})
