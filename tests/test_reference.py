"""What is said of the losses: that it is said of each, and that the page is what the docstrings say."""

import json
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from veridical.cli import app
from veridical.comparison.probe_card import MOST_BYTES
from veridical.core.catalog import options_of, parse
from veridical.core.errors import UnknownName
from veridical.losses import LOSSES
from veridical.losses import reference as module
from veridical.losses.reference import (
    FAMILIES,
    NOT_PICTURED,
    PICTURED_AS,
    SECTIONS,
    USED_AS,
    cost,
    family_specs,
    markdown,
    page,
    pictured_specs,
    reference,
    sections,
)

PAGE = Path(__file__).parents[1] / "docs" / "losses.md"


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_says_what_it_is_when_to_use_it_and_where_it_is_weak(name):
    known = reference(name)
    needed = [s for s in SECTIONS if s != "Args" or known.options]
    lacking = [s for s in needed if not getattr(known, s.lower())]
    assert not lacking, f"the docstring of {name} lacks the sections {lacking}; see veridical/losses/pixel.py"
    assert known.summary.endswith((".", "!", "?"))
    undescribed = [option for option in known.options if option not in known.args and "as vgg16" not in known.args]
    assert not undescribed, f"Args of {name} does not say what these are: {undescribed}"


@pytest.mark.parametrize("name", LOSSES)
def test_sections_stand_in_one_order(name):
    known = reference(name)
    found = [s for s in sections(LOSSES[name].build.__doc__.replace("\n    ", "\n")) if s]
    assert found == [s for s in SECTIONS if s in found], known.name


def test_every_loss_is_in_one_family():
    listed = [name for family in FAMILIES.values() for name in family.losses]
    assert sorted(listed) == sorted(LOSSES), "name a new loss in FAMILIES of losses/reference.py"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_page_of_evidence_with_its_losses_and_pictures(name):
    """Made by: veridical probe --family all --steps 100 --markdown docs/evidence"""
    page = PAGE.parent / "evidence" / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    for spec in family_specs(name):
        assert f"`{spec}`" in text
    pictures = re.findall(r"\]\(([^)]+)\)", text)
    assert pictures
    assert all((page.parent / picture).is_file() for picture in pictures)


def test_the_page_is_what_the_docstrings_say():
    assert PAGE.read_text(encoding="utf-8") == markdown(), (
        "docs/losses.md is old: veridical losses --markdown > docs/losses.md"
    )


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_a_page_with_its_formula_its_picture_and_its_cost(name):
    """Made by: veridical losses --pages docs/losses; veridical probe --losses all --steps 100 --cards docs/losses"""
    file = PAGE.parent / "losses" / f"{name}.md"
    text = file.read_text(encoding="utf-8")
    assert text == page(name), f"docs/losses/{name}.md is old: veridical losses --pages docs/losses"
    assert reference(name).formula.split("; ")[-1] in text
    assert f"**Cost**: {cost(reference(name))}" in text
    picture = file.with_suffix(".webp")
    if name in NOT_PICTURED:
        assert "No picture: " in text
        assert not picture.exists()
    else:
        assert f"({picture.name})" in text
        assert 1000 < picture.stat().st_size <= MOST_BYTES


def test_pages_and_pictures_of_losses_that_are_gone_are_gone():
    assert {file.stem for file in (PAGE.parent / "losses").iterdir()} == {*LOSSES}


def test_what_a_page_says_to_type_are_losses():
    assert {*USED_AS, *PICTURED_AS, *NOT_PICTURED} <= LOSSES.keys()
    for spec in [*USED_AS.values(), *pictured_specs()]:
        for term in parse(spec, "loss"):
            assert term.options.keys() <= options_of(LOSSES[term.name].build).keys(), spec
    assert [parse(spec)[0].name for spec in pictured_specs()] == [
        name for family in FAMILIES.values() for name in family.losses if name not in NOT_PICTURED
    ]


def test_the_command_writes_the_pages(tmp_path):
    result = CliRunner().invoke(app, ["losses", "--pages", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {file.stem: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()} == {n: page(n) for n in LOSSES}


def test_the_command_prints_the_page():
    result = CliRunner().invoke(app, ["losses", "--markdown"])
    assert result.exit_code == 0, result.output
    assert result.output == markdown()


@pytest.mark.parametrize("name", LOSSES)
def test_the_command_shows_every_loss_in_80_columns(name):
    result = CliRunner().invoke(app, ["losses", name])
    assert result.exit_code == 0, result.output
    assert max(map(cell_len, result.output.splitlines())) <= 80  # x̂ is two characters in one place
    words = " ".join(result.output.split())
    known = reference(name)
    for word in (name, "Formula", "Weak", "Computed by", *known.options, *known.weights, *known.optimises):
        assert word in words


def test_an_unknown_loss_gets_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'lpips'"):
        reference("lpisp")


def test_sections_are_told_apart_and_put_on_one_line():
    said = sections(
        "Short.\n\nLong text\nin two lines.\n\nMore.\n\nRange:  [0, 1],\n        closed.\nSource: a paper: 1."
    )
    assert said == {
        "": "Short.\nLong text in two lines.\nMore.",
        "Range": "[0, 1], closed.",
        "Source": "a paper: 1.",
    }


def test_costs_are_shown_once_they_were_measured(tmp_path, monkeypatch):
    file = tmp_path / "cost.json"
    monkeypatch.setattr(module, "COST_FILE", file)
    module.costs.cache_clear()
    try:
        assert reference("l1").cost is None
        assert "not measured" in markdown()
        measured = {"machine": "a machine", "date": "a day", "shape": [4, 3, 256, 256], "relative_to_l2": {"l1": 1.25}}
        file.write_text(json.dumps(measured))
        module.costs.cache_clear()
        assert module.cost(reference("l1")) == "1.2 x the time of l2"
        assert module.cost(reference("ssim")) == "not measured"
        assert "4x3x256x256, a machine, a day" in markdown()
    finally:
        module.costs.cache_clear()
