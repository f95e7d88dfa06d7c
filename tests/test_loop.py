"""Training and evaluation: hand-written references, exact resume, interrupts, and learning that is real."""

import math
import os
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import randomize, same_weights
from torch import nn

from vit.config import TrainConfig, ViTConfig
from vit.data import DataSplits, Loader, Split, make_eval_loader, make_loaders
from vit.device import has_bf16, resolve_device, resolve_precision
from vit.model.vision_transformer import VisionTransformer
from vit.progress import progress_bar
from vit.training import (
    History,
    build_optimizers,
    checks,
    evaluate,
    evaluation,
    fit,
    for_budget,
    load_run,
    load_state_weights,
    new_run_folder,
    train_one_epoch,
)
from vit.training.averaging import AveragedWeights
from vit.training.interrupt import stop_on_interrupt
from vit.training.losses import classification_loss
from vit.training.optim import layer_of
from vit.training.run_files import STATE_FILE
from vit.training.state_file import write_state

SMALL = ViTConfig(image_size=16, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2.0)
QUICK = TrainConfig.preset("quick", device="cpu", batch_size=64)


def make_model(seed: int = 0, **changes) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(replace(SMALL, **changes))


def test_an_epoch_equals_a_loop_written_by_hand(shapes):
    config = replace(QUICK, optimizer="adamw", schedule="cosine", clip_grad_norm=0.5, epochs=3)
    loader, _ = make_loaders(shapes, config)
    model, reference = make_model(), make_model()
    step, sums = train_one_epoch(model, loader, build_optimizers(model, config), config, epoch=1)

    decayed = [p for p in reference.parameters() if p.ndim in (2, 4)]
    plain = [p for p in reference.parameters() if p.ndim not in (2, 4)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        betas=config.adam_betas,
    )
    S, total_loss, correct = len(loader), 0.0, 0
    for k, (images, labels) in enumerate(loader.epoch(1)):
        progress = (S + k - 0.2 * S) / (3 * S - 0.2 * S)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())
        logits = reference(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
        total_loss += loss.item() * len(labels)
        correct += int((logits.argmax(1) == labels).sum())
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=name)
    assert step == S and sums["samples"] == 400
    assert float(sums["loss"]) == pytest.approx(total_loss, rel=1e-5)
    assert int(sums["correct"]) == correct
    for past in (3, -1):
        with pytest.raises(ValueError, match=f"epoch={past} is not among the epochs of epochs=3, counted from 0"):
            train_one_epoch(model, loader, build_optimizers(model, config), config, epoch=past)


def test_evaluation_does_not_depend_on_the_batches(shapes):
    """A smaller last batch must count by its size."""
    model = randomize(make_model()).train()
    model.encoder.eval()  # as who trains a head alone may want it
    results = [evaluate(model, make_eval_loader(shapes, shapes.test, batch_size=b)) for b in (100, 33, 7)]
    assert model.head.training and not model.encoder.blocks[0].training, "each part's mode must be put back"
    images, labels = next(iter(make_eval_loader(shapes, shapes.test, batch_size=100)))
    logits = model.eval()(images)
    for result in results:
        assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)
        assert result.accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
        torch.testing.assert_close(result.probabilities, logits.softmax(1), rtol=0, atol=1e-5)
    start = f"Evaluation(accuracy={result.accuracy:.2f}, loss={result.loss:.4g}, "
    assert repr(result) == f"{start}{len(shapes.test)} images, 10 classes)"
    exact = evaluate(model.double(), make_eval_loader(shapes, shapes.test))
    torch.testing.assert_close(exact.probabilities, results[0].probabilities, rtol=0, atol=1e-5)


