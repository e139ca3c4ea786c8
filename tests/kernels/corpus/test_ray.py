"""A cluster of two nodes on this machine makes a corpus, and loses one of them in the middle."""

from __future__ import annotations

import filecmp
import importlib
import json
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ast_fast_kernels.corpus import cluster, maker
from ast_fast_kernels.corpus.extractor import FbankExtractor
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.corpus.plan import Plan
from ast_fast_kernels.corpus.records import ShardRecord
from ast_fast_kernels.corpus.run import Corpus, extract_corpus
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.extract import main
from ast_fast_kernels.fbank.config import FbankConfig

HERE = Path(__file__).parent
RATE = 16000
STORE_BYTES = 80 * 2**20
NOTICED_SOON = {
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""A node that is gone counts as dead after seconds; Ray's own settings take most of a minute."""


@pytest.fixture(scope="module")
def energy() -> Iterator[Any]:
    """The module of an extractor, imported as processes of a cluster can."""
    sys.path.insert(0, str(HERE))
    yield importlib.import_module("energy_extract")
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory, energy: Any) -> Path:
    """Forty files: one is no audio, one ends its process."""
    folder = tmp_path_factory.mktemp("audio")
    for index in range(40):
        length = energy.DEADLY if index == 10 else 400 * (index + 1)
        samples = np.random.default_rng(index).integers(-9000, 9000, length, np.int16)
        soundfile.write(folder / f"{index:02d}.wav", samples, RATE)
    (folder / "05.wav").write_text("no audio")
    return folder


