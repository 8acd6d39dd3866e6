"""The Chromium that is installed, without a window, for tests that use a page as people do; without it they skip."""

import shutil
from contextlib import contextmanager

import pytest


def program() -> str:
    """The path of Chromium; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or pytest.skip("needs Chromium (Debian: apt-get install chromium)")


@contextmanager
def chromium():
    """A browser of playwright's; skips the test where one of the two is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright, which drives the browser")
    path = program()
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()
