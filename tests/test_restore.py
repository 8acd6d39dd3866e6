"""Restoring photographs with a trained model."""

import csv
import json
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from veridical.cli import app
from veridical.comparison import restore as restoring
from veridical.comparison.restore import load_model, restore, restore_image, restore_tiled, tiling
from veridical.core.errors import DataError
from veridical.core.files import read_image, write_image
from veridical.core.resize import resize
from veridical.models import EDSR, DnCNN, UNet


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


def _loud(model: nn.Module) -> nn.Module:
    """With random weights where a model starts at zero, so that every pixel within its radius counts."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("model", "tile"),
    [
        (UNet(width=4, levels=2, convs=1), 56),
        (UNet(width=4, levels=3, convs=1), 120),
        (DnCNN(width=8, depth=9), 50),
        (EDSR(width=8, blocks=2), 40),
    ],
)
def test_tiles_are_the_whole_image_where_the_radius_is_known(model: nn.Module, tile: int) -> None:
    """And the grid of a U-Net's halvings falls on the same pixels in every tile."""
    _loud(model)
    image = _photograph(3, 161, 222)
    assert tiling(model, tile=tile)[1] == 2 * model.radius_px
    whole = restore_tiled(model, image, tile=1000)
    torch.testing.assert_close(restore_tiled(model, image, tile=tile), whole, atol=1e-5, rtol=0)
    # The same of more than is needed, where tiles also fade into each other.
    tiled = restore_tiled(model, image, tile=tile + 32, overlap=2 * model.radius_px + 9)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_less_overlap_than_the_radius_asks_for_is_not_the_whole_image() -> None:
    """What the test above would not notice if the model did not look that far."""
    model = _loud(DnCNN(width=8, depth=9))
    image = _photograph(3, 161, 222)
    whole = restore_tiled(model, image, tile=1000)
    assert float((restore_tiled(model, image, tile=50, overlap=8) - whole).abs().max()) > 1e-3


def test_tiles_are_chosen_by_what_the_model_looks_at() -> None:
    assert tiling(DnCNN(depth=17)) == (512, 34)
    assert tiling(UNet()) == (1470, 490)  # 245 px around
    assert tiling(EDSR(scale=4)) == (216, 72)  # 864 px of the result
    far, everywhere = UNet(levels=5), nn.Identity()
    assert far.radius_px > 256
    assert tiling(far) == tiling(everywhere) == (768, 256)
    assert tiling(everywhere, tile=100) == (100, 50)
    assert tiling(everywhere, overlap=10) == (512, 10)


def test_tiles_begin_where_the_model_halves_the_image() -> None:
    seen = []

    class Watch(nn.Module):
        multiple = 12

        def forward(self, image: Tensor) -> Tensor:
            seen.append((int(image[0, 0, 0, 0]), int(image[0, 1, 0, 0])))
            return image

    y, x = torch.meshgrid(torch.arange(150.0), torch.arange(131.0), indexing="ij")
    image = torch.stack([y, x])
    torch.testing.assert_close(restore_tiled(Watch(), image, tile=50, overlap=7), image)
    assert len(seen) > 4
    assert all(place % 12 == 0 for corner in seen for place in corner)


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


def test_a_model_for_enlarged_images_gets_them_enlarged(run: Path, tmp_path: Path) -> None:
    """model.json says so; the identity then gives the bicubic enlargement, and the alpha follows."""
    about = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps({**about, "enlarge": 2}))
    Image.fromarray(np.dstack([_rgb(20, 28), np.full((20, 28), 200, np.uint8)])).save(tmp_path / "a.png")
    restore(run, [tmp_path / "a.png"], tmp_path / "out")
    found = read_image(tmp_path / "out" / "a.png", channels=None)
    wanted = resize(read_image(tmp_path / "a.png").pixels, Fraction(2)).clamp(0, 1)
    assert found.pixels.shape == (3, 40, 56)
    torch.testing.assert_close(found.pixels, wanted, atol=0.51 / 255, rtol=0)
    assert found.alpha is not None
    assert torch.all(found.alpha == 200 / 255)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_the_resolution_in_dpi_is_kept(run: Path, tmp_path: Path, suffix: str) -> None:
    Image.fromarray(_rgb()).save(tmp_path / f"a.{suffix}", dpi=(300, 150))
    (written,) = restore(run, [tmp_path / f"a.{suffix}"], tmp_path / "out").written
    with Image.open(written) as image:
        assert image.info["dpi"] == pytest.approx((300, 150), abs=0.02)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_the_resolution_of_sixteen_bits_is_kept(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a.{suffix}", _photograph(3, 9, 11), bits=16, dpi=(300, 150))
    assert read_image(tmp_path / f"a.{suffix}").dpi == pytest.approx((300, 150), abs=0.02)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        image.load()


def test_a_turned_photograph_has_its_resolution_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_rgb()).save(tmp_path / "a.png", exif=exif, dpi=(300, 150))
    assert read_image(tmp_path / "a.png").dpi == pytest.approx((150, 300), abs=0.02)


