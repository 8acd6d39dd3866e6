"""The documentation site: that its pages are found, that their links lead somewhere, and what is done to them.

`make docs` builds it, and fails at the first warning.
"""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from markdown.extensions.toc import slugify

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md"))


def named(nav: object) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in named(part)]


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """Those that headings have on the site and where the repository is read, which spell them differently."""
    found = set()
    for heading in re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    ):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        if slugify(plain, "-") == re.sub(r"[^\w\s-]", "", plain.lower()).replace(" ", "-"):
            found.add(slugify(plain, "-"))
    return found


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", DOCS / "site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_navigation_names_every_page_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(named(nav)) == PAGES, "name a new page in the nav of mkdocs.yml"


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    file = DOCS / page
    text = file.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        to = (file.parent / path).resolve() if path else file
        assert to.is_relative_to(ROOT), target
        assert to.exists(), f"{page} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(to.read_text(encoding="utf-8")), f"{page} links to {target}: no such heading"


def test_links_that_leave_the_site_become_what_they_are_called():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="evidence/pixel.md"))
    said = (
        "See [`a.toml`](../../src/a.toml), [LICENSE](../../LICENSE), [more](../results.md#one), "
        "[web](https://example.org) and [the start](../../README.md).\n```sh\n[x](../../y)\n```\n"
    )
    assert module("hooks").on_page_markdown(said, page) == (
        "See `a.toml`, `LICENSE`, [more](../results.md#one), [web](https://example.org) and [the start](../index.md).\n"
        "```sh\n[x](../../y)\n```\n"
    )


def test_docstrings_become_markdown(monkeypatch):
    """griffe, which calls it, is of the extra docs."""
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object, Object=object))
    as_markdown = module("docstrings").as_markdown
    text = "A sum: a_1 * `b_2`.\n\nShapes: (N,)\nArgs:   eps: small,\n        or 0.\n\n>>> 1 + 1\n2\n\nMore."
    assert as_markdown(text) == (
        "A sum: a\\_1 \\* `b_2`.\n\n**Shapes:** (N,)\n\n**Args:** eps: small,\nor 0.\n\n"
        "```pycon\n>>> 1 + 1\n2\n```\n\nMore."
    )


def test_nothing_of_the_site_is_fetched_by_who_reads_it():
    made = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert made["theme"]["font"] is False
    assert not re.search(r"https?://|@import", (DOCS / "site" / "site.css").read_text(encoding="utf-8"))
    assert not any("://" in each for each in [*made["extra_css"], *made.get("extra_javascript", [])])
