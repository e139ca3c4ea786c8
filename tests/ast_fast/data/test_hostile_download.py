"""Servers and archives that strangers made: each download ends in one line, and blocks no other."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import socket
import stat
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from ast_fast.data import download
from ast_fast.data.download import download_esc50
from ast_fast.settings.config import AudioConfig, Config
from ast_fast_kernels.errors import InputError

Answer = Callable[[socket.socket, str], None]
"""Sends a response, given the request's head."""


class Server:
    """Answers every connection of this machine as its `answer` says."""

    answer: Answer

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/ESC-50.zip"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                try:
                    head = connection.recv(65536).decode("latin-1")
                    self.requests.append(head)
                    self.answer(connection, head)
                except OSError:
                    continue  # the client has left

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACK_OFF", (0.0,))


def fetch(url: str, folder: Path) -> Path:
    config = Config(audio=AudioConfig(download_url=url, download_sha256=""), download=True)
    return download_esc50(config, folder / "ESC-50", console=Console(file=io.StringIO()))


def error_of(url: str, folder: Path) -> str:
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        fetch(url, folder)
    assert time.monotonic() - started < 5
    assert not (folder / "ESC-50").exists()
    assert not (folder / "ESC-50.zip").exists()
    (problem,) = caught.value.problems
    return problem


