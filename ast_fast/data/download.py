"""Download ESC-50: resume a broken transfer, verify the archive, check each member, unpack."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import urlsplit

from filelock import FileLock
from rich.console import Console

from ast_fast.data.metadata import AUDIO, METADATA
from ast_fast.errors import InputError
from ast_fast.machine.atomic import atomic_folder, atomic_write
from ast_fast.machine.console import show_progress
from ast_fast.settings.config import Config

BLOCK_BYTES = 2**18
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as cut."""
BACK_OFF = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new attempt in a row without progress; after the last, give up."""
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may pass by the next attempt."""
MAX_ARCHIVE_BYTES = 4 * 2**30
MAX_UNPACKED_BYTES = 4 * 2**30
"""Five times the size of ESC-50; a larger archive is taken for a zip bomb."""
MAX_MEMBERS = 100_000

_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


def download_esc50(config: Config, destination: Path, *, console: Console) -> Path:
    """Return the folder of ESC-50; download and unpack it first if needed.

    A transfer that broke off, in this process or an earlier one, resumes where it ended. The
    archive is unpacked only if its checksum matches, and the folder appears complete.

    Args:
        config: `audio.download_url` and `audio.download_sha256` are used.
        destination: The folder to make; must be absent, empty or a data set in ESC-50's layout.
        console: Where progress goes.
    Raises:
        InputError: The archive cannot be downloaded, has another checksum, holds no data set or
            would write outside its folder; or the folder cannot be written.
    """
    with _folder_errors(destination):
        if (destination / METADATA).is_file():
            return destination
        if destination.is_dir() and any(destination.iterdir()):
            raise InputError(
                f"--download needs a new or empty folder, got {destination}, which holds other "
                "files; name another folder with --data"
            )
    url = config.audio.download_url
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"audio.download-url must begin with http:// or https://, got {url!r}")
    with _folder_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(destination.with_name(f".{destination.name}.lock")):
            if (destination / METADATA).is_file():
                return destination
            archive = destination.with_name(f"{destination.name}.zip")
            if not archive.exists():
                _fetch(url, archive, console)
            _verify(url, archive, config.audio.download_sha256)
            _unpack(url, archive, destination, console)
            archive.unlink()
    return destination


def _fetch(url: str, archive: Path, console: Console) -> None:
    """Fetch to `<archive>.part`, retrying while attempts make progress, and rename it."""
    part = archive.with_name(f"{archive.name}.part")
    notes = archive.with_name(f"{archive.name}.part.json")
    if _read_notes(notes).get("url") != url:
        part.unlink(missing_ok=True)
        notes.unlink(missing_ok=True)
    furthest = part.stat().st_size if part.exists() else 0
    failures = 0
    while True:
        try:
            if _fetch_once(url, part, notes, console):
                break
            problem = "the connection was cut"
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code not in PASSING_STATUS:
                raise InputError(f"audio.download-url {url}: {problem}") from None
        except _NETWORK_ERRORS as error:
            reason = getattr(error, "reason", None) or error
            problem = str(reason) or type(reason).__name__
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise InputError(f"audio.download-url {url}: {problem}") from None
        size = part.stat().st_size if part.exists() else 0
        failures = 0 if size > furthest else failures + 1
        furthest = max(furthest, size)
        if failures > len(BACK_OFF):
            raise InputError(
                f"audio.download-url {url}: {problem}, {failures} times without progress; "
                f"{size / 1e6:.1f} MB are kept, and the same command resumes from there"
            )
        pause = BACK_OFF[max(0, failures - 1)]
        console.print(
            f"Download: {problem}; retrying in {pause:g} s", highlight=False, markup=False
        )
        time.sleep(pause)
    os.replace(part, archive)
    notes.unlink(missing_ok=True)


def _fetch_once(url: str, part: Path, notes: Path, console: Console) -> bool:
    """Append the bytes of one connection to `part`; return whether it is complete."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "ast-fast", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
        if validator := _read_notes(notes).get("validator"):
            headers["If-Range"] = validator  # the server sends a changed file from its start
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:
            raise
        if error.headers.get("Content-Range") == f"bytes */{done}":
            return True
        part.unlink()
        return False
    with response:
        if response.status == 206:
            start, total = _content_range(response)
            if start != done:
                part.unlink()
                return False
        else:  # the server cannot resume, or the file has changed: it sends all of it
            done = 0
            total = _whole_number(response.headers.get("Content-Length"))
        if (total or 0) > MAX_ARCHIVE_BYTES:
            raise _too_large(url)
        _write_notes(notes, url, response)
        with (
            part.open("r+b" if done else "wb") as file,
            show_progress(console, "Downloading", total, in_bytes=True, done=done) as advance,
        ):
            file.seek(done)
            while block := _read_block(response):
                file.write(block)
                done += len(block)
                advance(len(block))
                if done > MAX_ARCHIVE_BYTES:
                    raise _too_large(url)
    return total is None or done >= total


def _read_block(response: http.client.HTTPResponse) -> bytes:
    """Read a block; turn an OSError of the network into a URLError, apart from the disk's."""
    try:
        return response.read(BLOCK_BYTES)
    except OSError as error:
        raise urllib.error.URLError(error) from error


