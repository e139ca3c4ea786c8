from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class InterpretedTests:
    """The tests marked `interpreter`, run in a process of their own beside the other tests.

    They take minutes on one core. The test that waits for them comes last.
    """

    def __init__(self, root: Path) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        self._process = subprocess.Popen(
            [*command, "-m", "interpreter", "tests"],
            cwd=root,
            env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def wait(self) -> tuple[int, str]:
        """Return their exit code and what they printed."""
        code = self._process.wait()
        self._output.seek(0)
        return code, self._output.read()

    def close(self) -> None:
        """End them, if they still run."""
        self._process.kill()
        self._process.wait()
        self._output.close()


INTERPRETED_TESTS = pytest.StashKey[InterpretedTests]()


def _is_worker(config: pytest.Config) -> bool:
    """Say whether this process is one of several that share the tests (`pytest -n 2`)."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Let threads without work sleep: another process has some."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole files, in their order: a file's tests share what they compute."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


TURNS = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Name the folder in which processes take turns."""
    if TURNS not in node.config.stash:
        node.config.stash[TURNS] = tempfile.TemporaryDirectory()
    node.workerinput["turns"] = node.config.stash[TURNS].name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test that measures time while no other process runs one."""
    if not _is_worker(item.config):
        return (yield)
    with _turn(Path(item.config.workerinput["turns"]), alone=_is_alone(item)):
        return (yield)


@contextmanager
def _turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Be in the room, alone or with others; whoever waits at its door for that lets nobody in."""
    with (folder / "room").open("w+") as room:
        with (folder / "door").open("w+") as door:
            fcntl.lockf(door, fcntl.LOCK_EX)
            fcntl.lockf(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put those that measure time last, after the test that waits for the interpreted ones.

    Where processes share the tests, that one comes first: it keeps one of them busy for minutes.
    """
    late = not _is_worker(config)
    items.sort(key=lambda item: (_is_alone(item), _waits(item) == late))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the interpreted tests if a test waits for them; a worker starts them in that test."""
    config = session.config
    if INTERPRETED or config.option.collectonly or _is_worker(config):
        return
    if any(map(_waits, session.items)):
        config.stash[INTERPRETED_TESTS] = InterpretedTests(config.rootpath)


def _waits(item: pytest.Item) -> bool:
    return "interpreted_tests" in getattr(item, "fixturenames", ())


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the interpreted tests where this session ends before them; clear the folder of turns."""
    if INTERPRETED_TESTS in config.stash:
        config.stash[INTERPRETED_TESTS].close()
    if TURNS in config.stash:
        config.stash[TURNS].cleanup()


@pytest.fixture
def interpreted_tests(pytestconfig: pytest.Config) -> InterpretedTests:
    """The tests marked `interpreter`, which have run since this session began, or begin now."""
    if INTERPRETED:
        pytest.skip("this is that process")
    if INTERPRETED_TESTS not in pytestconfig.stash:
        pytestconfig.stash[INTERPRETED_TESTS] = InterpretedTests(pytestconfig.rootpath)
    return pytestconfig.stash[INTERPRETED_TESTS]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder that holds esc10/ and esc50/."""
    root = os.environ.get("AST_FAST_DATA")
    if not root:
        pytest.skip("AST_FAST_DATA is not set: it names the folder that holds esc10/ and esc50/")
    path = Path(root)
    if not (path / "esc10" / "meta" / "esc50.csv").is_file():
        pytest.skip(f"AST_FAST_DATA={root} holds no esc10/meta/esc50.csv")
    return path


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.interpreter, id="interpreted"),
        pytest.param("cuda", marks=pytest.mark.gpu, id="gpu"),
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where Triton kernels run; whatever they are to write holds NaN before.

    The interpreter has a process of its own: one that has compiled kernels, or has cached ones at
    hand, may take those.
    """
    if request.param == "cpu" and not INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1, as test_triton_interpreter.py runs it")
    if request.param == "cuda" and (INTERPRETED or not torch.cuda.is_available()):
        pytest.skip("needs a CUDA GPU")
    if INTERPRETED:
        from ast_fast_kernels.testing import interpreter

        interpreter.install()
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialised memory
    yield torch.device(request.param)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)
