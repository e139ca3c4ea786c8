from __future__ import annotations

import logging
import re
import threading

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from ast_fast_kernels import FbankConfig, _dispatch, attention, fbank, use_backend
from ast_fast_kernels._dispatch import BACKENDS, load_backend, requested_backend
from ast_fast_kernels._torch import checks
from ast_fast_kernels.attention.api import choose_backend as attention_backend
from ast_fast_kernels.testing.processes import run_program

WAVEFORM = torch.zeros(1, 800)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AST_FAST_BACKEND", raising=False)


@pytest.mark.parametrize(("op", "backend"), BACKENDS, ids=lambda value: value)
def test_every_entry_of_the_table_loads(op: str, backend: str) -> None:
    assert callable(load_backend(op, backend))
    assert requested_backend(op, backend) == backend


def test_nothing_named_is_auto() -> None:
    assert requested_backend("fbank", "auto") == "auto"


def test_argument_comes_before_use_backend_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AST_FAST_BACKEND", "reference")
    assert requested_backend("fbank", "auto") == "reference"
    with use_backend("numba"):
        assert requested_backend("fbank", "auto") == "numba"
        assert requested_backend("fbank", "reference") == "reference"
        assert requested_backend("layer_norm", "auto") == "reference"
    assert requested_backend("fbank", "auto") == "reference"


def test_environment_may_name_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AST_FAST_BACKEND", "fbank=numba, attention=sdpa")
    assert requested_backend("fbank", "auto") == "numba"
    assert requested_backend("attention", "auto") == "sdpa"


def test_use_backend_nests_and_ends_with_its_block() -> None:
    with use_backend("reference"):
        with use_backend(fbank="numba"):
            assert requested_backend("fbank", "auto") == "numba"
            assert requested_backend("layer_norm", "auto") == "reference"
        assert requested_backend("fbank", "auto") == "reference"
        with use_backend(fbank="auto"):
            assert requested_backend("fbank", "auto") == "auto"
    assert requested_backend("fbank", "auto") == "auto"


def test_use_backend_ends_when_its_block_raises() -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert requested_backend("fbank", "auto") == "auto"


def test_use_backend_holds_for_its_own_thread_only() -> None:
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(requested_backend("fbank", "auto")))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_name_that_only_some_operations_have_leaves_the_others() -> None:
    with use_backend("sdpa"):
        assert requested_backend("fbank", "auto") == "auto"
        assert requested_backend("attention", "auto") == "sdpa"


