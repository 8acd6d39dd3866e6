"""What mkdocs.yml asks of Markdown that was written to be read in the repository, too."""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave docs/ become what they are called: the site has no files of the repository. README.md is the
    home page there."""

    def mended(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target.partition("#")[0]))
        if "://" in target or not path.startswith("../"):
            return link[0]
        if path == "../README.md":
            return f"[{text}]({posixpath.relpath('index.md', posixpath.dirname(page.file.src_uri) or '.')})"
        return text if "`" in text else f"`{text}`"

    # Every second part stands between fences.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if k % 2 else _LINK.sub(mended, part) for k, part in enumerate(parts))
