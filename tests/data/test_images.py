"""Folders, batches and synthetic images: the same pixels as torchvision's presets, and every bad folder."""

import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from compressor.data.batches import from_batches
from compressor.data.folders import load_folder
from compressor.data.images import ImageSet
from compressor.data.synthetic import synthetic_images
from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.pipeline.image_splits import join, without

SMALL = Transform(input_size=32, resize_size=36)
DIGITS = load_digits()


def write_digit(index, path, size=(8, 8)):
    """One of scikit-learn's handwritten digits as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (DIGITS.images[index] * 15.9).astype(np.uint8)
    Image.fromarray(pixels).convert("RGB").resize(size).save(path)
    return path


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """40 digits in ten class folders, and what tools leave beside them."""
    root = tmp_path_factory.mktemp("digits")
    for index in range(40):
        write_digit(index, root / f"class{DIGITS.target[index]}" / f"{index:03}.png")
    (root / ".DS_Store").write_bytes(b"x")
    (root / ".hidden").mkdir()
    write_digit(0, root / ".hidden" / "a.png")
    (root / "__MACOSX").mkdir()
    (root / "class0" / "._000.png").write_bytes(b"resource fork")
    (root / "class0" / "notes.txt").write_text("no image")
    return root


# --- Folders -----------------------------------------------------------------------------------------------


def test_class_folders_give_labels_in_alphabetical_order(classes):
    images = load_folder(classes, SMALL, limit=100, seed=0)
    assert (len(images), images.unreadable, images.input_shape) == (40, 0, (3, 32, 32))
    assert images.class_names == [f"class{digit}" for digit in range(10)]
    assert images.labels.dtype == torch.int64
    assert torch.equal(images.labels.bincount(), torch.tensor(np.bincount(DIGITS.target[:40])))
    assert "40 of 40 images" in images.source
    assert "in 10 classes" in images.source


def test_labels_stay_with_their_images(classes):
    images = load_folder(classes, SMALL, limit=100, seed=3)
    by_label = {}
    for pixels, label in zip(images.data, images.labels.tolist(), strict=True):
        by_label.setdefault(label, []).append(pixels)
    for digit in range(10):
        files = sorted((classes / f"class{digit}").glob("[0-9]*.png"))
        expected = {load_file(file) for file in files}
        assert {pixels.numpy().tobytes() for pixels in by_label[digit]} == expected


def load_file(file):
    """The bytes of one file's pixels, prepared by torchvision."""
    from torchvision.transforms.functional import InterpolationMode, center_crop, pil_to_tensor, resize

    image = resize(Image.open(file).convert("RGB"), [36], interpolation=InterpolationMode.BILINEAR)
    return pil_to_tensor(center_crop(image, [32])).numpy().tobytes()


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (31, 57), (224, 224)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_equal_torchvisions_preset(tmp_path, size, interpolation):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    transform = Transform(96, 113, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), interpolation)
    images = load_folder(tmp_path, transform, limit=1, seed=0)
    preset = ImageClassification(
        crop_size=96,
        resize_size=113,
        mean=transform.mean,
        std=transform.std,
        interpolation=InterpolationMode(interpolation),
    )
    torch.testing.assert_close(images.batch([0])[0], preset(picture), atol=1e-6, rtol=0)


def test_file_names_stay_with_their_images(classes):
    images = load_folder(classes, SMALL, limit=30, seed=3)
    first, rest = images.split(7, seed=1)
    assert (len(first.files), len(rest.files)) == (7, 23)
    for part in (first, rest, images.subset(slice(2, 9)), images.subset([5, 3])):
        for pixels, file in zip(part.data, part.files, strict=True):
            assert pixels.numpy().tobytes() == load_file(classes / file)


def test_sample_is_random_seeded_and_limited(classes):
    first, again, other = (load_folder(classes, SMALL, limit=12, seed=seed) for seed in (1, 1, 2))
    assert len(first) == 12
    assert torch.equal(first.data, again.data)
    assert not torch.equal(first.data, other.data)
    assert len(first.labels.unique()) > 3


def test_progress_is_reported(classes):
    steps = []
    load_folder(classes, SMALL, limit=5, seed=0, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 5) for done in range(1, 6)]


def test_flat_and_mixed_folders_have_no_labels(tmp_path):
    write_digit(0, tmp_path / "a.PNG")
    write_digit(1, tmp_path / "b.jpeg")
    assert load_folder(tmp_path, SMALL, limit=9, seed=0).labels is None
    write_digit(2, tmp_path / "one" / "c.png")
    write_digit(3, tmp_path / "two" / "deep" / "d.png")
    images = load_folder(tmp_path, SMALL, limit=9, seed=0)
    assert (len(images), images.labels, images.class_names) == (4, None, None)
    assert "unlabelled" in images.source


def test_wrapping_folders_are_passed_through(tmp_path):
    for name in ("cat", "dog"):
        write_digit(0, tmp_path / "archive" / "images" / name / "a.png")
    assert load_folder(tmp_path, SMALL, limit=9, seed=0).class_names == ["cat", "dog"]