def _content_range(response: http.client.HTTPResponse) -> tuple[int | None, int | None]:
    """Return where a partial response begins and how large the whole file is."""
    header = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)", header.strip())
    return (int(match[1]), _whole_number(match[2])) if match else (None, None)


def _whole_number(header: str | None) -> int | None:
    return int(header) if header and header.isascii() and header.isdecimal() else None


def _write_notes(notes: Path, url: str, response: http.client.HTTPResponse) -> None:
    """Note the URL and the version of the file: a strong ETag, or the date of its change."""
    etag = response.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    with atomic_write(notes) as temporary:
        temporary.write_text(json.dumps({"url": url, "validator": validator}), "utf-8")


def _read_notes(notes: Path) -> dict[str, str]:
    try:
        read = json.loads(notes.read_text("utf-8"))
        return {"url": str(read["url"]), "validator": str(read["validator"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _verify(url: str, archive: Path, sha256: str) -> None:
    if not sha256:
        return
    with archive.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != sha256.lower():
        archive.unlink()
        raise InputError(
            f"audio.download-url {url}: SHA-256 must be {sha256} (audio.download-sha256), got "
            f"{got}; the file was removed"
        )


def _unpack(url: str, archive: Path, destination: Path, console: Console) -> None:
    """Unpack the data set in a zip archive, after checking every member."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _checked_members(url, opened)
            total = sum(member.file_size for _, member in members)
            with (
                atomic_folder(destination) as temporary,
                show_progress(console, "Unpacking", total, in_bytes=True) as advance,
            ):
                for path, member in members:
                    target = temporary / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(member) as source, target.open("xb") as file:
                        shutil.copyfileobj(source, file, BLOCK_BYTES)
                    advance(member.file_size)
    except InputError:
        archive.unlink()
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        archive.unlink()
        raise InputError(
            f"audio.download-url {url}: is not a readable zip archive ({error}); the file was "
            "removed"
        ) from None


def _checked_members(
    url: str, opened: zipfile.ZipFile
) -> list[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """Return the data set's files with their paths inside it; raise if any member is suspect."""
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    unpacked = 0
    for member in opened.infolist():
        path = PurePosixPath(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        problem = None
        if (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in member.orig_filename
            or PureWindowsPath(member.filename).drive
        ):
            problem = "would be written outside its folder"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is a link" if kind == stat.S_IFLNK else "is not a regular file"
        elif member.flag_bits & 1:
            problem = "is encrypted"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = "is compressed, but not by deflate"
        elif path in found:
            problem = "appears twice"
        if problem:
            raise InputError(
                f"audio.download-url {url}: member {member.orig_filename!r} {problem}; nothing was "
                "unpacked"
            )
        if not member.is_dir():
            found[path] = member
        unpacked += member.file_size
        if unpacked > MAX_UNPACKED_BYTES or len(found) > MAX_MEMBERS:
            raise _too_large(url)
    roots = [path.parents[1] for path in found if path.parts[-2:] == METADATA.parts]
    roots = [root for root in roots if any(path.parent == root / AUDIO for path in found)]
    if len(roots) != 1:
        raise InputError(
            f"audio.download-url {url}: must hold one {METADATA.as_posix()} with {AUDIO}/ beside "
            f"it, got {len(roots)}"
        )
    root = roots[0]
    return [
        (path.relative_to(root), member)
        for path, member in found.items()
        if path.is_relative_to(root)
    ]


def _too_large(url: str) -> InputError:
    return InputError(
        f"audio.download-url {url}: must have at most {MAX_ARCHIVE_BYTES / 2**30:g} GiB, "
        f"{MAX_UNPACKED_BYTES / 2**30:g} GiB unpacked, and {MAX_MEMBERS} files"
    )


@contextmanager
def _folder_errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--download cannot write {destination}: {error.strerror or error}; name another "
            "folder with --data"
        ) from error
