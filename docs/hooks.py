"""MkDocs hooks: files outside docs/ that pages link to, and public names where they are defined.

GitHub and the site show the same pages. A link to a file of the repository outside docs/, such as a
record in bench/history/, is right on GitHub; here the file is copied into the site, under
repository/, and the link is led there. CONTRIBUTING.md and CHANGELOG.md become pages.

`::: ast_fast_kernels.fbank` stands for the function. Names are loaded on first use, from the table
`_HOMES`, so the hook writes the module that holds it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import ast_fast_kernels

ROOT = Path(__file__).parents[1]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
}
"""Files of the root, and the pages that they are here; README's place is taken by docs/index.md."""
COPIES = "repository"
"""Folder of the site that takes other files of the repository."""
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
PUBLIC = re.compile(r"^::: ast_fast_kernels\.(\w+)$", re.MULTILINE)


def place(path: str) -> str:
    """Return where a file of the repository, named from its root, is in the site's sources."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path, f"{COPIES}/{path}")


def source(uri: str) -> str:
    """Return which file of the repository a page is, named from the root."""
    if uri == PAGES["README.md"]:
        return f"docs/{uri}"
    return next((path for path, page in PAGES.items() if page == uri), f"docs/{uri}")


def targets(text: str, folder: str) -> set[str]:
    """Return the files of the repository that a page in a folder links to, named from the root."""
    links = (target for _, target, _ in LINK.findall(FENCED.sub("", text)) if ":" not in target)
    return {posixpath.normpath(posixpath.join(folder, target)) for target in links}


def lead(text: str, page: str, to: str) -> str:
    """Return the text of the file `page` with its links led to where the site has their files."""

    def replace(match: re.Match[str]) -> str:
        begin, target, end = match.groups()
        if ":" in target:
            return match.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        return f"{begin}{posixpath.relpath(place(path), posixpath.dirname(to) or '.')}{end}"

    parts = FENCED.split(text)
    parts[::2] = [LINK.sub(replace, part) for part in parts[::2]]
    return "".join(parts)


def home(name: str) -> str:
    """Return the full name of a public name of the kernels' package."""
    module = ast_fast_kernels._HOMES.get(name)
    return f"{module}.{name}" if module else f"ast_fast_kernels.{name}"


def on_files(files: Any, *, config: Any) -> Any:
    """Add the two pages of the root, and every file outside docs/ that a page links to."""
    from mkdocs.structure.files import File

    for path, uri in PAGES.items():
        if path != "README.md":
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for file in list(files.documentation_pages()):
        name = source(file.src_uri)
        text = Path(file.abs_src_path).read_text(encoding="utf-8")
        for path in sorted(targets(text, posixpath.dirname(name))):
            uri = place(path)
            if uri.startswith(f"{COPIES}/") and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Lead links and public names to where the site has them."""
    uri = page.file.src_uri
    text = lead(markdown, source(uri), uri)
    return PUBLIC.sub(lambda match: f"::: {home(match[1])}", text)
