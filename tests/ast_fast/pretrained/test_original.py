"""The original project's `.pth`: its names, its epsilons, what follows from its sizes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ast_fast import pretrained
from ast_fast.features import Statistics
from ast_fast.pretrained.original import FRAMES, STRIDES
from ast_fast_kernels.errors import InputError

transformers = pytest.importorskip("transformers")

WITHIN = 1e-5
FEATURES = torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def weights(small: Any, original_weights: Callable[[Any], dict[str, Tensor]]) -> dict[str, Tensor]:
    return original_weights(small)


def test_logits_are_those_with_its_epsilons(make: Callable[..., Any], pth: Path) -> None:
    """timm's 1e-6, and torch's default in the head, where transformers has 1e-12 for both."""
    theirs = make()
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5 if name.startswith("classifier") else 1e-6
    loaded = pretrained.load(pth)
    assert loaded.config.model.norm_eps == 1e-6
    assert loaded.config.model.head_norm_eps == 1e-5
    with torch.inference_mode():
        expected = theirs(FEATURES).logits
        torch.testing.assert_close(loaded.model(FEATURES), expected, atol=WITHIN, rtol=0)


def test_it_can_be_saved_for_transformers(small: Any, pth: Path, tmp_path: Path) -> None:
    loaded = pretrained.load(pth)
    with pytest.raises(InputError, match="give layer_norm_eps"):
        pretrained.save(loaded, tmp_path / "saved")
    pretrained.save(loaded, tmp_path / "saved", layer_norm_eps=1e-12)
    theirs = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "saved")
    with torch.inference_mode():
        assert torch.equal(theirs(FEATURES).logits, small(FEATURES).logits)


def test_what_it_does_not_say_follows_from_its_sizes(pth: Path) -> None:
    loaded = pretrained.load(pth)
    assert loaded.config.model.patch_stride == (10, 10)
    assert loaded.config.model.num_heads == 2
    assert loaded.config.features.target_frames == 128
    assert loaded.config.fbank.num_mel_bins == 128
    assert loaded.statistics == Statistics(-6.845978, 5.5654526)  # Speech Commands'
    assert loaded.class_names[:2] == ["class 0", "class 1"]
    assert not loaded.multi_label


def test_published_numbers_of_patches_are_all_different() -> None:
    numbers = [
        ((128 - 16) // stride + 1) * ((frames - 16) // stride + 1)
        for frames in FRAMES
        for stride in STRIDES
    ]
    assert {1212, 600, 144} <= set(numbers)
    assert len(set(numbers)) == len(numbers)


def test_labels_come_from_a_table_beside_it(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "model.pth")
    rows = [f'{n},/m/0{n},"Sound, {n}"' for n in reversed(range(35))]
    table = tmp_path / "class_labels_indices.csv"
    table.write_text("\n".join(["index,mid,display_name", *rows]) + "\n")
    expected = [f"Sound, {n}" for n in range(35)]
    assert pretrained.load(tmp_path / "model.pth").class_names == expected
    esc50 = tmp_path / "esc50.csv"
    lines = [f"{n}.wav,1,{n % 35},name {n % 35}" for n in range(70)]
    esc50.write_text("\n".join(["filename,fold,target,category", *lines]) + "\n")
    given = pretrained.load(tmp_path / "model.pth", labels=esc50)
    assert given.class_names == [f"name {n}" for n in range(35)]
    table.write_text("index,mid,display_name\n0,/m/0,one\n")
    with pytest.raises(InputError, match=r"indices.csv must name the model's 35 classes, got 1"):
        pretrained.load(tmp_path / "model.pth")


def test_other_sizes_need_what_they_do_not_say(
    make: Callable[..., Any],
    original_weights: Callable[[Any], dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    theirs = make(hidden_size=64, num_attention_heads=1, num_labels=7, max_length=145,
                  num_hidden_layers=1, time_stride=12)  # fmt: skip
    path = tmp_path / "other.pth"
    torch.save(original_weights(theirs), path)
    with pytest.raises(InputError, match=r"must be of a model with 527, 50, 35 classes.* got 7"):
        pretrained.load(path)
    statistics = Statistics(-5.0, 4.0)
    with pytest.raises(InputError, match=r"as many patches as a published model .* got 132; give"):
        pretrained.load(path, statistics=statistics)
    with pytest.raises(InputError, match=r"patch_stride \(13, 12\) must divide .* 132 patches"):
        pretrained.load(path, statistics=statistics, patch_stride=(13, 12))
    loaded = pretrained.load(path, statistics=statistics, patch_stride=(10, 12))
    assert loaded.config.features.target_frames == 136  # the fewest that 11 patches cover
    assert loaded.statistics == statistics


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/dev/null",))


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda w: {key: value for key, value in w.items() if key != f"module.{name}"}


CRAFTED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "code": (lambda w: w | {"x": _Harm()}, "torch.save with tensors alone, but cannot be read"),
    "list": (lambda w: list(w), "must hold tensors by name, got a list"),
    "empty": (lambda w: {}, "must hold tensors by name, got a dict"),
    "nested": (lambda w: {"state_dict": w}, "must hold tensors by name, got a dict too"),
    "integers": (
        lambda w: w | {"module.v.cls_token": torch.zeros(1, 1, 128, dtype=torch.int64)},
        "tensor module.v.cls_token must be dense and floating-point, got torch.int64",
    ),
    "sparse": (
        lambda w: w | {"module.v.cls_token": torch.zeros(1, 1, 128).to_sparse()},
        "tensor module.v.cls_token must be dense",
    ),
    "stretched": (
        lambda w: w | {"module.mlp_head.1.weight": torch.zeros(1, 1).expand(10**12, 128)},
        "tensor module.mlp_head.1.weight must hold each of its values",
    ),
    "nan": (
        lambda w: w | {"module.v.norm.bias": torch.full((128,), torch.nan)},
        "tensor v.norm.bias must be finite",
    ),
    "more": (lambda w: w | {"module.extra": torch.zeros(2)}, "tensors of its model, got extra too"),
    "shape": (
        lambda w: w | {"module.v.norm.bias": torch.zeros(3)},
        r"tensor v.norm.bias must be \(128,\), got \(3,\)",
    ),
    "projection-flat": (
        lambda w: w | {"module.v.patch_embed.proj.weight": torch.zeros(128, 256)},
        "tensor v.patch_embed.proj.weight must have 4 sizes above 0",
    ),
    "no-block": (_without("v.blocks.0.mlp.fc1.weight"), "v.blocks.0.mlp.fc1.weight, which is miss"),
    "no-token": (_without("v.dist_token"), "must hold the tensor v.dist_token, which is missing"),
    "narrow": (
        lambda w: w | {"module.v.patch_embed.proj.weight": torch.zeros(100, 1, 16, 16)},
        "a whole number of heads of 64, got 100",
    ),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_file_is_one_clear_error(
    weights: dict[str, Tensor], tmp_path: Path, name: str
) -> None:
    change, message = CRAFTED[name]
    torch.save(change(weights), tmp_path / "crafted.pth")
    with pytest.raises(InputError, match=message):
        pretrained.load(tmp_path / "crafted.pth")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps([1]), b"\x80\x02}q\x00."])
def test_what_is_no_checkpoint_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"other.pth must"):
        pretrained.load(path)


def test_a_file_cut_short_is_one_clear_error(pth: Path, tmp_path: Path) -> None:
    data = pth.read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / "cut.pth").write_bytes(data[: int(share * len(data))])
        with pytest.raises(InputError, match=r"cut.pth must be a file of torch.save"):
            pretrained.load(tmp_path / "cut.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.pth must be a checkpoint, but does not exist"):
        pretrained.load(tmp_path / "none.pth")
