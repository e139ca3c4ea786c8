from pathlib import Path

import pytest
import torch

from ast_fast.training import checkpoint
from ast_fast_kernels.errors import InputError

TENSORS = {
    "weight": torch.randn(7, 5, generator=torch.Generator().manual_seed(0)),
    "step": torch.tensor(3.0),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}
FACTS = {"history": [{"loss": 0.1 + 0.2, "test": None}], "names": ["a", "b"]}


@pytest.fixture
def path(tmp_path) -> Path:
    target = tmp_path / "checkpoint.safetensors"
    checkpoint.save(target, TENSORS, FACTS)
    return target


def test_what_is_saved_comes_back_to_the_bit(path):
    tensors, facts = checkpoint.load(path)
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor), name
        assert tensors[name].dtype == tensor.dtype


def test_nothing_else_is_left_in_the_folder(path):
    checkpoint.save(path, TENSORS, FACTS)
    assert list(path.parent.iterdir()) == [path]


def test_what_is_loaded_survives_the_file(path):
    tensors, _ = checkpoint.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(tensors["weight"], TENSORS["weight"])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:4], id="cut-in-the-length"),
        pytest.param(lambda data: data[:60], id="cut-in-the-header"),
        pytest.param(lambda data: data[:-5], id="cut-in-the-tensors"),
        pytest.param(lambda data: data + b"x", id="too-long"),
        pytest.param(lambda data: data[:-1] + bytes([data[-1] ^ 1]), id="one-bit-of-a-tensor"),
        pytest.param(lambda data: data.replace(b"history", b"histery"), id="one-bit-of-a-fact"),
        pytest.param(lambda data: b"\xff" * 200, id="no-safetensors"),
        pytest.param(lambda data: b"\x80\x04\x95\x0e\x00\x00\x00" + data, id="a-pickle"),
    ],
)
def test_a_damaged_file_is_named(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"checkpoint.safetensors .*remove it to train its fold"):
        checkpoint.load(path)


def test_a_safetensors_file_of_someone_else_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other.safetensors must be a whole file written by"):
        checkpoint.load(tmp_path / "other.safetensors")
