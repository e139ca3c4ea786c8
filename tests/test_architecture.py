"""Who may import whom, what an import may load, and which names are public."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import sys
import tomllib
from collections.abc import Container, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest

import ast_fast_kernels
from ast_fast_kernels._dispatch import BACKENDS
from ast_fast_kernels.testing.processes import modules_loaded_by, run_program

ROOT = Path(__file__).parents[1]
PACKAGES = {"ast_fast": "ast_fast", "ast_fast_kernels": "kernels/ast_fast_kernels"}
KERNELS = "ast_fast_kernels"
BACKEND_MODULES = sorted({entry.partition(":")[0] for entry in BACKENDS.values()})

OPERATION = "_dispatch _torch"
MAY_IMPORT = {
    "ast_fast": {
        "machine": "",
        "settings": "machine",
        "data": "settings",
        "augment": "settings",
        "features": "settings augment data",
        "model": "settings",
        "pretrained": "settings data features model",
        "training": "machine settings data augment features model pretrained",
        "report": "machine settings data features training",
        "run": "machine settings data features model pretrained training report",
        "explain": "model",
        "inference": "machine model",
        "cv": "machine settings data model pretrained training report run",
        "classifier": "machine settings data features model pretrained training inference",
        "streaming": "data features classifier",
        "exporting": "data features model inference classifier",
        "export": "machine data pretrained classifier exporting",
        "embeddings": "",
        "predict": "machine settings data pretrained explain classifier embeddings",
        "extract": "machine data pretrained classifier",
        "compare": "settings report run",
        "selection": "machine settings data training report run",
        "select": "machine settings data run selection",
    },
    "ast_fast_kernels": {
        "errors": "",
        "files": "errors",
        "console": "errors files",
        "_torch": "",
        "cores": "_torch",
        "_gpu": "",
        "_cpu": "_torch",
        "_dispatch": "_torch",
        "linear": f"{OPERATION} _cpu",
        "gelu": f"{OPERATION} _gpu",
        "layer_norm": f"{OPERATION} _gpu",
        "mix": f"{OPERATION} _cpu",
        "normalise": f"{OPERATION} _cpu",
        "resample": f"{OPERATION} _cpu",
        "stem": f"{OPERATION} _cpu",
        "attention": f"{OPERATION} _cpu _gpu",
        "fbank": f"{OPERATION} _cpu _gpu",
        "audio": "errors files _cpu resample fbank",
        "kaldi": "_torch fbank",
        "compat": "_torch fbank kaldi",
        "corpus": "cores errors files console audio _cpu fbank",
        "extract": "errors corpus fbank",
        "choice": OPERATION,
        "warm": "_cpu mix normalise resample attention fbank",
        "testing": "_cpu _gpu gelu layer_norm attention fbank corpus",
    },
}
"""Room (a folder or file right below a package) → the rooms that it imports, lowest room first.

A room may import only those above its line, so nothing points upward. Modules that are named by
strings and loaded on first use are not counted: backends by `_dispatch`, every operation's `api` by
`choice`, and public names by the package's face.
"""


def modules(package: str, root: Path = ROOT) -> dict[str, Path]:
    folder = root / PACKAGES[package]
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = [package, *path.relative_to(folder).with_suffix("").parts]
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Every module that a file's imports name, at any depth; `from a import b` gives a.b too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def module_arrows(package: str, root: Path = ROOT) -> dict[str, set[str]]:
    """Each module of a package but its face → the modules of the package that it imports."""
    known = modules(package, root)
    arrows = {}
    for module, path in known.items():
        if module == package:
            continue
        named = {nearest(name, known) for name in imports(path)}
        arrows[module] = named - {None, package, module}
    return arrows


def nearest(name: str, known: Container[str]) -> str | None:
    """Return the module that a dotted name is in."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def room_of(module: str) -> str:
    return module.split(".")[1]


