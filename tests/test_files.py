"""Image files: what is found, read, refused and written."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from veridical.core import files
from veridical.core.errors import DataError
from veridical.core.files import atomic_write, find_images, read_image, write_image


def random_samples(height: int, width: int, channels: int, bits: int = 8) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 2**bits, (height, width, channels))
    return values.astype(np.uint8 if bits == 8 else np.uint16)


def as_pixels(samples: np.ndarray) -> torch.Tensor:
    """(H, W, C) integers -> (C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(samples.transpose(2, 0, 1) / np.iinfo(samples.dtype).max).float()


# -- finding --------------------------------------------------------------------------------


def test_finds_images_at_any_depth_in_a_stable_order(tmp_path: Path):
    for name in ("b/2.PNG", "a/deep/1.jpeg", "c.tif", "b/notes.txt", ".hidden.png", ".trash/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == [
        "a/deep/1.jpeg",
        "b/2.PNG",
        "c.tif",
    ]


def test_a_missing_folder_a_file_and_an_empty_folder_each_say_so(tmp_path: Path):
    (tmp_path / "file.png").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"file\.png is not a folder"):
        find_images(tmp_path / "file.png")
    with pytest.raises(DataError, match=r"holds no image at any depth.*\.webp"):
        find_images(tmp_path / "empty")


# -- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp"])
def test_reads_back_what_pillow_wrote(tmp_path: Path, suffix: str):
    samples = random_samples(5, 7, 3)
    path = tmp_path / f"x{suffix}"
    Image.fromarray(samples).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    image = read_image(path)
    assert torch.equal(image.pixels, as_pixels(samples))
    assert (image.alpha, image.bits, image.icc) == (None, 8, None)


@pytest.mark.parametrize(
    ("mode", "channels", "alpha"),
    [
        ("1", 1, False),
        ("L", 1, False),
        ("LA", 1, True),
        ("P", 3, True),
        ("RGBA", 3, True),
        ("CMYK", 3, False),
    ],
)
def test_every_mode_becomes_grey_or_rgb_with_its_alpha(tmp_path: Path, mode: str, channels: int, alpha: bool):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.fromarray(random_samples(4, 6, 4)).convert(mode).save(path)
    kept = read_image(path, channels=None)
    assert kept.pixels.shape == (channels, 4, 6)
    assert (kept.alpha is not None) == alpha
    assert read_image(path).pixels.shape == (3, 4, 6)
    assert read_image(path, channels=1).pixels.shape == (1, 4, 6)


def test_a_palette_with_a_transparent_colour_has_alpha(tmp_path: Path):
    image = Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8))
    palette = Image.new("P", (2, 2))
    palette.putdata(list(image.tobytes()))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "x.png", transparency=0)
    read = read_image(tmp_path / "x.png")
    assert read.alpha is not None
    assert read.alpha.tolist() == [[[0, 1], [1, 1]]]
    assert read.pixels[:, 0, 0].tolist() == [1, 0, 0]


