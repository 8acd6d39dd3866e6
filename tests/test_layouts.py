"""Sets of real pairs as their authors ship them: tiny trees of each layout, and what is said of a wrong one."""

from pathlib import Path

import pytest
import torch

from tests.shared import shared_data
from veridical.core.errors import DataError
from veridical.core.files import write_image
from veridical.training.data import Pair, evaluation_pairs
from veridical.training.layouts import LAYOUTS, Part, Source, source


def grow(root: Path, *files: str) -> Path:
    """An image at each path."""
    for number, file in enumerate(files):
        write_image(root / file, torch.full((3, 16, 16), number / 100))
    return root


def gopro(root: Path) -> Path:
    sides = ("blur", "sharp", "blur_gamma")
    grow(root, *(f"train/GOPR1/{side}/00000{frame}.png" for side in sides for frame in (1, 2)))
    return grow(
        root, *(f"train/GOPR2/{side}/000001.png" for side in sides), *(f"test/GOPR3/{s}/000009.png" for s in sides)
    )


def realblur(root: Path, letter: str = "J") -> Path:
    inside = f"RealBlur-{letter}_ECC"
    grow(root, *(f"{inside}/scene00{scene}/{kind}/{kind}_7.png" for scene in (1, 2) for kind in ("gt", "blur")))
    for part, scene in (("train", 1), ("test", 2)):
        line = f"{inside}/scene00{scene}/gt/gt_7.png {inside}/scene00{scene}/blur/blur_7.png \n"
        (root / f"RealBlur_{letter}_{part}_list.txt").write_text(line)
    return root


def dpdd(root: Path) -> Path:
    for part, names in (("train", "1357"), ("val", "02"), ("test", "91")):
        for place, name in enumerate(sorted(names)):
            grow(root, f"{part}_c/{('source', 'target')[place % 2]}/1P0A00{name}.png", f"{part}_l/source/x{name}.png")
    return root


def focus(root: Path) -> Path:
    names = ("soda2_original_crop", "soda2_lbC_crop", "soda2_mbC_crop", "soda2_hbC_crop", "readme")
    return grow(
        root, *(f"{name}.png" for name in names), "tea_Original.png", "tea_lbc.png", "tea_MBC.png", "tea_hbc.png"
    )


def real_noise(root: Path) -> Path:
    return grow(root, "real/a.png", "real/b.png", "mean/a.png", "mean/b.png")


TREES = {
    "gopro": gopro,
    "realblur-j": realblur,
    "realblur-r": lambda root: realblur(root, "R"),
    "dpdd": dpdd,
    "focus-low": focus,
    "focus-medium": focus,
    "focus-high": focus,
    "real-noise": real_noise,
}


def found(layout: str, root: Path, part: Part) -> list[Pair]:
    named = source(f"{layout}:{root}")
    assert named is not None
    return named.pairs(part)


def files(pairs: list[Pair], root: Path) -> list[tuple[str, str, str]]:
    """Name, degraded and sharp file, by their paths inside the set."""

    def inside(path: object) -> str:
        assert isinstance(path, Path)
        return path.relative_to(root).as_posix()

    return [(pair.name, inside(pair.degraded.source), inside(pair.sharp.source)) for pair in pairs]


def test_gopro_pairs_by_name_within_a_sequence(tmp_path: Path):
    gopro(tmp_path)
    assert files(found("gopro", tmp_path, "train"), tmp_path) == [
        (f"{at}", f"train/{at.replace('/', '/blur/')}.png", f"train/{at.replace('/', '/sharp/')}.png")
        for at in ("GOPR1/000001", "GOPR1/000002", "GOPR2/000001")
    ]
    assert [pair.name for pair in found("gopro", tmp_path, "test")] == ["GOPR3/000009"]


@pytest.mark.parametrize("letter", ["J", "R"])
def test_realblur_pairs_by_its_lists(tmp_path: Path, letter: str):
    realblur(tmp_path, letter)
    for part, scene in (("train", "scene001"), ("test", "scene002")):
        at = f"RealBlur-{letter}_ECC/{scene}"
        assert files(found(f"realblur-{letter.lower()}", tmp_path, part), tmp_path) == [  # type: ignore[arg-type]
            (f"{scene}/blur_7", f"{at}/blur/blur_7.png", f"{at}/gt/gt_7.png")
        ]


@pytest.mark.parametrize("inside", ["", "dd_dp_dataset_canon", "dd_dp_dataset_png"])
def test_dpdd_pairs_by_order(tmp_path: Path, inside: str):
    root = dpdd(tmp_path / inside)
    assert files(found("dpdd", tmp_path, "train"), root) == [
        ("1P0A001", "train_c/source/1P0A001.png", "train_c/target/1P0A003.png"),
        ("1P0A005", "train_c/source/1P0A005.png", "train_c/target/1P0A007.png"),
    ]
    assert files(found("dpdd", tmp_path, "test"), root) == [
        ("1P0A001", "test_c/source/1P0A001.png", "test_c/target/1P0A009.png")
    ]


@pytest.mark.parametrize(("level", "ends"), [("low", ("lbC_crop", "lbc")), ("medium", ("mbC_crop", "MBC"))])
def test_focus_pairs_whatever_the_case_and_the_ending(tmp_path: Path, level: str, ends: tuple[str, str]):
    focus(tmp_path)
    expected = [
        ("soda2", f"soda2_{ends[0]}.png", "soda2_original_crop.png"),
        ("tea", f"tea_{ends[1]}.png", "tea_Original.png"),
    ]
    for part in ("train", "test"):
        assert files(found(f"focus-{level}", tmp_path, part), tmp_path) == expected  # type: ignore[arg-type]


