"""Samples: the same whatever the workers, cut from where they say, and never stopped by one bad file."""

import copy
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from torch import Tensor
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests.shared import shared_data
from veridical.core.errors import DataError
from veridical.core.files import read_image, write_image
from veridical.degradations import degradation, enlarged
from veridical.training.data import (
    EvaluationPair,
    PairSamples,
    Photograph,
    Store,
    TrainingSamples,
    batches,
    evaluation_pairs,
    evaluation_photographs,
    generator_for,
    hold_out,
    names_of,
    pairs_in,
    photographs_in,
)
from veridical.training.kernels import kernels_in
from veridical.training.photographs import EVALUATE, EVALUATE_PX, TRAIN, credits, demo_photographs


@dataclass(frozen=True)
class Noise:
    """A degradation with chance in it."""

    label: str = "noise"
    scale: int = 1

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return image + 0.1 * torch.randn(image.shape, generator=generator)


@dataclass(frozen=True)
class Identity(Noise):
    label: str = "identity"

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        return image


@dataclass(frozen=True)
class Place(Noise):
    """The degraded image tells the place of every pixel in the window, counted from its top left corner."""

    label: str = "place"

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        _, height, width = image.shape
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack([rows, columns, rows + columns]).float()


def random_image(height: int = 40, width: int = 56, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)).mul(255).round() / 255


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photographs at two depths, three bits deep in folders."""
    for place, name in enumerate(("a.png", "b/c.png", "b/d/e.tif", "f.png")):
        write_image(tmp_path / name, random_image(seed=place), bits=16 if name == "f.png" else 8)
    return tmp_path


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# -- training samples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_whatever_the_worker_count_and_the_start(folder: Path, workers: int):
    samples = TrainingSamples(photographs_in(folder), Noise(), crop=16, seed=1)
    alone = list(batches(samples, batch_size=3, start_step=0, steps=5))
    shared = list(batches(samples, batch_size=3, start_step=0, steps=5, workers=workers))
    late = list(batches(samples, batch_size=3, start_step=2, steps=5, workers=workers))
    assert len(alone) == len(shared) == 5
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))
    assert all(same(a, b) for a, b in zip(alone[2:], late, strict=True))
    assert alone[0][0].shape == (3, 3, 16, 16)


def test_real_degradations_give_the_same_batches_in_workers(folder: Path):
    chain = degradation("camera-shake(size=15) + gaussian-noise(sigma_8bit=(0, 15)) + jpeg(quality=(20, 90))")
    samples = TrainingSamples(photographs_in(folder), chain, crop=24, seed=1)
    alone = list(batches(samples, batch_size=2, start_step=0, steps=4))
    shared = list(batches(samples, batch_size=2, start_step=0, steps=4, workers=2))
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_processes_share_every_batch(folder: Path):
    samples = TrainingSamples(photographs_in(folder), Noise(), crop=16, seed=1)
    (whole,) = batches(samples, batch_size=4, start_step=3, steps=4)
    parts = [
        next(iter(batches(samples, batch_size=4, start_step=3, steps=4, rank=rank, world_size=2))) for rank in (0, 1)
    ]
    assert same(whole, (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])))
    with pytest.raises(DataError, match="a batch of 4 cannot be shared equally by 3 devices"):
        batches(samples, batch_size=4, start_step=0, steps=1, world_size=3)


def test_samples_depend_on_seed_and_index_and_on_nothing_else(folder: Path):
    one, two = (TrainingSamples(photographs_in(folder), Noise(), crop=16, seed=1) for _ in range(2))
    torch.manual_seed(5)
    first = one[7]
    two[8]
    assert same(first, two[7])
    assert not same(first, one[8])
    other = TrainingSamples(photographs_in(folder), Noise(), crop=16, seed=2)
    assert not same(first, other[7])


def test_every_photograph_every_turn_and_every_corner_is_drawn():
    image = torch.arange(3 * 18 * 18).reshape(3, 18, 18) / 1000
    photographs = [("a", image), ("b", image + 1)]
    samples = TrainingSamples(photographs, Identity(), crop=16, seed=0)
    drawn = {tuple(samples[index][1].flatten().tolist()) for index in range(600)}
    possible = {
        tuple((cut.flip(2) if flip else cut).rot90(turn, (1, 2)).flatten().tolist())
        for _, whole in photographs
        for top in range(3)
        for left in range(3)
        for cut in [whole[:, top : top + 16, left : left + 16]]
        for turn in range(4)
        for flip in (False, True)
    }
    assert len(possible) == 144
    assert drawn <= possible
    assert len(drawn) > 130  # 600 draws of 144: about 2 are left out


def test_without_flips_a_crop_stands_as_in_the_photograph():
    image = random_image()
    samples = TrainingSamples([("a", image)], Identity(), crop=16, seed=0, flips=False)
    for index in range(10):
        _, sharp = samples[index]
        places = [
            (top, left)
            for top in range(25)
            for left in range(41)
            if torch.equal(image[:, top : top + 16, left : left + 16], sharp)
        ]
        assert len(places) == 1


def test_the_crop_stands_on_the_grid_of_sixteen_and_inside_its_border():
    """The border rule stays outside where there is room, and JPEG blocks and Bayer patterns keep their places."""
    samples = TrainingSamples([("a", random_image(80, 96))], Place(), crop=20, seed=0)
    corners = {tuple(samples[index][0][:2, 0, 0].int().tolist()) for index in range(200)}
    assert corners == {(0, 0), (0, 16), (16, 0), (16, 16)}
    tight = TrainingSamples([("a", random_image(20, 20))], Place(), crop=20, seed=0)
    assert tight[0][0][:2, 0, 0].tolist() == [0, 0]


def test_the_crop_is_the_one_that_was_drawn():
    """The documented order of draws, followed by hand: photograph, row, column, turn."""
    image = random_image(50, 60)
    samples = TrainingSamples([("a", image)], Identity(), crop=20, seed=3)
    for index in range(60):
        generator = generator_for(3, index)
        _, top, left, turn = (int(torch.randint(n, (), generator=generator)) for n in (1, 31, 41, 8))
        expected = image[:, top : top + 20, left : left + 20].rot90(turn % 4, (1, 2))
        assert torch.equal(samples[index][1], expected.flip(2) if turn >= 4 else expected)


def test_the_degraded_and_the_sharp_crop_show_the_same_place():
    samples = TrainingSamples([("a", random_image(80, 96))], Identity(), crop=20, seed=0)
    for index in range(50):
        assert same(samples[index], (samples[index][1], samples[index][0]))


def test_sixteen_bit_and_grey_files_and_luma_come_as_asked(tmp_path: Path):
    write_image(tmp_path / "deep.png", random_image() / 7, bits=16)
    write_image(tmp_path / "grey.png", random_image()[:1])
    for channels in (1, 3):
        store = Store(channels=channels)
        for name in ("deep", "grey"):
            photograph = Photograph(name, tmp_path / f"{name}.png")
            expected = read_image(tmp_path / f"{name}.png", channels=channels).pixels
            torch.testing.assert_close(store.whole(photograph), expected, rtol=0, atol=1e-6)


def test_the_cache_keeps_to_its_limit_and_changes_nothing(folder: Path):
    photographs = photographs_in(folder)
    one = 3 * 40 * 56
    small = TrainingSamples(photographs, Noise(), crop=16, seed=0, cache_bytes=one * 2)
    large = TrainingSamples(photographs, Noise(), crop=16, seed=0)
    for index in range(20):
        assert same(small[index], large[index])
        kept = small.store._kept.values()
        assert sum(pixels.nbytes for pixels in kept) <= one * 2
    assert {pixels.dtype for pixels in large.store._kept.values()} == {np.dtype(np.uint8), np.dtype(np.uint16)}


def test_bad_files_are_skipped_with_their_reasons(folder: Path):
    write_image(folder / "tiny.png", random_image(9, 9))
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("hello")
    seen: list[tuple[int, int]] = []
    samples = TrainingSamples(
        photographs_in(folder), Noise(), crop=16, seed=0, progress=lambda done, of: seen.append((done, of))
    )
    assert [each.name for each in samples.skipped] == ["cut", "text", "tiny"]
    assert "cut.png: the file is damaged or cut short" in samples.skipped[0].reason
    assert "text.jpg: it is not an image" in samples.skipped[1].reason
    assert "tiny.png is 9x9 px, but training crops of 16 px need at least 16x16" in samples.skipped[2].reason
    assert len(samples.items) == 4
    assert seen == [(done, 7) for done in range(1, 8)]


def test_when_nothing_is_left_the_first_reasons_are_told(tmp_path: Path):
    write_image(tmp_path / "tiny.png", random_image(9, 9))
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(DataError, match=r"(?s)none of the 2 image\(s\) can be used.*text\.jpg.*tiny\.png is 9x9"):
        TrainingSamples(photographs_in(tmp_path), Noise(), crop=16, seed=0)


@dataclass(frozen=True)
class Corner(Noise):
    """Keeps the first pixel of each block of `scale`, so that its place can be told."""

    label: str = "corner"
    scale: int = 4

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        return image[:, :: self.scale, :: self.scale]


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("height", [24, 131, 200])
def test_a_degradation_may_shrink_and_every_turn_keeps_its_grid(scale: int, height: int):
    image = torch.arange(3 * height * 150).reshape(3, height, 150).float()
    samples = TrainingSamples([("a", image)], Corner(scale=scale), crop=24, seed=0, flips=False)
    assert samples.scale == scale
    for index in range(50):
        degraded, sharp = samples[index]
        assert (degraded.shape, sharp.shape) == ((3, 24 // scale, 24 // scale), (3, 24, 24))
        assert torch.equal(degraded, sharp[:, ::scale, ::scale])
        top, left = divmod(int(sharp[0, 0, 0]), 150)
        assert top % scale == left % scale == 0
    # Turned, a window is degraded as it then stands: again from its own corner.
    turned = TrainingSamples([("a", image)], Corner(scale=scale), crop=24, seed=0)
    for index in range(50):
        degraded, sharp = turned[index]
        assert torch.equal(degraded, sharp[:, ::scale, ::scale])


def test_every_place_of_the_grid_is_drawn_when_the_degradation_shrinks():
    image = torch.arange(3 * 23 * 27).reshape(3, 23, 27).float()
    samples = TrainingSamples([("a", image)], Corner(), crop=16, seed=0, flips=False)
    corners = {divmod(int(samples[index][1][0, 0, 0]), 27) for index in range(100)}
    assert corners == {(top, left) for top in (0, 4) for left in (0, 4, 8)}


def test_what_shrank_and_was_enlarged_is_cut_at_the_places_of_what_shrank():
    """A model that keeps the size sees the same crops as one that enlarges, in the same order."""
    small = degradation("bicubic-downscale(scale=4)")
    samples = TrainingSamples([("a", random_image(200, 220))], small, crop=32, seed=0)
    again = copy.copy(samples)
    again.degradation = enlarged(small)
    upscale = degradation("bicubic-upscale(scale=4)")
    for index in range(10):
        (low, sharp), (high, same_sharp) = samples[index], again[index]
        assert torch.equal(sharp, same_sharp)
        assert high.shape == sharp.shape
        # Away from the border of the crop, where what was cut off is missing.
        torch.testing.assert_close(high[:, 12:-12, 12:-12], upscale(low)[:, 12:-12, 12:-12], atol=1e-5, rtol=0)


def test_a_crop_that_does_not_shrink_whole_is_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"crops of 30 px cannot shrink 4 times.*Set training\.crop to 28 or 32\."):
        TrainingSamples([("a", random_image())], Corner(), crop=30, seed=0)
    with pytest.raises(DataError, match=r"Set training\.crop to 4\."):
        TrainingSamples([("a", random_image())], Corner(), crop=3, seed=0)


@pytest.mark.parametrize("spec", ["bicubic-upscale(scale=2)", "bicubic-downscale(scale=3) + bicubic-upscale(scale=2)"])
def test_a_degradation_of_no_whole_scale_is_refused_with_the_remedy(spec: str):
    for build in (
        lambda: TrainingSamples([("a", random_image())], degradation(spec), crop=16, seed=0),
        lambda: evaluation_photographs([("a", random_image())], degradation(spec), seed=0),
    ):
        with pytest.raises(DataError, match=r"times smaller, but that must be a whole number.*bicubic-upscale"):
            build()


def test_evaluation_images_are_cut_to_multiples_of_the_scale():
    image = random_image(43, 58)
    pairs = evaluation_photographs([("a", image)], Corner(), seed=0)
    (pair,) = pairs
    assert pairs.scale == 4
    assert pairs.size(pairs.items[0]) == (40, 56)
    assert torch.equal(pair.sharp, image[:, :40, :56])
    assert torch.equal(pair.degraded, image[:, :40:4, :56:4])
    tight = evaluation_photographs([("a", image), ("b", random_image(43, 23))], Corner(), seed=0, min_size=21)
    assert [each.name for each in tight.skipped] == ["b"]  # 20 px would be left of it


def test_the_generator_of_a_place_is_fixed_for_all_time():
    """Runs are compared across versions: a seed must never change. From `printf 3/7 | b2sum -l 64`, halved."""
    assert generator_for(3, 7).initial_seed() == 4759080393615176752
    assert generator_for(37).initial_seed() != generator_for(3, 7).initial_seed()


# -- pairs ----------------------------------------------------------------------------------------------


def make_pairs(root: Path, names: tuple[str, ...] = ("a", "b")) -> tuple[Path, Path]:
    for place, name in enumerate(names):
        image = random_image(seed=place)
        write_image(root / "sharp" / f"{name}.png", image)
        write_image(root / "blurred" / f"{name}.tif", image / 2)
    return root / "blurred", root / "sharp"


def test_pairs_are_cut_and_turned_alike(tmp_path: Path):
    samples = PairSamples(pairs_in(*make_pairs(tmp_path)), crop=16, seed=0)
    for index in range(20):
        degraded, sharp = samples[index]
        torch.testing.assert_close(degraded, sharp / 2, rtol=0, atol=1 / 255)


def test_names_that_do_not_match_are_listed_for_each_side(tmp_path: Path):
    blurred, sharp = make_pairs(tmp_path)
    write_image(sharp / "only.png", random_image())
    for place in range(7):
        write_image(blurred / f"extra{place}.png", random_image())
    with pytest.raises(DataError, match=r"first: extra0, .*extra4 and 2 more\. Only in the second: only\."):
        pairs_in(blurred, sharp)


def test_two_sizes_in_a_pair_are_an_error(tmp_path: Path):
    blurred, sharp = make_pairs(tmp_path)
    write_image(sharp / "b.png", random_image(30, 30))
    with pytest.raises(DataError, match=r"the pair 'b' has two sizes: .*b\.tif is 56x40 px, .*b\.png is 30x30"):
        PairSamples(pairs_in(blurred, sharp), crop=16, seed=0)


def make_enlarged_pairs(root: Path, scales: dict[str, int]) -> tuple[Path, Path]:
    for place, (name, scale) in enumerate(scales.items()):
        image = random_image(20, 28, seed=place)
        write_image(root / "low" / f"{name}.png", image)
        big = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        write_image(root / "high" / f"{name}.png", big)
    return root / "low", root / "high"


def test_sharp_photographs_may_be_a_whole_number_of_times_larger(tmp_path: Path):
    items = pairs_in(*make_enlarged_pairs(tmp_path, {"a": 3, "b": 3}))
    samples = PairSamples(items, crop=24, seed=0)
    assert samples.scale == 3
    for index in range(20):
        degraded, sharp = samples[index]
        assert (degraded.shape, sharp.shape) == ((3, 8, 8), (3, 24, 24))
        assert torch.equal(degraded, sharp[:, ::3, ::3])
    pairs = evaluation_pairs(items)
    assert pairs.scale == 3
    assert [tuple(pair.sharp.shape) for pair in pairs] == [(3, 60, 84)] * 2
    assert [tuple(pair.degraded.shape) for pair in pairs] == [(3, 20, 28)] * 2
    with pytest.raises(DataError, match=r"crops of 16 px cannot shrink 3 times.*training\.crop to 15 or 18"):
        PairSamples(items, crop=16, seed=0)


def test_pairs_of_two_scales_are_refused_by_name(tmp_path: Path):
    items = pairs_in(*make_enlarged_pairs(tmp_path, {"a": 1, "b": 2}))
    with pytest.raises(DataError, match=r"not all as many times larger.*: 1 in 'a', 2 in 'b'"):
        evaluation_pairs(items)


def test_a_pair_enlarged_by_two_factors_is_refused(tmp_path: Path):
    write_image(tmp_path / "low" / "a.png", random_image(20, 20))
    write_image(tmp_path / "high" / "a.png", random_image(40, 60))
    with pytest.raises(DataError, match=r"has two sizes: .* 20x20 px, .* 60x40.*whole multiple"):
        evaluation_pairs(pairs_in(tmp_path / "low", tmp_path / "high"))


def test_a_pair_with_one_bad_file_is_skipped(tmp_path: Path):
    blurred, sharp = make_pairs(tmp_path)
    (blurred / "a.tif").write_bytes(b"")
    samples = PairSamples(pairs_in(blurred, sharp), crop=16, seed=0)
    assert [each.name for each in samples.skipped] == ["a"]
    assert len(evaluation_pairs(pairs_in(blurred, sharp))) == 1


def test_the_real_pairs_of_gopro_match():
    root = shared_data("pairs/gopro")
    pairs = pairs_in(root / "blur", root / "sharp")
    assert len(pairs) == 15
    pair = next(iter(evaluation_pairs(pairs[:1])))
    assert pair.degraded.shape == pair.sharp.shape == (3, 720, 1280)
    assert 20 < float(-10 * (pair.degraded - pair.sharp).pow(2).mean().log10()) < 40  # dB: blurred, yet the same scene


# -- evaluation and the demo ----------------------------------------------------------------------------


def test_evaluation_is_the_same_each_time_and_for_any_company(folder: Path):
    photographs = photographs_in(folder)
    every = evaluation_photographs(photographs, Noise(), seed=0)
    first, again = list(every), list(every)
    assert [pair.name for pair in first] == ["a", "b/c", "b/d/e", "f"]
    (alone,) = evaluation_photographs(photographs[2:3], Noise(), seed=0)
    for pair, expected in [*zip(again, first, strict=True), (alone, first[2])]:
        assert isinstance(pair, EvaluationPair)
        assert torch.equal(pair.degraded, expected.degraded)
        assert torch.equal(pair.sharp, expected.sharp)
    assert first[0].degraded.shape == (3, 40, 56)
    torch.testing.assert_close(first[0].sharp, random_image(seed=0))


# -- known blurs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["camera-shake(size=9, border=zero)", "disc-blur(radius_px=(1, 4), border=zero)", "box-blur(border=zero)"]
)
def test_the_kernel_of_an_evaluation_image_is_the_one_it_was_blurred_with(spec: str):
    photographs = [(name, random_image(seed=place)) for place, name in enumerate("ab")]
    for pair in evaluation_photographs(photographs, degradation(spec), seed=0):
        assert pair.kernel is not None
        assert float(pair.kernel.sum()) == pytest.approx(1)
        expected = [convolve2d(plane, pair.kernel.numpy(), mode="same") for plane in pair.sharp.double().numpy()]
        np.testing.assert_allclose(pair.degraded, np.stack(expected), atol=1e-5)


def test_noise_after_a_blur_leaves_the_kernel_and_anything_else_hides_it():
    photographs = [("a", random_image())]
    (plain,) = evaluation_photographs(photographs, degradation("camera-shake"), seed=0)
    (noisy,) = evaluation_photographs(
        photographs, degradation("camera-shake + gaussian-noise(sigma_8bit=(0, 9))"), seed=0
    )
    assert plain.kernel is not None
    assert noisy.kernel is not None
    assert torch.equal(noisy.kernel, plain.kernel)
    for spec in (
        "camera-shake + jpeg",
        "gaussian-noise + camera-shake",
        "gaussian-noise",
        "jpeg",
        "box-blur + box-blur",
    ):
        (other,) = evaluation_photographs(photographs, degradation(spec), seed=0)
        assert other.kernel is None


def test_measured_kernels_find_their_pairs(tmp_path: Path):
    for name, height in (("kernel03", 3), ("kernel4", 5), ("im07_ker04", 7)):
        np.save(tmp_path / f"{name}.npy", 2 * np.ones((height, 3), np.float32))
    found = kernels_in(tmp_path, ["im05_ker03", "sub/im06_ker03", "im07_ker04", "kernel3"])
    assert {name: tuple(kernel.shape) for name, kernel in found.items()} == {
        "im05_ker03": (3, 3),
        "sub/im06_ker03": (3, 3),
        "im07_ker04": (7, 3),
        "kernel3": (3, 3),
    }
    assert all(kernel.dtype == torch.float64 and float(kernel.sum()) == pytest.approx(1) for kernel in found.values())
    with pytest.raises(DataError, match=r"one kernel of the pair 'im01_ker04'.*Found: im07_ker04\.npy, kernel4\.npy"):
        kernels_in(tmp_path, ["im01_ker04"])
    with pytest.raises(DataError, match=r"the pair 'flower': flower\.npy, or one whose name ends.*Found: none"):
        kernels_in(tmp_path, ["flower"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones(3), r"one array of numbers of shape \(h, w\)"),
        (np.zeros((3, 3)), "a sum above 0; it sums to 0"),
        (np.full((3, 3), np.nan), "finite numbers"),
        (np.array([["a"]]), "one array of numbers"),
    ],
)
def test_a_file_that_holds_no_kernel_is_named(tmp_path: Path, content: np.ndarray, message: str):
    np.save(tmp_path / "a1.npy", content)
    with pytest.raises(DataError, match=message):
        kernels_in(tmp_path, ["b1"])


def test_a_folder_without_kernels_and_a_pickle_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"no kernels in .*\.npy files"):
        kernels_in(tmp_path, ["a"])
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot read the kernel"):
        kernels_in(tmp_path, ["a"])


def test_the_measured_kernels_of_levin_are_those_of_a_correlation():
    """By the fifth, the one that is centred: the others displace the image by a pixel or more."""
    root, folder = shared_data("pairs/levin"), shared_data("kernels/levin")
    items = [item for item in pairs_in(root / "blur", root / "sharp") if item.name.endswith("ker05")]
    assert len(items) == 4

    def errors(*, flip: bool) -> list[float]:
        found = []
        kernels = kernels_in(folder, [item.name for item in items], flip=flip)
        for pair in evaluation_pairs(items, channels=1, kernels=kernels):
            assert pair.kernel is not None
            blurred = convolve2d(pair.sharp[0].double().numpy(), pair.kernel.numpy(), mode="same")
            found.append(float(np.square(blurred - pair.degraded[0].numpy())[30:-30, 30:-30].mean()))
        return found

    assert max(errors(flip=True)) < min(errors(flip=False)) / 5


def test_held_out_photographs_are_disjoint_and_stay_when_others_come(folder: Path):
    items = [Photograph(f"p{place}", folder) for place in range(40)]
    train, held = hold_out(items)
    assert len(held) == 5
    assert sorted(train + held) == sorted(items)
    train_less, held_less = hold_out([item for item in items if item != train[0]], 5)
    assert held_less == held
    assert len(train_less) == 34
    with pytest.raises(DataError, match=r"1 photograph\(s\) cannot be split"):
        hold_out(items[:1])


def test_photographs_of_one_stem_keep_their_suffixes(tmp_path: Path):
    for name in ("a.png", "a.bmp", "b.png"):
        write_image(tmp_path / name, random_image())
    assert [photo.name for photo in photographs_in(tmp_path)] == ["a.bmp", "a.png", "b"]


def test_the_demo_has_photographs_to_train_on_and_others_to_judge_by():
    train, evaluate = demo_photographs()
    assert not set(dict(train)) & set(dict(evaluate))
    assert not {each.file for each in TRAIN.values()} & {each.file for each in EVALUATE.values()}
    assert min(min(image.shape[1:]) for _, image in train) >= 256
    for _, image in evaluate:
        assert image.shape == (3, EVALUATE_PX, EVALUATE_PX)
        assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert set(credits()) == set(dict(train)) | set(dict(evaluate))


# -- when a worker ends ---------------------------------------------------------------------------------


class Deadly(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Kills the process that makes sample 5, as the kernel does when memory runs out: so many times."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder, self.times = folder, times

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        died = len(list(self.folder.iterdir()))
        if index == 5 and died < self.times and get_worker_info() is not None:
            (self.folder / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        sharp = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(index))
        return 0.5 * sharp, sharp


@pytest.mark.parametrize("times", [1, 3])
def test_a_killed_worker_costs_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int):
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.3,))  # else 5 s until noticed
    notes: list[str] = []
    before = signal.getsignal(signal.SIGCHLD)
    samples = Deadly(tmp_path, times)
    shared = list(batches(samples, batch_size=2, start_step=0, steps=6, workers=2, note=notes.append))
    expected = list(batches(samples, batch_size=2, start_step=0, steps=6))
    assert len(shared) == 6
    assert all(same(a, b) for a, b in zip(shared, expected, strict=True))
    assert signal.getsignal(signal.SIGCHLD) == before  # torch's handler would raise in the middle of a step
    assert len(notes) == times
    assert all("was killed, probably by the kernel as memory ran out, before step" in note for note in notes)
    assert ("made again between the steps from now on" in notes[-1]) == (times == 3)


def test_a_file_that_vanishes_is_named_by_what_a_worker_says(folder: Path):
    samples = TrainingSamples(photographs_in(folder), Noise(), crop=16, seed=1, cache_bytes=0)
    for path in (folder / "a.png", folder / "f.png", folder / "b" / "c.png", folder / "b" / "d" / "e.tif"):
        path.unlink()
    with pytest.raises(DataError, match=r"^cannot read [^\n]*: No such file or directory\.$"):
        next(batches(samples, batch_size=2, start_step=0, steps=1, workers=1))


def test_the_photograph_of_a_sample_is_known_without_reading_it(folder: Path):
    samples = TrainingSamples(photographs_in(folder), Noise(), crop=40, seed=1, flips=False)
    images = {str(photo.source): samples.store.whole(photo) for photo in photographs_in(folder)}
    names = names_of(samples, range(12))
    assert len(set(names)) == 4
    for index, name in enumerate(names):
        row = samples[index][1][0, :, 0]
        assert any(torch.equal(row, column) for column in images[name][0].T)
