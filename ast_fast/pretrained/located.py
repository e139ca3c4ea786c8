"""Which trained model a command line means, wherever it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ast_fast.pretrained.hub import checkpoint_here


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The model of a command, which comes before its other arguments."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """Model: fold-N/model.safetensors in a run's folder; or one that others trained, a folder of
    transformers or a .pth of the original AST; with --download, owner/name or owner/name@revision
    of the Hugging Face Hub."""
    seconds: float | None = None
    """Length of a clip, for a model that others trained: its positions are cut or interpolated.
    None is that of training."""
    download: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Fetch CHECKPOINT from the Hugging Face Hub, into the Hub's own cache, unless it is here."""
    sha256: str = ""
    """SHA-256 that CHECKPOINT's weights must have; if empty, the Hub's own is checked where they
    are fetched."""

    def located(self) -> Path:
        """Return where the model is on this machine; fetch it first if that is asked for.

        Raises:
            InputError: It is neither here nor can it be fetched, or its weights are others.
        """
        return checkpoint_here(self.checkpoint, download=self.download, sha256=self.sha256)