def test_flip_augmentation_averages_two_views(shapes):
    model = randomize(make_model()).eval()
    loader = make_eval_loader(shapes, shapes.test, batch_size=100)
    images, _ = next(iter(loader))
    expected = (model(images).softmax(1) + model(images.flip(-1)).softmax(1)) / 2
    plain = evaluate(model, loader)
    for flipped in (
        evaluate(model, loader, test_time_augmentation="flip"),
        evaluate(model, loader, replace(QUICK, test_time_augmentation="flip")),
    ):
        torch.testing.assert_close(flipped.probabilities, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(flipped.probabilities, plain.probabilities)
    with pytest.raises(ValueError, match="test_time_augmentation='flips' is not a choice; did you mean 'flip'"):
        evaluate(model, loader, test_time_augmentation="flips")


def test_a_long_evaluation_shows_how_far_it_is_and_wipes_the_bar_away(shapes, capsys, monkeypatch):
    monkeypatch.setenv("VIT_PROGRESS", "text")
    model, loader = make_model(), make_eval_loader(shapes, shapes.test, batch_size=33)
    evaluate(model, loader)
    assert capsys.readouterr().err == "", "what is over at once needs no bar"
    at_once = {"delay": 0, "mininterval": 0}
    monkeypatch.setattr(evaluation, "progress_bar", lambda batches, **o: progress_bar(batches, **o | at_once))
    evaluate(model, loader)
    *_, last, wiped, end = capsys.readouterr().err.split("\r")
    assert last.startswith("evaluate: 100%") and "4/4" in last and not wiped.strip() + end
    fit(model, *make_loaders(shapes, QUICK), QUICK)
    shown = capsys.readouterr().err
    assert "epoch 1/2" in shown and "evaluate" not in shown, "a training has a bar already"


def noisy_prototypes(blank: bool) -> DataSplits:
    """Ten random pictures under heavy noise, or nothing at all: easy to learn, and impossible."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randint(0, 256, (10, 3, 16, 16), generator=generator)

    def draw(count: int) -> Split:
        labels = torch.arange(count) % 10
        noise = torch.randint(0, 256, (count, 3, 16, 16), generator=generator)
        images = ((prototypes[labels] + noise) // 2).to(torch.uint8)
        return Split(torch.zeros_like(images) if blank else images, labels)

    names = tuple("abcdefghij")
    return DataSplits("prototypes", draw(400), draw(100), draw(100), names, (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize(("blank", "lowest", "highest"), [(False, 90, 100), (True, 0, 15)])
def test_fit_learns_what_can_be_learned_and_nothing_from_blank_images(blank, lowest, highest):
    config = replace(QUICK, epochs=16, muon_learning_rate=0.02, flip="none", crop_padding=0)
    history = fit(make_model(), *make_loaders(noisy_prototypes(blank), config), config)
    assert history.is_complete and len(history) == 16
    assert lowest <= history.last["val_accuracy"] <= highest


class SignalsOnce:
    """A loader that sends this process a signal after a given (epoch, step)."""

    def __init__(self, loader, at: tuple[int, int], number: signal.Signals = signal.SIGINT):
        self.loader, self.at, self.number = loader, at, number

    def __len__(self):
        return len(self.loader)

    def epoch(self, epoch, start_step):
        for step, batch in enumerate(self.loader.epoch(epoch, start_step), start_step):
            if (epoch, step + 1) == self.at:
                os.kill(os.getpid(), self.number)
            yield batch


def test_a_run_stopped_by_a_signal_and_resumed_ends_in_the_same_bits(shapes, tmp_path):
    config = replace(QUICK, epochs=3, ema_decay=0.9, cutmix_alpha=1.0, auto_augment="trivial", patch_drop_rate=0.5)
    loaders = make_loaders(shapes, config)
    whole = make_model(drop_rate=0.1, drop_path_rate=0.1)
    expected = fit(whole, *loaders, config)

    first = make_model(drop_rate=0.1, drop_path_rate=0.1)
    assert not fit(first, SignalsOnce(loaders[0], (1, 3)), loaders[1], config, run_dir=tmp_path).is_complete
    resumed = make_model(seed=99, drop_rate=0.1, drop_path_rate=0.1)
    torch.manual_seed(4242)
    history = fit(resumed, *loaders, config, run_dir=tmp_path, resume=True)
    assert history.is_complete
    assert same_weights(resumed, whole)
    for row, expected_row in zip(history.rows, expected.rows, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {
            k: v for k, v in expected_row.items() if k != "seconds"
        }
    assert History.load_csv(tmp_path / "history.csv")["val_loss"] == expected["val_loss"]


def test_after_epoch_sees_every_epoch_once_and_changes_nothing(shapes, tmp_path):
    config = replace(QUICK, epochs=3, ema_decay=0.9, auto_augment="trivial", patch_drop_rate=0.5)
    loaders = make_loaders(shapes, config)
    whole = make_model(drop_rate=0.1)
    expected = fit(whole, *loaders, config)
    seen = []

    def look(model, row):
        assert not any(module.training for module in model.modules())
        accuracy = evaluate(model, loaders[1], config).accuracy
        model(shapes.val.images[:4] / 255 + torch.randn(1)).sum().backward()
        seen.append((row.pop("seconds"), row, accuracy))
        if len(seen) == 2:
            raise RuntimeError("the tracker is away")

    model = make_model(drop_rate=0.1)
    with pytest.raises(RuntimeError, match="the tracker is away"):
        fit(model, *loaders, config, run_dir=tmp_path, after_epoch=look)
    resumed = make_model(seed=99, drop_rate=0.1)
    history = fit(resumed, *loaders, config, run_dir=tmp_path, resume=True, after_epoch=look)
    assert same_weights(resumed, whole)  # which nobody has looked at
    assert [seconds for seconds, _, _ in seen] == history["seconds"]
    assert [row for _, row, _ in seen] == [{k: v for k, v in row.items() if k != "seconds"} for row in expected]
    assert [accuracy for _, _, accuracy in seen] == expected["val_accuracy"]  # of the averaged weights


@pytest.mark.parametrize(("epochs", "steps"), [(1.5, 10), (0.4, 3), (2, 14), (0.01, 1)])
def test_a_fraction_of_an_epoch_ends_it_early_with_the_rate_at_its_end(shapes, epochs, steps):
    config = replace(QUICK, epochs=epochs, warmup_epochs=0.0, label_smoothing=0.0)
    loader, val_loader = make_loaders(shapes, config)
    assert len(loader) == 7
    seen = []

    def loss_fn(model, batch):
        seen.append(len(batch[0]))
        return F.cross_entropy(model(batch[0]), batch[1]), {}

    history = fit(make_model(), loader, val_loader, config, loss_fn=loss_fn)
    assert len(seen) == steps and history["epoch"][-1] == epochs and history.is_complete
    # Linear from 1 to 0 over the steps: the last of them is one step from the end.
    assert history.last["learning_rate"] == pytest.approx(config.learning_rate / steps)


def test_patches_are_dropped_for_their_share_of_the_run_only(shapes):
    config = replace(QUICK, patch_drop_rate=0.5, patch_drop_until=0.6)
    model, tokens = make_model(), []
    model.encoder.register_forward_pre_hook(lambda _, args: tokens.append((model.training, args[0].shape[1])))
    fit(model, *make_loaders(shapes, config), config)
    in_training = [count for is_training, count in tokens if is_training]
    assert in_training == [1 + 8] * 9 + [1 + 16] * 5  # 14 steps, of which 8.4 are in the first 60 %
    assert {count for is_training, count in tokens if not is_training} == {1 + 16}
    assert model.patch_drop.rate == 0
    with pytest.raises(ValueError, match="patch_drop_rate=0.5: Sequential has no `patch_drop.rate`"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), *make_loaders(shapes, config), config)
    timm = pytest.importorskip("timm")
    theirs = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=10, patch_drop_rate=0.25
    )
    with pytest.raises(ValueError, match="patch_drop_rate=0.5: VisionTransformer has no `patch_drop.rate` to set"):
        fit(theirs, *make_loaders(shapes, config), config)
    fit(theirs, *make_loaders(shapes, QUICK), QUICK)
    assert theirs.patch_drop.prob == 0.25, "as it was built"


def test_a_state_from_before_a_setting_existed_is_resumed(shapes, tmp_path):
    loaders = make_loaders(shapes, QUICK)
    fit(make_model(), *loaders, QUICK, run_dir=tmp_path)
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    del state["config"]["patch_drop_rate"]
    write_state(tmp_path / STATE_FILE, state)
    assert fit(make_model(), *loaders, QUICK, run_dir=tmp_path, resume=True).is_complete
    with pytest.raises(ValueError, match="patch_drop_rate: saved 0.0, now 0.5"):
        fit(make_model(), *loaders, replace(QUICK, patch_drop_rate=0.5), run_dir=tmp_path, resume=True)


def test_resume_refuses_another_run(shapes, tmp_path):
    loaders = make_loaders(shapes, QUICK)
    fit(make_model(), *loaders, QUICK, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"other settings.*learning_rate: saved 0.002, now 0.5"):
        fit(make_model(), *loaders, replace(QUICK, learning_rate=0.5), run_dir=tmp_path, resume=True)
    other = make_model(num_registers=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match="another network: its parameters differ, for example reg_token"):
        fit(other, *loaders, QUICK, run_dir=tmp_path, resume=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(FileNotFoundError, match="run_dir=.*nowhere' is no folder"):
        fit(make_model(), *loaders, QUICK, run_dir=tmp_path / "nowhere", resume=True)
    with pytest.raises(ValueError, match="resume=True needs run_dir"):
        fit(make_model(), *loaders, QUICK, resume=True)


def test_the_state_loads_without_running_code(shapes, tmp_path):
    fit(make_model(), *make_loaders(shapes, QUICK), QUICK, run_dir=tmp_path)
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert state["config"]["epochs"] == 2 and state["progress"]["epoch"] == 2


def test_ema_follows_its_closed_form(shapes):
    config = replace(QUICK, epochs=1, ema_decay=0.35, warmup_epochs=0.0)
    loader, val = make_loaders(shapes, config)
    model, reference = make_model(), make_model()
    fit(model, loader, val, config)

    optimizers = build_optimizers(reference, config)
    snapshots = []
    for step in range(len(loader)):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * (1 - step / len(loader))
        images, labels = loader.batch(0, step)
        F.cross_entropy(reference(images), labels, label_smoothing=0.1).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        snapshots.append(reference.encoder.blocks[0].mlp.fc1.weight.detach().clone())
    # The average starts at the first weights; later ones enter with what the decays 2/11, 3/12, 4/13, 0.35, ... leave.
    decays = [0.0, 2 / 11, 3 / 12, 4 / 13, 0.35, 0.35, 0.35]
    weights = [(1 - decay) * math.prod(decays[k + 1 :]) for k, decay in enumerate(decays)]
    expected = sum(w * s for w, s in zip(weights, snapshots, strict=True))
    torch.testing.assert_close(model.encoder.blocks[0].mlp.fc1.weight.data, expected, rtol=1e-4, atol=1e-5)


def test_a_second_interrupt_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt() as should_stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_same_seed_gives_the_same_run_whatever_else_is_created(shapes):
    runs = []
    for extra in (False, True):
        loaders = make_loaders(shapes, QUICK)
        model = make_model()
        if extra:
            list(make_loaders(shapes, replace(QUICK, seed=5))[0].epoch(0))
            torch.randn(100)
        runs.append((fit(model, *loaders, QUICK), model))
    assert runs[0][0]["train_loss"] == runs[1][0]["train_loss"]
    assert same_weights(runs[0][1], runs[1][1])


def test_classes_are_compared_before_the_first_step(shapes):
    with pytest.raises(ValueError, match="the model has num_classes=7, the data 10 classes"):
        fit(make_model(num_classes=7), *make_loaders(shapes, QUICK), QUICK)


def test_a_loss_that_is_not_finite_ends_the_run(shapes, tmp_path):
    def diverging(model, batch):
        return model(batch[0]).sum() * float("nan"), {}

    with pytest.raises(FloatingPointError, match="the loss is nan .* in step 1 of epoch 1.* try a lower learning_rate"):
        fit(make_model(), *make_loaders(shapes, QUICK), QUICK, loss_fn=diverging, run_dir=tmp_path)


def test_another_loss_can_be_learned(shapes):
    def reconstruct_mean(model, batch):
        images, _ = batch
        error = (model(images)[:, 0] - images.mean(dim=(1, 2, 3))).square().mean()
        return error, {"error": error.detach() * len(images)}

    config = replace(QUICK, epochs=8, learning_rate=1e-2)
    history = fit(make_model(), *make_loaders(shapes, config), config, loss_fn=reconstruct_mean)
    assert history["train_error"][-1] < 0.5 * history["train_error"][0]


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device().type in {"cpu", "cuda", "mps"}
    with pytest.raises(ValueError, match="device='gpu' is not a choice; did you mean 'cuda'. allowed: auto"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device='cuda' is not available on this machine"):
            resolve_device("cuda")


def test_what_this_torch_was_built_without_is_said(monkeypatch, shapes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ValueError, match="device='cuda' is nothing for this torch .*, which was built without it"):
        resolve_device("cuda")
    monkeypatch.setattr(checks, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    loaders, config = make_loaders(shapes, QUICK), replace(QUICK, compile=True)
    for use in (
        lambda: fit(make_model(), *loaders, config),
        lambda: for_budget(make_model(), *loaders, config, minutes=1),
    ):
        with pytest.raises(ValueError, match="compile=True needs Triton, which torch does not bring along on Windows"):
            use()


@pytest.mark.parametrize("is_real", [True, False])
def test_auto_is_bf16_where_a_gpu_computes_in_it_and_does_not_imitate_it(monkeypatch, is_real):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or is_real
    )
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    has_bf16.cache_clear()
    found = resolve_precision("auto", gpu)
    has_bf16.cache_clear()  # the answer is not this machine's
    assert found == ("bf16" if is_real else "fp32")
    assert resolve_precision("auto", cpu) == resolve_precision("fp32", gpu) == "fp32"
    assert resolve_precision("bf16", gpu) == resolve_precision("bf16", cpu) == "bf16"


def test_optimizers_of_the_users_own_have_the_rates_they_were_given(shapes, tmp_path):
    """At a constant rate SGD is what the formula says, after a resume too."""
    config = replace(QUICK, epochs=2, warmup_epochs=0, schedule="constant", batch_size=len(shapes.train))
    loader, _ = make_loaders(shapes, config)

    def sgd(model, config):
        return [torch.optim.SGD(model.parameters(), lr=np.float64(0.01))]  # as a grid of numpy has them

    model, by_hand = make_model(), make_model()
    stop = iter([True])
    fit(model, loader, None, config, make_optimizers=sgd, run_dir=tmp_path, should_stop=lambda: next(stop, False))
    assert fit(model, loader, None, config, make_optimizers=sgd, run_dir=tmp_path, resume=True).is_complete
    for epoch in range(2):
        images, labels = loader.batch(epoch, 0)
        loss = F.cross_entropy(by_hand.train()(images), labels, label_smoothing=config.label_smoothing)
        for p, gradient in zip(
            by_hand.parameters(), torch.autograd.grad(loss, list(by_hand.parameters())), strict=True
        ):
            p.data -= 0.01 * gradient
    for p, expected in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, expected)


def test_a_model_that_was_compiled_before_leaves_states_of_the_plain_one(shapes, tmp_path):
    """Whose layers also have the rates of the plain one's."""
    config, plain = replace(QUICK, batch_size=50), make_model()  # a batch of another size is compiled anew
    loaders, make_optimizers = make_loaders(shapes, config), partial(build_optimizers, layer_decay=0.5)
    compiled = torch.compile(plain, backend="eager")
    history = fit(compiled, *loaders, config, run_dir=tmp_path / "a", make_optimizers=make_optimizers)
    other = make_model()
    again = fit(other, *loaders, config, run_dir=tmp_path / "b", make_optimizers=make_optimizers)
    assert history["val_loss"] == pytest.approx(again["val_loss"], rel=1e-3)
    load_state_weights(other, tmp_path / "a" / "state.pt")
    assert same_weights(other, plain)
    names = [name for name, _ in plain.named_parameters()]
    assert list(layer_of(names).values()) == list(layer_of(f"_orig_mod.{name}" for name in names).values())


def test_bf16_trains_close_to_fp32(shapes):
    losses = [
        fit(make_model(), *make_loaders(shapes, QUICK), replace(QUICK, precision=precision))["train_loss"][-1]
        for precision in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], abs=0.05)


