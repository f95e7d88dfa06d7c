"""Progressive image sizes: the two ends are plain training, bit for bit, and one schedule spans both sizes."""

import contextlib
from dataclasses import replace

import pytest
import torch
from conftest import same_weights

import vit
from vit.data import make_loaders, resize
from vit.tasks import progressive
from vit.tasks.progressive import train_progressively

MODEL = vit.ViTConfig(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
CONFIG = vit.TrainConfig(epochs=1.6, batch_size=50, warmup_epochs=0.25, device="cpu", patch_drop_rate=0.5, seed=4)


def new_model() -> vit.VisionTransformer:
    torch.manual_seed(CONFIG.seed)
    return vit.VisionTransformer(MODEL)


def test_without_small_images_it_is_fit(shapes):
    fitted, model = new_model(), new_model()
    vit.fit(fitted, make_loaders(shapes, CONFIG)[0], None, CONFIG)
    train_progressively(model, shapes, CONFIG, start_size=8, until=0.0)
    assert same_weights(model, fitted) and not same_weights(model, new_model())
    assert model.patch_drop.rate == 0


def test_with_small_images_alone_it_is_fit_at_that_size(shapes):
    """Positions come back at the full size, through one resampling."""
    fitted, model = new_model().resized(8), new_model()
    vit.fit(fitted, make_loaders(resize(shapes, 8), CONFIG)[0], None, CONFIG)
    train_progressively(model, shapes, CONFIG, start_size=8, until=1.0)
    assert same_weights(model, fitted.resized(16))


def test_one_schedule_and_one_order_of_images_span_both_sizes(shapes, monkeypatch):
    seen = []
    epoch = progressive.train_one_epoch

    def spy(model, loader, optimizers, config, **options):
        def loss_fn(model, batch):
            rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
            seen.append((batch[0].shape[-1], batch[1].tolist(), rates, model.patch_drop.rate))
            return model(batch[0]).square().mean(), {}

        return epoch(model, loader, optimizers, config, loss_fn=loss_fn, **options)

    monkeypatch.setattr(progressive, "train_one_epoch", spy)
    train_progressively(new_model(), shapes, CONFIG, start_size=12, until=0.7)
    two_sizes = list(seen)
    seen.clear()
    train_progressively(new_model(), shapes, CONFIG, start_size=12, until=0.0)
    assert [size for size, *_ in two_sizes] == [12] * 9 + [16] * 4
    assert [rest for _, *rest in two_sizes] == [rest for _, *rest in seen]


def test_fixed_positions_name_the_same_place_at_both_sizes(shapes, monkeypatch):
    tables, steps = [], progressive._train_steps
    monkeypatch.setattr(
        progressive, "_train_steps", lambda model, *rest: tables.append(model.pos_table.clone()) or steps(model, *rest)
    )
    torch.manual_seed(0)
    model = vit.VisionTransformer(replace(MODEL, pos_embed="sincos2d"))
    train_progressively(model, shapes, CONFIG, start_size=8, until=0.5)
    small, large = tables
    assert small.shape == (1, 4, 16) and torch.equal(large, model.pos_table)
    # Of 2 by 2 patches each covers 2 by 2 of the 4 by 4, so its code is nearer to theirs than to any other's.
    blocks = torch.tensor([[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]])[0]
    means = large[0][blocks].mean(dim=1)  # (4, D)
    assert torch.cdist(small[0], means).argmin(dim=1).tolist() == [0, 1, 2, 3]
    assert (small[0] - means).abs().max() < 0.5 < (small[0] - large[0, :4]).abs().max()


def test_what_it_cannot_do_is_refused(shapes):
    with pytest.raises(ValueError, match="until=1.5 must be a share"):
        train_progressively(new_model(), shapes, CONFIG, start_size=8, until=1.5)
    with pytest.raises(ValueError, match="ema_decay=0.9"):
        train_progressively(new_model(), shapes, replace(CONFIG, ema_decay=0.9), start_size=8)
    model = new_model()
    for start_size, rule in ((10, "a multiple of patch_size=4"), (0, "an integer of 4 or more")):
        with pytest.raises(ValueError, match=f"start_size={start_size} must be {rule}"):
            train_progressively(model, shapes, CONFIG, start_size=start_size)
    assert model.metadata == new_model().metadata, "nothing has been done yet"


@pytest.mark.parametrize(
    ("changes", "metadata", "message"),
    [
        ({"image_size": 32}, {}, r"of \(3, 32, 32\) and has num_classes=10, the data has \(3, 16, 16\) and 10 classes"),
        ({"in_chans": 1}, {}, r"of \(1, 16, 16\) and has num_classes=10, the data has \(3, 16, 16\) and 10 classes"),
        ({"num_classes": 5}, {}, r"of \(3, 16, 16\) and has num_classes=5, the data has \(3, 16, 16\) and 10 classes"),
        ({}, {"mean": (0.1, 0.1, 0.1)}, r"metadata has mean=.*set model.metadata = data.metadata first"),
        ({}, {"class_names": tuple("abcdefghij")}, r"metadata has class_names=.*set model.metadata = data.metadata"),
    ],
)
def test_data_that_is_not_the_models_is_refused_before_any_work(shapes, monkeypatch, changes, metadata, message):
    monkeypatch.setattr(progressive, "_train_steps", lambda *_: pytest.fail("a step has been taken"))
    model = vit.VisionTransformer(replace(MODEL, **changes))
    model.metadata = shapes.metadata | metadata
    with pytest.raises(ValueError, match=message):
        train_progressively(model, shapes, CONFIG, start_size=8)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("rate", [1e-3, 1e30])
def test_the_model_is_left_in_the_mode_it_was_found_in(shapes, is_training, rate):
    config = replace(CONFIG, epochs=0.4, warmup_epochs=0, patch_drop_until=1.0, learning_rate=rate)
    model = new_model().train(is_training)
    model.head.train(not is_training)
    with pytest.raises(FloatingPointError) if rate > 1 else contextlib.nullcontext():
        train_progressively(model, shapes, config, start_size=8, until=0.0)
    assert model.training is is_training is not model.head.training and model.patch_drop.rate == 0


def first_steps(count: int, train_steps):
    """What trains no longer than until this step of the run."""
    return lambda model, loader, config, steps, bar: train_steps(
        model, loader, config, range(steps.start, min(count, steps.stop)), bar
    )


@pytest.mark.parametrize("until", [1.0, 0.25])
def test_what_was_learned_before_an_end_stays(shapes, monkeypatch, until):
    """Of small images, or of these and full ones: an interrupt costs no step that was taken."""
    config = replace(CONFIG, patch_drop_rate=0.0)
    whole, model = new_model(), new_model()
    steps, epoch = [], progressive.train_one_epoch

    def interrupted(*arguments, should_stop, **options):
        def stop() -> bool:
            steps.append(1)
            if len(steps) == 5:
                raise KeyboardInterrupt
            return should_stop()

        return epoch(*arguments, should_stop=stop, **options)

    monkeypatch.setattr(progressive, "train_one_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_progressively(model, shapes, config, start_size=8, until=until)
    monkeypatch.setattr(progressive, "_train_steps", first_steps(5, progressive._train_steps))
    monkeypatch.setattr(progressive, "train_one_epoch", epoch)
    train_progressively(whole, shapes, config, start_size=8, until=until)
    assert same_weights(model, whole) and not same_weights(model, new_model())
    assert model.metadata == {name: shapes.metadata[name] for name in ("mean", "std", "class_names")}
