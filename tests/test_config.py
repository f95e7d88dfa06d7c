"""Configs: every bad value is refused with its name, its value and what is allowed."""

import copy
import json
import re
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vit
from vit.config import RECIPES, TrainConfig, ViTConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 33}, r"image_size=33 is not a multiple of patch_size=4; try image sides of 32 or 36"),
        ({"image_size": (32, 30)}, r"image_size=\(32, 30\) is not a multiple of patch_size=4"),
        ({"image_size": 2}, r"image_size=2 is smaller than one patch of patch_size=4"),
        ({"image_size": [32]}, r"image_size=\[32\] must be a positive integer"),
        ({"image_size": "32"}, r"image_size='32' must be a positive integer"),
        ({"patch_size": 5}, r"try image sides of 30 or 35, or patch_size 2 or 4 or 8 or 16 or 32"),
        ({"embed_dim": 96, "num_heads": 5}, r"num_heads=5 does not divide embed_dim=96; allowed: 1, 2, 3, 4, 6"),
        ({"depth": 0}, r"depth=0 must be an integer of 1 or more"),
        ({"depth": 6.0}, r"depth=6.0 must be an integer"),
        ({"num_heads": True}, r"num_heads=True must be an integer"),
        ({"embed_dim": -96}, r"embed_dim=-96 must be an integer"),
        ({"drop_rate": 1.5}, r"drop_rate=1.5 must be a number in \[0.0, 1.0\)"),
        ({"attn_drop_rate": -0.1}, r"attn_drop_rate=-0.1 must be a number"),
        ({"drop_path_rate": float("nan")}, r"drop_path_rate=nan must be a number"),
        ({"mlp_ratio": 0.001}, r"mlp_ratio=0.001 leaves the MLP no hidden unit"),
        ({"pool": "avg"}, r"pool='avg' is not a choice; did you mean 'mean'\? allowed: cls, mean"),
        ({"pos_embed": "learnt"}, r"did you mean 'learned'\? allowed: learned, sincos2d, rope, none"),
        ({"qk_norm": 1}, r"qk_norm=1 must be True or False"),
        ({"pool": "cls_register"}, r"needs num_registers"),
        ({"fc_norm": True}, r"fc_norm=True is for pool"),
        ({"embed_dim": 30, "num_heads": 3, "pos_embed": "sincos2d"}, r"embed_dim=30 must be a multiple of 4"),
        ({"embed_dim": 30, "num_heads": 3, "pos_embed": "rope"}, r"head_dim=10; pos_embed=\"rope\" needs a multiple"),
        ({"num_layers": 6}, r"ViTConfig has no field 'num_layers'; did you mean 'depth'\?"),
        ({"embed_dims": 96}, r"ViTConfig has no field 'embed_dims'; did you mean 'embed_dim'\?"),
    ],
)
def test_a_bad_model_setting_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": -1}, r"TrainConfig.learning_rate=-1 must be a number in \[0.0, inf\)"),
        ({"learning_rate": float("nan")}, r"TrainConfig.learning_rate=nan"),
        ({"weight_decay": -1.0}, r"TrainConfig.weight_decay=-1.0"),
        ({"leraning_rate": 1e-3}, r"no field 'leraning_rate'; did you mean 'learning_rate'\?"),
        ({"epochs": 0}, r"epochs=0 must be a number in \(0, inf\)$"),
        ({"epochs": -1}, r"epochs=-1 must be a number in \(0, inf\)$"),
        ({"epochs": "3"}, r"epochs='3' must be a number in"),
        ({"patch_drop_rate": 1.0}, r"patch_drop_rate=1.0 must be a number in \[0.0, 1.0\)"),
        ({"patch_drop_until": 1.5}, r"patch_drop_until=1.5 must be a number in \[0.0, 1.0\]"),
        ({"epochs": 3, "warmup_epochs": 3}, r"warmup_epochs=3 must be shorter than the run of epochs=3"),
        ({"optimizer": "sgd"}, r"optimizer='sgd' is not a choice; allowed: muon, adamw"),
        ({"device": "gpu"}, r"device='gpu' is not a choice; did you mean 'cuda'\? allowed: auto, cpu, cuda, mps"),
        ({"lr": 1e-3}, r"TrainConfig has no field 'lr'; did you mean 'learning_rate'\?"),
        ({"ema_decay": 1.0}, r"ema_decay=1.0 must be a number in \[0.0, 1.0\)"),
        ({"adam_betas": (0.9, 1.0)}, r"adam_betas=\(0.9, 1.0\) must be a tuple of two numbers in \[0, 1\)"),
        ({"batch_size": 0}, r"batch_size=0 must be an integer"),
        ({"accumulation_steps": 0}, r"accumulation_steps=0 must be an integer of 1 or more"),
        ({"batch_size": 4, "accumulation_steps": 8}, r"accumulation_steps=8 must be at most batch_size=4"),
        ({"seed": -1}, r"seed=-1 must be an integer of 0 or more"),
        ({"seed": 2**64}, r"seed=18446744073709551616 must be below 2\*\*63"),
        ({"adam_betas": ("a", "b")}, r"adam_betas=\('a', 'b'\) must be a tuple of two numbers in \[0, 1\)"),
        ({"adam_betas": (True, 0.9)}, r"adam_betas=\(True, 0.9\) must be a tuple of two numbers"),
        ({"mix_probability": 1.1}, r"mix_probability=1.1 must be a number in \[0.0, 1.0\]"),
        ({"mix_until": -0.1}, r"mix_until=-0.1 must be a number in \[0.0, 1.0\]"),
        ({"flat_until": 1.0}, r"flat_until=1.0 must be a number in \[0.0, 1.0\)"),
    ],
)
def test_a_bad_training_setting_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


