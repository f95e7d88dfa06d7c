"""Fine-tuning: rates by layer against timm and a table by hand, fresh heads, and what a network has seen before."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from conftest import randomize, same_weights

import vit
from vit.config import TrainConfig, ViTConfig
from vit.data import DataSplits, keep_classes, sample_shots
from vit.model import VisionTransformer
from vit.tasks import fine_tuning, lora, prompts
from vit.training import build_optimizers
from vit.training.state_file import read_state

PICO = {"image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}


def rates(model: torch.nn.Module, config: TrainConfig, layer_decay: float) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter."""
    names = {p: name for name, p in model.named_parameters()}
    groups = [g for o in build_optimizers(model, config, layer_decay=layer_decay) for g in o.param_groups]
    assert all(g["peak_lr"] == g["lr"] for g in groups)
    return {names[p]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_rates_are_a_table_by_hand(tiny):
    model = VisionTransformer(tiny)  # two blocks: stem 0, blocks 1 and 2, head 3
    found = rates(model, TrainConfig(optimizer="adamw", learning_rate=0.8), 0.5)
    expected = {"patch_embed.": 0.1, "pos_embed": 0.1, "cls_token": 0.1, "encoder.blocks.0.": 0.2,
                "encoder.blocks.1.": 0.4, "encoder.norm.": 0.4, "head.": 0.8}  # fmt: skip
    for prefix, rate in expected.items():
        of_prefix = {round(lr, 9) for name, (lr, _) in found.items() if name.startswith(prefix)}
        assert of_prefix == {rate}, prefix
    assert sum(any(name.startswith(prefix) for prefix in expected) for name in found) == len(found)
    muon = rates(model, TrainConfig(muon_learning_rate=0.08, learning_rate=0.8), 0.5)
    assert muon["encoder.blocks.0.mlp.fc1.weight"][0] == pytest.approx(0.02)
    assert muon["encoder.blocks.0.mlp.fc1.bias"][0] == pytest.approx(0.2)


@pytest.mark.parametrize("layer_decay", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("num_classes", [10, 0])
def test_groups_are_timms(layer_decay, num_classes):
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    options = {"embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": num_classes}
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=4, reg_tokens=2, class_token=True, init_values=0.1, pre_norm=True, **options
    )
    names = {p: name for name, p in model.named_parameters()}
    tables = ("cls_token", "reg_token", "pos_embed")
    theirs = param_groups_layer_decay(model, 0.05, tables, layer_decay=layer_decay)
    expected = {names[p]: (0.01 * g["lr_scale"], g["weight_decay"]) for g in theirs for p in g["params"]}
    config = TrainConfig(optimizer="adamw", learning_rate=0.01, weight_decay=0.05)
    found = rates(model, config, layer_decay)
    assert found.keys() == expected.keys()
    for name, pair in expected.items():
        assert found[name] == pytest.approx(pair), name


def test_the_token_of_a_distillation_is_in_the_layer_that_timm_has_it_in():
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    model = timm.create_model("deit_tiny_distilled_patch16_224", depth=2, img_size=16)
    names = {p: name for name, p in model.named_parameters()}
    theirs = {names[p]: g["lr_scale"] for g in param_groups_layer_decay(model, layer_decay=0.5) for p in g["params"]}
    found = rates(model, TrainConfig(optimizer="adamw", learning_rate=1.0), 0.5)
    assert {name: rate for name, (rate, _) in found.items()} == theirs and theirs["dist_token"] == 0.125


def test_names_that_do_not_tell_the_layers_are_refused():
    """Else the first layers of stages of blocks would have the full rate, and all of torchvision's the same."""
    timm = pytest.importorskip("timm")
    import torchvision

    stages = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=1, embed_dim=24)
    others = torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32)
    for model in (stages, others, torch.nn.ModuleDict({"stem": torch.nn.Linear(3, 3), "blocks": stages.layers})):
        with pytest.raises(ValueError, match=rf"layer_decay=0.5 goes by names .*{type(model).__name__} has others"):
            build_optimizers(model, TrainConfig(), layer_decay=0.5)
        assert build_optimizers(model, TrainConfig())


