"""Pictures of every kind become upright, opaque 8-bit RGB; what is none is named, with the reason."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps

from vit.pictures import FORMATS, MAX_PIXELS, open_picture, picture_to_tensor


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(data: bytes) -> np.ndarray:
    return np.asarray(open_picture(io.BytesIO(data), "x"))


# Size and cut


@pytest.mark.parametrize("height,width", [(64, 128), (128, 64), (96, 96), (32, 32), (16, 32), (32, 16)])
def test_the_short_side_is_resized_and_the_middle_kept(height, width):
    """PIL's own resize of the whole picture, cut by hand; the sizes are those where the cut falls between pixels."""
    image = Image.fromarray(noise(height, width, 3))
    scale = 32 / min(height, width)
    whole = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    top, left = (whole.height - 32) // 2, (whole.width - 32) // 2
    expected = np.asarray(whole)[top : top + 32, left : left + 32]
    tensor = picture_to_tensor(image, (32, 32))
    assert tensor.dtype == torch.uint8 and tensor.shape == (3, 32, 32)
    # PIL rounds between its two passes, whose order may change with the part that is asked for.
    np.testing.assert_allclose(tensor.permute(1, 2, 0).int(), expected.astype(int), atol=0 if height == width else 2)


def test_odd_sizes_are_cut_at_their_very_middle():
    """A ramp from left to right keeps its mean only if as much is cut off on either side."""
    ramp = np.broadcast_to(np.arange(250, dtype=np.uint8)[None, :, None], (101, 250, 3))
    tensor = picture_to_tensor(np.ascontiguousarray(ramp), (32, 32)).double()
    assert tensor.mean() == pytest.approx(124.5, abs=0.1)
    assert tensor[0, 0, -1] - tensor[0, 0, 0] == pytest.approx(101 * 31 / 32, abs=1)


def test_a_model_that_is_not_square_gets_its_own_shape():
    image = Image.fromarray(noise(40, 120, 3))
    expected = np.asarray(image.crop((30, 0, 90, 40)).resize((24, 16), Image.Resampling.BICUBIC))
    tensor = picture_to_tensor(image, (16, 24)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(tensor[:, 2:-2], expected[:, 2:-2])  # at the cut, ours also sees what lies beyond


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (64, 128)])
def test_a_margin_is_cut_off_as_by_torchvision(height, width, interpolation):
    image = Image.fromarray(noise(height, width, 3))
    mode = torchvision.transforms.InterpolationMode[interpolation.upper()]
    resize, cut = torchvision.transforms.Resize(32, interpolation=mode), torchvision.transforms.CenterCrop(28)
    expected = np.asarray(cut(resize(image))).astype(int)
    tensor = picture_to_tensor(image, (28, 28), interpolation=interpolation, crop=28 / 32)
    # At the cut, ours also sees what lies beyond; PIL rounds between its two passes, whose order may change.
    inner = tensor.permute(1, 2, 0).int().numpy()[3:-3, 3:-3]
    np.testing.assert_allclose(inner, expected[3:-3, 3:-3], atol=2)


def test_squashing_keeps_the_whole_picture():
    image = Image.fromarray(noise(40, 120, 3))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(picture_to_tensor(image, (32, 32), squash=True).permute(1, 2, 0), expected)
    middle = image.crop((30, 10, 90, 30)).resize((32, 32), Image.Resampling.BICUBIC)
    tensor = picture_to_tensor(image, (32, 32), squash=True, crop=0.5).permute(1, 2, 0)
    np.testing.assert_array_equal(tensor[4:-4, 4:-4], np.asarray(middle)[4:-4, 4:-4])
    assert picture_to_tensor(Image.new("RGB", (900, 20)), (20, 20), squash=True).shape == (3, 20, 20)


def test_unknown_ways_of_preparing_are_refused():
    image = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match="interpolation='cubic' must be one of bicubic, bilinear, lanczos"):
        picture_to_tensor(image, (8, 8), interpolation="cubic")
    for crop in (0, 1.1):
        with pytest.raises(ValueError, match=f"crop={crop} in \\(0, 1\\]"):
            picture_to_tensor(image, (8, 8), crop=crop)


