"""The demo's photographs, from inside the scikit-image and scikit-learn wheels: nothing is downloaded."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from veridical.core.catalog import lookup
from veridical.core.errors import MissingExtra
from veridical.core.files import read_image

# A held-out photograph is cut to a square of this side, so that the demo is quick on two cores.
EVALUATE_PX = 256


@dataclass(frozen=True)
class DemoPhotograph:
    """One photograph of a wheel. `file` is inside the package; `credit` says whose it is, on what terms; `corner` is
    the top left corner, in px, of the part that is evaluated: where people look."""

    package: str
    file: str
    credit: str
    corner: tuple[int, int] = (0, 0)


_SKIMAGE, _SKLEARN = "skimage", "sklearn"

# Trained on and evaluated on are disjoint scenes. All are free to use: pictures of the wheels whose licence
# is not stated stay out. Grey ones become RGB of equal channels.
TRAIN: dict[str, DemoPhotograph] = {
    "china": DemoPhotograph(_SKLEARN, "datasets/images/china.jpg", "danielbuechele on Flickr, CC BY 2.0"),
    "flower": DemoPhotograph(_SKLEARN, "datasets/images/flower.jpg", "vultilion on Flickr, CC BY 2.0"),
    "rocket": DemoPhotograph(_SKIMAGE, "data/rocket.jpg", "SpaceX, public domain"),
    "hubble": DemoPhotograph(_SKIMAGE, "data/hubble_deep_field.jpg", "NASA, public domain"),
    "brick": DemoPhotograph(_SKIMAGE, "data/brick.png", "CC0Textures, CC0"),
    "grass": DemoPhotograph(_SKIMAGE, "data/grass.png", "linolafett on DeviantArt, CC0"),
    "gravel": DemoPhotograph(_SKIMAGE, "data/gravel.png", "CC0Textures, CC0"),
    "coins": DemoPhotograph(_SKIMAGE, "data/coins.png", "Brooklyn Museum, no known copyright restrictions"),
}
EVALUATE: dict[str, DemoPhotograph] = {
    "astronaut": DemoPhotograph(_SKIMAGE, "data/astronaut.png", "NASA, public domain", corner=(0, 96)),
    "chelsea": DemoPhotograph(_SKIMAGE, "data/chelsea.png", "Stefan van der Walt, CC0", corner=(22, 97)),
    "coffee": DemoPhotograph(
        _SKIMAGE, "data/coffee.png", "Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0", corner=(72, 172)
    ),
    "camera": DemoPhotograph(_SKIMAGE, "data/camera.png", "Lav Varshney, CC0", corner=(40, 130)),
}


def demo_photographs() -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """The photographs to train on, and those held out, as (name, (3, H, W) in [0, 1]).

    Held-out ones are cut to EVALUATE_PX a side.
    Errors: MissingExtra when a wheel is not installed or no longer holds a file.
    """
    train = [(name, read_image(_path(each)).pixels) for name, each in TRAIN.items()]
    evaluate = [(name, _cut(read_image(_path(each)).pixels, each.corner)) for name, each in EVALUATE.items()]
    return train, evaluate


def demo_photograph(name: str) -> Tensor:
    """One of them, whole: (3, H, W) in [0, 1].

    Errors: UnknownName, with the nearest one; MissingExtra.
    """
    return read_image(_path(lookup(TRAIN | EVALUATE, name, "photograph of the demo"))).pixels


def credits() -> dict[str, str]:
    """Name -> whose photograph it is and under what terms."""
    return {name: each.credit for name, each in (TRAIN | EVALUATE).items()}


def _path(photograph: DemoPhotograph) -> Path:
    wheel = {_SKIMAGE: "scikit-image", _SKLEARN: "scikit-learn"}[photograph.package]
    spec = importlib.util.find_spec(photograph.package)  # finds the folder without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(
            f"the demo's photographs come from {wheel}, which is not installed. "
            'Install it with: pip install "veridical[compare]"'
        )
    path = Path(spec.submodule_search_locations[0]) / photograph.file
    if not path.exists():
        raise MissingExtra(
            f"the installed {wheel} holds no {photograph.file}. Install the versions of constraints.txt, "
            "or name photographs of your own with --data FOLDER."
        )
    return path


def _cut(image: Tensor, corner: tuple[int, int]) -> Tensor:
    top, left = corner
    return image[:, top : top + EVALUATE_PX, left : left + EVALUATE_PX].contiguous()
