"""Links lead somewhere, generated pages are current, every public name is in the reference."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

import ast_fast_kernels

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path.is_file()
)


def load(name: str) -> ModuleType:
    """Import a script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = load("hooks")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    text = site.FENCED.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", title).lower()) for title in titles]
    return {re.sub(r" ", "-", title.strip()) for title in words}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    text = site.FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for _, target, end in site.LINK.findall(text):
        if ":" in target:
            continue
        path = ((ROOT / page).parent / unquote(target)).resolve()
        assert path.is_file(), f"{page} links to {target}"
        assert path.is_relative_to(ROOT), f"{page} links to {target}"
        if anchor := end[1:-1]:
            assert anchor in anchors(path), f"{page} links to {target}#{anchor}"


def test_a_link_is_led_to_where_the_site_has_its_file() -> None:
    lead = site.lead
    assert lead("[a](../bench/x.json)", "docs/a.md", "a.md") == "[a](repository/bench/x.json)"
    assert lead("[a](../../README.md#b)", "docs/g/a.md", "g/a.md") == "[a](../index.md#b)"
    assert lead("[a](docs/log.md)", "CHANGELOG.md", "changelog.md") == "[a](log.md)"
    assert lead("[a](https://b.c/d)", "docs/a.md", "a.md") == "[a](https://b.c/d)"
    assert lead("```\n[a](b)\n```", "docs/a.md", "a.md") == "```\n[a](b)\n```"


def test_the_first_page_lists_every_command() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `python -m ([\w.]+)` \|", text, re.MULTILINE))
    files = {
        path.relative_to(root)
        for root in (ROOT, ROOT / "kernels")
        for path in root.glob("ast_fast*/**/*.py")
        if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    commands = {".".join(path.with_suffix("").parts) for path in files}
    assert listed == {name for name in commands if ".testing." not in name}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_page_of_settings_is_what_the_program_takes() -> None:
    settings = load("settings")
    committed = settings.PAGE.read_text(encoding="utf-8")
    assert settings.page() == committed, "python docs/settings.py"


def test_the_reference_has_every_public_name() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    shown = {name.partition(".")[0] for name in re.findall(r"^::: ast_fast_kernels\.(.+)$", text,
                                                           re.MULTILINE)}  # fmt: skip
    assert shown == {*ast_fast_kernels.__all__, "compat"}


@pytest.mark.parametrize("name", sorted(set(ast_fast_kernels.__all__) - {"kaldi"}))
def test_a_public_name_leads_to_where_it_is_defined(name: str) -> None:
    module, _, attribute = site.home(name).rpartition(".")
    assert attribute == name
    assert importlib.util.find_spec(module) is not None


VERDICTS = ("kept", "not kept", "gave nothing", "not built", "measured")


def test_every_entry_of_the_log_says_how_it_ended() -> None:
    text = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert titles
    for title in titles:
        verdict = re.fullmatch(r"\d{4}-\d\d-\d\d — .+ \(([^()]+)\)", title)
        assert verdict is not None, title
        assert verdict[1].startswith(VERDICTS), title


UNLISTED = {"__init__.py", "py.typed", ".gitignore"}
"""Names that say all there is to say."""


def tree() -> dict[str, str]:
    """Return what CONTRIBUTING's tree lists: path, with a slash after a folder's, and words."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```text\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    listed: dict[str, str] = {}
    parents: list[str] = []
    for line in block.splitlines():
        indent, name, words = re.fullmatch(r"( *)(\S+) +(\S.*)", line).groups()
        depth = len(indent) // 2
        parents[depth:] = [name]
        listed["".join(parents)] = words
    return listed


def test_the_tree_lists_what_there_is() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout and git, which knows what belongs to the project")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = {path for path in output.splitlines() if (ROOT / path).is_file()}
    listed = tree()
    # The first two levels, and every folder deeper down whose content is listed.
    folders = {"", *(f"{path.partition('/')[0]}/" for path in found if "/" in path)}
    folders |= {path.rpartition("/")[0] + "/" for path in listed if path.count("/") > 1
                and not path.endswith("/")}  # fmt: skip
    folders.discard(".ci/")  # one file, which its own line names
    expected = set()
    for folder in folders:
        for path in found:
            if path.startswith(folder):
                name, slash, _ = path.removeprefix(folder).partition("/")
                expected.add(f"{folder}{name}{slash}")
    unlisted = {path for path in expected if path.rpartition("/")[2] in UNLISTED}
    assert set(listed) - unlisted == expected - unlisted
