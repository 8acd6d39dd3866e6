"""The images that MDF's discriminators learn from: one photograph, or one that is made."""

from pathlib import Path

from torch import Tensor

from veridical.core.catalog import nearest
from veridical.core.errors import UnknownName
from veridical.core.files import IMAGE_SUFFIXES, read_image
from veridical.training.photographs import EVALUATE, TRAIN, demo_photograph


def seed_image(text: str) -> tuple[str, Tensor]:
    """A photograph by its path, or by the name that the demo knows it by -> name, (3, H, W) in [0, 1].

    A demo's photograph, such as "astronaut", comes whole, in its full size. A file is named without its folder.
    Errors: UnknownName for what is neither, with the nearest name; DataError for a file that cannot be read;
            MissingExtra when the demo's photographs are not installed.
    """
    path, demo = Path(text), TRAIN | EVALUATE
    if text in demo:
        return text, demo_photograph(text)
    if path.exists() or path.suffix.lower() in IMAGE_SUFFIXES or path.name != text:
        return path.name, read_image(path).pixels
    close = nearest(text, demo)
    hint = f"Did you mean {close!r}? " if close else ""
    raise UnknownName(
        f"{text!r} is neither an image file nor a photograph of the demo. {hint}"
        f"Known: {', '.join(sorted(demo))}; or the path of an image."
    )
