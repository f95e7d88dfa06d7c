"""The form says what was put in, offers only what fits together, and explains itself with the configs' own words."""

import inspect
import random
from dataclasses import fields, replace

import pytest

from vit.config import TrainConfig, ViTConfig
from vit.widgets.config_form import ConfigForm, field_help


@pytest.fixture
def form():
    return ConfigForm(ViTConfig(), TrainConfig())


@pytest.mark.parametrize("name", [name for name in ViTConfig.list_presets() if name.endswith("_32")])
def test_it_says_what_was_put_in(form, name):
    config = ViTConfig.preset(name)
    form.show(config, form.train_config)
    assert form.model_config == config


ODD = ViTConfig(
    image_size=(24, 36),
    patch_size=6,
    in_chans=1,
    num_classes=3,
    embed_dim=84,
    depth=21,
    num_heads=7,
    mlp_ratio=2.66,
    layer_scale=2e-6,
    pos_embed="rope",
    patch_init="whitened",
    drop_path_rate=0.07,
    num_registers=11,
    qkv_bias=False,
)
ODD_TRAIN = TrainConfig(
    epochs=41.37,
    batch_size=37,
    learning_rate=0.3,
    muon_learning_rate=3e-6,
    adam_betas=(0.8, 0.9),
    warmup_epochs=7.3,
    ema_decay=0.995,
    seed=12345,
    clip_grad_norm=7.0,
)


def test_values_that_no_control_offers_are_added(form):
    form.show(ODD, ODD_TRAIN)
    assert form.model_config == ODD and form.train_config == ODD_TRAIN
    assert form.controls["model.patch_size"].options == (
        2,
        3,
        4,
        6,
        12,
    )  # sides of 24 and 36 pixels, four patches or more
    form.show(ViTConfig(), TrainConfig())
    assert form.model_config == ViTConfig() and form.train_config == TrainConfig()


SMALL = [
    (ViTConfig(embed_dim=64, num_heads=16), TrainConfig()),
    (ViTConfig(embed_dim=16, num_heads=8), TrainConfig()),
    (ViTConfig(mlp_ratio=0.25, layer_scale=0.0), TrainConfig()),
    (ViTConfig(), TrainConfig(epochs=0.05, warmup_epochs=0)),
    (ViTConfig(), TrainConfig(learning_rate=1e-9, muon_learning_rate=9.999999999999999e-06)),
]


@pytest.mark.parametrize(("model_config", "train_config"), SMALL)
def test_small_values_are_kept(model_config, train_config):
    form = ConfigForm(model_config, train_config)
    assert form.model_config == model_config and form.train_config == train_config


def any_configs(draw: random.Random) -> tuple[ViTConfig, TrainConfig]:
    """Any that the configs accept, far outside what the controls offer at first."""
    width, patch = draw.randint(1, 700), draw.choice((1, 2, 3, 5, 8))
    kind = draw.choice(("learned", "sincos2d", "rope", "none"))
    width *= 4 if kind == "sincos2d" else 1
    multiple = 4 if kind == "rope" else 1
    width *= multiple
    heads = [n for n in range(1, width + 1) if width % n == 0 and width // n % multiple == 0]
    model_config = ViTConfig(
        image_size=(patch * draw.randint(1, 9), patch * draw.randint(1, 9)),
        patch_size=patch,
        embed_dim=width,
        depth=draw.randint(1, 40),
        num_heads=draw.choice(heads),
        mlp_ratio=draw.uniform(1 / width, 9),
        pool=draw.choice(("cls", "mean", "cls_mean", "cls_register")),
        pos_embed=kind,
        patch_init=draw.choice(("xavier", "whitened")),
        num_registers=draw.randint(1, 20),
        act=draw.choice(("gelu", "swiglu")),
        layer_scale=draw.choice((None, 0.0, 1e-5, draw.random())),
        drop_rate=draw.random(),
        drop_path_rate=draw.random(),
    )
    epochs, batch_size = 10 ** draw.uniform(-3, 3), draw.randint(1, 2000)
    train_config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        accumulation_steps=draw.randint(1, batch_size),
        learning_rate=10 ** draw.uniform(-12, 3),
        muon_learning_rate=10.0 ** draw.randint(-12, 3),
        muon_momentum=draw.random(),
        weight_decay=draw.choice((0.0, draw.uniform(0, 9))),
        warmup_epochs=draw.choice((0.0, epochs * 0.9999, epochs * draw.random())),
        schedule=draw.choice(("linear", "constant")),
        flat_until=draw.random(),
        clip_grad_norm=draw.uniform(0, 20),
        ema_decay=draw.choice((0.0, draw.random())),
        crop_padding=draw.randint(0, 20),
        erase_size=draw.randint(0, 40),
        mixup_alpha=draw.uniform(0, 5),
        mix_until=draw.random(),
        label_smoothing=draw.random(),
        seed=draw.randint(0, 2**40),
    )
    return model_config, train_config


def test_any_config_comes_out_as_it_went_in(form):
    """One form for all, so that what it offered for one config must not touch the next."""
    draw = random.Random(0)
    for _ in range(200):
        model_config, train_config = any_configs(draw)
        form.show(model_config, train_config)
        assert form.model_config == model_config and form.train_config == train_config


@pytest.mark.parametrize("name", ["learning_rate", "muon_learning_rate"])
def test_a_rate_of_0_is_refused_and_the_form_stays_as_it_is(form, name):
    form.show(ODD, ODD_TRAIN)
    with pytest.raises(ValueError, match=rf"train\.{name}=0\.0 has no place on the slider of the form; try 1e-5"):
        form.show(ViTConfig(), TrainConfig(**{name: 0.0}))
    assert form.model_config == ODD and form.train_config == ODD_TRAIN


