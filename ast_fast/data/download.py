"""Download ESC-50: resume a broken transfer, verify the archive, check each member, unpack."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import stat
import struct
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Self

from filelock import FileLock
from rich.console import Console

from ast_fast.data.metadata import AUDIO, METADATA
from ast_fast.settings.config import Config
from ast_fast.settings.values import shown
from ast_fast_kernels.console import show_progress
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_folder, atomic_write
from ast_fast_kernels.files.text import one_name, read_document

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
MEMBER_BYTES = 400
"""Bytes of an archive's list for one member, with a long name."""
SLOWEST = 10_000
PACE_SECONDS = 60.0
"""A connection that brings fewer bytes a second, over so many seconds, counts as cut."""
OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    errno.EMFILE,
)
"""Errors while unpacking that are no fault of the archive."""
_BAD_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError),
    *(ValueError, RuntimeError, struct.error, OverflowError, IndexError),
)

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
    if not url.lower().startswith(("http://", "https://")):
        raise InputError(
            f"audio.download-url must begin with http:// or https://, got {shown(url)}"
        )
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
        pace = _Pace()
        try:
            with pace:
                if _fetch_once(url, part, notes, console, pace):
                    break
            problem = "the connection was cut"
        except InputError:
            raise
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {one_name(error.reason)}"
            if error.code not in PASSING_STATUS:
                raise InputError(f"audio.download-url {url}: {problem}") from None
        except _NETWORK_ERRORS as error:
            reason = getattr(error, "reason", None) or error
            problem = one_name(reason) or type(reason).__name__
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise InputError(f"audio.download-url {url}: {problem}") from None
        except ValueError as error:  # a host or a header that cannot be sent
            raise InputError(f"audio.download-url {url}: {one_name(error)}") from None
        size = part.stat().st_size if part.exists() else 0
        if pace.is_too_slow:
            problem = f"less than {SLOWEST / 1000:g} kB/s in {PACE_SECONDS:g} s"
        failures = failures + 1 if pace.is_too_slow or size <= furthest else 0
        furthest = max(furthest, size)
        if failures > len(BACK_OFF):
            how = "" if pace.is_too_slow else " without progress"
            raise InputError(
                f"audio.download-url {url}: {problem}, {failures} times{how}; "
                f"{size / 1e6:.1f} MB are kept, and the same command resumes from there"
            )
        pause = BACK_OFF[max(0, failures - 1)]
        console.print(
            f"Download: {problem}; retrying in {pause:g} s", highlight=False, markup=False
        )
        time.sleep(pause)
    os.replace(part, archive)
    notes.unlink(missing_ok=True)


class _Pace:
    """Ends a connection that is slower than SLOWEST over PACE_SECONDS, whatever it sends.

    A timeout bounds the time to the next byte alone: headers, or a body, of a byte every now and
    then would take for ever.
    """

    def __init__(self) -> None:
        self.is_too_slow = False
        self.received = 0
        """Bytes of the body so far."""
        self._socket: socket.socket | None = None
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def connection(self, kind: type[http.client.HTTPConnection]) -> Any:
        """Return a kind of connection whose socket is watched."""
        pace = self

        class Watched(kind):  # type: ignore[valid-type, misc]
            def connect(self) -> None:
                super().connect()
                pace._socket = self.sock

        return Watched

    def _run(self) -> None:
        before = 0
        while not self._ended.wait(PACE_SECONDS):
            if self.received - before < SLOWEST * PACE_SECONDS:
                self.is_too_slow = True
                if self._socket is not None:
                    with suppress(OSError):
                        self._socket.shutdown(socket.SHUT_RDWR)
            before = self.received