def test_our_names_and_timms_fall_into_the_same_layers(tiny):
    timm = pytest.importorskip("timm")
    ours = VisionTransformer(ViTConfig(**(tiny.to_dict() | {"head": "linear"})))
    theirs = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=10
    )
    config = TrainConfig(optimizer="adamw")
    a, b = (rates(model, config, 0.6) for model in (ours, theirs))
    assert {name.removeprefix("encoder."): pair for name, pair in a.items()} == b


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("form", ["ours", "timms", "compiled"])
def test_a_network_within_another_has_the_same_rates(tiny, optimizer, form):
    model = VisionTransformer(replace(tiny, num_registers=2))
    if form == "timms":
        timm = pytest.importorskip("timm")
        model = timm.models.VisionTransformer(
            img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3, reg_tokens=2, pre_norm=True
        )
    config = TrainConfig(optimizer=optimizer)
    expected = rates(model, config, 0.5)
    inner = torch.compile(model) if form == "compiled" else model
    wrapper = torch.nn.ModuleDict({"backbone": inner, "norm": torch.nn.LayerNorm(3), "decoder": torch.nn.Linear(3, 3)})
    found = rates(wrapper, config, 0.5)
    own = {name: found.pop(name)[0] for name in list(found) if not name.startswith("backbone.")}
    assert {name.removeprefix("backbone.").removeprefix("_orig_mod."): pair for name, pair in found.items()} == expected
    assert len(own) == 4 and set(own.values()) == {config.learning_rate}, "what is put on top has the full rate"


def test_timms_network_may_be_the_encoder_of_another():
    """Which is what ours calls its blocks."""
    timm = pytest.importorskip("timm")
    model = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3, reg_tokens=2, pre_norm=True
    )
    found = rates(torch.nn.ModuleDict({"encoder": model}), TrainConfig(optimizer="adamw"), 0.5)
    expected = rates(model, TrainConfig(optimizer="adamw"), 0.5)
    assert {name.removeprefix("encoder."): pair for name, pair in found.items()} == expected


@pytest.mark.parametrize("layer_decay", [0.0, 1.1, -1.0])
def test_a_bad_decay_is_refused(tiny, layer_decay):
    with pytest.raises(ValueError, match=rf"layer_decay={layer_decay} must be in \(0, 1\]"):
        build_optimizers(VisionTransformer(tiny), TrainConfig(), layer_decay=layer_decay)


def test_frozen_parameters_are_left_out_and_all_frozen_is_an_error(tiny):
    model = VisionTransformer(tiny).requires_grad_(False)
    with pytest.raises(ValueError, match="all parameters of the model are frozen"):
        build_optimizers(model, TrainConfig())
    model.head.requires_grad_(True)
    assert set(rates(model, TrainConfig(), 0.5)) == {f"head.{n}" for n, _ in model.head.named_parameters()}
    model.requires_grad_(False)
    model.encoder.blocks[0].mlp.fc1.weight.requires_grad_(True)
    assert len(build_optimizers(model, TrainConfig())) == 1, "Muon alone"


@pytest.fixture(scope="module")
def halves(shapes) -> tuple[DataSplits, DataSplits]:
    return keep_classes(shapes, range(5)), keep_classes(shapes, range(5, 10))


@pytest.fixture(scope="module")
def source_model(halves) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(ViTConfig(num_classes=5, **PICO))
    model.metadata = halves[0].metadata
    return randomize(model).eval()


def test_a_new_head_keeps_the_body_the_normalization_and_the_past(source_model, halves):
    source, target = halves
    target = keep_classes(target, [0, 1, 2])
    source_model.metadata |= {"crop": 0.9, "test_accuracy": 83.1, "trained_on": "shapes"}
    model = fine_tuning.with_new_head(source_model, target)
    assert model.metadata.keys() == {"mean", "std", "crop", "dataset", "class_names", "pretrained_on"}
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.forward_features(images), source_model.forward_features(images))
    assert model(images).shape == (2, 3) and isinstance(model.head, torch.nn.Linear)
    assert model(images).abs().max() == 0, "a fresh head says nothing yet"
    assert model.metadata["class_names"] == target.class_names
    assert model.metadata["mean"] == source.mean != target.mean
    sets = [{"dataset": "shapes", "class_names": source.class_names}]
    assert model.metadata["pretrained_on"] == sets
    again = fine_tuning.with_new_head(model, target)
    assert again.metadata["pretrained_on"] == [*sets, {"dataset": "shapes", "class_names": target.class_names}]


