"""A run's kernels: which are chosen, compiled before any clock runs, compared after each fold."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ast_fast.data.dataset import Dataset
from ast_fast.errors import InputError
from ast_fast.features import Statistics, load_batch, log_mel, model_input
from ast_fast.machine.console import show_compilations
from ast_fast.machine.device import Placement
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.report.kernel_check import KernelChecks, check_kernels
from ast_fast.settings.config import Config
from ast_fast.training import checkpoint
from ast_fast.training.results import MODEL, FoldResult
from ast_fast_kernels import mix, use_backend
from ast_fast_kernels._dispatch import requested_backend
from ast_fast_kernels.attention.api import choose_backend as choose_attention
from ast_fast_kernels.fbank.api import choose_backend as choose_fbank
from ast_fast_kernels.gelu.api import choose_backend as choose_gelu
from ast_fast_kernels.layer_norm.api import choose_backend as choose_layer_norm
from ast_fast_kernels.linear.api import choose_backend as choose_linear
from ast_fast_kernels.mix.api import choose_backend as choose_mix
from ast_fast_kernels.normalise.api import choose_backend as choose_normalise
from ast_fast_kernels.stem.api import choose_backend as choose_stem

CLIPS_COMPARED = 32
"""Most clips of a test fold that kernels are compared on."""


def chosen_backends(config: Config, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which kernels are those of `--backend`.

    Where numba has no attention, for a head dimension or mixed precision, auto takes torch's.

    Raises:
        InputError: The backend needs a device or a kernel that is not there.
    """
    match config.backend:
        case "auto":
            return contextlib.nullcontext()
        case "reference":
            return use_backend("reference")
        case "numba":
            return use_backend(fbank="numba", mix="numba", normalise="numba", attention="auto")
        case "triton":
            if device.type != "cuda":
                raise InputError(
                    "--backend triton needs a CUDA device, got cpu; use --backend numba on the CPU"
                )
            return use_backend("triton")


def check_backend(config: Config, placement: Placement) -> None:
    """Raise if the kernels that `--backend` asks for cannot run here.

    Raises:
        InputError: They need another device, or other settings.
    """
    try:
        kernels_in_use(config, placement)
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--backend {config.backend}: {error}") from error


def kernels_in_use(config: Config, placement: Placement) -> dict[str, str]:
    """Return the backend of each operation in a run of these settings."""
    model, device = config.model, placement.device
    samples = torch.zeros(1, config.fbank.window_size, device=device)
    qkv = torch.zeros(
        (1, 1, 3, model.num_heads, model.embed_dim // model.num_heads),
        dtype=placement.amp or torch.float32,
        device=device,
    )
    tokens = torch.zeros(1, 1, model.embed_dim, device=device)
    weight = torch.zeros(1, 1, device=device)
    choices: dict[str, tuple[Callable[..., str], tuple[Any, ...]]] = {
        "mix": (choose_mix, (samples,)),
        "fbank": (choose_fbank, (samples, config.fbank)),
        "normalise": (choose_normalise, (samples,)),
        "layer_norm": (choose_layer_norm, (tokens,)),
        "attention": (choose_attention, (qkv,)),
        "linear": (choose_linear, (weight, weight, weight[0])),
        "gelu": (choose_gelu, (weight, weight, weight[0])),
    }
    with chosen_backends(config, device), placement.autocast():
        in_use = {
            name: choose(requested_backend(name, "auto"), *given)
            for name, (choose, given) in choices.items()
        }
        stages = {
            choose_stem(requested_backend("stem", "auto"), qkv.new_empty(1, 2, 2, width), weight)
            for width in model.stem_widths
        }
    return in_use | ({"stem": " and ".join(sorted(stages))} if stages else {})


def warm_up(
    config: Config,
    dataset: Dataset,
    placement: Placement,
    model: AudioSpectrogramTransformer,
    console: Console,
) -> float:
    """Run everything that is compiled on first use, so that no clock of training sees it.

    Args:
        config: The run's settings.
        dataset: Its clips.
        placement: Where it trains; the model is moved there.
        model: A model of its sizes.
        console: Where compilations are named.
    Returns:
        Seconds that it took.
    """
    begin = time.perf_counter()
    device = placement.device
    waveforms = torch.zeros(1, dataset.waveforms.shape[1], device=device)
    model.to(device)
    if device.type == "cuda":
        console.print("compiling kernels for the GPU, where its cache lacks them …")
    with show_compilations(console), chosen_backends(config, device):
        if device.type == "cpu":
            nothing = torch.zeros(1, 1, dtype=torch.int64)
            mix(dataset.waveforms, nothing, nothing, nothing.float())
        log_mel(waveforms, config, dither=True)
        log_mel(waveforms.to(torch.int16), config)  # as tests and statistics have them
        features = model_input(waveforms, config, Statistics(0.0, 1.0))
        with placement.autocast():
            logits = model(features)
            with torch.inference_mode():
                model(features)
        logits.sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    if seconds > 1:
        console.print(f"warmed up kernels and model in {seconds:.1f} s")
    return seconds


def compare_kernels(
    config: Config, dataset: Dataset, placement: Placement, result: FoldResult, folder: Path
) -> KernelChecks:
    """Compare the kernels in use with the reference on test clips and the tested weights.

    Args:
        config: The run's settings.
        dataset: Its clips.
        placement: Where it trained.
        result: The fold's.
        folder: The fold's own, which holds its model.
    """
    tensors, facts = checkpoint.load(folder / MODEL)
    model = AudioSpectrogramTransformer.of(config, len(dataset.class_names))
    model.load_state_dict(tensors)
    model.to(placement.device).eval()
    statistics = facts["statistics"] and Statistics(**facts["statistics"])
    indices = result.test_indices[: min(CLIPS_COMPARED, config.training.batch_size)]
    waveforms = load_batch(dataset.waveforms, indices, placement.device)
    features = model_input(waveforms, config, statistics)
    with placement.autocast():
        amp = placement.amp or torch.float32
        return check_kernels(config, waveforms, model, features, amp)
