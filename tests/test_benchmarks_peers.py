"""The six peers are what their authors publish, both feeds give the same augmentation, and a run keeps its budget."""

import functools
import itertools
import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import peers
import pytest
import report
import time_to_accuracy as tta
import timm
import torch
import torch.nn.functional as F
from conftest import randomize
from peers import PEERS, PeerModel, PlainViT
from torch import nn
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandomResizedCrop
from torchvision.transforms import functional as TF

import vit
from vit.analysis.cost import count_parameters, forward_flops
from vit.normalization import normalize
from vit.plots.comparison import plot_accuracy_and_work, plot_time_to_accuracy

TINY = PeerModel(image_size=(8, 8), embed_dim=12, depth=2, num_heads=3, mlp_dim=20)

# Models


@pytest.mark.parametrize(
    ("name", "millions", "digit"),
    [
        ("tintn", 0.12, 0.01),
        ("s-chh", 0.82, 0.01),  # its README cuts 827,530 to "820k"
        ("uva15", 3.2, 0.1),
        ("omihub777", 6.3, 0.1),
        ("kentaroy47", 9.5, 0.1),
    ],
)
def test_parameters_are_as_many_as_published(name, millions, digit):
    assert count_parameters(PlainViT(PEERS[name].model)) / 1e6 == pytest.approx(millions, abs=digit)


def test_the_published_count_of_spt_lsa_is_of_its_model_for_tiny_imagenet():
    model = PEERS["spt_lsa"].model
    for_tiny_imagenet = replace(model, image_size=(64, 64), patch_size=8, num_classes=200)
    assert round(count_parameters(PlainViT(for_tiny_imagenet)) / 1e6, 1) == 2.8
    assert round(count_parameters(PlainViT(model)) / 1e6, 1) == 2.7


@pytest.mark.parametrize(("by_width", "bias"), [(False, True), (True, False)])
def test_attention_is_a_plain_softmax_over_the_tokens(by_width, bias):
    config = replace(TINY, scale_by_width=by_width, qkv_bias=bias)
    attention = randomize(peers.PlainAttention(config).double())
    x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q, k, v = F.linear(x, attention.qkv.weight, attention.qkv.bias).split(12, dim=2)
    heads = []
    for h in range(3):
        own = slice(4 * h, 4 * h + 4)
        scores = torch.einsum("bid,bjd->bij", q[..., own], k[..., own]).exp_() ** (1 / math.sqrt(12 if by_width else 4))
        heads.append(torch.einsum("bij,bjd->bid", scores / scores.sum(dim=2, keepdim=True), v[..., own]))
    expected = torch.cat(heads, dim=2) @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_vit_is_timms(bias):
    ours = randomize(PlainViT(replace(TINY, qkv_bias=bias)).double()).eval()
    theirs = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=3, mlp_ratio=20 / 12, qkv_bias=bias, num_classes=10,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-5),
    ).double().eval()  # fmt: skip
    names = {"patch_embed.": "patch_embed.proj.", ".fc": ".mlp.fc", "head.0.": "head."}
    state = {}
    for name, tensor in ours.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = tensor.unflatten(1, (3, 4, 4)) if name == "patch_embed.proj.weight" else tensor
    theirs.load_state_dict(state)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-10, atol=1e-10)


def test_what_timm_has_not():
    config = replace(TINY, depth=1, gelu="tanh", gelu_after_fc2=True, norm_at_end=False, hidden_head=True)
    model = randomize(PlainViT(config).double())
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def gelu(x):
        return x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())

    block, tokens = model.blocks[0], []
    for row in (0, 4):
        for column in (0, 4):
            patch = images[:, :, row : row + 4, column : column + 4].reshape(2, 48)
            tokens.append(patch @ model.patch_embed.weight.T + model.patch_embed.bias)
    x = torch.stack([model.cls_token[0, 0].expand(2, 12), *tokens], dim=1) + model.pos_embed
    x = x + block.attn(block.norm1(x))
    x = x + gelu(block.fc2(gelu(block.fc1(block.norm2(x)))))
    expected = model.head[2](model.head[0](x[:, 0]).tanh())
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["drop_embed", "drop_attn", "drop_proj", "drop_hidden", "drop_mlp", "drop_path", None])
def test_every_dropout_acts_in_training_alone(name):
    model = randomize(PlainViT(replace(TINY, **({name: 0.5} if name else {}))))
    images = torch.randn(4, 3, 8, 8)
    plain = randomize(PlainViT(TINY))(images)
    assert torch.equal(model.eval()(images), plain)
    assert torch.equal(model.train()(images), plain) == (name is None)