def test_a_new_head_rounds_no_weight(source_model, halves):
    model = randomize(copy.deepcopy(source_model).double())
    fresh = fine_tuning.with_new_head(model, halves[1])
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(fresh.forward_features(images), model.forward_features(images))


def test_a_compiled_model_is_taken_for_what_is_in_it(source_model, halves):
    compiled = torch.compile(source_model, backend="eager")
    fresh = fine_tuning.with_new_head(compiled, halves[1])
    assert same_weights(fresh, fine_tuning.with_new_head(source_model, halves[1]))
    assert fresh.metadata["pretrained_on"][0]["class_names"] == halves[0].class_names


def test_seen_classes_are_refused(source_model, halves, tmp_path):
    source, target = halves
    fine_tuning.check_unseen(source_model, target)
    stored = vit.load(vit.save(source_model, tmp_path / "model.safetensors"))
    fine_tuning.check_unseen(stored, target)
    for model in (source_model, stored, fine_tuning.with_new_head(stored, target)):
        with pytest.raises(ValueError, match=f"learned from {source.class_names[1]} of shapes already"):
            fine_tuning.check_unseen(model, keep_classes(source, [1]))
    with pytest.raises(ValueError, match="learned from"):
        fine_tuning.check_unseen(fine_tuning.with_new_head(stored, target), target)
    with pytest.raises(ValueError, match="does not say what the weights learned from"):
        fine_tuning.check_unseen(VisionTransformer(source_model.config), target)


def test_weights_of_other_libraries_are_taken_and_their_past_is_unknown(halves):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    model = fine_tuning.with_new_head(vit.pretrained.load_weights(None, theirs, report=None), halves[1])
    assert model.metadata["mean"] == list(theirs.pretrained_cfg["mean"]) != halves[1].mean
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.forward_features(images), theirs.forward_features(images), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="does not say what the weights learned from; if you know it, set its"):
        fine_tuning.check_unseen(model, halves[0])


def test_the_shipped_weights_know_what_they_have_seen(shapes):
    with pytest.raises(ValueError, match="of shapes already"):
        fine_tuning.check_unseen(vit.load("vit_nano_patch4_32.shapes"), keep_classes(shapes, [3]))


@pytest.mark.parametrize("kind", ["all", "lora", "prompts"])
def test_fine_tuning_learns_and_leaves_what_is_frozen(source_model, halves, kind):
    target = halves[1]
    shots = replace(target, train=sample_shots(target.train, 3))
    torch.manual_seed(0)
    model = fine_tuning.with_new_head(source_model, shots)
    if kind != "all":
        model = lora.add(model) if kind == "lora" else prompts.add(model)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    config = TrainConfig(
        epochs=60, batch_size=15, optimizer="adamw", learning_rate=1e-2, warmup_epochs=3, device="cpu", flip="none",
        crop_padding=0, label_smoothing=0.0,
    )  # fmt: skip
    history = fine_tuning.fine_tune(model, shots, config, layer_decay=0.8, validate=False)
    losses = [row["train_loss"] for row in history.rows]
    assert losses[-1] < {"all": 0.2, "lora": 0.5, "prompts": 0.95}[kind] * losses[0]
    assert "val_accuracy" not in history.last
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_fine_tuning_normalizes_as_the_network_was_trained(source_model, halves, monkeypatch):
    seen = []
    monkeypatch.setattr(fine_tuning, "fit", lambda model, *loaders_and_config, **_: seen.extend(loaders_and_config[:2]))
    fine_tuning.fine_tune(fine_tuning.with_new_head(source_model, halves[1]), halves[1], TrainConfig())
    assert all(loader.mean == halves[0].mean and loader.std == halves[0].std for loader in seen) and len(seen) == 2
    with pytest.raises(TypeError, match=r"make_optimizers is not an option of fine_tune.*make_loaders\(.*model=model"):
        fine_tuning.fine_tune(source_model, halves[0], TrainConfig(), make_optimizers=build_optimizers)
    with pytest.raises(ValueError, match="does not say how its images were normalized"):
        fine_tuning.fine_tune(VisionTransformer(source_model.config), halves[1], TrainConfig())


