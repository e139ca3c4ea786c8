"""torchaudio.compliance.kaldi's functions with the same signatures: only the import changes."""

from ast_fast_kernels._torch.optional import needs_torch

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    raise needs_torch("ast_fast_kernels.kaldi") from error

from ast_fast_kernels.kaldi.filterbank import fbank

__all__ = ["fbank"]
