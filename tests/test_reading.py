"""Files from anyone: the same tensors out of every container, and an error of our own for whatever is wrong."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from conftest import randomize
from safetensors.torch import save_file

import vit
from vit.files import MAX_JSON
from vit.model.vision_transformer import VisionTransformer
from vit.pretrained import load_weights
from vit.pretrained.reading import read_file


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(7, 5, generator=generator),
        "double": torch.randn(3, generator=generator, dtype=torch.float64),
        "half": torch.randn(2, 3, 4, generator=generator).half(),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "numbers": torch.arange(4),
    }


@pytest.fixture
def own(tiny):
    return randomize(VisionTransformer(tiny))


def save_npz(tensors, path, **options):
    (np.savez_compressed if options else np.savez)(path, **{name: x.numpy() for name, x in tensors.items()})


WRITERS = {
    "safetensors": save_file,
    "pth": torch.save,
    "old.pth": lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
    "npz": save_npz,
    "packed.npz": lambda tensors, path: save_npz(tensors, path, compressed=True),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_container_gives_back_what_went_in(kind, tmp_path):
    path = tmp_path / f"weights.{kind}"
    WRITERS[kind](some_tensors(), path)
    found, _ = read_file(path)
    assert set(found) == set(some_tensors())
    for name, tensor in some_tensors().items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_the_content_decides_and_not_the_suffix(tmp_path):
    """A header of 0x80 bytes, too, begins like a pickle."""
    path = tmp_path / "weights.pth"
    save_file({"x": torch.ones(2)}, path)
    data = path.read_bytes()
    for length in (0x80, 0x4B50):  # "PK" is how an archive begins
        header = data[8 : 8 + int.from_bytes(data[:8], "little")].rstrip()
        path.write_bytes(struct.pack("<Q", length) + header.ljust(length) + data[-8:])
        assert torch.equal(read_file(path)[0]["x"], torch.ones(2))


def test_bfloat16_and_column_order_of_numpy(tmp_path):
    values = torch.randn(3, 4).bfloat16()
    as_jax_saves = values.view(torch.int16).numpy().view("V2")
    np.savez(tmp_path / "jax.npz", a=as_jax_saves, b=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    found, _ = read_file(tmp_path / "jax.npz")
    assert torch.equal(found["a"], values)
    assert torch.equal(found["b"], torch.arange(6.0, dtype=torch.float64).reshape(2, 3))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_was_cut_off_is_refused(kind, tmp_path):
    path = tmp_path / f"weights.{kind}"
    WRITERS[kind](some_tensors(), path)
    data = path.read_bytes()
    for length in [*range(0, 40), *range(40, len(data), max(1, len(data) // 40)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=str(path)) as caught:
            read_file(path)
        assert "weights_only" not in str(caught.value)
        if length == 0:
            assert "is empty (0 bytes)" in str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "npz"])
def test_a_flipped_bit_is_found(kind, own, tmp_path):
    """In the numbers, where nothing but a checksum can see it."""
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        vit.save(own, path)
    else:
        WRITERS[kind](own.state_dict(), path)
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 3, 2 * len(data) // 3, len(data) // 30):
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"is damaged|is not a NumPy array|cut off|not a readable"):
            read_file(path)
        data[place] ^= 1
    path.write_bytes(data)
    read_file(path)


def test_a_changed_text_is_found(own, tmp_path):
    path = vit.save(own, tmp_path / "model.safetensors", dataset="cifar10")
    path.write_bytes(path.read_bytes().replace(b"cifar10", b"cifar11"))
    with pytest.raises(ValueError, match="its SHA-256 is not the one it was saved with"):
        vit.load(path)


def test_a_config_of_the_future_says_so(own, tmp_path):
    path = vit.save(own, tmp_path / "model.safetensors")
    data = path.read_bytes().replace(b"qk_norm", b"qk_warp").replace(b"sha256", b"sha111")
    path.write_bytes(data)
    with pytest.raises(ValueError, match="was it saved by a newer version.* no field 'qk_warp'"):
        vit.load(path)


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>404", b"version https://git-lfs.github.com/spec/v1\n", b"x"]
)
def test_what_is_no_weights_is_shown(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights.pth is not .*starts with b'[<vx]") as caught:
        load_weights(None, path)
    assert "weights_only" not in str(caught.value)


def test_missing_files_folders_and_other_types(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "near.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*far.pth; in that folder: near.safetensors"):
        load_weights(None, tmp_path / "far.pth")
    with pytest.raises(FileNotFoundError, match=r"holds no model.safetensors and no pytorch_model.bin; .*near"):
        load_weights(None, tmp_path)
    with pytest.raises(TypeError, match="source must be a path, a dictionary of tensors or a module, got int"):
        load_weights(None, 3)
    with pytest.raises(ValueError, match="holds no tensors; its keys: epoch"):
        load_weights(None, {"epoch": 3, 0: torch.zeros(2)})


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def hostile_files(tmp_path, marker) -> dict[str, bytes]:
    content = {"weight": torch.zeros(2), "extra": Hostile(marker)}
    new, old, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(content, new)
    torch.save(content, old, _use_new_zipfile_serialization=False)
    np.savez(array, weight=np.array([Hostile(marker)], dtype=object))
    return {"new": new.getvalue(), "old": old.getvalue(), "npz": array.getvalue(), "pickle": pickle.dumps(content)}


@pytest.mark.parametrize("kind", ["new", "old", "npz", "pickle"])
def test_a_hostile_file_is_refused_and_not_run(kind, tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "weights.pth"
    path.write_bytes(hostile_files(tmp_path, marker)[kind])
    with pytest.raises(ValueError, match="refused") as caught:
        load_weights(None, path)
    assert not marker.exists()
    assert "weights_only" not in str(caught.value) and caught.value.__cause__ is None
    pickle.loads(pickle.dumps(Hostile(marker)))  # what the files would do
    assert marker.exists()


def test_whole_modules_and_programs_are_refused(own, tmp_path):
    torch.save(own, tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"it holds Python objects \(vit.model.vision_transformer.VisionTransformer\)"):
        load_weights(None, tmp_path / "module.pth")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:  # as torch.jit.save lays it out
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"")
    with pytest.raises(ValueError, match="is a TorchScript archive, whose loading runs code"):
        load_weights(None, tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "program.pt2", "w") as archive:
        archive.writestr("archive_format", b"pt2")
    with pytest.raises(
        ValueError, match=r"is a zip archive, but of neither PyTorch nor NumPy: it holds \['archive_form"
    ):
        load_weights(None, tmp_path / "program.pt2")


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    bomb, liar, header = tmp_path / "bomb.npz", tmp_path / "liar.npz", tmp_path / "header.safetensors"
    np.savez_compressed(bomb, x=np.zeros(10_000_000, dtype=np.float32))
    with pytest.raises(ValueError, match="would unpack from .* to 40,000,128 bytes"):
        read_file(bomb)
    array = io.BytesIO()
    np.save(array, np.zeros(2))
    lie = array.getvalue().replace(b"(2,), }      ", b"(2000000000,)}")
    with zipfile.ZipFile(liar, "w") as archive:
        archive.writestr("x.npy", lie[: len(array.getvalue())])
    with pytest.raises(ValueError, match=r"x is not a plain array of its size|x is not a NumPy array"):
        read_file(liar)
    header.write_bytes(struct.pack("<Q", 1 << 60) + b"{" + b" " * 100)
    with pytest.raises(ValueError, match="its header would have 1,152,921,504,606,846,976 bytes"):
        read_file(header)


def test_a_dictionary_that_contains_itself_is_refused(tmp_path):
    content = {"weight": torch.zeros(2)}
    content["model"] = content
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="weights.pt has its tensors under more than 4 wrappers, or contains itself"):
        load_weights(None, tmp_path / "weights.pt")


def test_tensors_that_repeat_their_numbers_are_refused(own, tmp_path):
    path = tmp_path / "weights.pt"
    names = ("encoder.norm.weight", "params/Transformer/encoderblock/LayerNorm_0/scale")
    for name, shape in zip(names, ((1 << 38,), (1 << 38, 4)), strict=True):
        torch.save({"model": own.state_dict() | {name: torch.ones(1).expand(shape)}}, path)
        assert path.stat().st_size < 1 << 20
        with pytest.raises(ValueError, match=rf"weights.pt: {name} has [0-9,]+ bytes, of which only 4 are stored"):
            load_weights(own, path)
    torch.save(own.state_dict() | {names[1]: torch.ones(1 << 38, 0)}, path)  # which takes no memory, but would time
    with pytest.raises(ValueError, match="unexpected +1"):
        load_weights(own, path)
    views = {name: torch.stack([tensor, tensor], dim=-1)[..., 1] for name, tensor in own.state_dict().items()}
    load_weights(own, views, report=None)  # more memory than numbers is no fault


@pytest.mark.parametrize("array", [
    np.array(["a", "bc"]), np.array([b"a"]), np.zeros(2, dtype=[("x", "i1"), ("y", "i1")]), np.zeros(2, dtype="V4"),
    np.zeros(2, dtype=complex), np.zeros(2, dtype="datetime64[s]"), np.zeros(2, dtype=np.longdouble),
], ids=lambda array: str(array.dtype))  # fmt: skip
def test_arrays_that_hold_no_numbers_are_refused_by_name(array, tmp_path):
    np.savez(tmp_path / "weights.npz", good=np.ones(2), bad=array)
    with pytest.raises(ValueError, match="weights.npz: bad holds no numbers that are read"):
        read_file(tmp_path / "weights.npz")


def test_configurations_that_are_no_json(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    wrong = {"<html>": "cannot be read: Expecting value", "[1, 2]": "holds a list", "[" * 100_000: "cannot be read"}
    for text, reason in wrong.items():
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=f"{tmp_path.name}/config.json {reason}"):
            load_weights(None, tmp_path)
    with open(tmp_path / "config.json", "w") as file:
        file.truncate(MAX_JSON + 1)
    with pytest.raises(ValueError, match="config.json cannot be read: it has more than"):
        load_weights(None, tmp_path)
