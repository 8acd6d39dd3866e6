"""The folder of a probe -> probe.html, one file that needs nothing else, and a page of Markdown with its pictures.

Reads probe.json and images/ alone.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from veridical.comparison import charts
from veridical.comparison.folder import read_json
from veridical.comparison.pictures import lossless, read
from veridical.comparison.probe import relative
from veridical.core.errors import DataError
from veridical.core.files import atomic_write
from veridical.metrics import METRICS

MOST_DB = 50.0
"""Curves of PSNR are drawn up to here: beyond it nobody sees a difference."""

_COLUMNS = 5  # of a strip of pictures
_GAP_PX = 6
_LINE_PX = 16


def load(folder: Path) -> dict[str, Any]:
    """What probe.json holds. Errors: DataError when the folder holds no probe."""
    about = read_json(folder / "probe.json")
    if not about.get("losses"):
        raise DataError(f"{folder} holds no probe.json. Expected a folder written by `veridical probe`.")
    return about


def middle(about: dict[str, Any]) -> int:
    """Which of the PSNRs the table shows."""
    return len(about["settings"]["psnr_db"]) // 2


def table(about: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the responses at the middle PSNR, in words; – where a distortion does not reach it."""
    names = [each["name"] for each in about["distortions"]]
    rows = []
    for one in about["losses"]:
        shares = relative(one["responses"], middle(about))
        rows.append([one["name"], *(_share(shares[name]) for name in names)])
    return ["loss", *names], rows


