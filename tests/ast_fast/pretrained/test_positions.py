"""Position embeddings of other lengths, beside the original's rule written from its paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ast_fast import pretrained
from ast_fast.pretrained.positions import resized
from ast_fast_kernels.errors import InputError

GRID = (12, 101)


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return torch.randn(12 * 101, 8, generator=torch.Generator().manual_seed(0))


def test_the_same_grid_keeps_every_value(table: torch.Tensor) -> None:
    assert torch.equal(resized(table, GRID, GRID), table)


@pytest.mark.parametrize(("columns", "first"), [(100, 0), (50, 25), (49, 26), (12, 44), (1, 50)])
def test_fewer_are_cut_from_the_middle(table: torch.Tensor, columns: int, first: int) -> None:
    cut = resized(table, GRID, (12, columns)).view(12, columns, 8)
    assert torch.equal(cut, table.view(12, 101, 8)[:, first : first + columns])


def test_fewer_bins_are_cut_from_the_middle(table: torch.Tensor) -> None:
    cut = resized(table, GRID, (5, 101)).view(5, 101, 8)
    assert torch.equal(cut, table.view(12, 101, 8)[4:9])


@pytest.mark.parametrize("grid", [(12, 298), (12, 102), (25, 101), (25, 298)])
def test_more_lie_between_their_neighbours(table: torch.Tensor, grid: tuple[int, int]) -> None:
    """A position's place is that of its centre, and beyond the outer centres nothing changes."""

    def between(values: torch.Tensor, wanted: int) -> torch.Tensor:
        """Interpolate along the first axis."""
        places = (torch.arange(wanted, dtype=torch.float64) + 0.5) * len(values) / wanted - 0.5
        places = places.clamp(0, len(values) - 1)
        left = places.floor().long().clamp(max=len(values) - 2)
        share = (places - left).float().view(-1, 1, 1)
        return values[left] * (1 - share) + values[left + 1] * share

    image = between(table.view(12, 101, 8), grid[0])
    expected = between(image.transpose(0, 1), grid[1]).transpose(0, 1)
    more = resized(table, GRID, grid).view(*grid, 8)
    # A place near 100 is rounded to 8e-6 in float32, and neighbours differ by up to 6.
    torch.testing.assert_close(more, expected, atol=5e-5, rtol=0)


def test_cut_along_one_axis_and_interpolated_along_the_other(table: torch.Tensor) -> None:
    both = resized(table, GRID, (5, 200))
    wide = resized(table, GRID, (12, 200)).view(12, 200, 8)
    assert torch.equal(both.view(5, 200, 8), wide[4:9])


@pytest.mark.parametrize(("num_frames", "columns"), [(98, 9), (998, 99), (2998, 299)])
def test_a_model_takes_1_to_30_seconds(folder: Path, num_frames: int, columns: int) -> None:
    own = pretrained.load(folder)
    loaded = pretrained.load(folder, num_frames=num_frames)
    assert loaded.model.patch_embedding.grid == (12, columns)
    assert loaded.config.features.target_frames == num_frames
    assert loaded.config.audio.clip_seconds == ((num_frames - 1) * 160 + 400) / 16000
    features = torch.randn(1, num_frames, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert loaded.model(features).isfinite().all()
    state, own_state = loaded.model.state_dict(), own.model.state_dict()
    changed = [name for name in state if not torch.equal(state[name], own_state[name])]
    assert changed == ["patch_embedding.position"]


def test_a_model_takes_other_bins(folder: Path) -> None:
    loaded = pretrained.load(folder, num_mel_bins=64)
    assert loaded.model.patch_embedding.grid == (5, 12)
    assert loaded.config.fbank.num_mel_bins == 64


def test_too_few_frames_for_a_patch_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"patch_size must fit .* by 15 frames"):
        pretrained.load(folder, num_frames=15)
