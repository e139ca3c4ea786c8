"""Table of what the filterbank's stages read and write, against the size of a first cache.

python -m ast_fast_kernels.testing.working_set   the table in docs/guides/filterbank.md
"""

from __future__ import annotations

from ast_fast_kernels._cpu.halves import Grid, twiddles
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.spectrum import can_halve
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.numba_cpu import _buffer_sizes, in_halves, side_by_side

LANES = (16, 8, 4)
CACHES = (32, 48)
"""KiB of first caches."""


def stage_bytes(config: FbankConfig, lanes: int, halves: int) -> dict[str, int]:
    """Return the bytes of the buffers and tables that each stage of a block goes through.

    Of the waveform and the features, those of one block.
    """
    floats = _buffer_sizes(config, lanes, halves)
    tile, grid, energies = floats.tile, floats.grid, floats.energies
    samples = lanes * config.window_shift
    window = 2 * config.window_size  # and where its samples are
    widths, bins, weights = side_by_side(tables.mel_banks(config))
    filters = widths.size + bins.size + weights.size
    stages = {
        "transposing": samples + tile,
        "columns": tile + Grid.of(config.fft_size, halves).slots * lanes + window,
        "rows": grid + twiddles(config.fft_size).size,
        "filters": grid + energies + filters,
        "logarithms": energies,
        "output": energies + lanes * config.num_mel_bins,
    }
    return {stage: FLOAT_BYTES * size for stage, size in stages.items()}


def table(config: FbankConfig) -> str:
    """Return a Markdown table: KiB by stage, for each number of lanes, whole and in halves."""
    shapes = [(lanes, halves) for lanes in LANES for halves in (0, 1) if can_halve(config.fft_size)]
    names = [f"{lanes}, {'in halves' if halves else 'whole'}" for lanes, halves in shapes]
    columns = [stage_bytes(config, lanes, halves) for lanes, halves in shapes]
    lines = [f"| KiB, lanes | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for stage in columns[0]:
        cells = (f"{column[stage] / 1024:.1f}" for column in columns)
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    taken = (_taken_for(config, lanes, halves) for lanes, halves in shapes)
    lines.append(f"| taken for a first cache of | {' | '.join(taken)} |")
    return "\n".join(lines)


def _taken_for(config: FbankConfig, lanes: int, halves: int) -> str:
    sizes = [kib for kib in CACHES if in_halves(config, lanes, kib << 10) == halves]
    return " and ".join(f"{kib} KiB" for kib in sizes)


if __name__ == "__main__":
    print(table(FbankConfig()))
