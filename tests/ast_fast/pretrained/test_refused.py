"""Folders that hold something else, or less: one error that names the file and the rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ast_fast import pretrained
from ast_fast_kernels.errors import InputError


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    """Return what sets values in a JSON document."""

    def edit(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(document | changes))

    return edit


def with_tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def index_of(place: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        index = {"weight_map": {"classifier.dense.bias": place}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


CONFIG, SETTINGS, MODEL = "config.json", "preprocessor_config.json", "model.safetensors"
LABELS = {str(n): f"sound {n}" for n in range(35)}

DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no-config": (lambda f: (f / CONFIG).unlink(), "must hold config.json, which is missing"),
    "no-settings": (lambda f: (f / SETTINGS).unlink(), "must hold preprocessor_config.json, which"),
    "no-model": (
        lambda f: (f / MODEL).unlink(),
        "must hold model.safetensors or model.safetensors",
    ),
    "config-cut": (lambda f: (f / CONFIG).write_text('{"a": '), "config.json must be JSON, but"),
    "config-list": (lambda f: (f / CONFIG).write_text("[1]"), "must hold a JSON object, got 1"),
    "config-nested": (
        lambda f: (f / CONFIG).write_text("[" * 200_000 + "]" * 200_000),
        "config.json must be JSON, but cannot be read",
    ),
    "other-model": (
        edited(CONFIG, model_type="vit"),
        "model_type must be audio-spectrogram-transformer, got 'vit'",
    ),
    "activation": (edited(CONFIG, hidden_act="relu"), "hidden_act must be gelu, got 'relu'"),
    "width": (edited(CONFIG, hidden_size="768"), "hidden_size must be a whole number from 1"),
    "width-nan": (edited(CONFIG, hidden_size=float("nan")), "hidden_size must be a whole number"),
    "width-bool": (edited(CONFIG, hidden_size=True), "hidden_size must be a whole number"),
    "wide": (edited(CONFIG, hidden_size=2**20), "GiB of memory; this machine has"),
    "deep": (edited(CONFIG, num_hidden_layers=10**6), "model.depth must be at most 1000"),
    "deeper": (edited(CONFIG, num_hidden_layers=3), "must hold the tensor audio_spectrogram_tra"),
    "shallower": (edited(CONFIG, num_hidden_layers=1), "got audio_spectrogram_transformer.*too"),
    "heads": (edited(CONFIG, num_attention_heads=3), "head_dim must be that of one head of 3"),
    "patch": (edited(CONFIG, patch_size=[16, 16]), "patch_size must be a whole number"),
    "bias": (edited(CONFIG, qkv_bias="yes"), "qkv_bias must be true or false, got 'yes'"),
    "no-bias": (edited(CONFIG, qkv_bias=False), "query.bias too|key.bias too|value.bias too"),
    "epsilon": (edited(CONFIG, layer_norm_eps=0), "layer_norm_eps must be a number, finite and ab"),
    "kind": (edited(CONFIG, problem_type="regression"), "problem_type must be one of multi_label"),
    "frames": (edited(CONFIG, max_length=64), "max_length must be that of preprocessor_config.js"),
    "labels-list": (edited(CONFIG, id2label=["a"]), "id2label must be a table of names"),
    "labels-gap": (
        edited(CONFIG, id2label=LABELS | {"40": "more"}),
        "id2label must have a name for each number from 0 to 35",
    ),
    "labels-twice": (edited(CONFIG, id2label=LABELS | {"3": "sound 1"}), "got 'sound 1' twice"),
    "labels-number": (edited(CONFIG, id2label=LABELS | {"3": 7}), "labels must be text, got 7"),
    "labels-fewer": (
        edited(CONFIG, id2label={"0": "one"}),
        r"tensor classifier.dense.weight must be \(1, 128\), got \(35, 128\)",
    ),
    "rate": (edited(SETTINGS, sampling_rate=-1), "sampling_rate must be a whole number from 1"),
    "rate-high": (edited(SETTINGS, sampling_rate=10**9), "must be a whole number of Hz from"),
    "std": (edited(SETTINGS, std=0.0), "std must be a number, finite and above 0, got 0.0"),
    "mean": (edited(SETTINGS, mean="loud"), "mean must be a number, finite, got 'loud'"),
    "model-cut": (
        lambda f: (f / MODEL).write_bytes((f / MODEL).read_bytes()[:-9]),
        "must be a whole safetensors file",
    ),
    "nan": (
        with_tensors(lambda t: t["classifier.dense.bias"].fill_(float("inf"))),
        "tensor classifier.dense.bias must be finite",
    ),
    "integers": (
        with_tensors(lambda t: t.update({"classifier.dense.bias": torch.zeros(35).int()})),
        "tensor classifier.dense.bias must be one of BF16, F16, F32, got I32",
    ),
    "missing": (
        with_tensors(lambda t: t.pop("classifier.layernorm.bias")),
        "must hold the tensor classifier.layernorm.bias, which is missing",
    ),
    "index-path": (index_of("../one.safetensors"), "weight_map must name safetensors files beside"),
    "index-lost": (index_of("two.safetensors"), "two.safetensors must be a whole safetensors file"),
    "index-less": (index_of("one.safetensors"), "must hold the tensor audio_spectrogram_transfor"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_folder_is_one_clear_error(copied: Path, name: str) -> None:
    damage, message = DAMAGED[name]
    damage(copied)
    with pytest.raises(InputError, match=message) as caught:
        pretrained.load(copied)
    assert len(caught.value.problems) == 1


def test_labels_must_be_as_many_as_classes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labels must name the model's 35 classes, got 2"):
        pretrained.load(folder, labels=["a", "b"])
    for text, message in (
        ("a,b\n1,2\n", "columns index and display_name or target and category"),
        ("index,display_name\n0,a\n2,b\n", "must name every class from 0 on, but not 1"),
        ("index,display_name\n0,a\n0,b\n", "class 0 must have one name, got two"),
    ):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            pretrained.load(folder, labels=tmp_path / "labels.csv")


def test_a_model_of_a_run_is_no_checkpoint_of_others(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"model.safetensors must have config.json beside it"):
        pretrained.load(tmp_path / "model.safetensors")


def test_a_stride_belongs_to_a_pth(folder: Path) -> None:
    with pytest.raises(InputError, match=r"patch_stride must not be given for .*config.json says"):
        pretrained.load(folder, patch_stride=(10, 10))