def test_real_noise_pairs_two_folders_or_two_endings(tmp_path: Path):
    assert files(found("real-noise", real_noise(tmp_path / "a"), "test"), tmp_path / "a") == [
        ("a", "real/a.png", "mean/a.png"),
        ("b", "real/b.png", "mean/b.png"),
    ]
    root = grow(tmp_path / "b", "d800_1_real.png", "d800_1_mean.png")
    assert files(found("real-noise", root, "train"), root) == [("d800_1", "d800_1_real.png", "d800_1_mean.png")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_its_tree_and_its_pairs_can_be_used(layout: str, tmp_path: Path):
    root = TREES[layout](tmp_path)
    parts = {part: found(layout, root, part) for part in ("train", "test")}  # type: ignore[arg-type]
    for pairs in parts.values():
        assert len(evaluation_pairs(pairs)) == len(pairs) >= 1
    if LAYOUTS[layout].split:
        sharp = [{pair.sharp.source for pair in pairs} for pairs in parts.values()]
        assert not sharp[0] & sharp[1]
    else:
        assert parts["train"] == parts["test"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_tree_is_answered_with_a_drawing_of_the_right_one(layout: str, tmp_path: Path):
    grow(tmp_path, "some/photograph.png")
    with pytest.raises(DataError) as error:
        found(layout, tmp_path, "train")
    assert f"{layout}:{tmp_path} must look like this:\n{LAYOUTS[layout].drawing}" in str(error.value)
    with pytest.raises(DataError, match=r"must look like this"):
        found(layout, tmp_path / "nowhere", "train")


def test_what_is_missing_is_named(tmp_path: Path):
    root = gopro(tmp_path / "gopro")
    (root / "train/GOPR1/sharp/000002.png").unlink()
    with pytest.raises(DataError, match=r"GOPR1/blur and .*do not match: 2 and 1 images. Only in the first: 000002"):
        found("gopro", root, "train")
    with pytest.raises(DataError, match=r"there is no folder .*gopro/train/test"):
        found("gopro", root / "train", "test")
    root = realblur(tmp_path / "realblur")
    (root / "RealBlur-J_ECC/scene001/gt/gt_7.png").unlink()
    with pytest.raises(DataError, match=r"no file .*gt_7\.png, which line 1 of .*RealBlur_J_train_list\.txt names"):
        found("realblur-j", root, "train")
    (root / "RealBlur_J_train_list.txt").write_text("\nonly.png\n")
    with pytest.raises(DataError, match=r"line 2 of .* must be SHARP BLURRED, but is 'only.png'"):
        found("realblur-j", root, "train")
    (root / "RealBlur_J_train_list.txt").write_text("\n")
    with pytest.raises(DataError, match=r"the list .* is empty"):
        found("realblur-j", root, "train")
    with pytest.raises(DataError, match=r"cannot read the list .*RealBlur_R_test_list\.txt"):
        found("realblur-r", root, "test")
    root = dpdd(tmp_path / "dpdd")
    (root / "train_c/target/1P0A003.png").unlink()
    with pytest.raises(DataError, match=r"source holds 2 images and .*target 1; they are paired by order"):
        found("dpdd", root, "train")
    root = focus(tmp_path / "focus")
    (root / "tea_lbc.png").unlink()
    with pytest.raises(DataError, match=r"1 and 2 images. Only in the first: none. Only in the second: tea"):
        found("focus-low", root, "train")
    grow(root, "soda2_lbc.png")
    with pytest.raises(DataError, match=r"are both lbc of 'soda2'"):
        found("focus-low", root, "train")


def test_a_plain_folder_is_no_layout(tmp_path: Path):
    assert source("photographs") is None
    assert source("C:/photographs") is None
    (tmp_path / "a:b").mkdir()
    assert source(f"{tmp_path}/a:b") is None
    assert source("dpdd:a/b:c") == Source("dpdd", Path("a/b:c"))


def test_an_unknown_layout_suggests_the_nearest():
    with pytest.raises(
        DataError, match=r"unknown layout 'gpro' in 'gpro:x'. Did you mean 'gopro'\? Known: gopro, real"
    ):
        source("gpro:x")
    with pytest.raises(DataError, match=r"'gopro:' names no folder. Expected gopro:FOLDER"):
        source("gopro:")


def test_the_real_sets_are_read():
    noise = evaluation_pairs(found("real-noise", shared_data("pairs/noise"), "test"))
    assert len(noise) == 8
    slopes = {}  # squared, over the three scenes: what blur takes away
    for level in ("low", "medium", "high"):
        pairs = evaluation_pairs(found(f"focus-{level}", shared_data("pairs/defocus"), "test"))
        assert [pair.name for pair in pairs] == ["keyboard1", "peppermintTea3", "soda2"]
        slopes[level] = sum(float(pair.degraded.diff(dim=2).square().mean()) for pair in pairs)
        slopes["none"] = sum(float(pair.sharp.diff(dim=2).square().mean()) for pair in pairs)
    assert slopes["none"] > slopes["low"] > slopes["medium"] > slopes["high"]