def test_the_loss_of_bf16_logits_is_computed_in_fp32():
    """On a GPU autocast leaves the logits in bf16, and the loss would be, too."""

    class Constant(torch.nn.Linear):
        def forward(self, images):
            return self.logits

    model = Constant(1, 1)
    values = torch.linspace(-3, 3, 10).to(torch.bfloat16)
    labels = torch.tensor([1, 8])
    model.logits = values.expand(2, 10)
    loss, _ = classification_loss(0.1)(model, (torch.zeros(2, 3, 2, 2), labels))
    logits = values.double().expand(2, 10)
    exact = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(float(exact), rel=1e-6)
    in_bf16 = torch.nn.functional.cross_entropy(values.expand(2, 10), labels, label_smoothing=0.1)
    assert float(in_bf16) != pytest.approx(float(exact), rel=1e-4)
    model.logits = logits
    of_double, _ = classification_loss()(model, (torch.zeros(2, 3, 2, 2), labels))
    assert of_double.dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_on_a_gpu(shapes):
    config = replace(QUICK, device="cuda", compile=True, auto_augment="trivial", cutmix_alpha=1.0)
    config = replace(config, batch_size=50)  # divides the images: a batch of another size is compiled anew
    model = make_model()
    history = fit(model, *make_loaders(shapes, config), config)
    assert history.is_complete and next(model.parameters()).is_cuda


