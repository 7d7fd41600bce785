"""Pixels of every depth keep their range; strips and large photographs take no more memory than they need."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data.folders import load_folder
from compressor.data.resizing import fit_image
from compressor.data.synthetic import draw_image, synthetic_images
from compressor.data.transforms import Transform
from compressor.errors import InputError

SAME = Transform(64, 64)
INK = np.asarray(Image.fromarray(draw_image(64, np.random.default_rng(0))).convert("L")) / 255


def read(folder, transform=SAME):
    """Images by file name, as floats from 0 to 1, and the set."""
    images = load_folder(folder, transform, limit=99, seed=0)
    return {file: pixels.float().div(255) for file, pixels in zip(images.files, images.data, strict=True)}, images


@pytest.mark.parametrize(
    ("white", "dtype"),
    [
        *[(2**bits - 1, np.uint16) for bits in (8, 10, 12, 14, 16)],
        *[(255, np.int32), (4095, np.int32), (65535, np.int32)],
        *[(scale, np.float32) for scale in (1, 255, 1000, 4095, 65535)],
    ],
)
def test_values_are_scaled_by_what_the_folder_holds(tmp_path, white, dtype):
    for name, gain in (("bright", 1.0), ("dark", 0.05)):  # a dark one alone would say nothing
        Image.fromarray((INK * gain * white).astype(dtype)).save(tmp_path / f"{name}.tif")
    found, images = read(tmp_path)
    tolerance = 0.06 if white == 1023 else 0.02  # white need not occur
    for name, gain in (("bright", 1.0), ("dark", 0.05)):
        assert found[f"{name}.tif"][0].numpy() == pytest.approx(INK * gain, abs=tolerance)
    note = images.notes[0]
    assert note.startswith(f"white is {white:g} in files of ")


def rows_of(values, dtype):
    return Image.fromarray(np.asarray(values).astype(dtype))


def with_one(values, hot):
    values = values.copy()
    values[5, 7] = hot
    return values


@pytest.mark.parametrize(
    ("values", "dtype", "white"),
    [
        (with_one(INK, 1.02), np.float32, 1),
        (with_one(INK, 300), np.float32, 1),
        (with_one(INK, -0.02), np.float32, 1),
        (INK * 1.2, np.float32, None),
        (INK * 2, np.float32, None),
        (INK * 9, np.float32, None),
        (INK * 0.1, np.float32, None),
        (with_one(INK * 255, 255.4), np.float32, 255),
        (INK * 275, np.float32, None),
        (with_one(INK * 4095, 4096), np.uint16, 4095),
        (with_one(INK * 4095, 65535), np.uint16, 4095),
        (INK * 1.99, np.int32, None),
        (INK * 9.9, np.int32, None),
        (INK * 1e6, np.int32, None),
    ],
)
def test_no_image_turns_black_beside_a_full_scale(tmp_path, values, dtype, white):
    """A few hot pixels decide nothing; where no full scale is near, the brightest pixels are white."""
    rows_of(values, dtype).save(tmp_path / "a.tif")
    found, images = read(tmp_path)
    kept = np.asarray(values).astype(dtype)
    expected = np.clip(kept / (white or np.quantile(kept, 0.999)), 0, 1)
    assert found["a.tif"][0].numpy() == pytest.approx(expected, abs=0.02)
    assert len(images.notes) == 1


def test_an_image_that_comes_out_black_is_named(tmp_path):
    for name, gain in (("bright", 1.0), ("black", 0.02)):
        rows_of(INK * gain * 65535, np.uint16).save(tmp_path / f"{name}.png")
    _, images = read(tmp_path)
    assert images.notes[1:] == ("1 image is nearly black: black.png",)


def test_files_that_say_what_white_is_do_not_decide_for_others(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 64 64 65535\n" + (INK * 65535).astype(">u2").tobytes())
    rows_of(INK * 4095, np.uint16).save(tmp_path / "b.tif")
    found, _ = read(tmp_path)
    for pixels in found.values():
        assert pixels[0].numpy() == pytest.approx(INK, abs=0.01)


def test_floats_to_1_and_to_1000_in_one_folder(tmp_path):
    for scale in (1, 1000):
        Image.fromarray((INK * scale).astype(np.float32)).save(tmp_path / f"{scale}.tif")
    found, _ = read(tmp_path)
    for pixels in found.values():
        assert pixels[0].numpy() == pytest.approx(INK, abs=0.01)


def test_16_bit_png_and_pgm(tmp_path):
    deep = (INK * 65535).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    (tmp_path / "b.pgm").write_bytes(b"P5 64 64 4095\n" + (INK * 0.1 * 4095).astype(">u2").tobytes())
    found, _ = read(tmp_path)
    assert found["a.png"][2].numpy() == pytest.approx(INK, abs=0.01)
    assert found["b.pgm"][2].numpy() == pytest.approx(INK * 0.1, abs=0.01)


@pytest.mark.parametrize(
    ("values", "reason"), [(INK - 0.5, "values below zero"), (np.where(INK > 0.5, np.nan, INK), "not finite")]
)
def test_values_that_are_no_pixels_are_counted_with_the_reason(tmp_path, values, reason):
    Image.fromarray((INK * 255).astype(np.uint8)).save(tmp_path / "good.png")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "bad.tif")
    _, images = read(tmp_path)
    assert (len(images), images.unreadable) == (1, 1)
    assert images.notes[0].startswith("1 image could not be read: bad.tif: it has values")
    assert reason in images.notes[0]
    (tmp_path / "good.png").unlink()
    with pytest.raises(InputError, match=rf"none of the 1 image files in .* can be read \(bad.tif: .*{reason}"):
        read(tmp_path)


def test_constant_images_are_named(tmp_path):
    Image.new("RGB", (64, 64), (3, 200, 7)).save(tmp_path / "green.png")
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "black.tif")
    Image.fromarray((INK * 255).astype(np.uint8)).save(tmp_path / "good.png")
    _, images = read(tmp_path)
    assert len(images) == 3
    assert images.notes[0].startswith("2 images are of one colour throughout: ")
    assert "green.png" in images.notes[0]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_follow_the_networks_channels(tmp_path, channels, mode):
    transform = Transform(32, 32, (0.5,) * channels, (0.2,) * channels)
    assert transform.channels == channels
    colour = Image.fromarray(draw_image(32, np.random.default_rng(1)))
    for name, image in {"colour": colour, "grey": colour.convert("L"), "clear": colour.convert("RGBA")}.items():
        image.save(tmp_path / f"{name}.png")
    Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    images = load_folder(tmp_path, transform, limit=9, seed=0)
    assert images.batch(slice(None)).shape == (4, channels, 32, 32)
    pixels = dict(zip(images.files, images.data, strict=True))
    assert np.array_equal(pixels["colour.png"].permute(1, 2, 0).squeeze().numpy(), np.asarray(colour.convert(mode)))
    assert torch.equal(pixels["deep.png"], pixels["grey.png"])
    assert synthetic_images(2, transform, seed=0).data.shape == (2, channels, 32, 32)


def test_other_channels_are_refused(tmp_path):
    five = Transform(32, 32, (0.5,) * 5, (0.2,) * 5)
    for load in (lambda: load_folder(tmp_path, five, 1, 0), lambda: synthetic_images(1, five, 0)):
        with pytest.raises(InputError, match="1, 3 or 4 channels, and the network takes 5"):
            load()


# --- Size ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 480), (1500, 1200), (2600, 2000)])
def test_large_photographs_are_decoded_smaller_without_a_visible_difference(tmp_path, size):
    photograph = Image.fromarray(draw_image(800, np.random.default_rng(2))).resize(size, Image.Resampling.BICUBIC)
    photograph.save(tmp_path / "a.jpg", quality=90)
    transform = Transform(64, 72)
    found = load_folder(tmp_path, transform, 1, 0).data[0].permute(1, 2, 0).numpy().astype(float)
    with Image.open(tmp_path / "a.jpg") as image:
        long = int(72 * size[0] / size[1])
        whole = image.resize((long, 72), Image.Resampling.BILINEAR)
    left = round((long - 64) / 2)
    expected = np.asarray(whole.crop((left, 4, left + 64, 68))).astype(float)
    assert np.sqrt(np.square(found - expected).mean()) < 0.6
    if min(size) < 8 * 72:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [(600, 90), (80, 500)])
def test_a_strip_gives_the_pixels_of_its_middle(size):
    strip = Image.fromarray(draw_image(600, np.random.default_rng(3))).resize(size)
    fitted = fit_image(strip, Transform(64, 72)).astype(int)
    width, height = (int(72 * size[0] / 90), 72) if size[0] > size[1] else (72, int(72 * size[1] / 80))
    whole = strip.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - 64) / 2), round((height - 64) / 2)
    assert np.abs(fitted - np.asarray(whole.crop((left, top, left + 64, top + 64)))).max() <= 2


@pytest.mark.parametrize("size", [(1, 65535), (60000, 2)])
def test_a_strip_takes_no_more_memory_than_a_photograph(tmp_path, size):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(tmp_path / "a.png")
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom compressor.data.folders import load_folder\n"
        "from compressor.data.transforms import Transform\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "load_folder(Path(sys.argv[1]), Transform(), 1, 0)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100_000  # kilobytes


def test_a_rectangle_is_cut_where_the_network_takes_one(tmp_path):
    Image.fromarray(draw_image(100, np.random.default_rng(4))).resize((100, 50)).save(tmp_path / "a.png")
    wide, high = Transform(32, 32, input_width=64), Transform(64, 64, input_width=32)
    assert load_folder(tmp_path, wide, 1, 0).input_shape == (3, 32, 64)
    assert load_folder(tmp_path, high, 1, 0).input_shape == (3, 64, 32)
    assert synthetic_images(1, wide, 0).input_shape == (3, 32, 64)
