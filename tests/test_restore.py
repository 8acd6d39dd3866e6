"""Restoring photographs with a trained model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from safetensors.torch import save_file
from torch import Tensor, nn

from veridical.comparison.restore import load_model, restore, restore_image, restore_tiled
from veridical.core.errors import DataError
from veridical.core.files import read_image
from veridical.models import UNet


def _photograph(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth and noisy parts, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    smooth = torch.stack([0.5 + 0.4 * torch.sin(9 * (x + c * y)) for c in range(channels)])
    return (smooth + 0.05 * torch.randn(channels, height, width, generator=generator)).clamp(0, 1)


class _Sharpen(nn.Module):
    """A 9x9 convolution with zero padding: wrong near the borders of whatever it is given, as every real model is."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 9, padding=4)
        torch.manual_seed(3)
        nn.init.normal_(self.conv.weight, std=0.05)

    def forward(self, image: Tensor) -> Tensor:
        return image + self.conv(image)


class _Double(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.interpolate(image, scale_factor=2, mode="nearest")


@pytest.mark.parametrize("size", [(200, 330), (97, 400), (64, 65), (129, 128)])
def test_tiles_give_what_the_whole_image_gives(size: tuple[int, int]) -> None:
    image, model = _photograph(3, *size), _Sharpen()
    whole = restore_tiled(model, image, tile=1000)
    tiled = restore_tiled(model, image, tile=96, overlap=32)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_a_tile_larger_than_the_image_is_the_untiled_result() -> None:
    image, model = _photograph(3, 70, 90), _Sharpen()
    with torch.no_grad():
        assert torch.equal(restore_tiled(model, image, tile=512), model(image[None])[0])


def test_tiles_of_a_unet_leave_no_seam() -> None:
    """The U-Net's grid of halvings must fall on the same pixels in every tile."""
    torch.manual_seed(0)
    model = UNet(width=4, levels=2).eval()
    image = _photograph(3, 160, 224)
    whole = restore_tiled(model, image, tile=1000)
    tiled = restore_tiled(model, image, tile=128, overlap=64)
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=0)


def test_a_flat_image_stays_flat_over_the_seams() -> None:
    """Without a zero-weight margin, the model's zero padding would show at every tile border."""
    model = _Sharpen(1)
    tiled = restore_tiled(model, torch.full((1, 300, 300), 0.5), tile=96, overlap=32)
    inside = tiled[..., 8:-8, 8:-8]
    assert float(inside.max() - inside.min()) < 1e-5


def test_tiles_follow_the_scale_of_the_model() -> None:
    image = _photograph(3, 100, 150)
    torch.testing.assert_close(restore_tiled(_Double(), image, tile=64, overlap=16), _Double()(image[None])[0])


def test_an_overlap_as_wide_as_the_tile_is_refused() -> None:
    with pytest.raises(DataError, match="a tile of 64 pixels with an overlap of 64"):
        restore_tiled(_Sharpen(), _photograph(3, 100, 100), tile=64, overlap=64)


def test_grey_goes_through_a_colour_model_and_stays_grey() -> None:
    grey = _photograph(1, 40, 40)
    result = restore_image(nn.Identity(), grey, channels=3)
    torch.testing.assert_close(result, grey)


def test_colour_goes_through_a_grey_model_channel_by_channel() -> None:
    colour, model = _photograph(3, 40, 40), _Sharpen(1)
    with torch.no_grad():
        each = torch.cat([model(plane[None, None])[0] for plane in colour])
    torch.testing.assert_close(restore_image(model, colour, channels=1), each)