@pytest.mark.parametrize(
    ("init", "qkv", "fc1"), [("torch", 3, 3), ("normal", 0.02, 0.02), ("xavier", 2**-1, 2), ("torch_xavier", 2**-1, 3)]
)
def test_weights_start_as_published(init, qkv, fc1):
    torch.manual_seed(0)
    D, hidden = 192, 384
    block = PlainViT(PeerModel(embed_dim=D, depth=1, num_heads=3, mlp_dim=hidden, init=init)).blocks[0]
    # torch's own is uniform with a variance of 1/3 over the inputs, Xavier's 2 over the inputs and outputs.
    deviation = {3: (1 / (3 * D)) ** 0.5, 2**-1: (2 / (4 * D)) ** 0.5, 2: (2 / (D + hidden)) ** 0.5, 0.02: 0.02}
    assert block.attn.qkv.weight.std().item() == pytest.approx(deviation[qkv], rel=0.02)
    assert block.fc1.weight.std().item() == pytest.approx(deviation[fc1], rel=0.02)
    assert bool(block.attn.qkv.bias.any()) == (init == "torch")


# Recipes


def torch_rates(kind, **options):
    """torch's own schedule, an epoch a step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, rates = getattr(torch.optim.lr_scheduler, kind)(optimizer, **options), []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_schedules_are_those_of_torch_for_the_published_epochs():
    cases = {  # epochs, of these warm-up, and the rest of the run as the authors build it
        "kentaroy47": (200, 0, torch_rates("CosineAnnealingLR", T_max=200)),
        "s-chh": (200, 10, torch_rates("CosineAnnealingLR", T_max=190, eta_min=1e-5 / 5e-4)),
        "omihub777": (200, 5, torch_rates("CosineAnnealingLR", T_max=195, eta_min=1e-5 / 1e-3)),
        "spt_lsa": (100, 10, torch_rates("CosineAnnealingLR", T_max=90, eta_min=1e-6 / 1e-3)),
        "uva15": (180, 0, torch_rates("MultiStepLR", milestones=[100, 150])),
        "tintn": (100, 0, [1.0] * 200),
    }
    assert cases.keys() == PEERS.keys()
    for name, (epochs, warmup, rates) in cases.items():
        found = [PEERS[name].rate_factor(epoch, epochs) for epoch in range(epochs)]
        assert found[warmup:] == pytest.approx(rates[: epochs - warmup]), name
        assert found[:warmup] == pytest.approx([(i + 1) / (warmup + 1) for i in range(warmup)])


def test_a_stretched_schedule_ends_where_the_published_one_does():
    ends = {"tintn": 1, "s-chh": 0.02, "uva15": 0.01, "omihub777": 0.01, "kentaroy47": 0, "spt_lsa": 0.001}
    for name, end in ends.items():
        for steps in (10_000, 123_456):
            assert PEERS[name].rate_factor(steps - 1, steps) == pytest.approx(end, abs=1e-6), name


def test_omihubs_smoothing_leaves_nine_tenths_to_the_right_class():
    logits = torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6)
    target = torch.full((6, 10), 0.1 / 9, dtype=torch.float64).scatter_(1, labels[:, None], 0.9)
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    found = F.cross_entropy(logits, labels, label_smoothing=PEERS["omihub777"].label_smoothing)
    torch.testing.assert_close(found, expected)


def test_the_loop_sets_the_rate_of_every_step():
    rates = []

    class Spy(peers.Peer):
        def build_optimizer(self, model):
            self.__dict__["optimizer_built"] = super().build_optimizer(model)
            return self.__dict__["optimizer_built"]

    fields = {name: getattr(PEERS["s-chh"], name) for name in peers.Peer.__dataclass_fields__}
    peer, model = Spy(**fields), PlainViT(TINY)
    batches = iter([(torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))] * 7)

    for step in itertools.islice(tta.train_peer(model, peer, batches, 40), 7):
        assert step == len(rates)
        rates.append(peer.__dict__["optimizer_built"].param_groups[0]["lr"])
    assert rates[1:] == [5e-4 * peer.rate_factor(step, 40) for step in range(6)]
    assert len(list(batches)) == 1, "no step that nobody asked for"


# Feeds


def test_windows_are_enlarged_as_torchvision_does():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    boxes = torch.tensor([[3, 1, 26, 30], [0, 4, 32, 28]])  # top, left, height, width
    found = peers.crop_windows(images, boxes / 32)
    for image, box, own in zip(images, boxes.tolist(), found, strict=True):
        expected = TF.resized_crop(image, *box, [32, 32])
        # At the edge torchvision repeats the window's last pixel, where we see the one beyond.
        inner = (slice(None), slice(1, -1), slice(1, -1))
        assert (own[inner].int() - expected[inner].int()).abs().max() <= 1
    assert torch.equal(peers.crop_windows(images, torch.tensor([[0.0, 0, 1, 1]] * 2)), images)


@pytest.mark.parametrize("ratio", [peers.RATIO_3_4, peers.RATIO_9_10])
def test_resized_crops_have_the_published_size(ratio, monkeypatch):
    monkeypatch.setattr(peers, "crop_windows", lambda images, windows: windows)
    windows = peers.resized_crop(torch.zeros(4000, 3, 32, 32), torch.Generator().manual_seed(0), ratio=ratio)
    top, left, height, width = windows.unbind(1)
    assert (windows >= 0).all() and (top + height <= 1.0001).all() and (left + width <= 1.0001).all()
    free = (height < 1) & (width < 1)
    area, shape = (height * width)[free], (width / height)[free]
    assert 0.8 - 1e-4 <= area.min() < 0.81 and area.max() <= 1
    assert ratio[0] - 1e-4 <= shape.min() and shape.max() <= ratio[1] + 1e-4
    assert shape.log().mean().abs() < 0.02
    torch.manual_seed(0)
    image = torch.zeros(3, 32, 32)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, (0.8, 1), ratio) for _ in range(4000)]) / 32
    means = [((x[:, 2] * x[:, 3]).mean(), (x[:, 3] / x[:, 2]).log().abs().mean()) for x in (windows, theirs)]
    (own_area, own_shape), (area, shape) = means
    assert abs(own_area - area) < 0.01 and abs(own_shape - shape) < 0.035


def test_what_stands_in_for_auto_augment_is_as_strong():
    draws = [draw for pair in AutoAugment(AutoAugmentPolicy.CIFAR10).policies for draw in pair]
    strengths = [(p, m / 9) for _, p, m in draws if m is not None]
    stand_in = peers.AUGMENTATIONS["auto_augment"][1].keywords
    assert sum(p for _, p, _ in draws) / 25 == pytest.approx(stand_in["num_ops"], abs=0.1)
    mean = sum(p * m for p, m in strengths) / sum(p for p, _ in strengths)
    assert mean == pytest.approx(stand_in["magnitude"] / 30, abs=0.02)


@pytest.fixture(scope="module")
def data():
    return vit.load_data("shapes", num_train=256, num_val=8, num_test=8)


@pytest.mark.parametrize("name", PEERS)
def test_both_feeds_augment_in_the_published_order(name, data, monkeypatch):
    peer, done = replace(PEERS[name], batch_size=256), []
    recorders = {
        augmentation: (
            lambda picture, n=augmentation: done.append(n) or picture,
            lambda images, generator, n=augmentation: done.append(n) or images,
        )
        for augmentation in peers.AUGMENTATIONS
    }
    monkeypatch.setattr(peers, "AUGMENTATIONS", recorders)
    published = [augmentation for augmentation in peer.augment if augmentation in recorders]
    plain = normalize(data.train.images, peer.mean, peer.std)
    for feed, times in {"batched": 1, "per_sample": 256}.items():
        images, labels = next(tta.batches_of(peer, feed, data, seed=0, workers=0))
        assert images.shape == (256, 3, 32, 32) and images.dtype == torch.float32
        assert labels.shape == ((256, 10) if peer.mixes else (256,))
        assert done == published * times, feed
        done.clear()
        if not peer.mixes:  # nothing but the order and the normalization is left
            one, other = (x.double().mean(dim=(1, 2, 3)).sort().values for x in (images, plain))
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["flip", "crop", "rand_augment_9", "rand_augment_14"])
def test_an_augmentation_is_the_same_for_pictures_and_for_batches(name, data):
    """Of one image again and again: mean and mean square of every pixel, in standard errors."""
    side = torch.arange(32)
    channels = [8 * side.expand(32, 32), 8 * side[:, None].expand(32, 32), 100 * ((side[:, None] // 8 + side // 5) % 2)]
    same = vit.data.Split(torch.stack(channels).to(torch.uint8).repeat(2000, 1, 1, 1), torch.zeros(2000).long())

    def seen(feed: str, *augment: str) -> torch.Tensor:
        peer = replace(PEERS["s-chh"], augment=(*augment, "to_tensor", "normalize"), batch_size=250)
        batches = tta.batches_of(peer, feed, replace(data, train=same), seed=0, workers=0)
        return torch.cat([images for images, _ in itertools.islice(batches, 8)]).double()

    def gap(x: torch.Tensor, y: torch.Tensor) -> float:
        gaps = []
        for a, b in ((x, y), (x**2, y**2)):
            error = ((a.var(dim=0) + b.var(dim=0)) / len(a)).sqrt() + 1e-3
            rounding = 0.03  # less than two of 255 levels
            gaps.append(((a.mean(dim=0) - b.mean(dim=0)).abs() - rounding) / error)
        return torch.stack(gaps).max().item()

    torch.manual_seed(0)
    pictures, batches = (seen(feed, name) for feed in tta.FEEDS)
    assert gap(pictures, batches) < 6
    assert gap(pictures, seen("batched")) > 25, "it does something"


def test_crops_take_every_window_of_the_padded_image():
    images = torch.randint(1, 256, (1, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    padded = F.pad(images[0], [4] * 4)
    windows = {padded[:, y : y + 6, x : x + 5].numpy().tobytes() for y in range(9) for x in range(9)}
    cut = peers.padded_crop(images.expand(1500, -1, -1, -1), torch.Generator().manual_seed(0))
    assert len(windows) == 81 and {image.numpy().tobytes() for image in cut.contiguous()} == windows


def test_one_image_in_four_is_erased():
    images = torch.zeros(2000, 3, 32, 32, dtype=torch.uint8)
    erased = peers.erase(images, torch.Generator().manual_seed(0), fill=(1.0, 1.0, 1.0))[:, 0] == 255
    share = erased.flatten(1).any(dim=1).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.03)
    assert erased.flatten(1).sum(dim=1).max() == 15 * 15


# Runs


@pytest.mark.parametrize(
    ("durations", "mean", "taken"),
    [
        ([0.5, 0.1, 0.1, 0.1, 2, 3, 4, 9], 3, 7),  # four to warm up; the third that counts ends the nine seconds
        ([1, 1.5, 5, 5, 5], 5, 4),  # two seconds of warming up are enough
        ([30, 20, 20], 20, 2),  # at least one step
    ],
)
def test_a_step_is_timed_after_the_warm_up(monkeypatch, durations, mean, taken):
    now, done = [100.0], []

    def steps():
        for duration in durations:
            yield len(done)
            now[0] += duration
            done.append(duration)

    monkeypatch.setattr(tta.time, "perf_counter", lambda: now[0])
    running = steps()
    next(running)
    assert tta.timed(running, seconds=8.5) == pytest.approx(mean) and len(done) == taken


def test_validation_is_off_the_clock(monkeypatch):
    now = [0.0]

    def evaluate(model, loader, **options):
        now[0] += 1000
        return type("", (), {"accuracy": now[0]})

    monkeypatch.setattr(tta.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(tta.vit, "evaluate", evaluate)
    track = tta.Track(None, 25)
    for _ in range(25):
        track(None)
        now[0] += 1
    track.look(None)
    assert track.seconds == 25
    assert list(track.accuracy) == [2, 5, 8, 10, 12, 15, 18, 20, 22, 25]


def test_a_recipe_of_ours_that_mixes_images_is_stretched_to_the_steps(data):
    model_config, config = vit.recipe("quick", device="cpu", cutmix_alpha=1.0, mix_until=0.5)
    seen = []
    few = replace(data, train=data.train.subset(slice(60)))
    tta.train_ours(vit.VisionTransformer(model_config), config, few, 5, seen.append)
    assert len(seen) == 5


def test_operations_are_counted_with_the_patches_that_are_dropped():
    config = PEERS["uva15"].model
    T, D, hidden = 65, 256, 512
    block = T * (3 * D * D + D * D + 2 * D * hidden) + 2 * T * T * D
    by_hand = 2 * (64 * 48 * D + 6 * block + 10 * D)
    assert forward_flops(PlainViT(config)) == by_hand
    model = vit.VisionTransformer(vit.ViTConfig.preset("vit_pico_patch8_32", pool="mean"))
    of_tokens = [4 * (T * (4 * 64 * 64 + 2 * 64 * 256) + 2 * T * T * 64) for T in (16, 8)]
    saved = forward_flops(model) - forward_flops(model, patch_drop_rate=0.5)
    assert saved == 2 * (of_tokens[0] - of_tokens[1])
    assert model.patch_drop.rate == 0


@pytest.fixture
def in_this_process(monkeypatch, tmp_path):
    """Runs the script with arguments, its processes included, and keeps its files in a folder of the test."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["time_to_accuracy.py", *arguments])
        tta.main()

    def child(command):
        main(*command[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(tta, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(tta, "QUICK_FOLDER", tmp_path / "runs")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(tta, "FIGURE", tmp_path / "figure.png")
    monkeypatch.setattr(tta, "subprocess", SimpleNamespace(run=child))
    monkeypatch.setattr(tta, "signal", SimpleNamespace(signal=lambda *_: None, SIGTERM=None))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return main


def test_the_quick_form_runs_and_stores_nothing(in_this_process, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tta.vit, "load_data", functools.cache(vit.load_data))
    monkeypatch.setattr(tta, "TURNS", 1)
    before = {path.name: path.read_text() for path in report.RESULTS.glob("*.json")}
    in_this_process("--quick", "--peers", "ours", "tintn", "spt_lsa")
    names = [("ours", "quick"), *((name, feed) for name in ("tintn", "spt_lsa") for feed in tta.FEEDS)]
    printed, table = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in printed.splitlines()] == [f"quick.{name}.{variant}" for name, variant in names]
    assert {tuple(line.split()[:2]) for line in table.splitlines()[1:]} == set(names)
    for name, variant in names:
        result = json.loads((tmp_path / "runs" / "quick" / f"{name}-{variant}-seed0.json").read_text())
        seconds = result["settings"]["measured"]["seconds_per_step"]
        last = result["curve"][-1]
        assert result["steps"] == max(1, int(0.3 / seconds)) == last["step"]
        assert last["seconds"] <= max(0.3, seconds) and last["flops"] == result["train_flops"] > 0
    assert {path.name: path.read_text() for path in tmp_path.glob("*.json")} == before == {}
    assert not tta.FIGURE.exists()


def test_a_finished_run_is_not_repeated_and_claims_are_kept(in_this_process, tmp_path, monkeypatch, data):
    few = replace(data, train=data.train.subset(slice(32)))
    monkeypatch.setattr(tta.vit, "load_data", lambda name: few)
    for name, seconds in {"PROBE_SECONDS": 0.01, "TURN_SECONDS": 0.01, "WARM_UP_SECONDS": 0.01, "TURNS": 1}.items():
        monkeypatch.setattr(tta, name, seconds)
    arguments = ["--minutes", "0.001", "--seeds", "0", "1", "--preset", "quick", "--feeds", "batched"]
    in_this_process(*arguments, "--peers", "tintn", "ours", "--measure")
    times = tmp_path / "runs" / "step_times.json"
    assert list((tmp_path / "runs").iterdir()) == [times]
    known = json.loads(times.read_text())
    for row in known.values():
        row["measured"]["seconds_per_step"] = 0.02
    times.write_text(json.dumps(known))
    in_this_process(*arguments, "--peers", "tintn")
    result = tmp_path / "runs" / "0.001min" / "tintn-batched-seed1.json"
    written = result.stat().st_mtime_ns
    in_this_process(*arguments, "--peers", "ours", "tintn")
    assert result.stat().st_mtime_ns == written
    claims = report.load("time_to_accuracy")
    assert list(claims) == ["0.001min.tintn.batched", "0.001min.ours.quick"]
    commands = [claim["command"].split("time_to_accuracy.py ")[1] for claim in claims.values()]
    assert commands == [
        f"--minutes 0.001 --peers {chosen}" for chosen in ("tintn --feeds batched", "ours --preset quick")
    ]
    for c in claims.values():
        assert c["steps"] == 3 and c["seeds"] == [0, 1] and len(c["values"]) == 2
        assert c["measured"]["seconds_per_step"] == 0.02 and len(c["train_seconds"]) == 2
    assert not tta.FIGURE.exists(), "the README's is of five minutes"
    monkeypatch.setattr(tta, "DRAWN_MINUTES", 0.001)
    one_seed = ["--minutes", "0.001", "--seeds", "0", *arguments[5:]]
    in_this_process(*one_seed, "--peers", "ours", "tintn")
    assert tta.FIGURE.exists()
    assert all(claim["seeds"] == [0, 1] for claim in report.load("time_to_accuracy").values()), "of other days too"
    twice = ["--minutes", "0.002", "--seeds", "0", *arguments[5:]]
    in_this_process(*twice, "--peers", "tintn")
    claims = report.load("time_to_accuracy")
    assert len(claims) == 3 and claims["0.002min.tintn.batched"]["steps"] == 6
    known["tintn.batched"]["recipe"]["batch_size"] = 1
    times.write_text(json.dumps(known))
    in_this_process(*twice, "--peers", "tintn")
    row = json.loads(times.read_text())["tintn.batched"]
    assert row["recipe"]["batch_size"] == 256 and row["measured"]["seconds_per_step"] != 0.02, "of another recipe"


def options_in(folder, **changes):
    values = {"quick": False, "minutes": 1.0, "folder": folder, "threads": None}
    return SimpleNamespace(**values | changes)


def test_steps_are_timed_in_turns_and_stored_at_the_pace_of_ours(monkeypatch, tmp_path, data):
    monkeypatch.setattr(tta.vit, "load_data", lambda name: data)
    base, peer = (tta.Run(*key, 0, options_in(tmp_path)) for key in (("ours", "cpu_5min"), ("tintn", "batched")))
    order, own, theirs = [], iter([0.05, 0.1, 0.1, 0.2, 0.1, 0.1]), iter([0.3, 0.3, 0.9, 0.3, 0.2])
    monkeypatch.setattr(tta.Run, "own_seconds", lambda run, *rest: order.append(run.key) or next(own))
    monkeypatch.setattr(tta, "timed", lambda steps, seconds: order.append("tintn.batched") or next(theirs))
    monkeypatch.setattr(tta.torch, "get_num_threads", lambda: 2)
    base.measure()
    assert base.measured["seconds_per_step"] == 0.05
    peer.measure()
    assert order[1:] == ["ours.cpu_5min", "tintn.batched"] * tta.TURNS, "in turns"
    assert peer.measured["times_base"] == pytest.approx([3, 3, 4.5, 3, 2])
    assert peer.measured["seconds_per_step"] == pytest.approx(3 * 0.05)
    monkeypatch.setattr(tta.torch, "get_num_threads", lambda: 1)
    with pytest.raises(SystemExit, match=r"ours was timed with 2 threads: time tintn.batched with as many"):
        peer.measure()


def test_a_stored_recipe_may_lack_options_that_came_later(tmp_path):
    run = tta.Run("ours", "cpu_5min", 0, options_in(tmp_path))
    stored = json.loads(json.dumps(run.recipe))
    del stored["train"]["patch_drop_until"], stored["model"]["fc_norm"]
    assert not run.is_of(stored), "patch_drop_until is not the default's"
    stored["train"]["patch_drop_until"] = run.config.patch_drop_until
    assert run.is_of(stored)
    assert not run.is_of({}) and not tta.Run("tintn", "batched", 0, options_in(tmp_path)).is_of({})


def test_a_run_that_fails_does_not_stop_the_others(in_this_process, tmp_path, monkeypatch, data):
    few = replace(data, train=data.train.subset(slice(32)))
    monkeypatch.setattr(tta.vit, "load_data", lambda name: few)
    for name, seconds in {"PROBE_SECONDS": 0.01, "TURN_SECONDS": 0.01, "TURNS": 1}.items():
        monkeypatch.setattr(tta, name, seconds)
    well, train = tta.subprocess.run, tta.Run.train
    monkeypatch.setattr(tta.Run, "train", lambda run: train(run) if run.name != "tintn" else 1 / 0)

    def child(command):
        try:
            return well(command)
        except ZeroDivisionError:
            return SimpleNamespace(returncode=1)

    monkeypatch.setattr(tta, "subprocess", SimpleNamespace(run=child))
    monkeypatch.setattr(tta, "BASE", "quick")
    arguments = ["--minutes", "0.001", "--seeds", "0", "--preset", "quick", "--feeds", "batched"]
    with pytest.raises(SystemExit, match="failed: tintn-batched-seed0"):
        in_this_process(*arguments, "--peers", "tintn", "ours")
    assert list(report.load("time_to_accuracy")) == ["0.001min.ours.quick"]


def test_stored_runs_are_of_todays_recipes():
    """Those of an older recipe would be trained again, and until then the README would state what nobody gets."""
    found = sorted(tta.FOLDER.glob("*min/*.json"))
    for path in found:
        key, seed = path.stem.rsplit("-seed", 1)
        name = next(name for name in (tta.OURS, *PEERS) if key.startswith(f"{name}-"))
        options = options_in(tta.FOLDER, minutes=float(path.parent.name.removesuffix("min")))
        assert tta.Run(name, key.removeprefix(f"{name}-"), int(seed), options).result(), path.name
    assert len(found) >= sum(len(claim["values"]) for claim in report.load("time_to_accuracy").values())


def test_stored_results_meet_their_bars():
    claims = report.load("time_to_accuracy")
    ours = claims["5min.ours.cpu_5min"]
    assert ours["seeds"] == [0, 1, 2] and ours["minutes"] == 5
    assert ours["value"] >= 80 and ours["train_flops"] <= 0.12e15
    assert max(ours["peak_memory_gb"]) < 1.5
    longer = claims["20min.ours.cpu_20min"]
    assert longer["seeds"] == [0, 1, 2] and longer["minutes"] == 20 and longer["value"] >= 84
    of_peers = [c for c in claims.values() if c["minutes"] == 5 and c["recipe"] in PEERS]
    assert {c["recipe"] for c in of_peers} == set(PEERS), "each is there"
    best = max(of_peers, key=lambda c: c["value"])
    assert best["seeds"] == [0, 1, 2] and (100 - ours["value"]) / (100 - best["value"]) <= 0.65


# Figure


def test_the_figure_shows_every_run_against_time_and_work():
    curves = [
        {"name": name, "variant": variant, "seconds": [1, 2], "flops": [1e9, 2e9 + i], "accuracy": [10, 20 + i]}
        for i, (name, variant) in enumerate([("ours", "a"), ("tintn", "per_sample"), ("tintn", "batched")])
    ]
    figure = plot_time_to_accuracy(curves, title="x")
    for ax, x in zip(figure.axes, ("seconds", "flops"), strict=True):
        drawn = [line for line in ax.lines if len(line.get_xdata()) == 2]
        assert [line.get_xdata().tolist() for line in drawn] == [curve[x] for curve in reversed(curves)]
        assert [line.get_ydata().tolist() for line in drawn] == [curve["accuracy"] for curve in reversed(curves)]
        batched, per_sample, ours = drawn
        assert batched.get_color() == per_sample.get_color() != ours.get_color()
        assert batched.get_linestyle() != per_sample.get_linestyle()
        assert ax.get_xlabel()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["22.0  tintn, batched", "21.0  tintn, per sample", "20.0  ours, a"]
    for span in (3, 29, 31, 99, 101, 1000, 30_000):
        wide = plot_time_to_accuracy([curves[0] | {"flops": [1e12, span * 1e12]}])
        wide.draw_without_rendering()
        axis = wide.axes[1].xaxis
        ticks = [t for t in axis.get_major_ticks() if axis.get_view_interval()[0] <= t.get_loc() <= 1.1 * span * 1e12]
        boxes = [tick.label1.get_window_extent() for tick in ticks]
        assert len(boxes) > 1 and all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes)), f"labels overlap at {span}"
    with pytest.raises(ValueError, match="curves has 0 names; between 1 and 7"):
        plot_time_to_accuracy([])
    with pytest.raises(ValueError, match="curve of 'ours' must have as many seconds as flops"):
        plot_time_to_accuracy([curves[0] | {"seconds": [1]}])


