from __future__ import annotations

import numpy as np
import pytest
import torch

from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FbankConfig

AST = FbankConfig()
EPS = np.finfo(np.float64).eps


@pytest.mark.parametrize("periodic", [False, True], ids=["symmetric", "periodic"])
@pytest.mark.parametrize(
    ("window_type", "expected"),
    [
        ("hanning", lambda n, p: torch.hann_window(n, p, dtype=torch.float64)),
        ("hamming", lambda n, p: torch.hamming_window(n, p, 0.54, 0.46, dtype=torch.float64)),
        ("povey", lambda n, p: torch.hann_window(n, p, dtype=torch.float64) ** 0.85),
        ("rectangular", lambda n, p: torch.ones(n, dtype=torch.float64)),
        ("blackman", lambda n, p: torch.blackman_window(n, p, dtype=torch.float64)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_window_is_the_textbook_one(window_type, expected, periodic) -> None:
    config = AST.replace(window_type=window_type, window_periodic=periodic)
    window = tables.window(config)
    assert window.shape == (400,)
    np.testing.assert_allclose(window, expected(400, periodic).numpy(), atol=8 * EPS)


def test_blackman_coefficient_sets_the_constant_term() -> None:
    config = AST.replace(window_type="blackman", blackman_coeff=0.3)
    # At the middle of the window both cosines are ∓1: c + 0.5 + (0.5 - c).
    assert tables.window(config.replace(window_periodic=True))[200] == pytest.approx(1.0)
    # A quarter in: cos = 0, cos = -1.
    assert tables.window(config.replace(window_periodic=True))[100] == pytest.approx(0.1)


def test_mel_banks_have_a_zero_nyquist_bin_and_one_empty_filter_at_ast_settings() -> None:
    banks = tables.mel_banks(AST)
    assert banks.shape == (128, 257)
    assert banks.dtype == np.float64
    assert not banks[:, -1].any()
    assert np.flatnonzero(~banks.any(axis=1)).tolist() == [3]


def test_mel_triangles_sum_to_one_between_the_outer_centres() -> None:
    config = FbankConfig.preset("kaldi")
    banks = tables.mel_banks(config)
    edges = np.linspace(tables.mel_scale(20.0), tables.mel_scale(8000.0), 25)
    mel = tables.mel_scale(np.arange(257) * 31.25)
    inside = (mel >= edges[1]) & (mel <= edges[-2])
    assert inside.sum() > 200
    np.testing.assert_allclose(banks[:, inside].sum(axis=0), 1.0, atol=1e-12)


def test_mel_triangle_is_linear_in_mel_with_peak_one() -> None:
    config = FbankConfig(num_mel_bins=1, low_freq=0.0, n_fft=4096)
    (bank,) = tables.mel_banks(config)
    top = 1127.0 * np.log1p(8000.0 / 700.0)
    mel = 1127.0 * np.log1p(np.arange(2048) * (16000.0 / 4096) / 700.0)
    np.testing.assert_allclose(bank[:-1], 1 - np.abs(2 * mel / top - 1), atol=1e-12)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_mel_scale_has_an_inverse(scale) -> None:
    hertz = np.array([0.0, 20.0, 700.0, 999.9, 1000.0, 8000.0, 22050.0])
    mel = tables.mel_scale(hertz, scale)
    np.testing.assert_allclose(tables.inverse_mel_scale(mel, scale), hertz, rtol=1e-14)
    assert (np.diff(mel) > 0).all()


def test_mel_scales_pass_through_their_fixed_points() -> None:
    assert tables.mel_scale(700.0) == pytest.approx(1127.0 * np.log(2.0))
    # Slaney: 3 mel for 200 Hz up to 1 kHz, then 27 for a factor of 6.4.
    slaney = tables.mel_scale([200.0, 1000.0, 6400.0], "slaney")
    np.testing.assert_allclose(slaney, [3.0, 15.0, 42.0], rtol=1e-14)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_triangle_linear_in_hertz_has_straight_sides(scale) -> None:
    config = AST.replace(num_mel_bins=1, n_fft=4096, mel_scale=scale, triangle_axis="hertz")
    (bank,) = tables.mel_banks(config)
    left, centre, right = tables.filter_edges(config)
    hertz = np.arange(2049) * (16000.0 / 4096)
    expected = np.interp(hertz, [left, centre, right], [0.0, 1.0, 0.0])
    np.testing.assert_allclose(bank, expected, atol=1e-12)
    assert centre == pytest.approx(
        tables.inverse_mel_scale(
            (tables.mel_scale(20.0, scale) + tables.mel_scale(8000.0, scale)) / 2, scale
        )
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("symmetric", lambda distance: np.maximum(1.0 - distance, 0.0)),
        ("rectangular", lambda distance: distance <= 1.0),
        ("gaussian", lambda distance: np.exp(-0.5 * (2.0 * distance) ** 2)),
    ],
)
def test_other_shapes_are_as_wide_above_their_centre_as_below(shape, expected) -> None:
    config = AST.replace(num_mel_bins=8, triangle_axis="hertz", filter_shape=shape)
    edges, hertz = tables.filter_edges(config), np.arange(257) * (16000.0 / 512)
    for bank, left, centre in zip(tables.mel_banks(config), edges, edges[1:], strict=False):
        distance = np.abs(hertz - centre) / (centre - left)
        np.testing.assert_allclose(bank, expected(distance), rtol=1e-12, atol=1e-37)


def test_bells_alone_reach_nyquist() -> None:
    shapes = ("triangular", "symmetric", "rectangular", "gaussian")
    configs = [AST.replace(triangle_axis="hertz", filter_shape=shape) for shape in shapes]
    assert [tables.reach_nyquist(config) for config in configs] == [False, False, False, True]
    smallest = tables.mel_banks(configs[-1])
    assert smallest[smallest > 0].min() >= np.finfo(np.float32).tiny


def test_slaney_norm_gives_each_filter_area_one() -> None:
    config = AST.replace(
        num_mel_bins=40, n_fft=65536, triangle_axis="hertz", mel_norm="slaney", low_freq=100.0
    )
    area = tables.mel_banks(config).sum(axis=1) * 16000.0 / 65536  # Hz
    np.testing.assert_allclose(area, 1.0, rtol=1e-3)


def test_triangles_on_bins_peak_at_floored_edges() -> None:
    config = AST.replace(num_mel_bins=26, low_freq=0.0, triangle_axis="bins")
    banks = tables.mel_banks(config)
    edges = np.floor(513 * tables.filter_edges(config) / 16000.0).astype(int)
    assert banks.argmax(axis=1).tolist() == edges[1:-1].tolist()
    assert (banks.max(axis=1) == 1.0).all()
    for bank, left, right in zip(banks, edges, edges[2:], strict=False):
        assert np.flatnonzero(bank).tolist() == list(range(left + 1, right))


def test_narrow_triangles_on_bins_keep_their_falling_side() -> None:
    # At 100 filters the first edges fall on the same bins; a filter whose left and centre edges do
    # still weighs its centre by 1, one whose centre and right edges do does not.
    config = AST.replace(num_mel_bins=100, low_freq=0.0, triangle_axis="bins")
    edges = np.floor(513 * tables.filter_edges(config) / 16000.0).astype(int)
    banks = tables.mel_banks(config)
    kinds = set()
    for bank, left, centre, right in zip(banks, edges, edges[1:], edges[2:], strict=False):
        kinds.add((left == centre, centre == right))
        assert bank[centre] == (0.0 if centre == right else 1.0)
    assert kinds >= {(True, False), (False, True), (False, False)}


def test_division_by_the_fft_length_is_in_the_filters() -> None:
    divided = tables.mel_banks(AST.replace(divide_by_n_fft=True))
    np.testing.assert_array_equal(divided * 512, tables.mel_banks(AST))


@pytest.mark.parametrize("warp", [0.8, 0.9, 1.1, 1.25])
def test_vtln_warp_moves_centres_by_the_factor_between_its_inflection_points(warp) -> None:
    config = FbankConfig(num_mel_bins=40, n_fft=16384, vtln_warp=warp)
    plain = tables.mel_banks(config.replace(vtln_warp=1.0)).argmax(axis=1) * 16000.0 / 16384
    warped = tables.mel_banks(config).argmax(axis=1) * 16000.0 / 16384
    middle = (plain > 100.0 * max(1.0, warp)) & (plain < 7500.0 * min(1.0, warp))
    assert middle.sum() > 25
    # Peaks are found to within one bin on either side.
    np.testing.assert_allclose(warped[middle], plain[middle] / warp, atol=2 * 16000.0 / 16384)


@pytest.mark.parametrize("warp", [1.0, 0.9, 1.2])
def test_float32_banks_are_the_others_but_for_bins_on_an_edge(warp: float) -> None:
    config = FbankConfig(sample_frequency=8000.0, low_freq=125.0, vtln_warp=warp, vtln_low=200.0)
    exact = tables.mel_banks(config)
    rounded = tables.mel_banks(config.replace(mel_dtype="float32"))
    assert rounded.dtype == np.float64
    # Mel values near 2146 are rounded to 1.2e-4, in triangles 15 wide.
    np.testing.assert_allclose(rounded, exact, atol=4 * 1.2e-4 / 15)
    if warp == 1.0:
        assert 0 < rounded[exact == 0].max() < 1e-5


@pytest.mark.parametrize("sample_frequency", [8000.0, 16000.0, 44100.0])
@pytest.mark.parametrize("num_mel_bins", [23, 80, 128])
def test_float32_banks_are_torch_s_up_to_the_last_place_of_a_mel_value(
    sample_frequency: float, num_mel_bins: int
) -> None:
    config = FbankConfig(
        sample_frequency=sample_frequency, num_mel_bins=num_mel_bins, mel_dtype="float32"
    )
    edges = tables.mel_scale([config.low_freq, config.upper_edge])
    low, width = float(edges[0]), float(edges[1] - edges[0]) / (num_mel_bins + 1)
    left = low + torch.arange(num_mel_bins, dtype=torch.float32)[:, None] * width
    centre, right = (
        low + (torch.arange(num_mel_bins, dtype=torch.float32)[:, None] + place) * width
        for place in (1.0, 2.0)
    )
    hertz = sample_frequency / config.fft_size * torch.arange(config.fft_size // 2)
    mel = 1127.0 * (1.0 + hertz / 700.0).log()
    expected = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre))
    banks = tables.mel_banks(config)[:, :-1]
    last_place = float(np.spacing(np.float32(edges[1])))
    # Two places: a logarithm is off by one of its own, and rounded again when multiplied.
    np.testing.assert_allclose(
        banks, expected.clamp(min=0.0).numpy(), rtol=0, atol=2 * last_place / width + 1e-7
    )
    assert ((banks != 0) == (expected > 0).numpy()).all()


@pytest.mark.parametrize("table", [tables.window, tables.mel_banks])
def test_tables_are_cached_and_read_only(table) -> None:
    assert table(AST) is table(FbankConfig())
    with pytest.raises(ValueError, match="read-only"):
        table(AST)[0] = 1.0