def archive(*more: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("E/audio/a.wav", b"RIFF" * 50)
        file.writestr("E/meta/esc50.csv", "filename,fold,target,category\na.wav,1,0,dog\n")
        for member, content in more:
            file.writestr(member, content)
    return packed.getvalue()


WHOLE = archive()


def send(*parts: bytes) -> Answer:
    return lambda connection, head: connection.sendall(b"".join(parts))


def drip(start: bytes, piece: bytes = b"x") -> Answer:
    """Send a piece every now and then, for ever."""

    def answer(connection: socket.socket, head: str) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(piece)
            time.sleep(0.02)

    return answer


def redirect(target: str) -> Answer:
    return send(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())


OK = b"HTTP/1.1 200 OK\r\n"
NO_ZIP = "is not a readable zip archive"
SLOW = "less than 10 kB/s in 0.2 s, 2 times; "
ANSWERS: dict[str, tuple[Answer, str]] = {
    "escapes-in-the-reason": (
        send(b"HTTP/1.1 404 Not\x1b[2J\x07Found\r\n\r\n"),
        r"HTTP 404 Not\x1b[2J\x07Found",
    ),
    "long-reason": (send(b"HTTP/1.1 404 " + b"x" * 60_000 + b"\r\n\r\n"), "HTTP 404 xxx"),
    "redirect-to-file": (redirect("file:///etc/passwd"), "HTTP 302 "),
    "redirect-to-ftp": (redirect("ftp://127.0.0.1/x"), "must lead to https:// or http://, got"),
    "redirect-to-nowhere": (redirect("http://[::1"), "Invalid IPv6 URL"),
    "redirect-in-a-circle": (redirect("/ESC-50.zip"), "HTTP 302 "),
    "redirect-with-escapes": (redirect("ftp://x/\x1b[2J\x07"), "must lead to https:// or http://"),
    "no-http": (send(b"SSH-2.0-OpenSSH_9\r\n"), "2 times without progress"),
    "nothing": (send(b""), "2 times without progress"),
    "slow-reason": (drip(b"HTTP/1.1 200 "), SLOW),
    "slow-headers": (drip(OK, b"X: y\r\n"), SLOW),
    "endless-headers": (send(OK, b"X: y\r\n" * 20_000), "got more than 100 headers"),
    "endless-continue": (drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), SLOW),
    "slow-body": (drip(OK + b"Content-Length: 100000\r\n\r\n"), SLOW),
    "slow-body-of-unknown-length": (drip(OK + b"\r\n"), SLOW),
    "slow-chunks": (drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), SLOW),
    "wrong-chunks": (send(OK, b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), "2 times without"),
    "long-length": (send(OK, b"Content-Length: ", b"9" * 5000, b"\r\n\r\nx"), NO_ZIP),
    "negative-length": (send(OK, b"Content-Length: -5\r\n\r\nx"), NO_ZIP),
    "huge-length": (send(OK, b"Content-Length: 99999999999\r\n\r\n"), "must have at most 4 GiB"),
    "no-body": (send(b"HTTP/1.1 204 No Content\r\n\r\n"), NO_ZIP),
    "unasked-part": (
        send(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-9/10\r\n\r\nxxxxx"),
        "2 times without progress",
    ),
    "long-range": (
        send(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-9/", b"9" * 5000, b"\r\n\r\nx"),
        "2 times without progress",
    ),
    "more-than-promised": (
        send(b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/10\r\n\r\n" + b"x" * 90),
        "2 times without progress",
    ),
    "page": (send(OK, b"\r\n<html>please log in</html>"), NO_ZIP),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_server_ends_in_one_line(
    server: Server, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer, message = ANSWERS[name]
    with monkeypatch.context() as patch:
        if message is SLOW:  # any other answer comes late from a busy machine
            patch.setattr(download, "PACE_SECONDS", 0.2)
        problem = error_of(server.url, tmp_path)
    assert message in problem
    assert problem.isprintable()
    assert len(problem) < 600
    server.answer = send(OK, b"\r\n", WHOLE)
    assert (fetch(server.url, tmp_path) / "meta" / "esc50.csv").is_file()  # nothing is in its way


def test_a_slow_transfer_is_resumed_where_it_ended(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = f"Content-Length: {len(WHOLE)}\r\nETag: ".encode()

    def slow(connection: socket.socket, head: str) -> None:
        connection.sendall(OK + size + b'"v1"\r\n\r\n')
        for number in range(100):
            connection.sendall(WHOLE[number : number + 1])
            time.sleep(0.03)

    server.answer = slow
    with monkeypatch.context() as patch:
        patch.setattr(download, "PACE_SECONDS", 0.2)
        assert SLOW in error_of(server.url, tmp_path)
    kept = (tmp_path / "ESC-50.zip.part").stat().st_size
    assert 0 < kept < 100

    def rest(connection: socket.socket, head: str) -> None:
        assert f"range: bytes={kept}-" in head.lower()
        span = f"Content-Range: bytes {kept}-{len(WHOLE) - 1}/{len(WHOLE)}\r\n\r\n".encode()
        connection.sendall(b"HTTP/1.1 206 Partial Content\r\n" + span + WHOLE[kept:])

    server.answer = rest
    assert (fetch(server.url, tmp_path) / "meta" / "esc50.csv").is_file()


def test_a_version_that_cannot_be_sent_back_is_not(server: Server, tmp_path: Path) -> None:
    head = b'Content-Length: 900\r\nETag: "a\r\n b\xff"\r\n\r\nxx'
    server.answer = send(OK, head)
    assert "2 times without progress" in error_of(server.url, tmp_path)
    assert all("If-Range" not in request for request in server.requests)


@pytest.mark.parametrize(
    "url",
    [
        *("http://", "http://[::1", "http://127.0.0.1:x/", "http://127.0.0.1:99999/", "http:///x"),
        *("http://a b/", "http://127.0.0.1:1/\n", "http://127.0.0.1/é", f"http://{'a' * 99}.b/"),
    ],
)
def test_an_address_that_cannot_be_asked_is_named(tmp_path: Path, url: str) -> None:
    assert error_of(url, tmp_path).startswith("audio.download-url http://")


def test_redirects_never_leave_https() -> None:
    redirects = download._Redirects()
    request = download.urllib.request.Request("https://example.org/a.zip")
    with pytest.raises(InputError, match="redirects must lead to https://, got 'http://example"):
        redirects.redirect_request(request, io.BytesIO(), 302, "", {}, "http://example.org/b")  # type: ignore[arg-type]
    followed = redirects.redirect_request(
        request, io.BytesIO(), 302, "", {}, "HTTPS://example.org/b"  # type: ignore[arg-type]
    )  # fmt: skip
    assert followed is not None


def member(name: str, **values: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def directory_of(data: bytes, size: int) -> bytes:
    """Claim another size of the list of members."""
    return data[:-10] + struct.pack("<I", size) + data[-6:]


def with_zip64(data: bytes, size: int) -> bytes:
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 10**6, 10**6, size, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(data) - 22, 1)
    return data[:-22] + record + locator + data[-22:]


ARCHIVES: dict[str, tuple[bytes, str]] = {
    "file-and-folder": (archive(("E/x", b"1"), ("E/x/y", b"2")), "is a file and a folder"),
    "device": (
        archive((member("E/x", external_attr=(stat.S_IFCHR | 0o600) << 16), b"")),
        "is not a regular file",
    ),
    "long-name": (archive(("E/" + "x" * 300, b"")), "longer name than file systems take"),
    "escapes": (archive(("../\x1b[2J\nerror: x", b"")), r"'../\x1b[2J\nerror: x' would be written"),
    "name-of-dots": (archive((".", b"")), "has no name"),
    "list-of-4-GiB": (directory_of(WHOLE, 2**32 - 1), "must have at most 4 GiB"),
    "zip64-list": (with_zip64(WHOLE, 2**40), "must have at most 4 GiB"),
    "encrypted": (WHOLE.replace(b"\x14\0\0\0\x08\0", b"\x14\0\x01\0\x08\0"), "is encrypted"),
    "patched": (WHOLE.replace(b"\x14\0\0\0\x08\0", b"\x14\0\x20\0\x08\0"), NO_ZIP),
    "strongly-encrypted": (WHOLE.replace(b"\x14\0\0\0\x08\0", b"\x14\0\x40\0\x08\0"), NO_ZIP),
    "of-the-future": (WHOLE.replace(b"\x14\0\0\0\x08\0", b"\xff\0\0\0\x08\0"), NO_ZIP),
    "not-utf-8": (
        WHOLE.replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\x08\x08\0").replace(b"a.wav", b"\xff.wav"),
        NO_ZIP,
    ),
    "empty": (b"", NO_ZIP),
    "cut": (WHOLE[:-30], NO_ZIP),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_named_and_removed(server: Server, tmp_path: Path, name: str) -> None:
    data, message = ARCHIVES[name]
    (tmp_path / "ESC-50.zip").write_bytes(data)
    assert message in error_of(server.url, tmp_path)
    server.answer = send(OK, b"\r\n", WHOLE)
    assert (fetch(server.url, tmp_path) / "meta" / "esc50.csv").is_file()


def test_random_damage_of_an_archive(tmp_path: Path) -> None:
    """150 archives with one to three bytes changed, of which no checksum tells."""
    chance = random.Random(0)
    unpacked = 0
    for _ in range(150):
        damaged = bytearray(WHOLE)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "ESC-50.zip").write_bytes(damaged)
        with contextlib.suppress(InputError):
            shutil.rmtree(fetch("http://127.0.0.1:1/", tmp_path))
            unpacked += 1
        assert not (tmp_path / "ESC-50.zip").exists()
    assert 0 < unpacked < 150


def test_a_disk_without_room_keeps_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ESC-50.zip").write_bytes(WHOLE)
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0)
    )
    with pytest.raises(InputError, match=r"--download needs 0\.0 MB in .*ESC-50, got 0\.0; free"):
        fetch("http://127.0.0.1:1/", tmp_path)
    assert (tmp_path / "ESC-50.zip").read_bytes() == WHOLE
