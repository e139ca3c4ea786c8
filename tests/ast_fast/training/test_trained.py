"""Model files that strangers wrote: each works, or ends in one line, soon, and costs little."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.predict import main
from ast_fast.settings.agree import fold_identity
from ast_fast.settings.config import AudioConfig, Config, FeatureConfig, ModelConfig
from ast_fast.settings.rules import check_prediction
from ast_fast.training import checkpoint
from ast_fast.training.trained import load_trained
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig

CONFIG = Config(
    audio=AudioConfig(clip_seconds=0.1),
    features=FeatureConfig(target_frames=8),
    fbank=FbankConfig(num_mel_bins=16),
    model=ModelConfig(patch_size=(8, 8), patch_stride=(8, 8), embed_dim=4, num_heads=2, depth=1),
)
SECONDS = 1.0
"""Of this process's own time that any file may take."""


@dataclass
class Crafted:
    """A model file in its parts, which a test changes before they are written."""

    header: dict[str, Any]
    """Of the tensors."""
    facts: Any
    data: bytearray
    text: str | None = None
    """The facts as they stand in the file; None: as JSON."""
    checksum: str | None = None
    """None: the right one."""
    outer: Callable[[str], str] = str
    """Changes the whole header's text."""

    def start(self, name: str) -> int:
        return int(self.header[name]["data_offsets"][0])

    def to_bytes(self) -> bytes:
        text = json.dumps(self.facts) if self.text is None else self.text
        value = zlib.crc32(text.encode("utf-8", "surrogatepass"))
        for name in sorted(self.header):
            begin, end = self.header[name]["data_offsets"]
            value = zlib.crc32(name.encode("utf-8", "surrogatepass"), value)
            value = zlib.crc32(self.data[begin:end], value)
        checksum = str(value) if self.checksum is None else self.checksum
        about = {"facts": text, "checksum": checksum}
        whole = self.outer(json.dumps({"__metadata__": about, **self.header}))
        encoded = whole.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(encoded)) + encoded + bytes(self.data)


@pytest.fixture(scope="module")
def whole() -> Crafted:
    torch.manual_seed(0)
    model = AudioSpectrogramTransformer.of(CONFIG, 3)
    header, data = {}, bytearray()
    for name, tensor in model.state_dict().items():
        begin = len(data)
        data += tensor.numpy().tobytes()
        shape = list(tensor.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    facts = {
        "run": fold_identity(CONFIG, 1, "0" * 64),
        "class_names": ["dog", "cat", "sea"],
        "statistics": None,
        "history": [{"epoch": 1, "train_loss": 0.5}],
        "stages": {},
        "accuracy": 0.5,
        "loss": 1.0,
    }
    return Crafted(header, facts, data)


@pytest.fixture(autouse=True)
def _nothing_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AST_FAST_BACKEND", "reference")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers")
    rng = np.random.default_rng(0)
    soundfile.write(folder / "a.wav", rng.uniform(-0.5, 0.5, 2000), 16000)
    return folder


def outcome(path: Path, capsys: pytest.CaptureFixture[str]) -> str | None:
    """Classify a file with a model; return the one error, None if it worked."""
    started = time.process_time()
    code = main([str(path), str(path.parent / "a.wav"), "--json", "--device", "cpu"])
    spent = time.process_time() - started
    shown = capsys.readouterr()
    assert spent < SECONDS, (spent, shown.err)
    lines = shown.err.splitlines()
    if code == 0:
        assert lines == []
        (line,) = shown.out.splitlines()
        shares = json.loads(line, parse_constant=pytest.fail)["probabilities"]
        assert math.isclose(sum(shares.values()), 1.0, abs_tol=1e-5)
        return None
    assert shown.out == ""
    (line,) = lines
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) <= 4000
    assert str(path) in line if code == 2 else code == 1
    return line


def changed(whole: Crafted, change: Callable[[Crafted], object]) -> bytes:
    crafted = copy.deepcopy(whole)
    change(crafted)
    return crafted.to_bytes()


def put(*keys: Any) -> Callable[[Crafted], object]:
    """Set a fact: its keys, and last its value."""

    def change(crafted: Crafted) -> None:
        inside = crafted.facts
        for key in keys[:-2]:
            inside = inside[key]
        inside[keys[-2]] = keys[-1]

    return change


