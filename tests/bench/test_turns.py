"""How candidates take turns, what their features are held to, and torchaudio's own process."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ast_fast_kernels import FbankConfig
from bench import bench_fbank, peers, torchaudio_client
from bench.peers import PEERS
from bench.turns import Way, medians_of_calls, settle


def test_settle_waits_until_threads_sleep() -> None:
    end = time.perf_counter() + 0.1

    def spin() -> None:
        while time.perf_counter() < end:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    settle()
    assert not thread.is_alive()


def test_calls_take_turns() -> None:
    turns: list[str] = []

    def call(name: str, seconds: float) -> int:
        turns.append(name)
        time.sleep(seconds)
        return len(turns)

    def pedantic(target, args: tuple[str], setup, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            turns.append("timed")
            target(*args)

    calls = {"a": lambda: call("a", 0), "b": lambda: call("b", 0), "c": lambda: call("c", 0.01)}
    medians, outputs = medians_of_calls(SimpleNamespace(pedantic=pedantic), calls, rounds=3)
    assert turns == ["a", "b", "timed", "c"] * 3
    assert outputs == {"a": 9, "b": 10, "c": 12}
    assert max(medians["a"], medians["b"]) < 0.01 <= medians["c"]


def test_a_way_that_has_its_own_clock_is_believed() -> None:
    assert Way(lambda: 12.0, lambda: None, 1).seconds() == 12.0
    assert Way(lambda: time.sleep(0.01), lambda: None, 1).seconds() >= 0.01


def options(max_time: float, min_rounds: int) -> SimpleNamespace:
    values = {"benchmark_max_time": max_time, "benchmark_min_rounds": min_rounds}
    return SimpleNamespace(getoption=values.__getitem__)


@pytest.mark.parametrize(
    ("max_time", "min_rounds", "seconds", "rounds"),
    [
        (1.0, 5, 0.5, 15),
        (1.0, 5, 1.5, 5),
        (1.0, 5, 0.02, 50),
        (1.0, 5, 0.001, 100),
        (0.2, 3, 0.5, 3),
        (0.2, 3, 0.01, 20),
    ],
    ids=["slow", "slower-than-a-second", "fast", "at-most-100", "glance", "glance-fast"],
)
def test_rounds(max_time: float, min_rounds: int, seconds: float, rounds: int) -> None:
    assert bench_fbank.count_rounds(options(max_time, min_rounds), seconds) == rounds  # type: ignore[arg-type]


def test_both_run_in_turn_and_the_first_is_recorded() -> None:
    calls: list[str] = []

    def way(name: str, seconds: float) -> Way:
        return Way(lambda: calls.append(name) or seconds, lambda: None, 1, lambda: None)

    def pedantic(target, setup, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            target()

    benchmark = SimpleNamespace(pedantic=pedantic)
    theirs, ours = way("theirs", 3.0), way("ours", 1.0)
    medians = bench_fbank.take_turns(benchmark, options(0.2, 3), theirs, ours)  # type: ignore[arg-type]
    assert medians == [3.0, 1.0]
    assert calls == ["ours", "theirs"] * (len(calls) // 2)


def test_wrong_features_are_refused() -> None:
    config = FbankConfig()
    right = np.random.default_rng(0).uniform(-3, 3, (2, 10, 128)).astype(np.float32)
    assert bench_fbank.check(right, right, config) == 0.0
    with pytest.raises(AssertionError):
        bench_fbank.check(right + np.float32(1e-3), right, config)
    with pytest.raises(AssertionError):
        bench_fbank.check(right[:, 1:], right, config)
    wrong = right.copy()
    wrong[0, 0, 0] += 0.01
    with pytest.raises(AssertionError):
        bench_fbank.check(wrong, right, config)
    energies = config.replace(use_log_fbank=False)
    with pytest.raises(AssertionError):
        bench_fbank.check(1.001 * np.exp(right), np.exp(right), energies)


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_names_a_preset_of_its_own_convention(name: str) -> None:
    peer = PEERS[name]
    assert isinstance(peer.config("float32"), FbankConfig)
    assert isinstance(peer.config("int16"), FbankConfig)


def test_a_missing_package_is_named_with_the_way_to_get_it() -> None:
    missing = peers.Peer("ast", peers.torch_eager, package="no-such-filterbank")
    with pytest.raises(pytest.skip.Exception, match=r"no-such-filterbank is not installed: pip .*"):
        peers.require(missing)


FAKE_TORCHAUDIO = """
import time
from types import SimpleNamespace
import torch

def fbank(waveform, **options):
    assert options["window_type"] == "hanning" and waveform.shape[0] == 1
    time.sleep(0.01)
    return waveform[0, :6].view(3, 2)

class MelSpectrogram:
    def __call__(self, waveforms):
        return waveforms[..., :6].reshape(*waveforms.shape[:-1], 2, 3)

__version__ = "fake"
compliance = SimpleNamespace(kaldi=SimpleNamespace(fbank=fbank))
transforms = SimpleNamespace(MelSpectrogram=MelSpectrogram)
"""


@pytest.fixture
def fake_torchaudio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """This interpreter, with something that looks like torchaudio."""
    (tmp_path / "torchaudio.py").write_text(FAKE_TORCHAUDIO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    client = torchaudio_client.Client(sys.executable)
    monkeypatch.setattr(torchaudio_client, "client", lambda: client)
    yield client
    client.close()


def test_torchaudio_runs_in_its_own_process_and_times_itself(
    fake_torchaudio, tmp_path: Path
) -> None:
    assert fake_torchaudio.versions["torchaudio"] == "fake"
    inputs = [np.arange(40, dtype=np.float32).reshape(4, 10)]
    ways = torchaudio_client.ways("kaldi.fbank", inputs, 2, tmp_path)
    assert list(ways) == ["clip by clip", "clip by clip in 2 Python threads"]
    expected = inputs[0][:, :6].reshape(4, 3, 2)
    for way, least in zip(ways.values(), (0.04, 0.02), strict=True):
        np.testing.assert_array_equal(way.features(), expected)
        way.settle()
        begin = time.perf_counter()
        assert least <= way.seconds() <= time.perf_counter() - begin
    transforms = torchaudio_client.ways("MelSpectrogram", inputs, 1, tmp_path)
    for way in transforms.values():
        assert way.features().shape == (4, 3, 2)


def test_an_interpreter_that_ends_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchaudio.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        RuntimeError, match="interpreter that AST_FAST_TORCHAUDIO_PYTHON names ended"
    ):
        torchaudio_client.Client(sys.executable)


def test_torchaudio_is_skipped_where_no_interpreter_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(torchaudio_client.VARIABLE, raising=False)
    torchaudio_client.client.cache_clear()
    with pytest.raises(pytest.skip.Exception, match="AST_FAST_TORCHAUDIO_PYTHON is not set"):
        torchaudio_client.ways("kaldi.fbank", [np.zeros((1, 400))], 1, tmp_path)
