"""The AST that people have: others' checkpoints as this package's model, and the other way.

The weights of others are not this project's: their licence is that of whoever published them.
"""

from ast_fast.pretrained.checkpoint import Pretrained, load
from ast_fast.pretrained.hub import fetch
from ast_fast.pretrained.writing import save

__all__ = ["Pretrained", "fetch", "load", "save"]
