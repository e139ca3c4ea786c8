"""A checkpoint of the Hugging Face Hub: fetched if that is asked for, and verified.

The Hub's own library fetches it, into the cache that transformers uses, and follows the same
variables: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN. It compares sizes alone, so checksums are
compared here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ast_fast.data.download import OF_THE_DISK
from ast_fast.pretrained.documents import Document
from ast_fast.pretrained.folder import CONFIG, MODEL_TYPE
from ast_fast.pretrained.preprocessor import PREPROCESSOR
from ast_fast.pretrained.tensors import INDEX, MODEL
from ast_fast.settings.values import shown
from ast_fast_kernels.console import complain
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.sealed import digest_of_file
from ast_fast_kernels.files.text import one_name

TIMEOUT = 30.0
"""Seconds without an answer after which the Hub counts as out of reach."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-fA-F]{64}")
_CHECKSUM = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_PART = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors")
_GIT_DIGITS = 40
"""Of the SHA-1 by which git names a file; large files have a SHA-256 instead."""

Checksums = Mapping[str, str]
"""By file: 64 digits of a SHA-256, or 40 of the SHA-1 by which git names a small file."""


def checkpoint_here(
    path: Path, *, download: bool, sha256: str = "", flag: str = "--download"
) -> Path:
    """Return where a checkpoint is on this machine; fetch it first if that is asked for.

    Args:
        path: A file or folder; or, with `download`, `owner/name` or `owner/name@revision` of the
            Hub. What is here under that name is taken as it is.
        download: Whether to fetch.
        sha256: Of the weights, model.safetensors or a `.pth`; if empty, only the Hub's is compared.
        flag: The flag that asks to fetch, for messages.
    Raises:
        InputError: It is neither here nor can it be fetched, or its weights are others.
    """
    repo, at, revision = path.as_posix().partition("@")
    if os.path.exists(path):
        _check_given(sha256)
        if sha256:
            _check_weights(path, sha256)
        return path
    if download:
        return fetch(repo, revision=revision if at else "main", sha256=sha256)
    if _REPO.fullmatch(repo) and path.suffix not in (".safetensors", ".pth"):
        raise InputError(
            f"{path} must be a checkpoint, but there is none; if it is one of the Hugging Face "
            f"Hub, {flag} fetches it"
        )
    return path