def test_a_run_may_go_on_with_a_val_loader_or_without_one(shapes, tmp_path):
    loader, val_loader = make_loaders(shapes, config := replace(QUICK, epochs=4))
    for number, val in enumerate((None, val_loader, None)):
        calls = iter(range(100))
        options = {"run_dir": tmp_path, "resume": number > 0, "should_stop": lambda c=calls: next(c) >= len(loader)}
        fit(make_model(), loader, val, config, **options)
    history = fit(make_model(), loader, val_loader, config, run_dir=tmp_path, resume=True)
    assert history.is_complete and history["epoch"] == [1, 2, 3, 4]
    stored = History.load_csv(tmp_path / "history.csv")
    for column in ("val_loss", "val_accuracy"):
        assert [value != value for value in stored[column]] == [column not in row for row in history.rows]
    assert stored["train_loss"] == pytest.approx(history["train_loss"])
    with pytest.raises(KeyError, match="no column 'f1'; columns: epoch, .*, val_loss, val_accuracy"):
        history["f1"]


@pytest.mark.parametrize("epochs", [2.06, 1.96, 2])
def test_the_last_row_says_that_the_run_is_complete(shapes, tmp_path, epochs):
    """Also where the epochs are no whole number of steps, of which there are 7 in each."""
    config = replace(QUICK, epochs=epochs)
    folder = new_run_folder("a", tmp_path, train=config)
    loaders = make_loaders(shapes, config)
    assert len(loaders[0]) == 7
    history = fit(make_model(), *loaders, config, run_dir=folder)
    assert history.is_complete and history["epoch"] == [1, epochs]
    assert load_run(folder).history.is_complete