def test_heads_that_were_put_in_come_back_with_their_width(form):
    form.show(ViTConfig(embed_dim=64, num_heads=16), TrainConfig())
    assert form.controls["model.num_heads"].options == (1, 2, 4, 8, 16)
    form.controls["model.embed_dim"].value = 32  # 16 would divide it too
    assert form.controls["model.num_heads"].options == (1, 2, 4) and form.model_config.num_heads == 4
    form.controls["model.embed_dim"].value = 64
    assert form.controls["model.num_heads"].options == (1, 2, 4, 8, 16)


def test_a_width_that_rotates_with_no_number_of_heads_is_refused_by_the_config(form):
    form.show(ViTConfig(embed_dim=6, num_heads=3), TrainConfig())
    form.controls["model.pos_embed"].value = "rope"
    with pytest.raises(ValueError, match="needs a multiple of 4"):
        form.model_config  # noqa: B018
    form.controls["model.pos_embed"].value = "none"
    assert form.model_config.num_heads == 3


def test_every_field_that_a_laptop_wants_has_a_control(form):
    of_model = {f"model.{field.name}" for field in fields(ViTConfig)} - set(form.controls)
    of_training = {f"train.{field.name}" for field in fields(TrainConfig)} - set(form.controls)
    of_data = {"model.image_size", "model.in_chans", "model.num_classes"}
    assert of_model == of_data | {"model.norm_eps", "model.fc_norm", "model.pos_resampling"}
    assert of_training == {"train.adam_betas"}
    assert form.titles == ("network", "optimization", "images")


@pytest.mark.parametrize("pos_embed", ["learned", "sincos2d", "rope", "none"])
def test_heads_follow_the_width(form, pos_embed):
    """Whatever is moved, the configs accept what the form says; all numbers of heads they accept are offered, down to
    a width of 8 a head."""
    heads = form.controls["model.num_heads"]
    for width in form.controls["model.embed_dim"].options:
        form.controls["model.embed_dim"].value = width
        form.controls["model.pos_embed"].value = pos_embed
        config = form.model_config  # raises if refused
        allowed = []
        for num_heads in range(1, width // 8 + 1):
            try:
                replace(config, num_heads=num_heads)
                allowed.append(num_heads)
            except ValueError:
                pass
        assert list(heads.options) == allowed and heads.value in allowed


def test_the_number_of_heads_moves_as_little_as_it_must(form):
    form.show(replace(ViTConfig(), embed_dim=96, num_heads=6), TrainConfig())
    form.controls["model.embed_dim"].value = 128  # 6 heads do not divide it; 4 and 8 are as near
    assert form.model_config.num_heads in (4, 8)
    form.controls["model.embed_dim"].value = 192
    assert form.model_config.num_heads in (4, 8)


def test_a_place_of_a_slider_is_the_number_that_it_shows(form):
    """In a page 8 comes as 7.999999999999998, a sum of steps; a value that was put in stays what it was."""
    form.controls["train.epochs"].value = 7.999999999999998
    form.controls["train.muon_momentum"].value = 0.9500000000000002
    assert (form.train_config.epochs, form.train_config.muon_momentum) == (8.0, 0.95)
    odd = replace(form.train_config, epochs=7.999999999999998)
    form.show(form.model_config, odd)
    assert form.train_config == odd


def test_the_warm_up_stays_shorter_than_the_run(form):
    form.controls["train.warmup_epochs"].value = 3.0
    form.controls["train.epochs"].value = 1.0
    assert form.train_config.warmup_epochs < form.train_config.epochs == 1.0
    form.controls["train.epochs"].value = 0.1
    assert form.train_config.epochs == 0.1 and form.train_config.warmup_epochs < 0.1


def test_what_has_no_effect_is_grayed_out(form):
    grayed = lambda: {name for name, control in form.controls.items() if control.disabled}  # noqa: E731
    assert grayed() == {"train.patch_drop_until", "train.mix_probability", "train.mix_until"}
    form.controls["train.patch_drop_rate"].value = 0.5
    form.controls["train.cutmix_alpha"].value = 1.0
    form.controls["train.optimizer"].value = "adamw"
    assert grayed() == {"train.muon_learning_rate", "train.muon_momentum"}
    form.controls["train.schedule"].value = "constant"
    assert grayed() == {"train.muon_learning_rate", "train.muon_momentum", "train.flat_until"}


def test_a_change_is_told_once_and_after_those_that_follow(form):
    told = []
    form.on_change(lambda: told.append((form.model_config.embed_dim, form.model_config.num_heads)))
    form.controls["model.embed_dim"].value = 160
    assert told == [(160, 4)]  # of 1, 2, 4, 5, 8, ... the one nearest to 3
    form.show(ODD, ODD_TRAIN)
    assert told[1:] == [(84, 7)]


def test_each_control_is_explained_in_the_words_of_the_config(form):
    told = field_help(TrainConfig)
    assert told["flip"] == '"alternating" (each image mirrored every other epoch), "random" or "none".'
    assert told["mixup_alpha"] == told["cutmix_alpha"] and told["mixup_alpha"].startswith("Beta parameters of MixUp")
    assert field_help(ViTConfig)["depth"].startswith("token width D, number of blocks, attention heads")
    for config in (ViTConfig, TrainConfig):
        python_3_13 = type("Config", (config,), {"__doc__": inspect.cleandoc(config.__doc__)})
        assert field_help(python_3_13) == field_help(config)
        assert field_help(config).keys() == {field.name for field in fields(config)} and all(
            field_help(config).values()
        )
    assert form.controls["train.flip"].tooltip == told["flip"]
    assert all(control.tooltip for control in form.controls.values())
