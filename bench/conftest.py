"""Put machine, versions and threads into every record; provide real clips if there are any."""

import ast_fast  # before torch: it sets how long torch's idle threads wait

# isort: split
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_fast.machine.malloc import keep_freed_memory
from ast_fast_kernels.testing.signals import make_signal
from bench import floor, machine, torchaudio_client
from bench.peers import PEERS

ROOT = Path(__file__).parent.parent
CLIP_SAMPLES = 80000  # 5 s at 16 kHz, ESC-50's length


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--tiny`, for a run that only asks whether benchmarks still run."""
    parser.addoption("--tiny", action="store_true", help="run one case of each benchmark")


def pytest_configure() -> None:
    keep_freed_memory()


@pytest.hookimpl(trylast=True)  # after -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Keep the first case of each function, if asked to."""
    if config.getoption("--tiny"):
        first = {item.originalname: item for item in reversed(items)}
        config.hook.pytest_deselected(items=[i for i in items if i not in first.values()])
        items[:] = [item for item in items if item in first.values()]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Add the facts that a ratio depends on."""
    machine_info["versions"] = {}
    for name in ("torch", "numba", "numpy", *(peer.package for peer in PEERS.values())):
        with suppress(PackageNotFoundError):
            machine_info["versions"].update({name: version(name)} if name else {})
    machine_info["cores"] = os.cpu_count()
    machine_info |= machine.describe(machine_info["cpu"])
    machine_info["spins"] = os.environ.get("GOMP_SPINCOUNT", ast_fast.SPINS)
    machine_info["platform"] = platform.platform()
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list, output_json: dict
) -> None:
    """Add the command, the commit and the machine's best rates; remove raw times."""
    for case in output_json["benchmarks"]:
        case["stats"].pop("data", None)  # every round's time: a megabyte for short calls
    output_json["command"] = " ".join(config.invocation_params.args)
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    output_json["commit"] = described.stdout.strip() or None
    output_json["floor"] = {threads: floor.summary(threads) for threads in (1, 2)}
    torchaudio = torchaudio_client.client()
    if torchaudio is not None:
        output_json["torchaudio"] = torchaudio.versions


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run torch and our kernels with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def glance(request: pytest.FixtureRequest) -> bool:
    """Whether --benchmark-max-time is so short that cases only show that they run."""
    return float(request.config.getoption("benchmark_max_time")) < 1.0


@pytest.fixture
def rounds(glance: bool) -> int:
    """The number of turns each."""
    return 1 if glance else 7


@pytest.fixture(scope="session")
def clips() -> np.ndarray:
    """64 clips of 5 s, int16 (64, 80000): of ESC-10 if AST_FAST_DATA is set, else synthesised."""
    root = os.environ.get("AST_FAST_DATA")
    if root:
        from ast_fast.data.dataset import open_dataset
        from ast_fast.settings.config import Config, Paths

        data = open_dataset(Config(paths=Paths(data=Path(root) / "esc10")))
        return np.array(data.waveforms[:64])
    waves = [make_signal("bursts", CLIP_SAMPLES, seed=seed) for seed in range(64)]
    return np.round(np.stack(waves) * 32767).astype(np.int16)
