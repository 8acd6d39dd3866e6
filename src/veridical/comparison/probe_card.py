"""The folder of a probe -> one small picture of each loss: what docs/losses shows.

Reads probe.json and images/ alone.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from veridical.comparison.pictures import read
from veridical.comparison.probe import relative
from veridical.comparison.probe_page import load, middle
from veridical.core.catalog import parse
from veridical.core.errors import DataError
from veridical.core.files import atomic_write

MOST_BYTES = 25_000
"""A page of all losses is read on a phone, too."""

_GAP_PX = 6
_LINE_PX = 18
_LEAST_PX = 300  # the width that bars need, beside small pictures
_NAMES_PX = 78  # the column of the distortions' names
_TEXT = (128, 128, 128, 255)  # on nothing: it stands on light and on dark pages
_SEEN, _REWARDED = (70, 130, 200, 255), (215, 120, 45, 255)


def write_cards(folder: Path, out: Path) -> list[Path]:
    """Write <loss>.webp for each loss of a probe into `out`: the photograph, the start, where descending the loss led,
    its first gradient, and its answer to the distortions as bars. A loss is called by its name, without its options.

    Errors: DataError when the folder holds no probe, or one of several losses by one name, of a sum, or without a
    descent.
    """
    about = load(folder)
    names = [_name(one) for one in about["losses"]]
    if len({*names}) < len(names):
        raise DataError(f"{folder} probes one loss more than once, and each has one picture: {', '.join(names)}.")
    paths = []
    for name, one in zip(names, about["losses"], strict=True):
        path = out / f"{name}.webp"
        atomic_write(path, _small(_card(folder, about, one)))
        paths.append(path)
    return paths


def _name(one: Mapping[str, Any]) -> str:
    terms = parse(one["name"], "loss")
    if len(terms) != 1:
        raise DataError(f"{one['name']} is a sum; a picture is of one loss, such as lpips(net=vgg).")
    if one["descent"] is None:
        raise DataError(f"{one['name']} was not descended, of which its picture is; probe it with --steps 100.")
    return terms[0].name


def _card(folder: Path, about: Mapping[str, Any], one: Mapping[str, Any]) -> Image.Image:
    images = folder / "images"
    size = about["image"]["size"]
    tiles = [
        ("the photograph", images / "truth.png"),
        (f"start{_db(about['start'])}", images / "start.png"),
        (f"descended{_db(one['descent']['metrics'])}", images / f"{one['slug']}.png"),
        ("its first gradient", images / f"{one['slug']}-gradient.png"),
    ]
    shares = relative(one["responses"], middle(dict(about)))
    step = size + _GAP_PX
    top = 2 * (step + _LINE_PX)
    card = Image.new("RGBA", (max(step + size, _LEAST_PX), top + _LINE_PX * (len(shares) + 1)))
    draw = ImageDraw.Draw(card)
    font = ImageFont.load_default(size=13)
    for number, (label, path) in enumerate(tiles):
        x, y = number % 2 * step, number // 2 * (step + _LINE_PX)
        draw.text((x, y), label, font=font, fill=_TEXT)
        if path.is_file():  # a loss without a finite first gradient has none
            card.paste(read(path), (x, y + _LINE_PX))
            # A gradient of one length, such as that of l1, is white all over, as a page may be.
            draw.rectangle((x, y + _LINE_PX, x + size - 1, y + _LINE_PX + size - 1), outline=_TEXT)
    db = about["settings"]["psnr_db"][middle(dict(about))]
    draw.text((0, top), f"what it makes of errors of {db:g} dB", font=font, fill=_TEXT)
    _bars(draw, font, shares, top + _LINE_PX, card.width)
    return card


def _bars(draw: ImageDraw.ImageDraw, font: Any, shares: Mapping[str, float | None], top: int, width: int) -> None:
    """A bar for each distortion, to the left of zero what the loss rewards; a line at 1, the mean of their sizes."""
    known = [share for share in shares.values() if share is not None]
    least, most = min(0.0, *known, 0.0), max(1.0, *known, 1.0)
    value_px = 34  # the text beside a bar
    left = _NAMES_PX + (value_px if least < -0.005 else 0)
    scale = (width - value_px - left) / (most - least)

    def place(share: float) -> float:
        return left + (share - least) * scale

    bottom = top + _LINE_PX * len(shares) - 2
    for at in (place(0), place(1)):
        draw.line((at, top, at, bottom), fill=_TEXT, width=1)
    for number, (name, share) in enumerate(shares.items()):
        y = top + number * _LINE_PX
        draw.text((0, y), name, font=font, fill=_TEXT)
        if share is None:
            draw.text((place(0) + 4, y), "not reached", font=font, fill=_TEXT)
            continue
        ends = sorted((place(0), place(share)))
        draw.rectangle((ends[0], y + 3, max(ends[1], ends[0] + 1), y + 14), fill=_SEEN if share >= 0 else _REWARDED)
        said = f"{share:.2f}".replace("-0.00", "0.00")
        at = ends[1] + 4 if said[0] != "-" else ends[0] - 4 - font.getlength(said)
        draw.text((at, y), said, font=font, fill=_TEXT)


def _db(measured: Mapping[str, float | None]) -> str:
    """The PSNR of an image, where it was measured; that of equal images is infinite."""
    if "psnr" not in measured:
        return ""
    return ", equal" if measured["psnr"] is None else f", {measured['psnr']:.1f} dB"


def _small(card: Image.Image) -> bytes:
    """As WebP, as good as fits into MOST_BYTES."""
    for quality in range(88, 15, -4):
        data = io.BytesIO()
        card.save(data, "WEBP", quality=quality)
        if data.tell() <= MOST_BYTES:
            break
    return data.getvalue()
