"""Sets of real pairs, read as their authors ship them: "gopro:FOLDER" wherever a recipe names photographs.

Each layout finds the pairs of its training or of its test part. Sets that come without such parts give all of their
pairs for both, and whoever asks for both holds some out.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from veridical.core.catalog import nearest
from veridical.core.errors import DataError
from veridical.core.files import find_images
from veridical.core.untrusted import read_file
from veridical.training.data import Pair, Photograph

Part = Literal["train", "test"]


@dataclass(frozen=True)
class Layout:
    """One way in which a set of pairs is laid out.

    summary: what the set is, with its source. drawing: its tree. split: whether it comes in a training and a test part.
    """

    summary: str
    drawing: str
    find: Callable[[Path, Part], list[Pair]]
    split: bool


@dataclass(frozen=True)
class Source:
    """ "LAYOUT:FOLDER", read."""

    name: str
    root: Path

    @property
    def split(self) -> bool:
        """Whether the set comes in a training and a test part."""
        return LAYOUTS[self.name].split

    def pairs(self, part: Part) -> list[Pair]:
        """The pairs of one part; all of them where the set has no parts.

        Errors: DataError that names what is missing, and draws what was expected.
        """
        layout = LAYOUTS[self.name]
        try:
            found = layout.find(self.root, part)
        except DataError as error:
            raise DataError(f"{error}\n{self.name}:{self.root} must look like this:\n{layout.drawing}") from error
        return sorted(found, key=lambda pair: pair.name)


def source(text: str) -> Source | None:
    """What "LAYOUT:FOLDER" names; None for a plain folder.

    Errors: DataError for an unknown layout, where there is no such folder either (suggests the nearest), and for a
            layout without its folder.

    >>> source("gopro:data/GOPRO_Large").name
    'gopro'
    >>> source("photographs") is None
    True
    """
    name, colon, root = text.partition(":")
    if not colon or len(name) < 2 or (name not in LAYOUTS and Path(text).exists()):  # one letter: a drive of Windows
        return None
    if name not in LAYOUTS:
        close = nearest(name, LAYOUTS)
        hint = f"Did you mean {close!r}? " if close else ""
        raise DataError(f"unknown layout {name!r} in {text!r}. {hint}Known: {', '.join(LAYOUTS)}.")
    if not root:
        raise DataError(f"{text!r} names no folder. Expected {name}:FOLDER.")
    return Source(name, Path(root).expanduser())


# ---- one function for each ----


def _gopro(root: Path, part: Part) -> list[Pair]:
    """Pairs share their name; blur_gamma, another rendering of the same blur, is left aside."""
    pairs = []
    for folder in sorted(path for path in _folder(root / part).iterdir() if path.is_dir()):
        blurred, sharp = (_images_by_stem(_folder(folder / side)) for side in ("blur", "sharp"))
        _same_names(blurred, sharp, folder / "blur", folder / "sharp")
        pairs += [_pair(f"{folder.name}/{stem}", blurred[stem], sharp[stem]) for stem in blurred]
    if not pairs:
        raise DataError(f"there is no sequence in {root / part}.")
    return pairs


def _realblur(letter: str) -> Callable[[Path, Part], list[Pair]]:
    def find(root: Path, part: Part) -> list[Pair]:
        listed = root / f"RealBlur_{letter}_{part}_list.txt"
        try:
            lines = read_file(listed).decode("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the list {listed}: {getattr(error, 'strerror', error)}.") from error
        pairs = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            files = [root / word for word in line.split()[:2]]
            if len(files) < 2:
                raise DataError(f"line {number} of {listed} must be SHARP BLURRED, but is {line!r}.")
            for file in files:
                if not file.is_file():
                    raise DataError(f"there is no file {file}, which line {number} of {listed} names.")
            sharp, blurred = files
            pairs.append(_pair(f"{blurred.parent.parent.name}/{blurred.stem}", blurred, sharp))
        if not pairs:
            raise DataError(f"the list {listed} is empty.")
        return pairs

    return find


def _dpdd(root: Path, part: Part) -> list[Pair]:
    """The two files of a pair have different names, and belong together by their order."""
    inside = [root, root / "dd_dp_dataset_canon", root / "dd_dp_dataset_png"]
    at = next((folder for folder in inside if (folder / f"{part}_c").is_dir()), root) / f"{part}_c"
    blurred, sharp = (find_images(_folder(at / side)) for side in ("source", "target"))
    if len(blurred) != len(sharp):
        raise DataError(
            f"{at / 'source'} holds {len(blurred)} images and {at / 'target'} {len(sharp)}; they are paired by order."
        )
    return [_pair(each.stem, each, partner) for each, partner in zip(blurred, sharp, strict=True)]


_FOCUS = re.compile(r"(.+)_(original|[lmh]bc)(?:_crop)?", re.IGNORECASE)


def _focus(level: str) -> Callable[[Path, Part], list[Pair]]:
    def find(root: Path, part: Part) -> list[Pair]:
        del part
        blurred: dict[str, Path] = {}
        sharp: dict[str, Path] = {}
        for path in find_images(root):
            match = _FOCUS.fullmatch(path.stem)
            if match is None:
                continue
            side = {"original": sharp, level: blurred}.get(match[2].lower())
            if side is not None:
                name = path.relative_to(root).with_name(match[1]).as_posix()
                if name in side:
                    raise DataError(f"{side[name]} and {path} are both {match[2].lower()} of {name!r}.")
                side[name] = path
        _same_names(blurred, sharp, root / f"*_{level}", root / "*_original")
        return [_pair(name, blurred[name], sharp[name]) for name in blurred]

    return find


def _real_noise(root: Path, part: Part) -> list[Pair]:
    del part
    if (root / "real").is_dir() or (root / "mean").is_dir():
        noisy, clean = (_images_by_stem(_folder(root / side)) for side in ("real", "mean"))
        _same_names(noisy, clean, root / "real", root / "mean")
        return [_pair(name, noisy[name], clean[name]) for name in noisy]
    images = {path.relative_to(root).with_suffix("").as_posix(): path for path in find_images(root)}
    noisy, clean = (
        {name[: -len(end)]: path for name, path in images.items() if name.lower().endswith(end)}
        for end in ("_real", "_mean")
    )
    _same_names(noisy, clean, root / "*_real", root / "*_mean")
    return [_pair(name, noisy[name], clean[name]) for name in noisy]


# ---- what they share ----


def _pair(name: str, degraded: Path, sharp: Path) -> Pair:
    return Pair(name, Photograph(name, degraded), Photograph(name, sharp))


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"there is no folder {path}.")
    return path


def _images_by_stem(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in find_images(folder)}


def _same_names(degraded: dict[str, Path], sharp: dict[str, Path], left: Path, right: Path) -> None:
    """DataError unless both sides hold the same names, and some."""
    only_left, only_right = sorted(set(degraded) - set(sharp)), sorted(set(sharp) - set(degraded))
    if only_left or only_right or not sharp:
        first, second = (
            (", ".join(names[:5]) + ", ..." * (len(names) > 5)) or "none" for names in (only_left, only_right)
        )
        raise DataError(
            f"the names of {left} and {right} do not match: {len(degraded)} and {len(sharp)} images. "
            f"Only in the first: {first}. Only in the second: {second}."
        )


_REALBLUR = """FOLDER/RealBlur_{0}_train_list.txt      lines SHARP BLURRED, relative to FOLDER
FOLDER/RealBlur_{0}_test_list.txt
FOLDER/{1}/scene001/gt/gt_1.png
FOLDER/{1}/scene001/blur/blur_1.png"""
_FOCUS_DRAWING = """FOLDER/NAME_original.png    in focus; _crop may follow, and case does not matter
FOLDER/NAME_lbc.png         low blur
FOLDER/NAME_mbc.png         medium blur
FOLDER/NAME_hbc.png         high blur"""
_FOCUS_SUMMARY = "the sharpness paper's photographs out of focus, {} blur, colours corrected"

# name -> how it is read. What the sets are called inside was read in the loaders that others published.
LAYOUTS: dict[str, Layout] = {
    "gopro": Layout(
        "motion blur of a 240 fps camera: GOPRO_Large of Nah et al. 2017, arXiv:1612.02177",
        """FOLDER/train/SEQUENCE/blur/000001.png