def test_values_are_given_by_name():
    with pytest.raises(TypeError, match=r"ViTConfig takes its values by name, such as ViTConfig\(image_size=32\)"):
        ViTConfig(32, 4)


def test_unknown_presets_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown preset 'vit_nano'; did you mean 'vit_nano_patch4_32'\? choose from"):
        ViTConfig.preset("vit_nano")


def test_a_recipe_is_the_presets_of_a_network_and_of_a_training():
    assert RECIPES.keys() == set(TrainConfig.list_presets())
    for name, network in RECIPES.items():
        assert vit.recipe(name) == (ViTConfig.preset(network), TrainConfig.preset(name))
    with pytest.raises(ValueError, match=r"unknown recipe 'cpu_5mins'; did you mean 'cpu_5min'\? choose from: "):
        vit.recipe("cpu_5mins")


def test_a_recipe_hands_each_change_to_the_config_that_has_the_field():
    names = [{field.name for field in fields(config)} for config in (ViTConfig, TrainConfig)]
    assert not names[0] & names[1], "a name of both would be ambiguous"
    model, train = vit.recipe("quick", depth=2, seed=7)
    assert model == ViTConfig.preset("vit_pico_patch8_32", depth=2) and train == TrainConfig.preset("quick", seed=7)
    with pytest.raises(ValueError, match=r"a recipe has no field 'deph'; did you mean 'depth'\? fields: .*seed"):
        vit.recipe("quick", deph=2)
    with pytest.raises(ValueError, match="num_heads=5 does not divide embed_dim=64"):
        vit.recipe("quick", num_heads=5)


def test_the_numbers_of_numpy_are_stored_as_those_of_python():
    model = ViTConfig(embed_dim=np.int64(96), image_size=(np.int32(32), np.int64(64)), drop_rate=np.float32(0.5))
    assert model == ViTConfig(embed_dim=96, image_size=(32, 64), drop_rate=0.5)
    train = TrainConfig(epochs=np.int64(3), learning_rate=np.float64(1e-3), adam_betas=(np.float64(0.5), 0.5))
    assert train == TrainConfig(epochs=3, learning_rate=1e-3, adam_betas=(0.5, 0.5))
    for config in (model, train):
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert type(ViTConfig(pos_embed=np.str_("rope")).pos_embed) is str, "no state would hold numpy's"
    assert type(TrainConfig(optimizer=np.str_("adamw")).optimizer) is str
    assert ViTConfig(image_size=np.int64(32)) == ViTConfig(image_size=32)
    for value in (np.bool_(True), np.float64(96), "96"):
        with pytest.raises(ValueError, match="embed_dim=.* must be an integer"):
            ViTConfig(embed_dim=value)


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0.1), (10, 1.0), (30, 3.0), (0.5, 0.05)])
def test_a_preset_of_other_epochs_has_the_same_share_of_warm_up(epochs, warmup):
    for config in (TrainConfig.preset("cpu_10min", epochs=epochs), vit.recipe("cpu_10min", epochs=epochs)[1]):
        assert config.epochs == epochs and config.warmup_epochs == pytest.approx(warmup)
    assert TrainConfig.preset("cpu_10min", epochs=epochs, warmup_epochs=0.25 * epochs).warmup_epochs == 0.25 * epochs
    assert replace(TrainConfig.preset("cpu_10min"), epochs=30).warmup_epochs == 1.0, "which changes one field alone"