# ---- many files ----


def _folder(path: Path, number: int) -> Path:
    path.mkdir()
    for k in range(number):
        Image.fromarray(_rgb(8, 8)).save(path / f"{k:03}.png")
    return path


def test_a_hundred_files_are_never_held_together(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One being read, one in the model, one being written."""
    begun, ended, most, lock = 0, 0, 0, threading.Lock()
    read, write = restoring.read_image, restoring.write_image

    def reads(*args: object, **options: object) -> object:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - ended)
        return read(*args, **options)

    def writes(*args: object, **options: object) -> None:
        nonlocal ended
        write(*args, **options)
        with lock:
            ended += 1

    monkeypatch.setattr(restoring, "read_image", reads)
    monkeypatch.setattr(restoring, "write_image", writes)
    result = restore(run, [_folder(tmp_path / "photos", 100)], tmp_path / "out")
    assert [path.name for path in result.written] == [f"{k:03}.png" for k in range(100)]
    assert 2 <= most <= 3


def test_a_stopped_call_leaves_whole_files_and_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = _folder(tmp_path / "photos", 6), tmp_path / "out"
    whole = restoring.restore_image
    calls = 0

    def stops(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return whole(*args, **options)

    monkeypatch.setattr(restoring, "restore_image", stops)
    command = ["restore", "--run", str(run), str(photos), "-o", str(out), "--report", str(tmp_path / "report.csv")]
    stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 130
    assert "with --skip-existing" in stopped.output
    assert sorted(path.name for path in out.iterdir()) == ["000.png", "001.png", "002.png"]
    assert len((tmp_path / "report.csv.part").read_text().splitlines()) == 1 + 3
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    finished = CliRunner().invoke(app, [*command, "--skip-existing"])
    assert finished.exit_code == 0, finished.output
    assert f"restored 3 photographs into {out}; 3 results of an earlier call kept" in finished.output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(out.iterdir())) == 6
    with (tmp_path / "report.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["present"] * 3 + ["restored"] * 3


def test_all_files_that_failed_are_listed_at_the_end_and_in_the_report(run: Path, tmp_path: Path) -> None:
    photos = _folder(tmp_path / "photos", 3)
    for name in ("a.png", "b.jpg"):
        (photos / name).write_bytes(b"no image")
    result = CliRunner().invoke(
        app,
        ["restore", "--run", str(run), str(photos), "-o", str(tmp_path / "out"), "--report", str(tmp_path / "r.csv")],
    )
    assert result.exit_code == 1
    end = result.output[result.output.index("skipped 2 files that cannot be read or restored:") :]
    for name in ("a.png", "b.jpg"):
        assert f"{photos / name}: cannot read" in end
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["source", "destination", "seconds", "status", "reason"]
    assert [row["status"] for row in rows] == ["restored"] * 3 + ["skipped"] * 2
    assert all(float(row["seconds"]) >= 0 and not row["reason"] for row in rows[:3])
    assert all("not an image" in row["reason"] and not row["seconds"] for row in rows[3:])


def test_results_that_exist_are_not_both_replaced_and_kept(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choose --overwrite or --skip-existing"):
        restore(run, [tmp_path], tmp_path / "out", overwrite=True, skip_existing=True)


# ---- precision and memory ----


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_image(tmp_path: Path, precision: str) -> None:
    folder = tmp_path / "l1"
    folder.mkdir()
    options = {"width": 4, "levels": 1, "convs": 1}
    save_file(_loud(UNet(**options)).state_dict(), folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps({"model": {"name": "unet", "options": options}}))
    Image.fromarray(_rgb()).save(tmp_path / "a.png")
    found = {}
    for each in ("32-true", precision):
        (written,) = restore(folder, [tmp_path / "a.png"], tmp_path / each, precision=each).written
        found[each] = read_image(written).pixels
    difference = (found["32-true"] - found[precision]).abs()
    assert float(difference.max()) < 0.03
    assert not torch.equal(found["32-true"], read_image(tmp_path / "a.png").pixels)


def test_an_image_with_pixels_that_are_not_finite_is_skipped_with_a_hint(run: Path, tmp_path: Path) -> None:
    model = load_model(run)[0]
    with torch.no_grad():  # 70000 is infinity in half precision
        model.out.weight.fill_(1e5)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(1.0)
    save_file(model.state_dict(), run / "model.safetensors")
    Image.fromarray(_rgb()).save(tmp_path / "a.png")
    result = restore(run, [tmp_path / "a.png"], tmp_path / "out", precision="fp16")
    ((source, reason),) = result.skipped
    assert source == tmp_path / "a.png"
    assert "not finite in fp16. Use --precision 32-true, or bf16" in reason
    assert not (tmp_path / "out" / "a.png").exists()


class _Hungry(nn.Module):
    """Says that memory ran out, in torch's words, for more pixels than `most`."""

    multiple = 16

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error = most, error

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-1] * image.shape[-2] > self.most:
            raise self.error
        return image


_OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("MPS backend out of memory (MPS allocated: 5.05 GB, other allocations: 2.88 GB)."),
]


@pytest.mark.parametrize("error", _OUT_OF_MEMORY)
def test_smaller_tiles_are_tried_when_memory_runs_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    about = load_model(run)[1]
    monkeypatch.setattr(restoring, "load_model", lambda folder: (_Hungry(100 * 100, error), about))
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(_rgb(300, 330)).save(photos / name)
    notes: list[str] = []
    result = restore(run, [photos], tmp_path / "out", note=notes.append)
    assert len(result.written) == 2
    assert [int(note.split(" px")[0].split()[-1]) for note in notes] == [330, 160]  # and once for both files
    assert "going on with 80 px that share 40" in notes[-1]
    for name in ("a.png", "b.png"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), _rgb(300, 330))


def test_a_file_that_fits_in_no_tile_is_skipped_and_so_is_one_on_which_the_model_fails(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = load_model(run)[1]
    Image.fromarray(_rgb(300, 330)).save(tmp_path / "a.png")
    for error, said in (
        (_OUT_OF_MEMORY[1], "tiles of 80 px need more memory than there is"),
        (RuntimeError("the sky fell"), "the model fails on it (the sky fell)"),
    ):
        model = _Hungry(0, error)
        monkeypatch.setattr(restoring, "load_model", lambda folder, model=model: (model, about))
        ((_, reason),) = restore(run, [tmp_path / "a.png"], tmp_path / "out").skipped
        assert reason.startswith(f"cannot restore {tmp_path / 'a.png'}: ")
        assert said in reason


def test_a_model_that_takes_a_kernel_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, about = load_model(run)
    model.uses_kernel = True
    monkeypatch.setattr(restoring, "load_model", lambda folder: (model, about))
    with pytest.raises(DataError, match="restores with the kernel of the blur"):
        restore(run, [tmp_path], tmp_path / "out")


@pytest.mark.parametrize("option", ["--tile", "--overlap"])
def test_a_tile_that_is_no_number_is_refused(run: Path, tmp_path: Path, option: str) -> None:
    result = CliRunner().invoke(
        app, ["restore", "--run", str(run), str(tmp_path), "-o", str(tmp_path / "out"), option, "big"]
    )
    assert result.exit_code == 2
    assert f"{option} must be auto or a number of pixels; got 'big'" in result.output