def test_the_val_loader_is_measured_whatever_is_learned(shapes):
    losses = (None, lambda model, batch: (F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1), {}))
    config, models = replace(QUICK, label_smoothing=0.1), []
    histories = []
    for loss_fn in losses:
        models.append(make_model())
        histories.append(fit(models[-1], *make_loaders(shapes, config), config, loss_fn=loss_fn))
    assert same_weights(*models) and histories[0]["val_accuracy"] == histories[1]["val_accuracy"]


def test_a_loader_made_by_hand_that_mixes_nothing_is_taken(shapes):
    loader, val_loader = make_loaders(shapes, QUICK)
    loader.config = None  # which says that `make_loaders` has made it
    config = replace(QUICK, mix_until=0.5, cutmix_alpha=1.0)
    assert loader.mix is None and fit(make_model(), loader, val_loader, config).is_complete


def test_random_numbers_of_a_run_follow_its_seed(shapes):
    """Dropout's among them: the first that a training draws is the first of a generator with that seed."""

    def drawn(seed: int) -> list[float]:
        numbers = []

        def loss_fn(model, batch):
            numbers.append(torch.rand(()).item())
            return model(batch[0]).square().mean(), {}

        config = replace(QUICK, epochs=0.2, warmup_epochs=0, seed=seed)
        fit(make_model(), make_loaders(shapes, config)[0], None, config, loss_fn=loss_fn)
        return numbers

    assert drawn(0) == drawn(0)
    assert [drawn(seed)[0] for seed in (0, 3)] == [
        torch.rand((), generator=torch.Generator().manual_seed(seed)).item() for seed in (0, 3)
    ]


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