class Nodes:
    """Two nodes of one CPU each, started with the environment of this process."""

    def __init__(self) -> None:
        cluster_utils: Any = importlib.import_module("ray.cluster_utils")
        head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        head["_system_config"] = NOTICED_SOON
        self.cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        self.second = self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        self.address = str(self.cluster.address)

    def kill_one(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(energy: Any) -> Iterator[Nodes]:
    before = dict(os.environ)
    path = [str(HERE), str(Path(maker.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(path)}
    started = Nodes()
    yield started
    started.cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


def same_files(left: Path, right: Path) -> list[str]:
    """Return the names of an output's files, after comparing each with the other output's."""
    names = sorted(os.listdir(left))
    assert names == sorted(os.listdir(right))
    assert filecmp.cmpfiles(left, right, names, shallow=False) == (names, [], [])
    return names


def test_a_lost_node_a_deadly_file_and_an_interruption_change_no_byte(
    nodes: Nodes, energy: Any, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extractor = energy.EnergyExtractor()
    corpus = Corpus((audio,), tmp_path / "ray", shard_size=4, ray=nodes.address)

    def interrupted(plan: Plan, todo: Sequence[int], jobs: int, tell: Any) -> Iterator[ShardRecord]:
        records = cluster.make_shards(plan, todo, jobs, tell)
        for count, record in enumerate(records):
            yield record
            if count == 1:
                nodes.kill_one()
            if count == 6:
                records.close()
                raise KeyboardInterrupt

    with cluster.connected(nodes.address, 0):
        with pytest.raises(KeyboardInterrupt):
            extract_corpus(corpus, extractor, interrupted)
        there = sorted(path.name for path in corpus.out.glob("*.arrow"))
        assert len(there) == 7
        assert extract_corpus(replace(corpus, resume=True), extractor) == 1
    shown = capsys.readouterr().err
    assert "was lost with its process or machine; it is made again" in shown
    alone = replace(corpus, out=tmp_path / "alone", ray=None, jobs=2)
    assert extract_corpus(alone, extractor) == 1
    assert len(same_files(corpus.out, alone.out)) == 14
    failed = [json.loads(line) for line in (alone.out / "failed.jsonl").open()]
    assert [line["path"] for line in failed] == ["05.wav", "10.wav"]
    assert failed[1]["reason"] == "ended the decoder (signal 11)"


def test_a_machine_without_the_extractor_s_module_is_named(
    nodes: Nodes, audio: Path, tmp_path: Path
) -> None:
    (tmp_path / "only_here.py").write_text(
        "from ast_fast_kernels.corpus.extractor import FbankExtractor\n"
        "class OnlyHere(FbankExtractor):\n    pass\n"
    )
    sys.path.insert(0, str(tmp_path))
    extractor = importlib.import_module("only_here").OnlyHere(FbankConfig())
    sys.path.remove(str(tmp_path))
    corpus = Corpus((audio,), tmp_path / "out", ray=nodes.address)
    with pytest.raises(
        InputError, match=r"--ray: [\d.]+ cannot be used: .*No module named 'only_here'"
    ):
        extract_corpus(corpus, extractor)


@pytest.fixture
def plan(audio: Path, tmp_path: Path) -> Plan:
    (tmp_path / ".run").mkdir()
    line = Item("00.wav").to_line()
    (tmp_path / ".run" / "input.jsonl").write_text(line)
    extractor = FbankExtractor(FbankConfig())
    return Plan(
        *(tmp_path, audio, extractor, "arrow", "float16"), {}, False, [0, len(line)], 1, facts={}
    )


def test_a_machine_must_see_the_output_and_the_input(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "TOKEN_SECONDS", 0.0)
    expected = maker.Expected.of(plan, 0)
    maker.check(plan, expected)
    elsewhere = replace(plan, out=tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"--out .*elsewhere must be on a file system that all"):
        maker.check(elsewhere, expected)
    (plan.run / maker.TOKEN).write_text("of a run before")
    with pytest.raises(InputError, match=r"--out .* must be on a file system that all machines"):
        maker.check(plan, expected)
    expected = replace(maker.Expected.of(plan, 0), visible=[(str(tmp_path / "0.wav"), True)])
    with pytest.raises(InputError, match=r"the input must be on a file .* there is no .*0\.wav"):
        maker.check(plan, expected)
    maker.check(plan, replace(expected, visible=[(str(tmp_path / "0.wav"), False)]))


@pytest.mark.parametrize("name", ["ast_fast_kernels", "soxr", "libsndfile"])
def test_a_machine_must_have_the_same_versions(plan: Plan, name: str) -> None:
    expected = maker.Expected.of(plan, 0)
    other = replace(expected, versions={**expected.versions, name: "0.0.1"})
    with pytest.raises(InputError, match=f"{name} must be the 0.0.1 of the machine that runs"):
        maker.check(plan, other)


def test_a_processor_that_rounds_otherwise_is_noted(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a stand-in for Ray, whose actors greet as two kinds of processor would."""
    greetings = {"a": "1", "b": "1", "c": "2"}

    class Ray:
        exceptions = importlib.import_module("ray.exceptions")
        put = staticmethod(lambda value: value)
        get = staticmethod(lambda ref: maker.Greeting(f"node {ref}", None, greetings[ref]))

    crew = cluster._Crew(Ray, plan, maker.Expected.of(plan, 0), 0)
    for ref in greetings:
        crew._starting[ref] = None
        crew._welcome(ref)
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: node c rounds otherwise than the first machine did")


def test_rounding_is_that_of_the_features(plan: Plan) -> None:
    same = replace(plan, extractor=pickle.loads(pickle.dumps(plan.extractor)))
    assert maker.rounding_of(plan) == maker.rounding_of(same)
    other = replace(plan, extractor=FbankExtractor(FbankConfig(low_freq=21.0)))
    assert maker.rounding_of(plan) != maker.rounding_of(other)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("somewhere", "it is not host:port"),
        ("127.0.0.1:1", "Connection refused"),
        ("127.0.0.1:x", "it is not host:port"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(
    audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, reason: str
) -> None:
    assert main([str(audio), "--out", str(tmp_path / "out"), "--ray", address]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: --ray must be auto, local, or host:port of a Ray cluster that this machine is "
        f"part of, got '{address}': {reason}"
    )
    assert not (tmp_path / "out").exists()


def test_an_address_is_auto_unless_given(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(cluster, "connected", lambda address, jobs: given.append(address))
    for arguments in (("--ray",), ("--ray", "--jobs", "2"), ("--ray", "local")):
        with pytest.raises(TypeError):  # what stands in for the connection is no context
            main([str(audio), "--out", str(tmp_path / "out"), *arguments])
    assert given == ["auto", "auto", "local"]


def test_ray_is_asked_for_by_its_extra(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([str(audio), "--out", str(tmp_path / "out"), "--ray"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Ray, which is not installed; pip install 'ast-fast-kernels[ray]'")
