"""One digest for all files of a model that others trained."""

from __future__ import annotations

from pathlib import Path

from ast_fast.pretrained.folder import CONFIG, folder_of
from ast_fast.pretrained.preprocessor import PREPROCESSOR
from ast_fast.pretrained.tensors import INDEX, Safetensors
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.sealed import digest_of, digest_of_file


def digest_of_model(path: Path) -> str:
    """Return the SHA-256 of a `.pth`, or one of the names and digests of a folder's files.

    Other files of a folder do not count, nor does where it is. The labels beside a `.pth` do not
    count.

    Raises:
        InputError: A file is missing or cannot be read.
    """
    path = folder_of(path)
    try:
        if not path.is_dir():
            return digest_of_file(path)
        files = [path / CONFIG, path / PREPROCESSOR, *Safetensors(path).files]
        if (path / INDEX).is_file():
            files.append(path / INDEX)
        return digest_of({file.name: digest_of_file(file) for file in files})
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