def setting(*keys: Any) -> Callable[[Crafted], object]:
    return put("run", *keys)


def tensor(name: str, **values: Any) -> Callable[[Crafted], object]:
    return lambda crafted: crafted.header[name].update(values)


def text(**values: Any) -> Callable[[Crafted], object]:
    return lambda crafted: vars(crafted).update(values)


def outer(old: str, new: str) -> Callable[[Crafted], object]:
    def replaced(header: str) -> str:
        assert old in header
        return header.replace(old, new, 1)

    return text(outer=replaced)


def value(number: float) -> Callable[[Crafted], object]:
    """Set one weight."""

    def change(crafted: Crafted) -> None:
        begin = crafted.start("head.weight")
        crafted.data[begin : begin + 4] = struct.pack("<f", number)

    return change


def every_value(name: str, number: float) -> Callable[[Crafted], object]:
    """Set every weight of a tensor."""

    def change(crafted: Crafted) -> None:
        begin, end = crafted.header[name]["data_offsets"]
        crafted.data[begin:end] = struct.pack("<f", number) * ((end - begin) // 4)

    return change


def extra(name: str) -> Callable[[Crafted], object]:
    def change(crafted: Crafted) -> None:
        end = len(crafted.data)
        crafted.header[name] = {"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]}
        crafted.data += bytes(8)

    return change


def without(name: str) -> Callable[[Crafted], object]:
    """Leave out the last tensor."""

    def change(crafted: Crafted) -> None:
        begin, end = crafted.header.pop(name)["data_offsets"]
        assert end == len(crafted.data)
        del crafted.data[begin:]

    return change


def all_as(dtype: str, size: int) -> Callable[[Crafted], object]:
    """Give every tensor another dtype, with as many bytes as that takes."""

    def change(crafted: Crafted) -> None:
        end = 0
        for entry in crafted.header.values():
            count = math.prod(entry["shape"])
            entry.update(dtype=dtype, data_offsets=[end, end + size * count])
            end += size * count
        crafted.data = bytearray(end)

    return change


FACTS = "must be a whole file written by ast_fast, but cannot be read"
CRAFTED: dict[str, tuple[Callable[[Crafted], object], str]] = {
    "nan-weight": (value(math.nan), "tensor head.weight must be finite, and holds NaN or inf"),
    "infinite-weight": (value(-math.inf), "tensor head.weight must be finite"),
    "float64": (all_as("F64", 8), "must be F32 of shape"),
    "float16": (all_as("F16", 2), "must be F32 of shape"),
    "int64": (all_as("I64", 8), "must be F32 of shape"),
    "int32": (all_as("I32", 4), "must be F32 of shape"),
    "bool": (all_as("BOOL", 1), "must be F32 of shape"),
    "unknown-dtype": (all_as("F8_E4M3", 1), "must be one of F64, F32, F16, BF16, BOOL, I64"),
    "missing-tensor": (without("head.bias"), "must hold the tensor head.bias, which is missing"),
    "extra-tensor": (extra("blocks.1.norm1.weight"), "got blocks.1.norm1.weight too"),
    "tensor-named-to-forge": (extra("x\nerror: y\x1b[2J"), r"got x\nerror: y\x1b[2J too"),
    "tensor-without-name": (extra(""), "must hold only the"),
    "transposed": (tensor("head.weight", shape=[4, 3]), "must be F32 of shape (3, 4), got F32 of"),
    "flat": (tensor("head.weight", shape=[12]), "head.weight must be F32 of shape (3, 4)"),
    "many-dimensions": (tensor("head.weight", shape=[1] * 99 + [12]), "at most 8 sizes"),
    "negative-shape": (tensor("head.weight", shape=[-3, -4]), "must have a shape of at most 8"),
    "bool-shape": (tensor("head.bias", shape=[3, True]), "must have a shape of at most 8"),
    "float-shape": (tensor("head.bias", shape=[3.0]), "must have a shape of at most 8"),
    "shape-of-2**63": (tensor("head.bias", shape=[2**63]), "must have a shape of at most 8"),
    "shape-of-10**400": (tensor("head.bias", shape=[10**400]), "must have a shape of at most 8"),
    "empty-and-huge": (tensor("head.bias", shape=[2**62, 2**62, 0]), "must have as many bytes"),
    "offsets-reversed": (tensor("head.bias", data_offsets=[12, 0]), "must have as many bytes"),
    "offset-is-text": (outer("[0, 32]", '["0", 32]'), "and two offsets"),
    "offsets-three": (outer("[0, 32]", "[0, 16, 32]"), "and two offsets"),
    "offset-is-bool": (outer("[0, 32]", "[false, 32]"), "and two offsets"),
    "offsets-missing": (lambda c: c.header["head.bias"].pop("shape"), "must have a dtype"),
    "offsets-overlap": (
        lambda c: c.header["norm.weight"].update(
            data_offsets=c.header["norm.bias"]["data_offsets"]
        ),
        "must follow each other without a gap",
    ),
    "depth-of-2e9": (setting("model", "depth", 2_000_000_000), "model.depth must be at most 1000"),
    "depth-of-1000": (setting("model", "depth", 1000), "must hold the tensor blocks.1."),
    "depth-of-2": (setting("model", "depth", 2), "must hold the tensor blocks.1."),
    "depth-of-0": (setting("model", "depth", 0), "model.depth must be at least 1, got 0"),
    "depth-bool": (setting("model", "depth", True), "model.depth must be an integer, got True"),
    "depth-float": (setting("model", "depth", 1.0), "model.depth must be an integer, got 1.0"),
    "depth-nan": (setting("model", "depth", math.nan), "model.depth must be an integer, got nan"),
    "conv-depth": (setting("model", "conv_depth", 2**31 - 1), "model.conv_depth must be at most"),
    "width-of-1e9": (setting("model", "embed_dim", 10**9), "GiB of memory; this machine has"),
    "width-of-10**400": (setting("model", "embed_dim", 10**400), "got a number of 1329 bits"),
    "width-of-8": (setting("model", "embed_dim", 8), "must be F32 of shape (2, 8), got F32 of"),
    "mlp-of-1e12": (setting("model", "mlp_ratio", 1e12), "GiB of memory; this machine has"),
    "mlp-of-10**400": (setting("model", "mlp_ratio", 10**400), "mlp_ratio must be a finite number"),
    "heads": (setting("model", "num_heads", 3), "model.embed_dim must be divisible by"),
    "patch-of-0": (setting("model", "patch_size", [0, 8]), "model.patch_size must be at least 1"),
    "patch-of-2e9": (setting("model", "patch_size", [2 * 10**9, 8]), "must fit into the spectro"),
    "patch-of-one": (setting("model", "patch_size", [8]), "model.patch_size must be 2 integers"),
    "patch-of-text": (setting("model", "patch_size", "88"), "patch_size must be 2 integers"),
    "stride-of-0": (setting("model", "patch_stride", [0, 0]), "patch_stride must be at least 1"),
    "many-patches": (
        lambda c: c.facts["run"]["model"].update(
            patch_size=[1, 1], patch_stride=[1, 1], position_embedding="sinusoidal"
        )
        or c.facts["run"]["features"].update(target_frames=10**5),
        "must give at most 65536 patches, got 1600000",
    ),
    "stems": (setting("model", "stem_widths", [4] * 100_000), "be divisible by 2**100000"),
    "stem-of-1": (setting("model", "stem_widths", [1] * 30_000), "must each be at least 2"),
    "sinusoidal": (setting("model", "position_embedding", "sinusoidal"), "patch_embedding.posi"),
    "pool": (setting("model", "pool", "cls"), "must hold the tensor class_token"),
    "pool-unknown": (setting("model", "pool", "max\x1b[31m"), "model.pool must be one of mean"),
    "bins-of-2e9": (setting("fbank", "num_mel_bins", 2 * 10**9), "must be at most 134217728"),
    "fft-of-2e9": (setting("fbank", "n_fft", 2 * 10**9), "must be at most 1048576, got"),
    "fft-of-3": (setting("fbank", "n_fft", 3), "fbank.n_fft must be even and at least"),
    "long-frames": (setting("fbank", "frame_length", 1e12), "must be at most 1048576, got"),
    "frames-of-2e9": (
        lambda c: c.facts["run"]["features"].update(target_frames=2**31 - 1)
        or c.facts["run"]["model"].update(patch_stride=[8, 2**20]),
        "GiB of memory; this machine has",
    ),
    "frames-of-0": (setting("features", "target_frames", 0), "target_frames must be at least 1"),
    "an-hour-at-1-MHz": (
        lambda c: c.facts["run"]["fbank"].update(sample_frequency=1e6)
        or c.facts["run"]["audio"].update(clip_seconds=3600.0),
        "a clip's samples (audio.clip_seconds) must be at most 1073741824, got 3600000000",
    ),
    "rate-of-1e12": (setting("fbank", "sample_frequency", 1e12), "must be a whole number of Hz"),
    "clip-of-1e12": (setting("audio", "clip_seconds", 1e12), "audio.clip-seconds must be from one"),
    "clip-negative": (setting("audio", "clip_seconds", -1.0), "audio.clip-seconds must be from"),
    "clip-infinite": (setting("audio", "clip_seconds", math.inf), "must be a finite number"),
    "log-of-0": (setting("fbank", "log_floor", 0.0), "must not both be 0"),
    "unknown-key": (setting("model", "widht", 3), "unknown key model.widht"),
    "20000-unknown-keys": (
        lambda c: c.facts["run"]["model"].update({f"key{n}": n for n in range(20_000)}),
        "unknown key model.key0; --help lists them all; and 5 more such problems",
    ),
    "key-to-forge": (setting("a\nerror: b\x1b[2J", 1), r"unknown key a\nerror: b\x1b[2J"),
    "preset-unknown": (setting("fbank", "preset", "x" * 999), "fbank.preset must be one of ast"),
    "table-as-list": (setting("model", [1, 2]), "model must be a table, got 1 2"),
    "run-as-list": (put("run", [1]), "run must be the settings of a run, got 1"),
    "run-missing": (lambda c: c.facts.pop("run"), "run must be the settings of a run, got None"),
    "nested-lists": (
        setting("model", "patch_size", json.loads("[" * 900 + "]" * 900)),
        "must be",
    ),
    "no-class": (put("class_names", []), "class_names must be a list of names, got none"),
    "classes-as-table": (put("class_names", {"dog": 1}), "class_names must be a list of names"),
    "class-as-number": (put("class_names", ["dog", 2, "sea"]), "class_names must be text, got 2"),
    "class-empty": (put("class_names", ["dog", " ", "sea"]), "class_names must be text, got ' '"),
    "class-twice": (put("class_names", ["dog", "sea", "dog"]), "must differ, got 'dog' twice"),
    "class-not-utf-8": (put("class_names", ["a", "\udcff", "b"]), "class_names must be text, got"),
    "fewer-classes": (put("class_names", ["dog", "cat"]), "must be F32 of shape (2, 4), got F32"),
    "100000-classes": (
        put("class_names", [f"{n}" for n in range(100_000)]),
        "must be F32 of shape (100000, 4)",
    ),
    **{
        f"temperature-{name}": (put("temperature", got), rule)
        for name, got in (
            *(("zero", 0.0), ("below", -1.0), ("text", "2"), ("bool", True), ("nan", math.nan)),
            *(("infinite", math.inf), ("huge", 1e300), ("list", [1.0])),
        )
        for rule in ["temperature must be a number from 1e-09 to 1e+09, got"]
    },
    "statistics-missing": (setting("features", "norm_per_sample", False), "must have mean and std"),
    **{
        f"statistics-{name}": (
            lambda c, got=got: c.facts["run"]["features"].update(norm_per_sample=False)
            or c.facts.update(statistics=got),
            message,
        )
        for name, got, message in (
            ("nan", {"mean": math.nan, "std": 1.0}, "statistics.mean must be a number, got nan"),
            ("zero", {"mean": 0.0, "std": 0.0}, "statistics.std must be above 0, got 0.0"),
            ("text", {"mean": "0", "std": 1.0}, "statistics.mean must be a number, got '0'"),
            ("bool", {"mean": True, "std": 1.0}, "statistics.mean must be a number, got True"),
            ("long", {"mean": 10**400, "std": 1.0}, "got a number of 1329 bits"),
            ("list", [0.0, 1.0], "statistics must have mean and std, got 0.0 1.0"),
            ("more", {"mean": 0.0, "std": 1.0, "x": 1}, "statistics must have mean and std"),
        )
    },
    "optimizer": (extra("optimizer.step"), "must be a finished fold's model.safetensors, got"),
    "checksum-wrong": (text(checksum="1"), "is damaged: its checksum must be 1; remove it"),
    "checksum-long": (text(checksum="9" * 5000), "checksum must be a number, got"),
    "checksum-text": (text(checksum="x"), "checksum must be a number, got 'x'"),
    "facts-as-list": (text(text="[]"), "facts must be a JSON object"),
    "facts-cut": (text(text='{"run": {'), FACTS),
    "facts-empty": (text(text=""), FACTS),
    "facts-nested": (text(text="[" * 500_000 + "]" * 500_000), "nested too deeply"),
    "facts-of-lists": (text(text="[" + "[]," * 3_000_000 + "[]]"), "must have at most 2000000"),
    "facts-long-number": (text(text='{"class_names": ' + "9" * 5000 + "}"), FACTS),
    "facts-key-twice": (
        text(text='{"class_names": ["a"], "class_names": ["b"]}'),
        "must have each key once, got 'class_names' twice",
    ),
    "facts-half-surrogate": (text(text='{"a": "\ud800"}'), FACTS),
    "metadata-as-list": (text(outer=lambda header: '{"__metadata__": []}'), "facts and checksum"),
    "metadata-missing": (outer("__metadata__", "metadata"), "must hold facts and checksum"),
    "facts-as-number": (text(outer=lambda _: '{"__metadata__": {"facts": 1, "checksum": "1"}}'),
                        "facts and checksum must be text"),
    "header-as-list": (text(outer=lambda header: "[]"), "its header must be a JSON object"),
    "header-nested": (text(outer=lambda header: "[" * 10**6), "nested too deeply"),
    "header-not-utf-8": (text(outer=lambda header: '{"\udcff": 1}'), FACTS),
    "tensor-twice": (outer('"head.bias"', '"norm.bias"'), "must have each key once, got 'norm.bi"),
    "tensor-as-number": (outer('"head.bias": {', '"head.bias": 3, "x": {'), "and two offsets"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_model_ends_in_one_line(
    whole: Crafted, folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, message = CRAFTED[name]
    path = folder / "model.safetensors"
    path.write_bytes(changed(whole, change))
    error = outcome(path, capsys)
    assert error is not None
    assert message in error


def test_the_model_itself_works(
    whole: Crafted, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(whole.to_bytes())
    assert outcome(path, capsys) is None


def test_weights_that_give_nan_are_an_error_of_the_file(
    whole: Crafted, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(changed(whole, every_value("blocks.0.attention.qkv.weight", 3e38)))
    error = outcome(path, capsys)
    assert error is not None
    assert error.endswith("a.wav cannot be classified: the model's probabilities are not finite")


def test_what_is_no_model_file_ends_in_one_line(
    whole: Crafted, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = whole.to_bytes()
    path = folder / "other"
    for content, message in (
        (b"", FACTS),
        (b"\0" * 7, FACTS),
        (struct.pack("<Q", 2**63) + data[8:], "claims 9223372036854775808 bytes"),
        (struct.pack("<Q", 2**64 - 1) + data[8:], "claims 18446744073709551615 bytes"),
        (struct.pack("<Q", 0) + data[8:], "claims 0 bytes"),
        (struct.pack("<Q", len(data) - 7) + data[8:], "its header must end within"),
        (data[:-1], "must have"),
        (data + b"\0", "must have"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os.", "its header must end within"),
        (b"PK\x03\x04" + bytes(100), FACTS),
    ):
        path.write_bytes(content)
        error = outcome(path, capsys)
        assert error is not None
        assert message in error
    path.unlink()
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)):
        make(path)
        error = outcome(path, capsys)
        assert error is not None
        assert "CHECKPOINT" in error
        path.rmdir() if path.is_dir() else path.unlink()
    error = outcome(path.with_name("x" * 300), capsys)
    assert error is not None
    assert "cannot be read: File name too long" in error


ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 16, 255, 10**6, 2**31 - 1, 2**31, 2**63, 10**400),
    *(0.0, -0.0, 0.5, 1e-300, 1e300, 1e12, math.nan, math.inf, -math.inf),
    *("", "x", "x" * 5000, "\x1b[2J", "a\nerror: forged", "\u202egnp.exe", "\ud800", "ast", "cls"),
    *([], {}, [1], [1, 2], [1, [2]], [None, None], {"a": {"b": 1}}, [[]] * 3, [2**31 - 1] * 2),
)


def places(inside: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container of a document with each of its keys."""
    if isinstance(inside, dict | list):
        for key in inside if isinstance(inside, dict) else range(len(inside)):
            yield inside, key
            yield from places(inside[key])


def mutate(crafted: Crafted, chance: random.Random) -> None:
    """Change one thing, or two: a fact, a setting, the header, a tensor."""
    for _ in range(chance.choice((1, 1, 2))):
        kind = chance.randrange(6)
        if kind <= 2:
            where = crafted.facts if kind == 0 else crafted.facts.get("run")
            found = list(places(where))
            if not found:
                continue
            inside, key = chance.choice(found)
            if chance.random() < 0.15:
                del inside[key]
            else:
                inside[key] = copy.deepcopy(chance.choice(ODD))
        elif kind == 3:
            name = chance.choice(list(crafted.header))
            key = chance.choice(("dtype", "shape"))
            crafted.header[name][key] = copy.deepcopy(chance.choice((*ODD, "I32", "F64")))
        elif kind == 4:
            name = chance.choice(list(crafted.header))
            entry = crafted.header.pop(name)
            if chance.random() < 0.7:
                crafted.header[chance.choice(("", "x", name + ".x", "\x1b", "head"))] = entry
        else:
            at = chance.randrange(len(crafted.data) - 4)
            odd = chance.choice((math.nan, math.inf, 1e38, -1e30, 1e-45))
            crafted.data[at - at % 4 : at - at % 4 + 4] = struct.pack("<f", odd)


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_of_a_model_file(
    whole: Crafted, folder: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """100 files each: the checksum is right, so that nothing but the checks stands between."""
    chance = random.Random(seed)
    path = folder / f"random-{seed}.safetensors"
    worked = 0
    for _ in range(100):
        path.write_bytes(changed(whole, lambda crafted: mutate(crafted, chance)))
        worked += outcome(path, capsys) is None
    assert 0 < worked < 100


def test_random_bytes_of_a_model_file(
    whole: Crafted, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 files with one to four bytes of the header changed, and 50 cut anywhere."""
    chance = random.Random(0)
    data = whole.to_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    path = folder / "bytes.safetensors"
    for number in range(150):
        damaged = bytearray(data)
        if number < 100:
            for _ in range(chance.randint(1, 4)):
                damaged[chance.randrange(8 + length)] = chance.randrange(256)
        else:
            del damaged[chance.randrange(len(data)) :]
        path.write_bytes(damaged)
        outcome(path, capsys)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position_embedding": "sinusoidal", "pool": "cls"},
        {"stem_widths": (4, 6), "conditional_position": True, "conv_depth": 2},
        {"depth": 3, "mlp_ratio": 1.3, "patch_stride": (4, 2)},
    ],
    ids=["plain", "fixed-positions", "stem-and-convolutions", "deep-and-overlapping"],
)
def test_shapes_and_weights_are_those_of_the_model(changes: dict[str, Any]) -> None:
    config = replace(CONFIG, model=replace(CONFIG.model, **changes))
    torch.manual_seed(0)
    model = AudioSpectrogramTransformer.of(config, 5).eval()
    weights = model.state_dict()
    shapes = AudioSpectrogramTransformer.weight_shapes(config, 5)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in weights.items()}
    built = AudioSpectrogramTransformer.from_weights(config, 5, weights).eval()
    features = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(built(features), model(features))


def test_what_a_prediction_needs_is_never_more_than_the_defaults() -> None:
    check_prediction(Config(), 80_000, num_classes=50)
    with pytest.raises(InputError, match=r"model\.depth must be at most 1000, got 1001"):
        check_prediction(replace(Config(), model=ModelConfig(depth=1001)), 80_000, num_classes=50)


def test_a_stored_model_is_the_one_that_was_saved(whole: Crafted, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole.to_bytes())
    trained = load_trained(path)
    tensors, _ = checkpoint.load(path)
    assert trained.config == CONFIG
    assert all(torch.equal(tensors[name], w) for name, w in trained.model.state_dict().items())
