"""What every torch operator of the kernels needs besides its own schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register the operator `ast_fast::<schema>`: `run` computes it, `fake` gives its shape only.

    `torch.library.custom_op` would do the same, at twice the cost of every call.
    """
    name = f"ast_fast::{schema.partition('(')[0]}"
    torch.library.define(name, schema[schema.index("(") :], tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(name, "default", run)
    torch.library.register_fake(name, fake)


def differentiate(
    forward: str,
    backward: str,
    keep: Callable[[Any, tuple[Any, ...], Any], None],
    gradient: Callable[..., Any],
) -> None:
    """Give the operator `forward` a gradient, and its operator `backward` none."""

    def refuse(ctx: Any, *grads: object) -> None:
        raise RuntimeError(f"the operator ast_fast::{backward} has no gradient")

    torch.library.register_autograd(f"ast_fast::{forward}", gradient, setup_context=keep)
    torch.library.register_autograd(f"ast_fast::{backward}", refuse)