def test_a_sure_mistake_costs_its_logit():
    split = Split(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 0, 1]))  # the network is sure of 1
    loader = Loader(split, batch_size=4, mean=(0.5,) * 3, std=(0.2,) * 3)
    for logit in (20.0, 60.0):  # of the second, the probability of the truth would be 0 in float32's logarithm
        for views in ("none", "flip"):
            found = evaluate(Constant([0.0, logit]), loader, test_time_augmentation=views)
            assert found.loss == pytest.approx(3 / 4 * logit, rel=1e-4)


def test_with_soft_labels_the_largest_share_is_the_truth():
    soft = torch.tensor([[0.7, 0.3, 0], [0.2, 0.5, 0.3], [0.6, 0, 0.4], [0.1, 0.9, 0]])
    _, sums = classification_loss()(Constant([1.0, 0, 0]), (torch.zeros(4, 3, 2, 2), soft))
    assert sums["correct"] == 2


def test_running_statistics_go_with_the_average():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2))
    ema = AveragedWeights(model, 0.9)
    model(torch.randn(50, 3, 2, 2) * 3 + 5)
    ema.update_parameters(model)
    assert model[1].running_mean.abs().max() > 0.1
    assert torch.equal(ema.module[1].running_mean, model[1].running_mean)


def test_want_of_memory_on_a_cpu_comes_with_a_way_out(shapes):
    def loss_fn(model, batch):
        torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(RuntimeError) as caught:
        fit(make_model(), make_loaders(shapes, QUICK)[0], None, QUICK, loss_fn=loss_fn)
    assert "out of memory at batch_size=64" in caught.value.__notes__[0]


def test_fit_validates_with_the_configs_augmentation(shapes):
    config = replace(QUICK, epochs=1, warmup_epochs=0, test_time_augmentation="flip")
    loaders, model = make_loaders(shapes, config), randomize(make_model())
    history = fit(model, *loaders, config)
    flipped, plain = (evaluate(model, loaders[1], test_time_augmentation=views).loss for views in ("flip", "none"))
    assert history.last["val_loss"] == pytest.approx(flipped, abs=1e-6) != pytest.approx(plain, abs=1e-4)