def room_arrows(package: str, root: Path = ROOT) -> dict[str, set[str]]:
    """Each room of a package → the rooms that it imports."""
    rooms: dict[str, set[str]] = {}
    for module, imported in module_arrows(package, root).items():
        here = rooms.setdefault(room_of(module), set())
        here |= {room_of(other) for other in imported} - {room_of(module)}
    return rooms


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of nodes that can reach each other."""
    reached = {node: {node} for node in arrows}
    changed = True
    while changed:
        changed = False
        for node, others in arrows.items():
            more = set().union(*(reached.get(other, {other}) for other in others)) - reached[node]
            reached[node] |= more
            changed = changed or bool(more)
    found = {
        tuple(sorted(o for o in reached[node] if node in reached.get(o, ()))) for node in arrows
    }
    return [list(circle) for circle in sorted(found) if len(circle) > 1]


def summary(root: Path = ROOT) -> str:
    """Say, package by package, how many rooms, arrows, circles and large files there are."""
    lines = []
    for package in PACKAGES:
        rooms, files = room_arrows(package, root), module_arrows(package, root)
        floors = list(MAY_IMPORT[package])
        known = all(room in floors for room in rooms)
        upward = [
            f"{room} -> {other}"
            for room, others in rooms.items()
            for other in others
            if known and floors.index(other) > floors.index(room)
        ]
        lines += [
            f"{package}: {len(files)} files in {len(rooms)} rooms, "
            f"{sum(map(len, rooms.values()))} arrows between rooms, "
            f"{sum(map(len, files.values()))} between files",
            f"  circles of rooms {circles(rooms) or 'none'}, of files {circles(files) or 'none'}",
            f"  upward arrows {(upward or 'none') if known else 'unknown: the rooms are others'}",
        ]
        sizes = {
            str(path.relative_to(root)): len(path.read_text().splitlines())
            for path in modules(package, root).values()
        }
        largest = sorted(sizes, key=lambda name: -sizes[name])[:10]
        lines += [f"  {sizes[name]:5d} {name}" for name in largest]
    return "\n".join(lines)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_walk_sees_imports() -> None:
    tables = "ast_fast_kernels.fbank.tables"
    assert tables in imports(modules(KERNELS)["ast_fast_kernels.fbank.reference"])
    assert tables in module_arrows(KERNELS)["ast_fast_kernels.fbank.reference"]
    assert len(modules(KERNELS)) > 10


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_what_the_table_says(package: str) -> None:
    table = {room: set(named.split()) for room, named in MAY_IMPORT[package].items()}
    assert room_arrows(package) == table


@pytest.mark.parametrize("package", PACKAGES)
def test_no_arrow_runs_upward(package: str) -> None:
    """So there is no circle of rooms either."""
    below: set[str] = set()
    for room, named in MAY_IMPORT[package].items():
        assert set(named.split()) <= below, room
        below.add(room)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_import_each_other_in_a_circle(package: str) -> None:
    assert circles(module_arrows(package)) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_an_operation_is_a_folder_and_plumbing_begins_with_an_underscore() -> None:
    """Beside them stand the modules that callers see, and the way from files to features."""
    operations = {operation for operation, _ in BACKENDS}
    assert set(room_arrows(KERNELS)) == operations | {
        *("_cpu", "_gpu", "_torch", "_dispatch"),
        *("errors", "files", "cores", "console", "audio", "corpus", "extract"),
        *("kaldi", "compat", "choice", "warm", "testing"),
    }


@pytest.mark.parametrize("module", modules("ast_fast"))
def test_the_program_uses_no_private_part_of_the_kernels(module: str) -> None:
    named = [name for name in imports(modules("ast_fast")[module]) if within(name, KERNELS)]
    assert not [name for name in named if "._" in name]


@pytest.mark.parametrize("module", modules("ast_fast_kernels"))
def test_kernels_never_import_ast_fast(module: str) -> None:
    path = modules(KERNELS)[module]
    assert not [name for name in imports(path) if within(name, "ast_fast")]


@pytest.mark.parametrize(
    ("package", "data"),
    [("ast_fast", {".html", ".css", ".typed"}), ("ast_fast_kernels", {".typed"})],
)
def test_every_file_is_installed(package: str, data: set[str]) -> None:
    """Both distributions take every folder with an `__init__.py`, and data by these endings."""
    found = (ROOT / PACKAGES[package]).rglob("*")
    files = [path for path in found if path.is_file() and path.parent.name != "__pycache__"]
    sources = [path for path in files if path.suffix == ".py"]
    assert len(sources) > 10
    assert not [path for path in sources if not (path.parent / "__init__.py").is_file()]
    assert {path.suffix for path in files} - {".py"} == data


def test_both_distributions_have_one_version_and_one_license() -> None:
    kernels = tomllib.loads((ROOT / "kernels/pyproject.toml").read_text())["project"]
    assert f'VERSION = "{kernels["version"]}"' in (ROOT / "setup.py").read_text()
    assert (ROOT / "kernels/LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_every_extra_that_is_named_exists() -> None:
    """pip only warns of one that does not."""
    kernels = tomllib.loads((ROOT / "kernels/pyproject.toml").read_text())["project"]
    extras = {
        "ast-fast-kernels": kernels["optional-dependencies"].keys(),
        "ast-fast": metadata.metadata("ast-fast").get_all("Provides-Extra"),
    }
    folders = ("kernels", "ast_fast", "bench", "docs", "tests")
    files = [ROOT / "setup.py", ROOT / "README.md", ROOT / "kernels/pyproject.toml"]
    files += [path for name in folders for path in (ROOT / name).rglob("*.*")]
    named = {
        (project, extra.strip())
        for path in files
        if path.suffix in (".py", ".md", ".toml") and path.name != "log.md"
        for project, listed in re.findall(r"(ast-fast(?:-kernels)?)\[([\w, ]+)\]", path.read_text())
        for extra in listed.split(",")
    }
    assert ("ast-fast-kernels", "ray") in named
    assert not [f"{project}[{extra}]" for project, extra in named if extra not in extras[project]]


@pytest.mark.parametrize("module", BACKEND_MODULES)
def test_backends_never_import_each_other(module: str) -> None:
    path = modules("ast_fast_kernels")[module]
    others = [other for other in BACKEND_MODULES if other != module]
    assert not [name for name in imports(path) for other in others if within(name, other)]


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_shipped_imports_its_tests(package: str) -> None:
    for module, path in modules(package).items():
        names = imports(path)
        assert not [name for name in names if within(name, "pytest") or within(name, "tests")]
        measures = module == "ast_fast.report.kernel_check"  # a run's own kernels, as tests would
        if not measures and (package == "ast_fast" or ".testing" not in module):
            assert not [name for name in names if within(name, "ast_fast_kernels.testing")]


@pytest.mark.parametrize(
    "statement",
    [
        "import ast_fast_kernels",
        "from ast_fast_kernels import FbankConfig",
        "from ast_fast_kernels.fbank.config import FbankConfig",
        "from ast_fast_kernels import use_backend",
    ],
)
def test_import_loads_no_heavy_package(statement: str) -> None:
    assert not modules_loaded_by(statement) & {"torch", "numba", "triton", "numpy"}


def test_import_is_quick() -> None:
    """In CPU time of the whole process, the interpreter's own start included."""
    assert float(run_program("import ast_fast_kernels, time; print(time.process_time())")) < 0.3