def outcomes(about: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of where descending each loss ended, beginning with the start."""
    headings = [_heading(name) for name in about["metrics"]]
    rows = [["start", "–", *(_value(about["start"], name) for name in about["metrics"])]]
    for one in about["losses"]:
        if one["descent"]:
            measured = one["descent"]["metrics"]
            change = f"{one['descent']['value_at_start']:.3g} → {one['descent']['value_at_end']:.3g}"
            rows.append([one["name"], change, *(_value(measured, name) for name in about["metrics"])])
    return ["descended", "loss", *headings], rows


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _value(measured: dict[str, float | None], name: str) -> str:
    value = measured[name]
    if value is None:
        return "∞"  # the PSNR of equal images
    return f"{value:.2f}" if METRICS[name].unit == "dB" else f"{value:.3f}"


def _heading(name: str) -> str:
    unit = f" {METRICS[name].unit}" if METRICS[name].unit else ""
    return f"{METRICS[name].label}{unit} {'↑' if METRICS[name].higher_is_better else '↓'}"


def extremes(about: dict[str, Any], one: dict[str, Any]) -> str:
    """In a sentence: what a loss makes most of, what least, and what it rewards."""
    shares = {name: share for name, share in relative(one["responses"], middle(about)).items() if share is not None}
    if not shares:
        return ""
    sizes = sorted(shares, key=lambda name: -shares[name])
    if max(shares.values()) - min(shares.values()) < 0.02:
        return "makes no difference between them."
    said = f"sees {sizes[0]} most ({shares[sizes[0]]:.2f})"
    rewarded = [name for name in reversed(sizes) if shares[name] < -0.005]
    if rewarded:
        return f"{said}, rewards {_join([f'{name} ({shares[name]:.2f})' for name in rewarded])}."
    return f"{said}, {sizes[-1]} least ({shares[sizes[-1]]:.2f})."


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


# Curves


def loss_curves(about: dict[str, Any]) -> tuple[list[tuple[str, int, np.ndarray, np.ndarray]], list[str]]:
    """Each loss over its first value, for a logarithmic axis; and of which the curve is cut or missing."""
    found, notes = [], []
    for series, one in enumerate(about["losses"]):
        if not one["descent"]:
            continue
        values = np.asarray(one["descent"]["values"], dtype=np.float64)
        steps = np.arange(len(values), dtype=np.float64)
        positive = len(values) if (values > 0).all() else int((values <= 0).argmax())
        if positive < len(values):
            notes.append(f"{one['name']} is 0 or less from step {positive} on, which a logarithmic axis cannot show.")
        curve = charts.relative(steps[:positive], np.maximum(values[:positive], 1e-6 * values[0]))
        if curve is not None:
            found.append((clip(one["name"]), series, *curve))
    return found, notes


def psnr_curves(about: dict[str, Any]) -> list[tuple[str, int, list[float], list[float]]]:
    """PSNR over the steps, up to MOST_DB."""
    return [
        (clip(one["name"]), series, [float(k) for k in range(len(values))], [min(v, MOST_DB) for v in values])
        for series, one in enumerate(about["losses"])
        if one["descent"] and len(values := one["descent"]["psnr_db"]) > 1
    ]


def response_curves(about: dict[str, Any], one: dict[str, Any]) -> list[tuple[str, int, list[float], list[float]]]:
    """A loss's value against the PSNR, a curve for each distortion that reaches two of them."""
    psnrs = about["settings"]["psnr_db"]
    found = []
    for series, distortion in enumerate(about["distortions"]):
        pairs = sorted(
            (db, value)
            for db, value in zip(psnrs, one["responses"][distortion["name"]], strict=True)
            if value is not None
        )
        if len(pairs) > 1:
            found.append((distortion["name"], series, [db for db, _ in pairs], [value for _, value in pairs]))
    return found


def clip(name: str, most: int = 30) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


# The page


def write_page(folder: Path) -> Path:
    """Write probe.html into the folder of a probe, and return its path.

    Errors: DataError when the folder holds no probe, or a picture of it cannot be read.
    """
    about = load(folder)
    level = middle(about)
    descended = [(series, one) for series, one in enumerate(about["losses"]) if one["descent"]]
    curves, cut = loss_curves(about)
    psnrs = psnr_curves(about)
    _, ends = outcomes(about)
    variants = [
        {"folder": "input", "name": "start", "series": None, "facts": ends[0][1:], "uri": _uri(folder, "start")},
        *(
            {
                "folder": one["slug"],
                "name": one["name"],
                "series": series,
                "facts": row[1:],
                "uri": _uri(folder, one["slug"]),
            }
            for (series, one), row in zip(descended, ends[1:], strict=True)
        ),
        {"folder": "truth", "name": "truth", "series": None, "facts": [], "uri": _uri(folder, "truth")},
    ]
    html = (
        charts.environment()
        .get_template("probe.html")
        .render(
            about=about,
            psnr_db=about["settings"]["psnr_db"],
            level=level,
            distortions=[
                {**each, "series": series, "shown": _shown(folder, each["levels"][level])}
                for series, each in enumerate(about["distortions"])
            ],
            rows=[
                {
                    "name": one["name"],
                    "series": series,
                    "said": extremes(about, one),
                    "cells": [_cell(share) for share in relative(one["responses"], level).values()],
                    "chart": _small(about, one),
                }
                for series, one in enumerate(about["losses"])
            ],
            headings=outcomes(about)[0][1:],
            variants=variants if descended else [],
            gradients=[
                {"name": one["name"], "series": series, "uri": _uri(folder, f"{one['slug']}-gradient")}
                for series, one in descended
                if (folder / "images" / f"{one['slug']}-gradient.png").is_file()
            ],
            loss_charts=[charts.curves(curves, width=w, height=h, labels=w > 500) for w, h in _SIZES] if curves else [],
            psnr_charts=[charts.lines(psnrs, width=w, height=h, labels=w > 500) for w, h in _SIZES] if psnrs else [],
            cut=cut,
            stopped=[
                f"{one['name']}: {one['descent']['stopped']}" for _, one in descended if one["descent"]["stopped"]
            ],
            frames=_frames(about, variants) if descended else [],
            most_db=MOST_DB,
        )
    )
    path = folder / "probe.html"
    atomic_write(path, html.encode("utf-8"))
    return path


_SIZES = ((760, 360), (350, 300))


def _frames(about: dict[str, Any], variants: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the slider's script reads: one picture in its variants."""
    size = about["image"]["size"]
    names = [{"folder": each["folder"], "name": each["name"]} for each in variants]
    return [{"name": about["image"]["name"], "width": size, "height": size, "frames": False, "variants": names}]


def _small(about: dict[str, Any], one: dict[str, Any]) -> charts.Curves | None:
    curves = response_curves(about, one)
    return charts.lines(curves, width=320, height=230, from_zero=True) if curves else None


def _cell(share: float | None) -> dict[str, Any]:
    """heat: how dark the cell is. A share of 2.5 and more is as dark as it gets."""
    return {
        "text": _share(share),
        "heat": 0 if share is None else min(1.0, abs(share) / 2.5),
        "rewarded": (share or 0) < 0,
    }


def _shown(folder: Path, level: dict[str, Any]) -> dict[str, Any]:
    return {**level, "uri": _uri(folder, Path(level["file"]).stem) if "file" in level else ""}


def _uri(folder: Path, name: str) -> str:
    return lossless(read(folder / "images" / f"{name}.png"))


# Markdown


def write_markdown(folder: Path, out: Path, name: str, title: str) -> Path:
    """Write <name>.md with its pictures into `out`, for people who read it where the code is; returns its path."""
    about = load(folder)
    image, settings = about["image"], about["settings"]
    descended = [one for one in about["losses"] if one["descent"]]
    credit = f" ({image['credit']})" if image["credit"] else ""
    lines = [f"# {title}", "", f"Made by `{about['command']}`, veridical {about['version']}."]
    if about["left_out"]:
        lines += ["", "Left out:", "", *(f"- `{each['name']}`: {each['reason']}" for each in about["left_out"])]
    if descended:
        _write_strip(folder, out / f"{name}.webp", [("truth", "truth"), ("start", "start"), *_named(descended)])
        _write_strip(folder, out / f"{name}-gradient.webp", _named(descended, "-gradient"))
        lines += [
            "",
            "## Descended",
            "",
            f"{image['size']} px of the photograph {image['name']}{credit}; start: `{settings['start']}`; then "
            f"{settings['steps']} steps of Adam on the pixels, rate {settings['lr']:g} falling to 0, clamped to "
            "[0, 1]. No network stands between: whatever is in a picture, that loss has put there or could not see.",
            "",
            f"![The photograph, the start, and where each loss led]({name}.webp)",
            "",
            *_markdown_table(*outcomes(about)),
            "",
            "Loss: at the start and at the end, in evaluation mode, above that of the truth.",
            "",
            *(f"- {note}" for note in about["notes"]),
            "",
            *_write_curves(about, out, name),
            "The length of each loss's first gradient, white where it pulls hardest:",
            "",
            f"![Gradients]({name}-gradient.webp)",
        ]
        lines += [
            "",
            *(f"{one['name']}: {one['descent']['stopped']}" for one in descended if one["descent"]["stopped"]),
        ]
    columns, rows = table(about)
    for row in rows:
        most = max(row[1:], key=_number)
        if any(text != most for text in row[1:]):
            row[1:] = [f"**{text}**" if text == most else text for text in row[1:]]
    lines += [
        "",
        "## What it sees",
        "",
        f"Each loss's value for {len(columns) - 1} distortions of one energy, "
        f"{settings['psnr_db'][middle(about)]:g} dB, over the mean of their sizes: 1 is what it makes of a distortion "
        "on the whole, 0 is unseen, below 0 is rewarded. L2 has 1 everywhere.",
        "",
        *_markdown_table(columns, rows),
        "",
        "; ".join(f"{each['name']}: {_level(each['levels'][middle(about)])}" for each in about["distortions"]) + ".",
    ]
    path = out / f"{name}.md"
    atomic_write(path, ("\n".join(lines).rstrip() + "\n").replace("\n\n\n", "\n\n").encode("utf-8"))
    return path


def _level(level: dict[str, Any]) -> str:
    return level.get("strength") or f"not reached ({level['reason']})"


def _number(text: str) -> float:
    return -math.inf if text == "–" else float(text)


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(['---', *['---:'] * (len(columns) - 1)])}|"]
    return lines + [f"| {' | '.join([f'`{row[0]}`', *row[1:]])} |" for row in rows]


def _write_curves(about: dict[str, Any], out: Path, name: str) -> list[str]:
    """<name>-loss.svg and <name>-psnr.svg; the lines of Markdown that show them."""
    template = charts.environment().get_template("curves.svg")
    curves, cut = loss_curves(about)
    psnrs = psnr_curves(about)
    lines = []
    for kind, chart, label in (
        (
            "loss",
            charts.curves(curves, width=760, height=360, labels=True) if curves else None,
            "loss / its first value",
        ),
        ("psnr", charts.lines(psnrs, width=760, height=360, labels=True) if psnrs else None, "PSNR, dB"),
    ):
        if chart is not None:
            svg = template.render(chart=chart, label=label)
            atomic_write(out / f"{name}-{kind}.svg", "\n".join(filter(str.strip, svg.splitlines())).encode())
            lines += [f"![{label} over the steps]({name}-{kind}.svg)", ""]
    return [*lines, *(f"- {note}" for note in cut), ""]


def _named(losses: Sequence[dict[str, Any]], suffix: str = "") -> list[tuple[str, str]]:
    return [(one["name"], one["slug"] + suffix) for one in losses]


def _write_strip(folder: Path, path: Path, pictures: Sequence[tuple[str, str]]) -> None:
    """Pictures side by side with their names above, on nothing, so that it stands on light and on dark pages."""
    found = [(name, read(file)) for name, slug in pictures if (file := folder / "images" / f"{slug}.png").is_file()]
    if not found:
        return
    font = ImageFont.load_default(size=13)
    width, height = found[0][1].size
    labels = [_broken(name, font, width) for name, _ in found]
    label_px = _LINE_PX * max(map(len, labels)) + 4
    columns = min(_COLUMNS, len(found))
    step_x, step_y = width + _GAP_PX, height + label_px + _GAP_PX
    strip = Image.new("RGBA", (columns * step_x - _GAP_PX, math.ceil(len(found) / columns) * step_y - _GAP_PX))
    draw = ImageDraw.Draw(strip)
    for number, ((_, picture), label) in enumerate(zip(found, labels, strict=True)):
        x, y = number % columns * step_x, number // columns * step_y
        for k, line in enumerate(label):
            at = y + label_px - 4 - _LINE_PX * (len(label) - k)
            draw.text((x, at), line, font=font, fill=(128, 128, 128, 255))
        strip.paste(picture, (x, y + label_px))
    data = io.BytesIO()
    strip.save(data, "WEBP", quality=88, method=6)
    atomic_write(path, data.getvalue())


def _broken(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """A name on as many lines as it needs."""
    lines = [""]
    for char in name:
        if font.getlength(lines[-1] + char) > width:
            lines.append("")
        lines[-1] += char
    return [line.strip() for line in lines]
