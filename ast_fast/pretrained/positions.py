"""Position embeddings of one grid of patches, brought to another grid."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def resized(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Return the position embeddings for another number of patches, as the original AST does.

    Along time and then along frequency: fewer positions are cut from the middle, more are
    interpolated bilinearly. An axis that keeps its length keeps its values.

    Args:
        table: Shape (grid freq * grid time, embed_dim).
        grid: Number of patches along (freq, time).
        new_grid: The wanted number of them.
    Returns:
        Shape (new grid freq * new grid time, embed_dim).
    Source: YuanGongND/ast, src/models/ast_models.py.
    """
    image = table.view(*grid, -1).permute(2, 0, 1).unsqueeze(0)  # (1, embed_dim, freq, time)
    for axis in (3, 2):
        there, wanted = image.shape[axis], new_grid[axis - 2]
        if wanted < there:
            image = image.narrow(axis, there // 2 - wanted // 2, wanted)
        elif wanted > there:
            size = (image.shape[2], wanted) if axis == 3 else (wanted, image.shape[3])
            image = functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
    flat: Tensor = image.squeeze(0).flatten(1).T.contiguous()
    return flat
