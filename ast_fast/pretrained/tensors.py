"""Tensors in the files of others: names, shapes and types are checked before any is used."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ast_fast.pretrained.documents import Document
from ast_fast.pretrained.layouts import Layout
from ast_fast.settings.values import shown
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Which file holds which tensor, where a model has several files."""

DTYPES = {"F32", "F16", "BF16"}
"""As safetensors calls them."""

_BAD_PICKLE = (
    *(OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError),
    *(ImportError, pickle.UnpicklingError, zipfile.BadZipFile),
)

Shapes = dict[str, tuple[int, ...]]


class Safetensors:
    """The tensors of a folder: model.safetensors, or the files that its index names."""

    def __init__(self, folder: Path) -> None:
        """Read the files' headers.

        Raises:
            InputError: A file is missing or damaged, or the index is not one.
        """
        self.folder = folder
        self.shapes: Shapes = {}
        self._file_of: dict[str, Path] = {}
        for path, names in _files(folder).items():
            with _opened(path) as file:
                present = list(file.keys())
                for name in present if names is None else names:
                    if name not in present:
                        raise InputError(f"{path} must hold the tensor {one_name(name)}")
                    part = file.get_slice(name)
                    if part.get_dtype() not in DTYPES:
                        raise InputError(
                            f"{path}: tensor {one_name(name)} must be one of "
                            f"{', '.join(sorted(DTYPES))}, got {part.get_dtype()}"
                        )
                    self.shapes[name] = tuple(part.get_shape())
                    self._file_of[name] = path

    def read(self) -> dict[str, Tensor]:
        """Return all tensors as float32 on the CPU."""
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            opened = {path: stack.enter_context(_opened(path)) for path in self.files}
            for name, path in self._file_of.items():
                tensor = opened[path].get_tensor(name)
                found[name] = tensor.to(torch.float32, copy=True)
        return found

    @property
    def files(self) -> list[Path]:
        """The files, each once."""
        return sorted(set(self._file_of.values()))


def _files(folder: Path) -> dict[Path, list[str] | None]:
    """Return the files and the tensors to take from each; None takes all."""
    if (folder / MODEL).is_file():
        return {folder / MODEL: None}
    if not (folder / INDEX).is_file():
        raise InputError(
            f"{folder} must hold {MODEL} or {INDEX}; where it has pytorch_model.bin alone, "
            "transformers' save_pretrained writes them"
        )
    index = Document(folder / INDEX)
    places = index.values.get("weight_map")
    if not isinstance(places, Mapping):
        raise index.wrong("weight_map", "must be a table of files by tensor")
    found: dict[Path, list[str] | None] = {}
    for name, file in places.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or "/" in file:
            rule = "must name safetensors files beside it"
            raise InputError(f"{index.path}: weight_map {rule}, got {shown(file)}")
        names = found.setdefault(folder / file, [])
        assert names is not None
        names.append(name)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} must be a whole safetensors file ({one_name(error)})") from error


class Pickled:
    """The tensors of a file of `torch.save`; nothing in it is executed."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            InputError: It is missing or damaged, or holds anything but tensors.
        """
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise InputError(f"{path} must be a checkpoint, but does not exist") from error
        except _BAD_PICKLE as error:
            raise InputError(
                f"{path} must be a file of torch.save with tensors alone, but cannot be read "
                f"({one_name(error)})"
            ) from error
        if not isinstance(values, Mapping) or not values:
            raise InputError(f"{path} must hold tensors by name, got a {type(values).__name__}")
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in values.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                kind = type(tensor).__name__
                raise InputError(f"{path} must hold tensors by name, got a {kind} too")
            if tensor.layout != torch.strided or not tensor.is_floating_point():
                raise InputError(
                    f"{path}: tensor {one_name(name)} must be dense and floating-point, "
                    f"got {tensor.dtype}"
                )
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise InputError(f"{path}: tensor {one_name(name)} must hold each of its values")
            self._tensors[name.removeprefix("module.")] = tensor
        self.shapes: Shapes = {name: tuple(t.shape) for name, t in self._tensors.items()}

    def read(self) -> dict[str, Tensor]:
        """Return all tensors as float32 on the CPU."""
        return {name: tensor.to(torch.float32) for name, tensor in self._tensors.items()}


def check_shapes(path: Path, shapes: Shapes, expected: Shapes, layout: Layout) -> None:
    """Check that a file holds the tensors of its model, and none that would go unused.

    Args:
        path: The file or folder, for messages.
        shapes: What it holds.
        expected: What the model needs.
        layout: Names the weights that may be there besides.
    Raises:
        InputError: The message names the first that is missing, unknown, or of another shape.
    """
    for name, shape in expected.items():
        if name not in shapes:
            raise InputError(f"{path} must hold the tensor {name}, which is missing")
        if shapes[name] != shape:
            raise InputError(f"{path}: tensor {name} must be {shape}, got {shapes[name]}")
    unused = layout.unused
    for name in shapes:
        if name not in expected and not (unused and unused.fullmatch(name)):
            raise InputError(
                f"{path} must hold only the {len(expected)} tensors of its model, got "
                f"{one_name(name)} too"
            )


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise if a value is NaN or infinite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: tensor {name} must be finite, and holds NaN or infinity")
