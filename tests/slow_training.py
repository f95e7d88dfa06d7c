"""A training that says when it is under way and takes its time for every step, to be interrupted."""

import time
from collections.abc import Callable
from pathlib import Path

from vit.config import TrainConfig, ViTConfig
from vit.data import make_loaders, make_shapes
from vit.model.vision_transformer import VisionTransformer
from vit.training import History, fit

CONFIG = TrainConfig(epochs=3, batch_size=20, device="cpu")


def train(folder: str | Path, say: Callable[[str], None], pause: float = 0.2, *, resume: bool = False) -> History:
    """Three epochs of three steps, each of which is announced and then lasts `pause` seconds."""

    def loss_fn(model, batch):
        say("step")
        time.sleep(pause)
        return model(batch[0]).square().mean(), {}

    data = make_shapes(num_train=60, num_val=20, num_test=1, image_size=16, seed=0)
    model = VisionTransformer(ViTConfig(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2))
    history = fit(model, *make_loaders(data, CONFIG), CONFIG, run_dir=folder, loss_fn=loss_fn, resume=resume)
    say(f"returned, complete: {history.is_complete}")
    return history