def test_a_config_of_other_epochs_has_the_same_share_of_warm_up():
    config = TrainConfig(epochs=4, warmup_epochs=0.5, seed=3)
    assert config.with_epochs(8) == TrainConfig(epochs=8, warmup_epochs=1.0, seed=3)
    assert config.with_epochs(0.4).warmup_epochs == pytest.approx(0.05)
    for epochs in ("8", 0, -1, float("nan")):
        with pytest.raises(ValueError, match=rf"TrainConfig.epochs={epochs!r} must be a number"):
            config.with_epochs(epochs)
    with pytest.raises(ValueError, match="epochs='3' must be a number"):
        TrainConfig.preset("cpu_10min", epochs="3")
    with pytest.raises(ValueError, match="epochs=-3 must be a number"):
        TrainConfig.preset("cpu_10min", epochs=-3)


def test_text_is_never_run_as_code():
    with pytest.raises(ValueError, match="takes a dict, got str"):
        ViTConfig.from_dict("__import__('os').getcwd()")
    with pytest.raises(ValueError, match='depth="__import__'):
        ViTConfig.from_dict({"depth": "__import__('os').getcwd()"})


@pytest.mark.parametrize("config_class", [ViTConfig, TrainConfig])
def test_presets_and_json_round_trip(config_class):
    for name in config_class.list_presets():
        config = config_class.preset(name)
        assert config_class.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_replace_checks_again_and_knows_the_names():
    with pytest.raises(ValueError, match="depth=0"):
        replace(ViTConfig(), depth=0)
    with pytest.raises(ValueError, match="did you mean 'depth'"):
        replace(ViTConfig(), deepth=3)


def test_a_config_does_not_change_and_says_what_to_do():
    for config, name, value in ((TrainConfig(), "epochs", 3), (ViTConfig(), "pool", "mean")):
        with pytest.raises(FrozenInstanceError, match=rf"config = dataclasses.replace\(config, {name}={value!r}\)$"):
            setattr(config, name, value)
        assert config == type(config)() and copy.deepcopy(config) == copy.copy(config) == config
    unknown = r"no field 'lr'; did you mean 'learning_rate'\? .*replace\(config, learning_rate=0.1\)$"
    with pytest.raises(FrozenInstanceError, match=unknown):
        config = TrainConfig()
        config.lr = 0.1


def test_what_is_no_config_is_refused(shapes):
    """Such as a preset's name in its place."""
    with pytest.raises(TypeError, match=r"config='vit_nano_patch4_32' must be a ViTConfig, such as ViTConfig\.preset"):
        vit.VisionTransformer("vit_nano_patch4_32")
    with pytest.raises(TypeError, match=r"config='quick' must be a TrainConfig, such as TrainConfig\.preset"):
        vit.make_loaders(shapes, "quick")


def test_every_field_is_documented():
    for config_class in (ViTConfig, TrainConfig):
        for field in fields(config_class):
            pattern = rf"^ +([a-z_0-9]+, )*{field.name}(, [a-z_0-9]+)*:"
            assert re.search(pattern, config_class.__doc__, re.MULTILINE), f"{field.name} is not documented"


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    patch_size=st.integers(1, 16),
    heads=st.integers(1, 8),
    head_dim=st.integers(1, 16),
    pool=st.sampled_from(["cls", "mean"]),
    registers=st.integers(0, 4),
)
def test_derived_sizes(rows, columns, patch_size, heads, head_dim, pool, registers):
    config = ViTConfig(
        image_size=(rows * patch_size, columns * patch_size),
        patch_size=patch_size,
        embed_dim=heads * head_dim,
        num_heads=heads,
        pool=pool,
        num_registers=registers,
    )
    assert config.grid_size == (rows, columns)
    assert config.num_patches == rows * columns
    assert config.head_dim == head_dim
    assert config.num_prefix_tokens == registers + (pool == "cls")