@pytest.mark.parametrize(
    ("names", "ops", "message"),
    [
        (
            ["cuda"],
            {},
            "backend must be one of auto, numba, onednn, reference, sdpa, soxr, triton, got 'cuda'",
        ),
        (
            [],
            {"fft": "numba"},
            "use_backend's argument must name an operation (fbank, mix, normalise, attention, l",
        ),
        (
            [],
            {"fbank": "sdpa"},
            "fbank must be one of auto, reference, numba, triton for fbank, got",
        ),
    ],
)
def test_use_backend_refuses_unknown_names(names, ops, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)), use_backend(*names, **ops):
        pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "cuda",
            "AST_FAST_BACKEND must be one of auto, numba, onednn, reference, sdpa, soxr, triton",
        ),
        (
            "fft=numba",
            "AST_FAST_BACKEND must name an operation "
            "(fbank, mix, normalise, attention, layer_norm, linear, gelu, resample, stem)",
        ),
        (
            "fbank=sdpa",
            "AST_FAST_BACKEND must be one of auto, reference, numba, triton for fbank, got",
        ),
    ],
)
def test_environment_refuses_unknown_names(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("AST_FAST_BACKEND", value)
    with pytest.raises(ValueError, match=re.escape(message)):
        fbank(WAVEFORM)


def test_call_refuses_a_backend_that_its_operation_lacks() -> None:
    message = "backend must be one of auto, reference, numba, triton for fbank, got 'sdpa'"
    with pytest.raises(ValueError, match=message):
        fbank(WAVEFORM, backend="sdpa")


def test_triton_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    message = 'triton needs a waveform on a CUDA device, got cpu; use backend="reference"'
    with pytest.raises(RuntimeError, match=message):
        fbank(WAVEFORM, backend="triton")
    message = 'triton needs qkv on a CUDA device, got cpu; use backend="sdpa"'
    with pytest.raises(RuntimeError, match=message):
        attention(torch.zeros(1, 2, 3, 1, 16), backend="triton")


@pytest.mark.parametrize(
    ("waveform", "config", "message"),
    [
        (
            WAVEFORM.double(),
            FbankConfig(),
            'numba needs a float32 or int16 waveform, got float64; use backend="reference"',
        ),
        (
            WAVEFORM,
            FbankConfig(n_fft=8192),
            "numba needs an FFT length of at most 4096, got 8192",
        ),
        (
            WAVEFORM.to("meta"),
            FbankConfig(),
            'numba needs a CPU waveform, got meta; use backend="reference"',
        ),
    ],
    ids=["float64", "fft-8192", "device"],
)
def test_named_backend_that_cannot_run_raises_where_auto_takes_the_reference(
    waveform: torch.Tensor, config: FbankConfig, message: str
) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        fbank(waveform, config, backend="numba")
    assert fbank(waveform, config).shape == (1, 3, 128)


def test_auto_says_once_what_it_chose(caplog: pytest.LogCaptureFixture) -> None:
    _dispatch._log.cache_clear()
    qkv = torch.zeros(1, 2, 3, 1, 4)
    with caplog.at_level(logging.INFO, logger="ast_fast_kernels"):
        for _ in range(3):
            fbank(WAVEFORM)
            fbank(WAVEFORM, backend="reference")
            attention(qkv)
    assert [said for said in caplog.messages if "auto chose" in said] == [
        "fbank: auto chose backend 'numba'",
        "attention: auto chose backend 'sdpa' (numba needs a head_dim of 16, 32, 64, got 4)",
    ]


def test_operations_that_are_new_to_a_process_meet_in_one_graph() -> None:
    printed = run_program(
        """
import torch
from ast_fast_kernels import add_layer_norm, attention, linear, linear_gelu

def block(tokens, matrix, bias):
    packed = torch.cat([linear(tokens, matrix, bias)] * 3, dim=-1).unflatten(-1, (3, 1, 16))
    update = attention(packed).flatten(-2)
    tokens, normed = add_layer_norm(tokens, update, bias, bias)
    return tokens + linear_gelu(normed, matrix, bias)

given = torch.randn(2, 5, 16), torch.randn(16, 16), torch.randn(16)
compiled = torch.compile(block, fullgraph=True, backend="aot_eager")(*given)
print(torch.allclose(compiled, block(*given), atol=1e-5))
"""
    )
    assert printed.strip() == "True"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about tensors of a GPU that is not there")
def test_cuda_without_triton_takes_torch_s_operators(monkeypatch) -> None:
    with FakeTensorMode():
        qkv = torch.empty(2, 5, 3, 2, 16, device="cuda", dtype=torch.bfloat16)
        assert attention_backend("auto", qkv) == "triton"
        monkeypatch.setattr(checks, "_is_triton_installed", lambda: False)
        assert attention_backend("auto", qkv) == "sdpa"
        with pytest.raises(RuntimeError, match="triton is not installed"):
            attention_backend("triton", qkv)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_a_call_like_the_last_one_still_follows_what_is_asked_for(kind, monkeypatch) -> None:
    """Its checks are not made again, so nothing that they depend on may go unseen."""
    samples = np.random.default_rng(0).normal(0, 0.1, (2, 8000)).astype(np.float32)
    waveform, config = kind(samples), FbankConfig()
    expected = fbank(waveform, config)
    again, one = fbank(waveform, config), fbank(waveform[0], config)
    assert (again == expected).all()
    assert (fbank(waveform[0], config) == one).all()
    assert (one == expected[0]).all()
    loaded = _dispatch.load_backend
    used: list[str] = []
    monkeypatch.setattr(
        _dispatch, "load_backend", lambda op, name: used.append(name) or loaded(op, name)
    )
    fbank(waveform, config)
    with use_backend("reference"):
        fbank(waveform, config)
        fbank(waveform, config, backend="numba")
    monkeypatch.setenv("AST_FAST_BACKEND", "fbank=reference")
    fbank(waveform, config)
    monkeypatch.delenv("AST_FAST_BACKEND")
    fbank(waveform, config)
    assert used == ["numba", "reference", "numba", "reference", "numba"]
    with pytest.raises(TypeError, match="float32, float64 or int16"):
        fbank(kind(samples.astype(np.int32)), config)
    with pytest.raises(ValueError, match="num_samples >= 400"):
        fbank(waveform[:, :399], config)
    strided = kind(np.repeat(samples, 2, axis=1))[:, ::2]
    assert (fbank(strided, config) == expected).all()
    assert (fbank(kind((samples * 32768).astype(np.int16)), config) != expected).any()
    assert fbank(waveform, config, lengths=[8000, 400]).shape == expected.shape