def test_luma_is_bt601(tmp_path: Path):
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "red.png")
    torch.testing.assert_close(read_image(tmp_path / "red.png", channels=1).pixels, torch.full((1, 2, 2), 0.299))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_written_by_opencv_keeps_all_its_bits(tmp_path: Path, suffix: str, channels: int, capfd):
    cv2 = pytest.importorskip("cv2")
    samples = random_samples(5, 7, channels, bits=16)
    order = [2, 1, 0, 3][:channels]
    assert cv2.imwrite(str(tmp_path / f"x{suffix}"), samples[..., order])
    image = read_image(tmp_path / f"x{suffix}")
    assert image.bits == 16
    assert torch.equal(image.pixels, as_pixels(samples)[:3])
    if channels == 4:
        assert image.alpha is not None
        assert torch.equal(image.alpha, as_pixels(samples)[3:])
    capfd.readouterr()  # OpenCV prints a warning about its own TIFF


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_written_by_pillow_keeps_all_its_bits(tmp_path: Path, suffix: str):
    samples = random_samples(5, 7, 1, bits=16)
    Image.fromarray(samples[..., 0]).save(tmp_path / f"x{suffix}")
    image = read_image(tmp_path / f"x{suffix}", channels=None)
    assert image.bits == 16
    assert torch.equal(image.pixels, as_pixels(samples))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_pixels_and_alpha_come_upright_and_the_exif_says_so(tmp_path: Path, suffix: str, orientation: int):
    samples = random_samples(3, 5, 4)
    stored = Image.fromarray(samples)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    path = tmp_path / f"x{suffix}"
    stored.save(path, exif=exif, **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    stored.getexif()[0x0112] = orientation
    expected = as_pixels(np.asarray(ImageOps.exif_transpose(stored)))
    image = read_image(path)
    assert image.alpha is not None
    assert torch.equal(torch.cat([image.pixels, image.alpha]), expected)
    assert image.exif is not None
    kept = Image.Exif()
    kept.load(image.exif)
    assert kept[0x010F] == "Maker"
    assert kept.get(0x0112, 1) == 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_sixteen_bit_colour_is_turned_once(tmp_path: Path, suffix: str, orientation: int):
    samples = random_samples(3, 5, 3, bits=16)
    path = tmp_path / f"x{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    write_image(path, as_pixels(samples), bits=16, exif=exif.tobytes())
    if suffix == ".tif":  # ours carries no orientation: put one over the field of planar configuration
        data = path.read_bytes()
        field = bytes.fromhex("1c01 0300 01000000 0100")
        assert data.count(field) == 1
        path.write_bytes(data.replace(field, bytes.fromhex("1201 0300 01000000") + bytes([orientation, 0])))
    expected = samples[::-1, ::-1] if orientation == 3 else samples.transpose(1, 0, 2)[:, ::-1]
    assert torch.equal(read_image(path).pixels, as_pixels(expected))


def test_damaged_files_are_refused_by_name(tmp_path: Path):
    whole = io.BytesIO()
    Image.fromarray(random_samples(64, 64, 3)).save(whole, "JPEG")
    cases = {
        "cut.jpg": whole.getvalue()[: len(whole.getvalue()) // 2],
        "empty.png": b"",
        "text.png": b"not an image at all",
        "folder.bmp": None,
    }
    for name, data in cases.items():
        if data is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.png: No such file"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_cut_sixteen_bit_files_are_refused(tmp_path: Path, suffix: str, capfd):
    path = tmp_path / f"x{suffix}"
    write_image(path, torch.rand(3, 40, 40), bits=16)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="cannot read"):
        read_image(path)
    capfd.readouterr()  # the decoders print what they met


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("L", (20, 10)).save(tmp_path / "large.png")
    for limit in (150, 50):  # Pillow warns above the limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"large\.png is too large"):
            read_image(tmp_path / "large.png")


def test_floating_point_samples_are_refused(tmp_path: Path):
    Image.new("F", (4, 4)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match="32-bit"):
        read_image(tmp_path / "x.tif")


# -- writing --------------------------------------------------------------------------------


def test_clamps_and_rounds_to_nearest(tmp_path: Path):
    values = torch.tensor([-0.5, 0.0, 1.4 / 255, 1.6 / 255, 1.0, 3.0]).reshape(1, 1, 6)
    write_image(tmp_path / "x.png", values)
    assert np.asarray(Image.open(tmp_path / "x.png")).tolist() == [[0, 0, 1, 2, 255, 255]]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("channels", "alpha"), [(1, False), (1, True), (3, False), (3, True)])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str, bits: int, channels: int, alpha: bool):
    samples = random_samples(5, 6, channels + alpha, bits)
    expected = as_pixels(samples)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    path = tmp_path / "deep" / f"x{suffix}"
    write_image(
        path,
        expected[:channels],
        alpha=expected[channels:] if alpha else None,
        bits=bits,
        icc=profile,
        exif=exif.tobytes(),
    )
    image = read_image(path)
    assert image.bits == bits
    assert image.icc == profile
    if not (bits == 16 and suffix == ".tif"):
        assert image.exif is not None
        assert b"Maker" in image.exif
    assert torch.equal(image.pixels, expected[:channels].expand(3, -1, -1))
    assert (image.alpha is not None) == alpha
    if image.alpha is not None:
        assert torch.equal(image.alpha, expected[channels:])


def test_a_format_that_cannot_hold_it_says_which_can(tmp_path: Path):
    pixels = torch.zeros(3, 4, 4)
    with pytest.raises(DataError, match=r"\.jpg holds no alpha\. Use one of \.png"):
        write_image(tmp_path / "x.jpg", pixels, alpha=torch.ones(1, 4, 4))
    with pytest.raises(DataError, match=r"\.webp holds no 16-bit samples\. Use one of \.png"):
        write_image(tmp_path / "x.webp", pixels, bits=16)
    with pytest.raises(DataError, match=r"expected a name that ends in \.png"):
        write_image(tmp_path / "x.gif", pixels)
    with pytest.raises(DataError, match="not finite"):
        write_image(tmp_path / "x.png", pixels * float("nan"))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.bin"
    atomic_write(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*x\.bin"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]
