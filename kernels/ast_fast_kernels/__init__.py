"""Fast log-mel filterbanks and a transformer's kernels; every name is loaded on first use.

For numpy arrays, `fbank`, `mfcc`, `resample` and `OnlineFbank` need only numpy and Numba. The rest
needs torch, which the extra `ast-fast-kernels[torch]` installs.

`fbank` and `attention` are the functions, never the subpackages of the same name. Statements such
as `from ast_fast_kernels.fbank.config import FbankConfig` reach what a subpackage holds.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ast_fast_kernels._torch.optional import import_for

if TYPE_CHECKING:
    import ast_fast_kernels.kaldi as kaldi
    from ast_fast_kernels._dispatch import use_backend
    from ast_fast_kernels.attention.api import attention
    from ast_fast_kernels.choice import chosen_backend
    from ast_fast_kernels.fbank.api import fbank
    from ast_fast_kernels.fbank.cepstra import mfcc
    from ast_fast_kernels.fbank.config import FbankConfig
    from ast_fast_kernels.fbank.module import Fbank
    from ast_fast_kernels.fbank.online import OnlineFbank
    from ast_fast_kernels.gelu.api import linear_gelu
    from ast_fast_kernels.layer_norm.api import add_layer_norm
    from ast_fast_kernels.linear.api import linear
    from ast_fast_kernels.mix.api import mix
    from ast_fast_kernels.normalise.api import normalise
    from ast_fast_kernels.resample.api import resample
    from ast_fast_kernels.stem.api import norm_gelu_conv

__all__ = [
    "Fbank",
    "FbankConfig",
    "OnlineFbank",
    "add_layer_norm",
    "attention",
    "chosen_backend",
    "fbank",
    "kaldi",
    "linear",
    "linear_gelu",
    "mfcc",
    "mix",
    "norm_gelu_conv",
    "normalise",
    "resample",
    "use_backend",
]

_HOMES = {
    "Fbank": "ast_fast_kernels.fbank.module",
    "FbankConfig": "ast_fast_kernels.fbank.config",
    "OnlineFbank": "ast_fast_kernels.fbank.online",
    "add_layer_norm": "ast_fast_kernels.layer_norm.api",
    "attention": "ast_fast_kernels.attention.api",
    "chosen_backend": "ast_fast_kernels.choice",
    "fbank": "ast_fast_kernels.fbank.api",
    "linear": "ast_fast_kernels.linear.api",
    "linear_gelu": "ast_fast_kernels.gelu.api",
    "mfcc": "ast_fast_kernels.fbank.cepstra",
    "mix": "ast_fast_kernels.mix.api",
    "norm_gelu_conv": "ast_fast_kernels.stem.api",
    "normalise": "ast_fast_kernels.normalise.api",
    "resample": "ast_fast_kernels.resample.api",
    "use_backend": "ast_fast_kernels._dispatch",
}


class _Package(ModuleType):
    """Keeps the import system from replacing a function by the subpackage of the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "kaldi":
        return importlib.import_module("ast_fast_kernels.kaldi")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_for(name, _HOMES[name]), name)
    subpackage = sys.modules.get(f"{__name__}.{name}")
    if subpackage is not None:
        # `import ast_fast_kernels.fbank.api as api` looks for `api` on the function.
        vars(subpackage).update(vars(value))
        value.__dict__ = vars(subpackage)
    setattr(sys.modules[__name__], name, value)
    return value


_WITHOUT_TORCH = {
    "FbankConfig",
    "OnlineFbank",
    "chosen_backend",
    "fbank",
    "mfcc",
    "resample",
    "use_backend",
}


def __dir__() -> list[str]:
    """Return what can be used here, so that `help` and `inspect` meet no missing torch."""
    usable = set(__all__) if importlib.util.find_spec("torch") else _WITHOUT_TORCH
    return sorted({*globals(), *usable})