def test_links_are_followed_once(tmp_path):
    write_digit(0, tmp_path / "cat" / "a.png")
    write_digit(1, tmp_path / "elsewhere" / "dog" / "b.png")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nothing.png")
    assert len(load_folder(tmp_path, SMALL, limit=99, seed=0)) >= 2
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    write_digit(0, tmp_path / "data" / "cat" / "a.png")
    assert load_folder(tmp_path / "data", SMALL, limit=9, seed=0).class_names == ["cat", "dog"]


def test_a_folder_that_contains_only_itself(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(InputError, match="no image files"):
        load_folder(tmp_path, SMALL, limit=9, seed=0)


def test_broken_images_are_skipped_counted_and_replaced(tmp_path):
    for index in range(6):
        write_digit(index, tmp_path / f"{index}.png")
    whole = write_digit(7, tmp_path / "cut.jpg", (200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not a picture")
    images = load_folder(tmp_path, SMALL, limit=99, seed=0)
    assert (len(images), images.unreadable) == (6, 3)
    for seed in range(5):
        sample = load_folder(tmp_path, SMALL, limit=5, seed=seed)
        assert len(sample) == 5
        assert sample.unreadable <= 3


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)[None].repeat(64, axis=0)
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(ramp).convert("RGB").convert(mode)
    image.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    pixels = load_folder(tmp_path, Transform(64, 64), limit=1, seed=0).data
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels[0, :, :, 0].float().mean() < 40
    assert pixels[0, :, :, -1].float().mean() > 215
    if mode == "I;16":
        assert 120 < pixels[0, 0, 0, 32] < 136


def test_orientation_of_the_camera_is_applied(tmp_path):
    picture = Image.new("RGB", (64, 64))
    picture.paste((255, 255, 255), (0, 0, 64, 32))
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned: the stored top is the right side
    picture.save(tmp_path / "a.jpg", exif=exif)
    pixels = load_folder(tmp_path, Transform(64, 64), limit=1, seed=0).data[0, 0].float()
    assert pixels[:, 40:].mean() > 250
    assert pixels[:, :24].mean() < 5


def test_small_images_are_enlarged(tmp_path):
    write_digit(0, tmp_path / "a.png", size=(32, 32))
    assert load_folder(tmp_path, Transform(64, 64), limit=1, seed=0).input_shape == (3, 64, 64)


def test_bad_folders(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_folder(tmp_path / "none", SMALL, limit=1, seed=0)
    with pytest.raises(InputError, match="no image files"):
        load_folder(tmp_path, SMALL, limit=1, seed=0)
    (tmp_path / "a.png").write_text("broken")
    with pytest.raises(InputError, match="is not a folder"):
        load_folder(tmp_path / "a.png", SMALL, limit=1, seed=0)
    with pytest.raises(InputError, match=r"none of the 1 image files in .* can be read"):
        load_folder(tmp_path, SMALL, limit=1, seed=0)
    with pytest.raises(InputError, match="at least one"):
        load_folder(tmp_path, SMALL, limit=0, seed=0)


# --- Sets --------------------------------------------------------------------------------------------------


def test_batch_normalizes_and_takes_any_index():
    data = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    images = ImageSet(data, "test", (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    whole = images.batch(slice(None))
    expected = (data[2, 1].double() / 255 - 0.4) / 0.2
    torch.testing.assert_close(whole[2, 1].double(), expected, atol=1e-5, rtol=0)
    assert whole.dtype == torch.float32
    for indices in ([3, 1], torch.tensor([3, 1]), (3, 1)):
        assert torch.equal(images.batch(indices), whole[[3, 1]])
    assert images.batch([]).shape == (0, 3, 4, 4)


def test_split_is_disjoint_seeded_and_keeps_labels():
    data = torch.arange(10.0)[:, None]
    images = ImageSet(data, "test", labels=torch.arange(10))
    first, rest = images.split(4, seed=0)
    assert (len(first), len(rest)) == (4, 6)
    assert sorted(torch.cat([first.data, rest.data]).flatten().tolist()) == list(range(10))
    assert torch.equal(first.data[:, 0].long(), first.labels)
    assert torch.equal(first.data, images.split(4, seed=0)[0].data)
    assert not torch.equal(first.data, images.split(4, seed=1)[0].data)
    with pytest.raises(InputError, match="11 images were asked for, but there are 10"):
        images.split(11, seed=0)


def test_parts_share_the_images_that_are_held():
    images = ImageSet(torch.arange(20, dtype=torch.uint8).view(10, 2, 1, 1), "test", (0.5, 0.5), (0.2, 0.2))
    first, rest = images.split(6, seed=0)
    part = rest.subset([2, 0])
    assert first.held is part.held is images.held
    assert torch.equal(part.batch(slice(None)), images.batch(part.chosen))
    assert part.fitting(5) == 5
    both = join(first, part)
    assert both.held is images.held
    assert torch.equal(both.data, torch.cat([first.data, part.data]))
    others = [index for index in range(10) if index not in part.chosen]
    assert torch.equal(without(images, part).data, images.data[others])
    sent = pickle.loads(pickle.dumps(part))
    assert torch.equal(sent.held, part.data)
    assert sent.chosen is None


# --- Batches -----------------------------------------------------------------------------------------------


def test_batches_of_tensors_and_of_pairs():
    x, y = torch.randn(7, 5, 2), torch.arange(7, dtype=torch.int32)
    images = from_batches([x[:4], x[4:]], limit=6)
    assert torch.equal(images.batch(slice(None)), x[:6])
    assert (images.input_shape, images.labels) == ((5, 2), None)
    for pair in (tuple, list):
        labelled = from_batches([pair([x[:4], y[:4]]), pair([x[4:], y[4:]])], limit=6)
        assert torch.equal(labelled.labels, y[:6].long())
    assert len(from_batches(x, limit=100)) == 7
    assert from_batches([x.double()], limit=2).batch([0]).dtype == torch.float32


def test_no_more_batches_are_asked_for_than_needed():
    def endless():
        for number in range(3):
            yield torch.full((2, 1), float(number))
        raise AssertionError("asked for too much")

    assert from_batches(endless(), limit=5).data.flatten().tolist() == [0, 0, 1, 1, 2]


def test_targets_that_are_no_labels_are_left_out():
    x = torch.ones(2, 3)
    for target in (torch.ones(2), torch.ones(2, 4, dtype=torch.int64), "cat"):
        images = from_batches([(x, target)], limit=2)
        assert images.labels is None
        assert "targets beside the inputs are not integers" in images.label_note
    labelled = (x, torch.zeros(2, dtype=torch.int64))
    assert "in all batches" in from_batches([labelled, x], limit=4).label_note
    assert from_batches([x], limit=2).label_note == ImageSet(x, "").label_note


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "hold no inputs"),
        ([torch.ones(0, 3)], "hold no inputs"),
        (7, "iterable of batches, not int"),
        (["cat.jpg"], "not str"),
        ([{"pixels": torch.ones(1, 2)}], "not dict"),
        ([[]], "not list"),
        ([torch.ones(2, 3), torch.ones(2, 4)], r"disagree on the shape of an input: \(3,\) and then \(4,\)"),
        ([torch.ones(2, 3, dtype=torch.uint8)], "not uint8"),
        ([torch.ones(3)], r"of shape \(3,\)"),
        ([torch.tensor([[1.0], [float("nan")]])], "NaN or infinite"),
        ([torch.tensor([[1.0, 1e300]], dtype=torch.float64)], "beyond what float32 holds"),
    ],
)
def test_bad_batches(batches, words):
    with pytest.raises(InputError, match=words):
        from_batches(batches, limit=9)


# --- Synthetic images --------------------------------------------------------------------------------------


def spectrum_slope(pixels):
    """Slope of log amplitude over log frequency of uint8 images of shape (N, 3, n, n)."""
    grey = pixels.numpy().astype(np.float64).mean(axis=1)
    side = grey.shape[-1]
    window = np.outer(np.hanning(side), np.hanning(side))
    grey = (grey - grey.mean(axis=(1, 2), keepdims=True)) * window
    amplitude = np.abs(np.fft.fft2(grey)).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :]) * side
    rings = np.arange(4, side // 3)
    means = [amplitude[(frequency >= ring - 0.5) & (frequency < ring + 0.5)].mean() for ring in rings]
    return np.polyfit(np.log(rings), np.log(means), 1)[0]


@pytest.mark.parametrize(("size", "count"), [(224, 16), (64, 40), (32, 40)])
def test_synthetic_images_have_natural_statistics(size, count):
    images = synthetic_images(count, Transform(size, size), seed=0)
    assert images.data.shape == (count, 3, size, size)
    assert -1.5 < spectrum_slope(images.data) < -0.7
    channels = images.data.permute(1, 0, 2, 3).reshape(3, -1).float()
    assert ((channels.mean(dim=1) > 80) & (channels.mean(dim=1) < 160)).all()
    assert ((channels.std(dim=1) > 45) & (channels.std(dim=1) < 85)).all()
    correlation = torch.corrcoef(channels)
    assert 0.6 < correlation.min() < 0.95
    assert images.data.flatten(1).float().std(dim=1).min() > 10


def test_synthetic_images_depend_on_seed_and_index():
    first, again, longer, other = (
        synthetic_images(count, SMALL, seed=seed) for count, seed in ((2, 5), (2, 5), (4, 5), (2, 6))
    )
    assert torch.equal(first.data, again.data)
    assert torch.equal(first.data, longer.data[:2])
    assert not torch.equal(first.data, other.data)
    assert not torch.equal(first.data[0], first.data[1])
    assert (first.labels, first.source) == (None, "2 synthetic images")


def test_synthetic_images_are_quick_and_report_progress():
    steps = []
    start = time.process_time()
    synthetic_images(8, Transform(), seed=1, on_step=lambda done, total: steps.append((done, total)))
    assert (time.process_time() - start) / 8 < 0.3
    assert steps == [(done, 8) for done in range(1, 9)]


def test_no_synthetic_images_are_refused():
    with pytest.raises(InputError, match="at least one"):
        synthetic_images(0, SMALL, seed=0)
