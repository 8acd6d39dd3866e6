"""What is asked of people: which two images beside which reference, how often, in which order, on which side."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import combinations
from math import ceil, comb
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veridical.comparison.folder import read_json, write_json
from veridical.comparison.pictures import interesting
from veridical.comparison.run import read_about
from veridical.comparison.score import by_stem
from veridical.comparison.statistics import INPUT
from veridical.core.catalog import unknown
from veridical.core.errors import DataError
from veridical.core.files import ImageFile, read_image, write_image
from veridical.core.options import check_choice, check_whole
from veridical.core.untrusted import parse_json, read_file, short
from veridical.degradations import degradation

FULL, ACTIVE = "full", "active"
REFERENCE, OBVIOUS = "reference", "ruined"
"""The two sides of a screening trial, as the table of votes calls them."""

TITLE = "Which image looks more like the reference?"
"""What raters read first, when the researcher has no title of their own."""

SECONDS_PER_TRIAL = 10
"""A guess, for saying how long a study takes: it is not measured."""

_RUIN = "gaussian-blur(sigma_px=4) + gaussian-noise(sigma_8bit=40)"  # blur shows in texture, noise where it is flat
_FILE = "study.json"
_IMAGE = re.compile(r"[0-9a-f]{16}\.webp")


@dataclass(frozen=True)
class Comparison:
    """One image by two methods, by their numbers; `left` is shown on the left."""

    image: int
    left: int
    right: int


@dataclass(frozen=True)
class Design:
    """A study, as study.json has it.

    methods, images: their names. per_pair: votes for each pair of methods, over all images.
    pairs:       "full", or "active": the next pair is the one that the votes so far leave most open.
    trials, screening: of one rater.
    comparisons: all that are asked in a full design, in the order in which they are handed out; none when active.
    files:       image -> {method, "reference" or "ruined" -> file inside images/}; the file names say nothing.
    title, contact: shown to the raters.
    """

    title: str
    contact: str
    methods: tuple[str, ...]
    images: tuple[str, ...]
    per_pair: int
    pairs: str
    trials: int
    screening: int
    seed: int
    created: str
    comparisons: tuple[Comparison, ...]
    files: tuple[Mapping[str, str], ...]

    @property
    def votes(self) -> int:
        """How many ordinary votes are asked for in all."""
        return comb(len(self.methods), 2) * self.per_pair

    @property
    def raters(self) -> int:
        """How many raters give all votes, when each answers one set of trials."""
        return ceil(self.votes / self.trials)

    @property
    def minutes(self) -> int:
        """About how long one set of trials takes."""
        return max(1, round((self.trials + self.screening) * SECONDS_PER_TRIAL / 60))


@dataclass(frozen=True)
class Sources:
    """The images that can be compared: name of the image -> file, for the reference and for each method."""

    reference: Mapping[str, Path]
    methods: Mapping[str, Mapping[str, Path]]


# ---- which comparisons, in which order ----


def full_design(methods: int, images: int, per_pair: int, seed: int) -> list[Comparison]:
    """Every pair of methods `per_pair` times, spread over the images, in the order in which raters get them.

    As in MDF (Mustafa et al. 2022), section 4.3: "every loss function was compared to every other loss 50 times", over
    50 images. What is balanced, exactly or to within the one that an odd number leaves over:
    - the images of a pair, and the images over all pairs;
    - the sides of a pair, also within each image of it; and left and right of each method over all its pairs;
    - any run of comb(methods, 2) comparisons that starts at a multiple of it has each pair once, so that a study that
      stops early is still balanced.
    The rest is drawn from `seed`.
    """
    rng = random.Random(seed)
    places = rng.sample(range(methods), methods)  # around a circle: each is left of the half that follows it
    uses = [0] * images
    asked: list[list[Comparison]] = []
    for a, b in combinations(range(methods), 2):
        pair = (places[a], places[b]) if 2 * (b - a) <= methods else (places[b], places[a])
        cycles = [rng.sample(range(images), images) for _ in range(per_pair // images)]
        fewest = sorted(range(images), key=lambda k: (uses[k], rng.random()))
        cycles.append(fewest[: per_pair % images])
        for k in cycles[-1]:
            uses[k] += 1
        asked.append(_with_sides(cycles, pair, rng))
    ordered = []
    for turn in range(per_pair):
        ordered += [comparisons[turn] for comparisons in rng.sample(asked, len(asked))]
    return ordered


def _with_sides(cycles: Sequence[Sequence[int]], pair: tuple[int, int], rng: random.Random) -> list[Comparison]:
    """Every two times that a pair meets on an image, the sides change; over the images left over, they alternate."""
    order = [image for cycle in cycles for image in cycle]
    total = {image: order.count(image) for image in set(order)}
    alone = [image for image, times in total.items() if times % 2]
    rng.shuffle(alone)
    last = {image: place % 2 for place, image in enumerate(alone)}  # 0: as in `pair`
    first = {image: rng.randrange(2) for image in total}
    seen: dict[int, int] = dict.fromkeys(total, 0)
    comparisons = []
    for image in order:
        seen[image] += 1
        unpaired = seen[image] == total[image] and image in last
        turned = last[image] if unpaired else (first[image] + seen[image]) % 2
        left, right = reversed(pair) if turned else pair
        comparisons.append(Comparison(image, left, right))
    return comparisons


# ---- which images ----


def sources_of(folder: Path, reference: Path | None = None, *, with_input: bool = False) -> Sources:
    """The images of a finished comparison; or, with `reference`, of any folder that has a folder for each method.

    Images of foreign folders match by their path inside the folder, without the suffix.
    Args:   with_input: the degraded input is a method too.
    Errors: DataError when the folder is neither, or a method lacks an image that the reference has.
    """
    if reference is not None:
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}. Expected one that has a folder of images for each method.")
        if with_input:
            raise DataError("--with-input is for a run; beside --reference, make the input one of the folders.")
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        methods = {path.name: by_stem(path) for path in inside if path.resolve() != reference.resolve()}
        return _complete(Sources(by_stem(reference), methods))
    if not read_json(folder / "comparison.json"):
        raise DataError(
            f"{folder} holds no comparison. Expected a folder written by `veridical compare`, such as runs/x, "
            "or --reference FOLDER beside a folder that has a folder of images for each method."
        )
    about = read_about(folder)
    slugs = {str(loss["name"]): str(loss["slug"]) for loss in about["losses"] if loss.get("status", "done") == "done"}
    slugs |= {INPUT: INPUT} if with_input else {}
    images = {str(image["name"]): f"{image['slug']}.png" for image in about.get("images") or ()}
    place = folder / "images"
    return _complete(
        Sources(
            {name: place / "truth" / file for name, file in images.items()},
            {method: {name: place / slug / file for name, file in images.items()} for method, slug in slugs.items()},
        )
    )


def _complete(sources: Sources) -> Sources:
    for name, files in {REFERENCE: sources.reference, **sources.methods}.items():
        missing = [image for image in sources.reference if image not in files or not files[image].is_file()]
        if missing:
            raise DataError(
                f"{name} has no image {missing[0]!r}{f' and lacks {len(missing) - 1} more' if missing[1:] else ''}. "
                "Expected every image of the reference, by the same name, from every method."
            )
    return sources


def chosen(known: Sequence[str], wanted: Sequence[str] | None, what: str) -> list[str]:
    """The wanted of the known names, or all. Errors: UnknownName with the nearest; DataError for a name twice."""
    for name in wanted or ():
        if name not in known:
            raise unknown(what, name, known)
        if wanted is not None and wanted.count(name) > 1:
            raise DataError(f"the {what} {name!r} is named twice. Name each once.")
    return list(wanted or known)


# ---- a study on disk ----


def new_study(
    folder: Path,
    *,
    per_pair: int,
    reference: Path | None = None,
    out: Path | None = None,
    losses: Sequence[str] | None = None,
    images: int | Sequence[str] | None = None,
    with_input: bool = False,
    pairs: str = FULL,
    trials: int = 18,
    screening: int = 2,
    crop: int = 800,
    seed: int = 0,
    title: str = TITLE,
    contact: str = "",
    on_image: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Design a study and prepare its images; gives the folder of the study: `out`, else folder/study.

    Args:   folder: a run; or, with `reference`, a folder that has a folder of images for each method.
            per_pair: votes for each pair of methods, spread over the images: 50 for 50 images in MDF. The 25 raters
            whom PDL asks about each pair of crops are per_pair = 25 x images.
            losses: methods to take part, all by default. images: their names, or how many to draw.
            trials, screening: of one rater. MDF: 9 and 1 or 2; the default is twice that.
            crop: larger images are cut to crop x crop px, where there is most detail. PDL: 800.
            on_image: called with how many images are prepared, of how many, and the name of the last.
    Errors: DataError when there are fewer than two methods, the folder holds a study already, an image cannot be read
            or differs in size from its reference, or a rater would have to see the same pair on the same image twice;
            BadOption, UnknownName.
    """
    check_whole("--per-pair", per_pair, low=1)
    check_whole("--trials", trials, low=1, high=1000)
    check_whole("--screening", screening, low=0, high=100)
    check_whole("--crop", crop, low=32, high=4096)
    check_choice("--pairs", pairs, (FULL, ACTIVE))
    if reference is not None and out is None:
        raise DataError("--reference needs --out: name the folder for the study.")
    place = out or folder / "study"
    if (place / _FILE).exists():
        raise DataError(f"{place} holds a study already. Name another folder with --out, or delete that one.")
    sources = sources_of(folder, reference, with_input=with_input)
    rng = random.Random(seed)
    methods = chosen(list(sources.methods), losses, "loss")
    names = _images(list(sources.reference), images, rng)
    _check(methods, names, per_pair, trials)
    files = []
    for number, name in enumerate(names, start=1):
        written = {
            key: f"{rng.getrandbits(64):016x}.webp" for key in (REFERENCE, OBVIOUS, *map(str, range(len(methods))))
        }
        _prepare(name, sources, methods, {key: place / "images" / file for key, file in written.items()}, crop, seed)
        files.append(written)
        if on_image:
            on_image(number, len(names), name)
    design = Design(
        title=title,
        contact=contact,
        methods=tuple(methods),
        images=tuple(names),
        per_pair=per_pair,
        pairs=pairs,
        trials=trials,
        screening=screening,
        seed=seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        comparisons=tuple(full_design(len(methods), len(names), per_pair, seed)) if pairs == FULL else (),
        files=tuple(files),
    )
    write_json(place / _FILE, as_json(design))
    return place


