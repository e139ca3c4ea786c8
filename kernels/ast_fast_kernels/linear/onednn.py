"""A projection by oneDNN."""

from __future__ import annotations

from ast_fast_kernels._torch.onednn import project as linear_onednn

__all__ = ["linear_onednn"]