class _Http(urllib.request.HTTPHandler):
    def __init__(self, pace: _Pace) -> None:
        super().__init__()
        self._pace = pace

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        kind = self._pace.connection(http.client.HTTPConnection)
        return self.do_open(kind, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, pace: _Pace) -> None:
        super().__init__()
        self._pace = pace

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        kind = self._pace.connection(http.client.HTTPSConnection)
        return self.do_open(kind, req, context=ssl.create_default_context())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects from http to http or https, and from https to https alone."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        allowed = ("https://",) if req.type == "https" else ("https://", "http://")
        if not newurl.lower().startswith(allowed):
            raise InputError(
                f"audio.download-url {req.full_url}: redirects must lead to {' or '.join(allowed)}"
                f", got {shown(newurl)}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch_once(url: str, part: Path, notes: Path, console: Console, pace: _Pace) -> bool:
    """Append the bytes of one connection to `part`; return whether it is complete."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "ast-fast", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
        if validator := _read_notes(notes).get("validator"):
            headers["If-Range"] = validator  # the server sends a changed file from its start
    request = urllib.request.Request(url, headers=headers)
    try:
        opener = urllib.request.build_opener(_Http(pace), _Https(pace), _Redirects)
        response = opener.open(request, timeout=TIMEOUT)
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
                part.unlink(missing_ok=True)
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
                pace.received += len(block)
                advance(len(block))
                if done > MAX_ARCHIVE_BYTES:
                    raise _too_large(url)
    if total is not None and done > total:  # more than it promised: what came is not the file
        part.unlink()
        return False
    if total is None:  # then an end that we made looks like the end of the file
        return not pace.is_too_slow
    return done >= total


def _read_block(response: http.client.HTTPResponse) -> bytes:
    """Read a block; turn an OSError of the network into a URLError, apart from the disk's."""
    try:
        return response.read1(BLOCK_BYTES)
    except OSError as error:
        raise urllib.error.URLError(error) from error


def _content_range(response: http.client.HTTPResponse) -> tuple[int | None, int | None]:
    """Return where a partial response begins and how large the whole file is."""
    header = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", header.strip())
    return (int(match[1]), _whole_number(match[2])) if match else (None, None)


def _whole_number(header: str | None) -> int | None:
    return int(header) if header and re.fullmatch("[0-9]{1,18}", header) else None


def _write_notes(notes: Path, url: str, response: http.client.HTTPResponse) -> None:
    """Note the URL and the version of the file: a strong ETag, or the date of its change."""
    etag = response.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    if not (validator.isascii() and validator.isprintable()):  # it is sent back in a header
        validator = ""
    with atomic_write(notes) as temporary:
        temporary.write_text(json.dumps({"url": url, "validator": validator}), "utf-8")


def _read_notes(notes: Path) -> dict[str, str]:
    try:
        read = json.loads(read_document(notes))
        return {"url": str(read["url"]), "validator": str(read["validator"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
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
        if _directory_bytes(archive) > MAX_MEMBERS * MEMBER_BYTES:
            raise _too_large(url)
        with zipfile.ZipFile(archive) as opened:
            members = _checked_members(url, opened)
            total = sum(member.file_size for _, member in members)
            free = shutil.disk_usage(destination.parent).free
            if total > free:
                raise _NoRoomError(
                    f"--download needs {total / 1e6:.1f} MB in {destination}, got "
                    f"{free / 1e6:.1f}; free some space, or name another folder with --data"
                )
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
    except _NoRoomError:
        raise
    except InputError:
        archive.unlink()
        raise
    except OSError as error:
        if error.errno in OF_THE_DISK:
            raise
        archive.unlink()
        raise _unreadable(url, error) from None
    except _BAD_ARCHIVE as error:
        archive.unlink()
        raise _unreadable(url, error) from None


class _NoRoomError(InputError):
    """The disk cannot hold what the archive holds; the archive is good."""


def _unreadable(url: str, error: Exception) -> InputError:
    return InputError(
        f"audio.download-url {url}: is not a readable zip archive ({one_name(error)}); the file "
        "was removed"
    )


def _directory_bytes(archive: Path) -> int:
    """Return the size of a zip archive's list of members, which is read at once; 0 if unknown.

    Source: PKWARE's APPNOTE.TXT, sections 4.3.14 to 4.3.16.
    """
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 2**16 - 100))
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        return 0
    if end >= 76 and tail[end - 20 : end - 16] == b"PK\6\7":  # Zip64: its record lies before
        return int.from_bytes(tail[end - 36 : end - 28], "little")
    return int.from_bytes(tail[end + 12 : end + 16], "little")


def _checked_members(
    url: str, opened: zipfile.ZipFile
) -> list[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """Return the data set's files with their paths inside it; raise if any member is suspect."""
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    unpacked = 0
    if len(opened.infolist()) > MAX_MEMBERS:
        raise _too_large(url)
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
        elif not path.parts or "\0" in member.orig_filename:
            problem = "has no name"
        elif max(len(os.fsencode(part)) for part in path.parts) > 255:
            problem = "has a longer name than file systems take"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = "is compressed, but not by deflate"
        elif path in found:
            problem = "appears twice"
        if problem:
            raise InputError(
                f"audio.download-url {url}: member {shown(member.orig_filename)} {problem}; "
                "nothing was unpacked"
            )
        if not member.is_dir():
            found[path] = member
        unpacked += member.file_size
        if unpacked > MAX_UNPACKED_BYTES:
            raise _too_large(url)
    folders = {folder for path in found for folder in path.parents}
    for path in found:
        if path in folders:
            raise InputError(
                f"audio.download-url {url}: member {shown(str(path))} is a file and a folder; "
                "nothing was unpacked"
            )
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