def test_fbank_loads_numba_only_when_it_runs() -> None:
    call = "import torch; from ast_fast_kernels import fbank; fbank(torch.zeros(400), backend={!r})"
    assert not modules_loaded_by(call.format("reference")) & {"numba", "triton"}
    assert "numba" in modules_loaded_by(call.format("numba"))  # else the line above says nothing


def test_public_names_are_these() -> None:
    assert ast_fast_kernels.__all__ == [
        "AudioSource",
        "BadAudioError",
        "Fbank",
        "FbankConfig",
        "FeatureStore",
        "FileFeatures",
        "OnlineFbank",
        "OnlineResample",
        "add_layer_norm",
        "attention",
        "chosen_backend",
        "fbank",
        "fbank_files",
        "kaldi",
        "linear",
        "linear_gelu",
        "load",
        "mfcc",
        "mix",
        "norm_gelu_conv",
        "normalise",
        "resample",
        "use_backend",
    ]
    assert set(ast_fast_kernels.__all__) <= set(dir(ast_fast_kernels))
    for name in ast_fast_kernels.__all__:
        assert getattr(ast_fast_kernels, name) is not None
    with pytest.raises(AttributeError, match="module 'ast_fast_kernels' has no attribute 'fft2'"):
        ast_fast_kernels.fft2  # noqa: B018


@pytest.fixture
def _fresh_package() -> Iterator[None]:
    """As if nothing of ast_fast_kernels had been imported."""
    before = {name: module for name, module in sys.modules.items() if within(name, KERNELS)}
    for name in before:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if within(name, KERNELS)]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.usefixtures("_fresh_package")
@pytest.mark.parametrize("name", ["fbank", "attention"])
@pytest.mark.parametrize(
    "first",
    [
        "",
        "import ast_fast_kernels.{name}",
        "import ast_fast_kernels.{name}.api",
        "from ast_fast_kernels.{name} import api",
        "from ast_fast_kernels import {name}",
    ],
    ids=["nothing", "subpackage", "its-api", "from-subpackage", "function"],
)
def test_name_is_the_function_whatever_was_imported_before(name: str, first: str) -> None:
    namespace: dict[str, object] = {}
    exec(first.format(name=name), namespace)
    exec(f"import ast_fast_kernels\nfrom ast_fast_kernels import {name} as function", namespace)
    assert inspect.isfunction(namespace["function"])
    assert getattr(namespace["ast_fast_kernels"], name) is namespace["function"]


@pytest.mark.usefixtures("_fresh_package")
@pytest.mark.parametrize("name", ["fbank", "attention"])
@pytest.mark.parametrize("first", ["", "from ast_fast_kernels import {name}"], ids=["", "function"])
def test_submodules_can_be_imported_under_another_name(name: str, first: str) -> None:
    namespace: dict[str, object] = {}
    for submodule in ("api", "reference"):
        statement = f"import ast_fast_kernels.{{name}}.{submodule} as found"
        exec(f"{first}\n{statement}".format(name=name), namespace)
        assert namespace["found"] is sys.modules[f"ast_fast_kernels.{name}.{submodule}"]


@pytest.mark.parametrize("name", ["fbank", "attention"])
def test_function_looks_like_one(name: str) -> None:
    function = getattr(ast_fast_kernels, name)
    assert function.__name__ == function.__qualname__ == name
    assert "backend" in inspect.signature(function).parameters
    assert function.__doc__.startswith("Compute")
    assert pickle.loads(pickle.dumps(function)) is function


if __name__ == "__main__":
    print(summary(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