# ---- files ----


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of one loss, holding a U-Net whose output is its input (its last convolution is zero)."""
    folder = tmp_path / "run" / "l1"
    folder.mkdir(parents=True)
    options = {"width": 4, "levels": 2}
    model = UNet(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with torch.no_grad():
        probe = _photograph(3, 32, 32)[None]
        assert torch.equal(model(probe), probe), "the U-Net is no longer residual; give this fixture another identity"
    save_file(model.state_dict(), folder / "model.safetensors")
    about = {"model": {"name": "unet", "options": options}, "task": "deblur", "loss": "l1", "steps": 3}
    (folder / "model.json").write_text(json.dumps(about))
    return folder


def _rgb(height: int = 40, width: int = 56, channels: int = 3) -> np.ndarray:
    pixels = (_photograph(max(channels, 1), height, width) * 255).round().byte().permute(1, 2, 0).numpy()
    return pixels[..., 0] if channels == 1 else pixels


def test_a_folder_keeps_its_sub_folders(run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "2024" / "may").mkdir(parents=True)
    Image.fromarray(_rgb()).save(photos / "a.jpg")
    Image.fromarray(_rgb()).save(photos / "2024" / "may" / "b.png")
    result = restore(run, [photos], tmp_path / "out")
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in result.written) == [
        "2024/may/b.png",
        "a.png",
    ]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/2024/may/b.png")), _rgb())


def test_alpha_bits_and_profile_are_kept(run: Path, tmp_path: Path) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    alpha = (np.arange(40 * 56).reshape(40, 56) % 256).astype(np.uint8)
    Image.fromarray(np.dstack([_rgb(), alpha])).save(tmp_path / "see.png", icc_profile=icc)
    restore(run, [tmp_path / "see.png"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "see.png") as image:
        assert image.mode == "RGBA"
        assert np.array_equal(np.asarray(image)[..., 3], alpha)
        assert image.info["icc_profile"] == icc


def test_sixteen_bits_are_kept(run: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    deep = (np.random.default_rng(0).random((40, 56, 3)) * 65535).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    cv2.imwrite(str(tmp_path / "deep.tif"), deep[..., ::-1])
    restore(run, [tmp_path / "deep.png"], tmp_path / "out")
    restore(run, [tmp_path / "deep.tif"], tmp_path / "out")
    for name in ("deep.png", "deep.tif"):
        back = cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED)[..., ::-1]
        assert back.dtype == np.uint16
        assert int(np.abs(back.astype(int) - deep.astype(int)).max()) <= 1


def test_the_orientation_that_a_viewer_sees_is_kept(run: Path, tmp_path: Path) -> None:
    """EXIF orientation 6: stored on its side, shown turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    Image.fromarray(_rgb(40, 56)).save(tmp_path / "phone.png", exif=exif)
    restore(run, [tmp_path / "phone.png"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "phone.png") as image:
        assert image.size == (40, 56)
        assert image.getexif().get(0x0112, 1) == 1
        assert image.getexif()[0x010F] == "maker"
        assert np.array_equal(np.asarray(image), np.rot90(_rgb(40, 56), k=-1))


def test_grey_files_stay_grey(run: Path, tmp_path: Path) -> None:
    Image.fromarray(_rgb(channels=1)).save(tmp_path / "grey.png")
    restore(run, [tmp_path / "grey.png"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "grey.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), _rgb(channels=1))


def test_a_photograph_of_a_few_pixels_is_restored(run: Path, tmp_path: Path) -> None:
    Image.fromarray(_rgb(3, 5)).save(tmp_path / "tiny.png")
    restore(run, [tmp_path / "tiny.png"], tmp_path / "out")
    assert read_image(tmp_path / "out" / "tiny.png").pixels.shape == (3, 3, 5)


def test_a_damaged_file_is_reported_and_the_others_are_restored(run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(_rgb()).save(photos / "good.jpg")
    whole = (photos / "good.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    seen = []
    result = restore(run, [photos], tmp_path / "out", on_image=lambda *event: seen.append(event))
    assert [p.name for p in result.written] == ["good.png"]
    ((path, reason),) = result.skipped
    assert path == photos / "cut.jpg"
    assert "damaged or cut short" in reason
    assert [(n, of, source.name) for n, of, source, _ in seen] == [(1, 2, "cut.jpg"), (2, 2, "good.jpg")]


def test_an_input_is_never_overwritten(run: Path, tmp_path: Path) -> None:
    Image.fromarray(_rgb()).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(DataError, match="would overwrite the input"):
        restore(run, [tmp_path / "a.png"], tmp_path, overwrite=True)
    assert (tmp_path / "a.png").read_bytes() == before


def test_existing_results_are_refused_unless_told(run: Path, tmp_path: Path) -> None:
    Image.fromarray(_rgb()).save(tmp_path / "a.png")
    restore(run, [tmp_path / "a.png"], tmp_path / "out")
    with pytest.raises(DataError, match=r"1 of 1 outputs exist already .*--overwrite"):
        restore(run, [tmp_path / "a.png"], tmp_path / "out")
    assert len(restore(run, [tmp_path / "a.png"], tmp_path / "out", overwrite=True).written) == 1


def test_two_files_of_one_name_do_not_replace_each_other(run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(_rgb()).save(photos / "a.jpg")
    Image.fromarray(_rgb()).save(photos / "a.png")
    assert sorted(p.name for p in restore(run, [photos], tmp_path / "out").written) == ["a.png", "a.png.png"]


def test_a_missing_input_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file or folder .*nowhere"):
        restore(run, [tmp_path / "nowhere"], tmp_path / "out")


def test_the_run_folder_instead_of_a_loss_folder_lists_the_losses(run: Path) -> None:
    with pytest.raises(DataError, match=r"holds no finished model.*Finished models: .*l1"):
        load_model(run.parent)


def test_weights_that_do_not_fit_are_refused(run: Path) -> None:
    about = json.loads((run / "model.json").read_text())
    about["model"]["options"]["width"] = 8
    (run / "model.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="does not fit the model 'unet'"):
        load_model(run)