def test_shrinking_is_antialiased():
    """Stripes of one pixel become an even grey; without antialiasing they would stay black or white."""
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert (picture_to_tensor(stripes, (32, 32)).int() - 128).abs().max() <= 8


def test_long_and_thin_pictures_are_refused():
    assert picture_to_tensor(Image.new("RGB", (400, 20)), (20, 20)).shape == (3, 20, 20)
    with pytest.raises(ValueError, match="the picture is too long and thin: cut to 20x20 .* 5% of its 20x401"):
        picture_to_tensor(Image.new("RGB", (401, 20)), (20, 20))


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        (np.zeros((60, 60, 3), dtype=np.uint8)[40:40, 10:30], "0x20"),
        (np.zeros((5, 0), dtype=np.uint8), "5x0"),
        (Image.new("RGB", (0, 0)), "0x0"),
    ],
)
def test_an_empty_crop_is_refused(picture, size):
    with pytest.raises(ValueError, match=f"the picture is empty: it has {size} pixels"):
        picture_to_tensor(picture, (8, 8))


# Modes


def test_sixteen_bits_are_scaled_and_not_clipped():
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    data = saved(Image.fromarray(levels), "PNG")
    assert Image.open(io.BytesIO(data)).mode.startswith("I;16")
    np.testing.assert_array_equal(opened(data)[..., 0], levels // 256)


def test_transparency_shows_white_and_not_a_hidden_color():
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[..., 0] = 200  # red, which must not show where alpha is 0
    pixels[..., 3] = [[0, 255], [0, 127]]
    for kind in ("PNG", "WEBP"):
        seen = opened(saved(Image.fromarray(pixels), kind, lossless=True, exact=True))
        assert seen[0, 0].tolist() == [255, 255, 255] and seen[0, 1].tolist() == [200, 0, 0]
        np.testing.assert_allclose(seen[1, 1], 127 / 255 * pixels[1, 1, :3] + 128 / 255 * 255, atol=1)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGB", "RGBA"])
def test_other_modes_keep_their_colors(mode):
    picture = Image.fromarray(noise(8, 8, 3)).convert(mode)
    np.testing.assert_array_equal(opened(saved(picture, "PNG")), np.asarray(picture.convert("RGB")))


def test_a_transparent_palette_color_is_white():
    picture = Image.new("P", (4, 1))
    picture.putpalette([0, 0, 0, 250, 0, 0])
    picture.putpixel((1, 0), 1)
    seen = opened(saved(picture, "PNG", transparency=0))
    assert seen[0].tolist() == [[255, 255, 255], [250, 0, 0], [255, 255, 255], [255, 255, 255]]


def test_print_colors_become_rgb():
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # full magenta and yellow: red
    red, green, blue = opened(saved(picture, "JPEG", quality=95)).mean(axis=(0, 1))
    assert red > 245 and green < 10 and blue < 10


def test_modes_of_unknown_range_are_refused():
    with pytest.raises(ValueError, match="^the picture's mode is F, whose range of values is unknown"):
        picture_to_tensor(Image.new("F", (8, 8)), (8, 8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_orientation_ends_upright(kind, orientation):
    """The upright picture is brightest at its top left; the file stores it turned, as a camera does."""
    upright = Image.fromarray(np.kron([[255, 170], [85, 0], [85, 0]], np.ones((8, 8))).astype(np.uint8)).convert("RGB")
    inverse = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    exif = Image.Exif()
    exif[0x0112] = inverse
    upright.info["exif"] = exif.tobytes()
    stored = ImageOps.exif_transpose(upright)
    exif[0x0112] = orientation
    data = saved(stored, kind, exif=exif.tobytes())
    assert Image.open(io.BytesIO(data)).size == ((16, 24) if orientation < 5 else (24, 16))
    seen = opened(data)[4::8, 4::8, 0].astype(int)
    np.testing.assert_allclose(seen, [[255, 170], [85, 0], [85, 0]], atol=12)
    through_pil = picture_to_tensor(Image.open(io.BytesIO(data)), (24, 16))
    np.testing.assert_array_equal(through_pil.permute(1, 2, 0).numpy(), opened(data))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert opened(data)[4, 4].tolist() == [255, 0, 0]


def test_phones_that_store_two_pictures_in_one_jpeg_are_read():
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert opened(data)[8, 8, 0] > 245


# Faults


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_off_files_are_named_at_every_length(kind, tmp_path):
    data = saved(Image.fromarray(noise(24, 24, 3)), kind)
    path = tmp_path / f"cut.{kind.lower()}"
    for length in {1, 3, 11, 13, 20, 60, len(data) // 4, len(data) // 2, 9 * len(data) // 10}:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read: .*; allowed: PNG, JPEG, WEBP, BMP$"):
            open_picture(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bytes_are_read_or_named_but_nothing_else_happens(kind):
    data = saved(Image.fromarray(noise(16, 16, 3)), kind)
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 3):
            damaged[place] = random.integers(256)
        try:
            outcomes.add(opened(bytes(damaged)).ndim)
        except ValueError as error:
            assert "x cannot be read: it" in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


def test_damaged_exif_data_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved(Image.fromarray(noise(16, 24, 3)), "JPEG", exif=exif.tobytes())
    assert whole.count(b"MM\0*") == 1 and opened(whole).shape == (24, 16, 3)
    damaged = whole.replace(b"MM\0*", b"M\r\0*")
    path = tmp_path / "damaged.jpg"
    path.write_bytes(damaged)
    assert opened(damaged).shape == (16, 24, 3)
    for picture in (path, Image.open(path)):
        assert picture_to_tensor(picture, (16, 24)).shape == (3, 16, 24)


@pytest.mark.parametrize(
    "data,reason",
    [
        (b"", "it is empty"),
        (b"just some notes, no picture", r"it is no known picture \(it starts with b'just some no'\)"),
        (saved(Image.new("RGB", (4, 4)), "GIF"), "it is a GIF file"),
        (saved(Image.new("RGB", (4, 4)), "TIFF"), "it is a TIFF file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "it is a HEIC file"),
        (b"%PDF-1.7 ...", "it is a PDF file"),
        (b"<!DOCTYPE html><html>", "it is a HTML file"),
        (b"\x89PNG\r\n\x1a\n", "it is damaged or cut off"),
    ],
)
def test_other_files_are_recognized(tmp_path, data, reason):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"photo\.jpg cannot be read: {reason}; allowed: PNG, JPEG, WEBP, BMP"):
        picture_to_tensor(path, (8, 8))


def claiming(width: int, height: int) -> bytes:
    """A PNG that says it is as large as that, in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [5001, 10_000, 13_000, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(side, monkeypatch):
    """Also in the range where PIL warns and goes on, and in the one where it raises an error of its own."""
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=r"x cannot be read: it has .* 25,000,000"):
        opened(claiming(side, side))


def test_the_limit_itself_is_allowed(monkeypatch):
    monkeypatch.setattr("vit.pictures.MAX_PIXELS", 64)
    assert opened(saved(Image.new("RGB", (8, 8)), "PNG")).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="it has 13x5 pixels, and at most 64 are read"):
        opened(saved(Image.new("RGB", (13, 5)), "PNG"))
    assert MAX_PIXELS == 25_000_000


def test_what_is_no_file_is_not_opened(tmp_path):
    pipe = tmp_path / "pipe.png"
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe)  # opening it would wait forever
    for path in (pipe, tmp_path, tmp_path / "missing.png"):
        with pytest.raises(FileNotFoundError, match="there is no file at "):
            open_picture(path)


def test_a_disk_that_fails_is_not_called_a_bad_picture():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 100:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output error") as caught:
        open_picture(Failing(saved(Image.fromarray(noise(64, 64, 3)), "PNG")))
    assert caught.value.errno == 5


def test_no_size_is_refused_for_the_rounding_of_its_box():
    """(450 / 224) * 224 is more than 450, by the last digit of a float."""
    sizes = [(450, 600, 224), (500, 640, 240), *((width, width + 9, 28) for width in range(14, 400))]
    for width, height, size in sizes:
        assert picture_to_tensor(Image.new("RGB", (width, height)), (size, size)).shape == (3, size, size)