def test_work_and_accuracy_are_drawn_as_given_and_what_is_only_stated_is_hollow():
    recipes = {"ours": [(1e12, 50.0, True), (3e12, 60.0, True)], "other": [(2e12, 40.0, True), (4e13, 90.0, False)]}
    ax = plot_accuracy_and_work(recipes, title="x").axes[0]
    lines, hollow = ax.lines[0:4:2], ax.lines[1:4:2]
    assert [[*zip(*line.get_data(), strict=True)] for line in lines] == [[p[:2] for p in of] for of in recipes.values()]
    assert [[*zip(*line.get_data(), strict=True)] for line in hollow] == [[], [(4e13, 90.0)]]
    assert {line.get_markerfacecolor() for line in hollow} == {"white"}
    looks = {(line.get_color(), line.get_marker()) for line in lines}
    assert len(looks) == 2 and looks == {(line.get_color(), line.get_marker()) for line in hollow}
    assert lines[0].get_linewidth() > lines[1].get_linewidth() and ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "ours",
        "other",
        "hollow: stated, not measured",
    ]
    measured = plot_accuracy_and_work({"ours": recipes["ours"]}).axes[0]
    assert [text.get_text() for text in measured.get_legend().get_texts()] == ["ours"]
    with pytest.raises(ValueError, match="recipes has 9 names; between 1 and 8"):
        plot_accuracy_and_work({str(i): recipes["ours"] for i in range(9)})
    with pytest.raises(ValueError, match=r"recipes\['a'\] has operations \[0.0\]; each must be more"):
        plot_accuracy_and_work({"a": [(0.0, 1.0, True)]})
    for empty in ({}, {"a": []}):
        with pytest.raises(ValueError, match="is empty"):
            plot_accuracy_and_work(empty)