def fetched_model(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings, by key, with the folder of the model that it begins with, if any.

    They no longer ask to fetch or to compare it: a run that is repeated or resumed from what it
    recorded has the folder, and the model's digest.

    Args:
        given: The settings that the user gives.
    Raises:
        InputError: As of `checkpoint_here`.
    """
    path, download = given.get("model.pretrained"), given.get("download_model", False)
    if path is None:
        if download:
            raise InputError("--download-model needs --model.pretrained, the model to fetch")
        return dict(given)
    here = checkpoint_here(
        path,
        download=download,
        sha256=given.get("download_model_sha256", ""),
        flag="--download-model",
    )
    done = {"download_model": False, "download_model_sha256": ""}
    return {**given, **done, "model.pretrained": here}


def fetch(repo: str, *, revision: str = "main", sha256: str = "") -> Path:
    """Return the folder of a checkpoint in the Hub's cache; fetch what is missing there.

    Only what `load` reads is fetched: config.json, preprocessor_config.json and safetensors, the
    weights last. Every file has the checksum that the Hub has of it, or is removed. A note on
    standard error names the commit and the checksum, unless both were given. With HF_HUB_OFFLINE,
    the cache alone is asked, and nothing is removed. Needs huggingface_hub (`pip install
    'ast-fast[hub]'`).

    Args:
        repo: Owner and name, such as `MIT/ast-finetuned-audioset-10-10-0.4593`.
        revision: A commit, tag or branch. Only a commit, 40 hexadecimal digits, is for ever the
            same.
        sha256: That model.safetensors must have; another is refused before it is fetched.
    Returns:
        The folder, whose name is the commit.
    Raises:
        InputError: The Hub cannot be reached, or has no such checkpoint; one of another model, or
            with pickled weights alone; a checksum differs, or there is none to compare; or the
            cache cannot be written.
    """
    if not _REPO.fullmatch(repo) or not revision:
        raise InputError(
            "a checkpoint of the Hugging Face Hub must be owner/name or owner/name@revision, got "
            f"{shown(repo if revision else f'{repo}@')}"
        )
    _check_given(sha256)
    hub = _library()
    name = f"{repo}@{revision}"
    with _one_line_errors(hub, name):
        if hub.constants.HF_HUB_OFFLINE:
            folder, checksums = _cached(hub, repo, revision)
            _check_same(name, checksums, sha256)
        else:
            commit, checksums = _listed(hub, repo, revision)
            _check_same(name, checksums, sha256)
            folder = _fetched(hub, repo, revision, commit, checksums)
    weights = checksums.get(MODEL, "")
    is_first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes, one says it
    if is_first and not (sha256 and revision == folder.name):
        and_sha256 = f" with the SHA-256 {weights}" if weights else ""
        complain("note", f"{name} is {repo}@{folder.name}{and_sha256}, in {folder}")
    return folder


def _library() -> ModuleType:
    """Return huggingface_hub, which is loaded only where it is asked to fetch."""
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError(
            "a checkpoint is fetched by huggingface_hub, which is not installed; "
            "pip install 'ast-fast[hub]'"
        ) from error
    return huggingface_hub


def _listed(hub: Any, repo: str, revision: str) -> tuple[str, Checksums]:
    """Return a revision's commit, and the checksums of the files to fetch, as the Hub has them."""
    name = f"{repo}@{revision}"
    info = hub.HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise InputError(f"{name}: the Hub must name its commit, got {shown(commit)}")
    has = {
        one.rfilename: (one.lfs.sha256 if one.lfs else one.blob_id) or ""
        for one in info.siblings or []
    }
    wanted = [CONFIG, PREPROCESSOR]
    wanted += [MODEL] if MODEL in has else [INDEX, *filter(_PART.fullmatch, has)]
    if MODEL not in has and (INDEX not in has or not any(map(_PART.fullmatch, has))):
        pickles = sorted(file for file in has if file.endswith((".bin", ".pth", ".ckpt")))
        instead = f"; {one_name(pickles[0])} is pickled, and not fetched" if pickles else ""
        raise InputError(f"{name} must have {MODEL}, which is missing{instead}")
    for file in wanted:
        if file not in has:
            raise InputError(f"{name} must have {file}, which is missing")
    checksums = {file: has[file].lower() for file in wanted}
    _check_checksums(name, checksums)
    return commit, checksums


def _fetched(hub: Any, repo: str, revision: str, commit: str, checksums: Checksums) -> Path:
    """Fetch the files of a commit that the cache lacks: those that say what it is, then the rest.

    Weights of another model, which may be a thousand times as large, are not fetched.
    """
    if revision != commit:
        hub.hf_hub_download(repo, CONFIG, revision=revision)  # the cache keeps the branch's commit
    documents = [file for file in checksums if file.endswith(".json")]
    for files in (documents, [*checksums]):
        paths = [Path(hub.hf_hub_download(repo, file, revision=commit)) for file in files]
        folder = paths[0].parent
        _verify(f"{repo}@{commit}", folder, {file: checksums[file] for file in files})
        config = Document(folder / CONFIG)
        if config.values.get("model_type") != MODEL_TYPE:
            raise config.wrong("model_type", f"must be {MODEL_TYPE}")
    return folder


def _cached(hub: Any, repo: str, revision: str) -> tuple[Path, Checksums]:
    """Return a checkpoint's folder in the cache, verified by the checksums that its links name.

    On systems without links, and from mirrors with names of their own, there are none to compare.
    """
    name = f"{repo}@{revision}"
    files = [CONFIG, PREPROCESSOR, MODEL, INDEX, "model-*-of-*.safetensors"]
    folder = Path(
        hub.snapshot_download(repo, revision=revision, allow_patterns=files, local_files_only=True)
    )
    checksums = {
        path.name: path.readlink().name if path.is_symlink() else ""
        for path in folder.iterdir()
        if path.name in files or _PART.fullmatch(path.name)
    }
    _check_checksums(name, checksums, folder)
    if found := _differing(folder, checksums):
        raise InputError(f"{name}: {found}; without HF_HUB_OFFLINE, it is fetched again")
    return folder, checksums


def _check_checksums(name: str, checksums: Checksums, folder: Path | None = None) -> None:
    """Raise if a file has no checksum that can be compared.

    Args:
        name: Of the checkpoint.
        checksums: As the Hub lists them, or the cache's links.
        folder: Of the cache, if they are those of its links.
    """
    for file, checksum in checksums.items():
        if not _CHECKSUM.fullmatch(checksum):
            got = shown(checksum) if checksum else "none"
            instead = f"give {folder}" if folder else "download it yourself and give its folder"
            raise InputError(
                f"{name}: {file} must have a SHA-1 or SHA-256 to be verified by, got {got}; "
                f"{instead}"
            )


def _verify(name: str, folder: Path, checksums: Checksums) -> None:
    """Raise if a file is not the one that the Hub has; it is removed from the cache."""
    if found := _differing(folder, checksums):
        _remove(folder / found.file)
        raise InputError(f"{name}: {found}; it was removed, and the same command fetches it again")


@dataclass(frozen=True)
class _Difference:
    """A file with another checksum than its own."""

    file: str
    wanted: str
    got: str

    def __str__(self) -> str:
        return (
            f"{self.file} must have the checksum {self.wanted}, as the Hub has it, got {self.got}"
        )


def _differing(folder: Path, checksums: Checksums) -> _Difference | None:
    """Return the first file that is not the one that the Hub has, if any."""
    for file, checksum in checksums.items():
        path = folder / file
        got = _git_digest(path) if len(checksum) == _GIT_DIGITS else digest_of_file(path)
        if got != checksum:
            return _Difference(file, checksum, got)
    return None


def _git_digest(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _remove(path: Path) -> None:
    """Remove a file of the cache with all links that lead to it."""
    while True:
        target = path.parent / path.readlink() if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = target


def _check_same(name: str, checksums: Checksums, sha256: str) -> None:
    """Raise if the Hub's model.safetensors is not the one that was asked for."""
    if sha256 and checksums.get(MODEL) != sha256.lower():
        got = checksums.get(MODEL, "several files or none")
        raise InputError(f"{name}: {MODEL} must have the SHA-256 {sha256}, got {got}")


def _check_weights(path: Path, sha256: str) -> None:
    """Raise if the weights of a file or folder are not those that were asked for."""
    weights = path / MODEL if path.is_dir() else path
    try:
        got = digest_of_file(weights)
    except OSError as error:
        raise InputError(f"{weights} cannot be read: {error.strerror or error}") from error
    if got != sha256.lower():
        raise InputError(f"{weights} must have the SHA-256 {sha256}, got {got}")


def _check_given(sha256: str) -> None:
    if sha256 and not _SHA256.fullmatch(sha256):
        raise InputError(f"sha256 must be 64 hexadecimal digits, got {shown(sha256)}")


@contextmanager
def _one_line_errors(hub: Any, name: str) -> Iterator[None]:
    """Turn the errors of the library, of the network and of the disk into one line each."""
    errors = hub.errors
    any_of_http = errors.HfHubHTTPError.__mro__[1]  # of the HTTP client, which is one or another
    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError:
        problem = "asks for its terms to be accepted on its page, and for a token in HF_TOKEN"
    except errors.RepositoryNotFoundError:
        problem = "must be a model of the Hub that is public or that HF_TOKEN may read; none is"
    except errors.RevisionNotFoundError:
        problem = "must be a commit, tag or branch of it, but there is none of this name"
    except errors.LocalEntryNotFoundError as error:  # before 1.0, one of HTTP without a response
        if hub.constants.HF_HUB_OFFLINE:
            cache = hub.constants.HF_HUB_CACHE
            problem = f"must be in {cache}, because HF_HUB_OFFLINE is set, and is not, or not whole"
        else:
            problem = f"cannot be fetched: {_first_line(error.__cause__ or error)}"
    except errors.HfHubHTTPError as error:
        response = error.response
        problem = f"cannot be fetched: HTTP {response.status_code} of {response.url}"
    except (OSError, ValueError, any_of_http) as error:
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            problem = f"cannot be written to {hub.constants.HF_HUB_CACHE}: {error.strerror}"
        else:
            problem = f"cannot be fetched: {_first_line(error)}"
    else:
        return
    raise InputError(f"{one_name(name)} {problem}") from None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_name(lines[0]) if lines else type(error).__name__
