"""A run's kernels: chosen, compiled before training, compared with the reference after it."""

from __future__ import annotations

import contextlib
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ast_fast.data.dataset import Dataset
from ast_fast.data.stored import StoredFeatures
from ast_fast.features import Statistics, load_batch, log_mel, model_input
from ast_fast.machine.device import Placement
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.report.kernel_check import STORED, KernelChecks, check_kernels
from ast_fast.settings.config import Config
from ast_fast.settings.stored import is_store
from ast_fast.training import checkpoint
from ast_fast.training.results import MODEL, FoldResult
from ast_fast_kernels import chosen_backend, mix, use_backend
from ast_fast_kernels.console import show_compilations
from ast_fast_kernels.errors import InputError

CLIPS_COMPARED = 32
"""Largest number of test clips on which kernels are compared."""


def use_backends_of(config: Config, device: torch.device) -> AbstractContextManager[None]:
    """Return the context that applies `--backend`.

    With numba, attention is chosen by auto: it takes torch's where the head dimension or the
    precision has no Numba kernel.

    Raises:
        InputError: The backend needs another device.
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
    """Raise if the kernels of `--backend` cannot run on this machine.

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
    """Return the backend of each operation in a run with these settings."""
    model, device = config.model, placement.device
    amp = placement.amp or torch.float32
    width = model.embed_dim
    waveforms = torch.zeros(1, config.fbank.window_size, device=device)
    features = torch.zeros(1, 1, config.fbank.num_mel_bins, device=device)
    tokens = torch.zeros(1, 1, width, device=device)
    weight, bias = torch.zeros(width, width, device=device), torch.zeros(width, device=device)
    heads = (model.num_heads, width // model.num_heads)
    qkv = torch.zeros(1, 1, 3, *heads, dtype=amp, device=device)
    inputs: dict[str, tuple[Any, ...]] = {
        "mix": (waveforms,),
        "fbank": (waveforms, config.fbank),
        "normalise": (features,),
        "layer_norm": (tokens, None, bias, bias),
        "attention": (qkv,),
        "linear": (tokens, weight, bias),
        "gelu": (tokens, weight, bias),
    }
    with use_backends_of(config, device), placement.autocast():
        in_use = {
            operation: chosen_backend(operation, *given) for operation, given in inputs.items()
        }
        stages = {_stem_backend(width, amp, device) for width in model.stem_widths}
    if is_store(config.paths.data) and not config.download:
        del in_use["mix"]
        in_use["fbank"] = STORED
    return in_use | ({"stem": " and ".join(sorted(stages))} if stages else {})


def _stem_backend(width: int, amp: torch.dtype, device: torch.device) -> str:
    """Return the backend of a stem's stage of that width."""
    cells = torch.zeros(1, 2, 2, width, dtype=amp, device=device)
    weight = torch.zeros(width, device=device)
    kernel = torch.zeros(width, 1, 3, 3, device=device)
    return chosen_backend("stem", cells, weight, weight, kernel, weight)


def warm_up(
    config: Config,
    dataset: Dataset,
    placement: Placement,
    model: AudioSpectrogramTransformer,
    console: Console,
) -> float:
    """Run everything that compiles on first use, so that training times do not include it.

    Args:
        config: The run's settings.
        dataset: Its clips.
        placement: Where it trains; the model is moved there.
        model: A model with the run's sizes.
        console: Console on which each compilation is printed.
    Returns:
        Seconds that this took.
    """
    begin = time.perf_counter()
    device = placement.device
    waveforms = torch.zeros(1, dataset.num_samples, device=device)
    model.to(device)
    if device.type == "cuda":
        console.print("compiling kernels for the GPU, unless they are cached …")
    with show_compilations(console), use_backends_of(config, device):
        if isinstance(dataset.waveforms, StoredFeatures):
            waveforms = torch.zeros(1, *dataset.waveforms.shape[1:], device=device)
        else:
            if device.type == "cpu":
                nothing = torch.zeros(1, 1, dtype=torch.int64)
                mix(dataset.waveforms, nothing, nothing, nothing.float())
            log_mel(waveforms, config, dither=True)
            log_mel(waveforms.to(torch.int16), config)  # as in tests and statistics
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


def wrong_kernel(fold: int, checks: KernelChecks, folder: Path) -> str | None:
    """Return the message about a fold whose kernels exceed a bound; None if none does.

    Args:
        fold: The fold.
        checks: Its comparison of kernels.
        folder: Its folder.
    """
    wrong = checks.wrong()
    if wrong is None:
        return None
    operation, check, judged = wrong
    return (
        f"fold {fold}: {operation} by {check.backend} is further from the reference than rounding "
        f"explains: {judged.measure} {judged.value:.2g}, bound {judged.bound:.2g}; remove {folder} "
        "to train the fold again, or start a new run with --backend reference"
    )


def compare_kernels(
    config: Config, dataset: Dataset, placement: Placement, result: FoldResult, folder: Path
) -> KernelChecks:
    """Compare the kernels in use with the reference, on test clips and the tested weights.

    Args:
        config: The run's settings.
        dataset: Its clips.
        placement: Where it trained.
        result: The fold's result.
        folder: The fold's folder, which holds its model.
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