def test_networks_of_timm_are_fine_tuned_too(halves):
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2, num_classes=5
    )
    before = model.blocks[0].mlp.fc1.weight.detach().clone()
    config = TrainConfig(epochs=1, warmup_epochs=0, optimizer="adamw", device="cpu")
    with pytest.raises(ValueError, match="does not say what the weights learned from"):
        fine_tuning.check_unseen(model, halves[1])
    with pytest.raises(TypeError, match=r"got timm\..*VisionTransformer; one of another library becomes one by"):
        fine_tuning.with_new_head(model, halves[1])
    history = fine_tuning.fine_tune(model, halves[1], config, layer_decay=0.75)
    assert history.is_complete and history.last["val_accuracy"] > 0
    assert not torch.equal(model.blocks[0].mlp.fc1.weight, before)


def test_higher_resolution_has_the_same_weights_on_a_finer_grid(source_model, halves):
    model = fine_tuning.with_new_head(source_model, halves[1]).resized(24)
    assert model.config.grid_size == (6, 6)
    assert torch.equal(model.encoder.blocks[0].attn.qkv.weight, source_model.encoder.blocks[0].attn.qkv.weight)
    native = fine_tuning.with_new_head(source_model, halves[1]).resized(16)
    assert torch.equal(native.pos_embed, source_model.pos_embed), "at its own grid nothing is resampled"


def test_val_may_be_empty_where_nobody_measures_it(source_model, halves):
    config = TrainConfig(epochs=1, batch_size=100, warmup_epochs=0, device="cpu")
    trained, rows = [], []
    for val in (halves[1].val, halves[1].val.subset(slice(0))):
        torch.manual_seed(0)
        trained.append(fine_tuning.with_new_head(source_model, halves[1]))
        history = fine_tuning.fine_tune(trained[-1], replace(halves[1], val=val), config, validate=False)
        rows.append({name: number for name, number in history.last.items() if name != "seconds"})
    assert rows[0] == rows[1] and same_weights(*trained)
    with pytest.raises(ValueError, match=r"data\.val holds no image"):
        fine_tuning.fine_tune(trained[0], replace(halves[1], val=val), config)


def test_fine_tune_hands_its_arguments_on(shapes, tmp_path):
    model = VisionTransformer(ViTConfig(**PICO))
    model.metadata = shapes.metadata
    config = TrainConfig(epochs=0.2, warmup_epochs=0, optimizer="adamw", device="cpu")
    fine_tuning.fine_tune(model, shapes, config, layer_decay=0.5, run_dir=tmp_path)
    (adamw,) = read_state(tmp_path / "state.pt")["optimizers"]
    shares = {round(group["peak_lr"] / config.learning_rate, 6) for group in adamw["param_groups"]}
    assert shares == {1.0, 0.5, 0.25, 0.125}, "head, two blocks and the stem"


def test_a_stopped_fine_tuning_goes_on_to_the_same_bits(shapes, tmp_path):
    torch.manual_seed(0)
    source = VisionTransformer(ViTConfig(**PICO))
    source.metadata = shapes.metadata
    config = TrainConfig(epochs=2, batch_size=100, warmup_epochs=0.5, device="cpu")

    def begin(seed: int) -> VisionTransformer:
        torch.manual_seed(seed)
        return fine_tuning.with_new_head(source, shapes)

    whole, asked = begin(1), itertools.count()
    fine_tuning.fine_tune(whole, shapes, config, layer_decay=0.7)
    stopped = fine_tuning.fine_tune(
        begin(1), shapes, config, layer_decay=0.7, run_dir=tmp_path, should_stop=lambda: next(asked) == 4
    )
    assert not stopped.is_complete
    back = begin(2)
    assert fine_tuning.fine_tune(back, shapes, config, layer_decay=0.7, run_dir=tmp_path, resume=True).is_complete
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), whole.parameters(), strict=True))