def _images(known: Sequence[str], wanted: int | Sequence[str] | None, rng: random.Random) -> list[str]:
    if not isinstance(wanted, int):
        return chosen(known, wanted, "image")
    check_whole("--images", wanted, low=1)
    if wanted > len(known):
        raise DataError(f"--images {wanted}: there are only {len(known)}. Ask for fewer, or leave the option out.")
    return sorted(rng.sample(list(known), wanted), key=list(known).index)


def _check(methods: Sequence[str], images: Sequence[str], per_pair: int, trials: int) -> None:
    if len(methods) < 2:
        found = f"only {methods[0]!r}" if methods else "none"
        raise DataError(f"a study compares two methods or more, but there is {found}. Name others, or finish the run.")
    different = comb(len(methods), 2) * min(len(images), per_pair)
    if trials > different:
        raise DataError(
            f"--trials {trials}: nobody is asked about the same pair on the same image twice, and there are only "
            f"{different} such questions. Ask for --trials {different} or fewer, or for more images."
        )


def _prepare(name: str, sources: Sources, methods: Sequence[str], to: Mapping[str, Path], crop: int, seed: int) -> None:
    """Cut and write one image by every method. Written anew, so that no text inside a file can name a method."""
    truth = read_image(sources.reference[name])
    height, width = truth.pixels.shape[1:]
    box = interesting((truth.pixels * 255).round().byte().permute(1, 2, 0).numpy(), crop)

    def write(key: str, image: ImageFile, pixels: Tensor) -> None:
        window = pixels[:, box.top : box.top + box.height, box.left : box.left + box.width]
        write_image(to[key], window, icc=image.icc)

    write(REFERENCE, truth, truth.pixels)
    generator = torch.Generator().manual_seed(seed)
    write(OBVIOUS, truth, degradation(_RUIN)(truth.pixels, generator))
    for number, method in enumerate(methods):
        image = read_image(sources.methods[method][name])
        if image.pixels.shape != truth.pixels.shape:
            found = f"{image.pixels.shape[2]}x{image.pixels.shape[1]}"
            raise DataError(
                f"{sources.methods[method][name]} is {found} px, but its reference {width}x{height}. They must agree."
            )
        write(str(number), image, image.pixels)


