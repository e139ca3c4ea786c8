from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ast_fast_kernels.testing.budgets import eps_bound, log_mel_error, relative_norm
from ast_fast_kernels.testing.processes import run_program
from ast_fast_kernels.testing.signals import SIGNALS, make_signal


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_is_in_range_and_repeats_with_its_seed(name: str) -> None:
    signal = make_signal(name, 16001, seed=3)
    assert signal.shape == (16001,)
    assert np.abs(signal).max() <= 1.0
    np.testing.assert_array_equal(signal, make_signal(name, 16001, seed=3))


def test_seed_changes_random_signals() -> None:
    for name in ("noise", "bursts"):
        assert (make_signal(name, 1000, seed=0) != make_signal(name, 1000, seed=1)).any()


def test_sine_lies_on_its_bin() -> None:
    power = np.abs(np.fft.rfft(make_signal("sine_on_bin", 512))) ** 2
    assert power[32] > 1e20 * np.delete(power, 32).max()


def test_unknown_signal_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name must be one of silence, dc, .*, got 'music'"):
        make_signal("music", 10)


def test_no_gpu_stands_for_those_with_launch_tables() -> None:
    no_gpu = pytest.importorskip("ast_fast_kernels.testing.no_gpu", exc_type=ImportError)
    assert no_gpu.NoGpu(80).get_current_target().arch == 80
    with pytest.raises(ValueError, match="arch must be 80 or 90, got 75"):
        no_gpu.install(75)


def test_relative_norm_is_the_ratio_of_norms() -> None:
    reference = torch.tensor([3.0, 4.0])
    assert relative_norm(reference + torch.tensor([0.0, 0.5]), reference) == pytest.approx(0.1)
    assert relative_norm(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_norm(torch.ones(2), torch.zeros(2)) == math.inf
    assert math.isnan(relative_norm(torch.tensor([math.nan, 0.0]), reference))


def test_log_mel_error_leaves_out_bins_60_db_down() -> None:
    reference = torch.log(torch.tensor([[1.0, 1.1e-6, 0.9e-6], [1e-9, 1e-9, 1e-9]]))
    error = log_mel_error(reference + torch.tensor([0.0, 0.5, 9.0]), reference)
    assert [round(value, 6) for value in error.tolist()] == [0.0, 0.5, 0.0, 0.5, 9.0]


def test_log_mel_error_counts_decibels_of_magnitudes_where_they_are() -> None:
    reference = torch.log(torch.tensor([1.0, 1.1e-3, 0.9e-3]))
    assert log_mel_error(reference, reference, use_power=False).numel() == 2
    assert log_mel_error(reference, reference).numel() == 3


def test_eps_bound_grows_with_the_root_of_the_length() -> None:
    eps = torch.finfo(torch.float32).eps
    assert eps_bound(torch.float32, 1) == 8 * eps
    assert eps_bound(torch.float32, 400) == pytest.approx(160 * eps)


def test_more_private_memory_than_the_limit_is_refused() -> None:
    run_program("""
import numpy as np
from ast_fast_kernels.testing.processes import private_memory_limit
with private_memory_limit(8 * 2**20, "little"):
    np.ones(2**19)
try:
    with private_memory_limit(8 * 2**20, "much"):
        np.ones(2**21)
except MemoryError as error:
    assert str(error) == "much took more than 8,388,608 bytes", error
else:
    raise SystemExit("nothing was refused")
np.ones(2**21)
""")
