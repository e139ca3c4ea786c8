"""What a corpus is given as: folder, list, manifest, tars or cuts; read as a stream of items."""

from __future__ import annotations

from ast_fast_kernels.corpus.inputs.columns import ColumnTypes, typed
from ast_fast_kernels.corpus.inputs.recognise import Input, open_input

__all__ = ["ColumnTypes", "Input", "open_input", "typed"]