def as_json(design: Design) -> dict[str, Any]:
    """A design as study.json has it: comparisons are [image, left, right]."""
    return asdict(design) | {"comparisons": [[c.image, c.left, c.right] for c in design.comparisons]}


def from_json(found: Mapping[str, Any]) -> Design:
    """The design of study.json. Errors: KeyError, TypeError, ValueError when it is not one, or names a file that is not
    one of its images."""
    lists = {key: tuple(found[key]) for key in ("methods", "images", "files")}
    for key in ("per_pair", "trials", "screening", "seed"):
        if not isinstance(found[key], int) or not 0 <= found[key] < 2**63:
            raise ValueError(f"{key} is {short(found[key])}")
    for key in ("title", "contact", "pairs", "created"):
        if not isinstance(found[key], str):
            raise TypeError(f"{key} is {short(found[key])}")
    methods, images = len(lists["methods"]), len(lists["images"])
    keys = {REFERENCE, OBVIOUS, *map(str, range(methods))}
    for names in (lists["methods"], lists["images"]):
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name is no text")
    for files in lists["files"]:
        for file in files.values():
            if not isinstance(file, str) or not _IMAGE.fullmatch(file):
                raise ValueError(f"{short(file)} is no image of a study")
        if not keys <= files.keys():
            raise KeyError("files")
    if len(lists["files"]) != images or not methods or not images:
        raise ValueError("its lists are not of one length")
    comparisons = tuple(Comparison(*three) for three in found["comparisons"])
    for each in comparisons:
        whole = all(isinstance(number, int) for number in (each.image, each.left, each.right))
        if not whole or not (0 <= each.image < images and 0 <= each.left < methods and 0 <= each.right < methods):
            raise ValueError(f"it asks for {short(each)}")
    return Design(**{**found, **lists, "comparisons": comparisons})


def study_folder(folder: Path) -> Path:
    """The folder of a study: `folder` itself, or folder/study of a run. Errors: DataError when there is none."""
    for place in (folder, folder / "study"):
        if (place / _FILE).is_file():
            return place
    raise DataError(f"{folder} holds no study. Make one: veridical study new {folder} --per-pair 25")


def load_design(folder: Path) -> Design:
    """The design of the study in `folder`, a study's or a run's. Errors: DataError when there is none."""
    path = study_folder(folder) / _FILE
    try:
        return from_json(parse_json(read_file(path)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is not a study's design ({error!r}). Make the study again.") from error
