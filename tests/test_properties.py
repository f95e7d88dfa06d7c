"""Properties that hold for whatever hypothesis comes up with: settings, and bytes given to loaders."""

import json
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from fuzz_targets import TARGETS
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vit.config import TrainConfig, ViTConfig
from vit.model.vision_transformer import VisionTransformer

RATES = st.floats(0, 0.9)
MODELS = st.builds(
    lambda patch_size, rows, columns, heads, head_dim, **rest: {
        "patch_size": patch_size,
        "image_size": (patch_size * rows, patch_size * columns),
        "num_heads": heads,
        "embed_dim": heads * head_dim,
        **rest,
    },
    patch_size=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 8, 12]),
    in_chans=st.integers(1, 4),
    num_classes=st.integers(0, 12),
    depth=st.integers(1, 3),
    mlp_ratio=st.floats(0.5, 3),
    pool=st.sampled_from(["cls", "mean"]),
    head=st.sampled_from(["mlp", "linear"]),
    pos_embed=st.sampled_from(["learned", "sincos2d", "rope", "none"]),
    num_registers=st.integers(0, 2),
    patch_init=st.sampled_from(["xavier", "whitened"]),
    qkv_bias=st.booleans(),
    qk_norm=st.booleans(),
    layer_scale=st.none() | st.floats(0, 1),
    drop_rate=RATES,
    attn_drop_rate=RATES,
    drop_path_rate=RATES,
)
# No field of a config takes any of these.
WRONG = st.sampled_from([object(), b"x", {}, {1}, -1, -0.5, float("nan"), float("-inf"), "no such word", [], (1, 2, 3)])


@settings(max_examples=60, deadline=None)
@given(values=MODELS, count=st.integers(0, 3))
def test_any_valid_model_builds_and_answers_for_every_image(values, count):
    config = ViTConfig(**values)
    assert ViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    model = VisionTransformer(config)
    for mode in (True, False):
        outputs = model.train(mode)(torch.rand(count, config.in_chans, *config.image_size))
        assert outputs.shape == (count, config.num_classes or config.embed_dim) and torch.isfinite(outputs).all()


@given(kind=st.sampled_from([ViTConfig, TrainConfig]), data=st.data(), value=WRONG)
def test_any_wrong_value_is_refused_by_the_name_of_its_field(kind, data, value):
    name = data.draw(st.sampled_from([field.name for field in fields(kind)]))
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.{name}="):
        replace(kind(), **{name: value})


@given(text=st.text(min_size=1))
@example(text="cls")
def test_any_unknown_name_is_refused(text):
    assume(text not in {field.name for field in fields(TrainConfig)})
    with pytest.raises(ValueError, match="TrainConfig has no field"):
        TrainConfig.from_dict({text: 1})


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_end_in_the_loaders_own_error(name, monkeypatch, capsys):
    """Nearly all byte strings are no file of any kind; those of the targets' own alphabet come close to one."""
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
        for attribute in ("RECORDS", "SHA256"):
            patch.setattr(f"vit.data.cifar10_forms.{attribute}", None)  # put back when the target has set its own
        patch.setattr("vit.data.cifar10.SOURCES", ())
        target = TARGETS[name](Path(folder))
        raw = target.path.read_bytes()
        pieces = st.integers(0, max(0, len(raw) - 1)).flatmap(
            lambda start: st.integers(0, 400).map(lambda size: raw[start : start + size])
        )

        @settings(max_examples=12, deadline=None, database=None)
        @given(parts=st.lists(st.binary(max_size=40) | pieces, max_size=5))
        def check(parts):
            data = b"".join(parts)
            assume(data != raw and len(data) >= 2)
            target.reset()
            target.path.write_bytes(target.finish(data))
            try:
                target.load()
            except target.errors as error:
                assert str(error)
            else:
                assert not target.is_hashed

        check()