FOLDER/train/SEQUENCE/sharp/000001.png
FOLDER/test/SEQUENCE/blur/000001.png
FOLDER/test/SEQUENCE/sharp/000001.png""",
        _gopro,
        split=True,
    ),
    "realblur-j": Layout(
        "real camera shake, as the camera's JPEG: RealBlur-J of Rim et al. 2020",
        _REALBLUR.format("J", "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"),
        _realblur("J"),
        split=True,
    ),
    "realblur-r": Layout(
        "real camera shake, from raw: RealBlur-R of Rim et al. 2020",
        _REALBLUR.format("R", "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref"),
        _realblur("R"),
        split=True,
    ),
    "dpdd": Layout(
        "real defocus, the image of both views: DPDD of Abuolaim & Brown 2020, arXiv:2005.00305",
        """FOLDER/train_c/source/1.png    a wide aperture
FOLDER/train_c/target/2.png    a narrow one; paired by order, as the names differ
FOLDER/test_c/source/3.png
FOLDER/test_c/target/4.png
FOLDER may also be what holds dd_dp_dataset_canon or dd_dp_dataset_png.""",
        _dpdd,
        split=True,
    ),
    "focus-low": Layout(_FOCUS_SUMMARY.format("low"), _FOCUS_DRAWING, _focus("lbc"), split=False),
    "focus-medium": Layout(_FOCUS_SUMMARY.format("medium"), _FOCUS_DRAWING, _focus("mbc"), split=False),
    "focus-high": Layout(_FOCUS_SUMMARY.format("high"), _FOCUS_DRAWING, _focus("hbc"), split=False),
    "real-noise": Layout(
        "camera noise, and the mean of many shots: the Cross-Channel set of Nam et al. 2016",
        """FOLDER/real/NAME.png         one shot
FOLDER/mean/NAME.png         the mean of many
or FOLDER/NAME_real.png and FOLDER/NAME_mean.png""",
        _real_noise,
        split=False,
    ),
}
