import hashlib
import io
import json
import os
import re
import stat
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
from rich.console import Console

from ast_fast.data import download
from ast_fast.data.dataset import open_dataset
from ast_fast.data.download import download_esc50
from ast_fast.settings.config import AudioConfig, Config, Paths
from ast_fast_kernels.errors import InputError


class ArchiveServer(ThreadingHTTPServer):
    """Serves one file; its fields say how badly."""

    body = b""
    etag = '"v1"'
    ranges = True
    """Whether Range is honoured."""
    chunked = False
    wrong_start = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ArchiveHandler)
        self.requests = []
        self.cuts = []  # bytes after which each coming response breaks off
        self.statuses = []  # of the coming responses, before any that succeeds
        self.url = f"http://127.0.0.1:{self.server_port}/ESC-50.zip"


class ArchiveHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((asked, self.headers.get("If-Range")))
        self.close_connection = True
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        same = self.headers.get("If-Range") in (None, server.etag)
        if asked and server.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(server.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.body)}")
                self.end_headers()
                return
            self.send_response(206)
            shown = start + 7 if server.wrong_start else start
            last = len(server.body) - 1
            self.send_header("Content-Range", f"bytes {shown}-{last}/{len(server.body)}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        sent = server.body[start:]
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        whole = len(sent)
        if server.cuts:
            sent = sent[: server.cuts.pop(0)]
        if server.chunked:
            self.wfile.write(f"{len(sent):x}\r\n".encode() + sent + b"\r\n")
            if len(sent) == whole:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(sent)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ArchiveServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(download, "BACK_OFF", (0.0, 0.0))
    monkeypatch.setattr(download, "BLOCK_BYTES", 1000)


def archive(changes=None, *, top="ESC-50-abc/"):
    """Return a zip of a small data set, with members added."""
    rng = np.random.default_rng(0)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        rows = ["filename,fold,target,category"]
        for fold in (1, 2):
            for target in (0, 1):
                name = f"{fold}-{target}.wav"
                rows.append(f"{name},{fold},{target},class{target}")
                wave = io.BytesIO()
                soundfile.write(wave, rng.uniform(-0.5, 0.5, 8000), 16000, format="WAV")
                file.writestr(f"{top}audio/{name}", wave.getvalue())
        file.writestr(f"{top}meta/esc50.csv", "\n".join(rows) + "\n")
        file.writestr(f"{top}LICENSE", "as it says")
        for member, content in changes or ():
            file.writestr(member, content)
    return packed.getvalue()


def settings(server, **changes):
    audio = AudioConfig(
        download_url=server.url,
        download_sha256=hashlib.sha256(server.body).hexdigest(),
        clip_seconds=0.5,
    )
    return Config(audio=replace(audio, **changes), download=True)


def quiet():
    return Console(file=io.StringIO())


def test_a_whole_archive_becomes_a_data_set_that_opens(server, tmp_path):
    server.body = archive()
    config = replace(settings(server), paths=Paths(cache=tmp_path / "cache"))
    dataset = open_dataset(config, console=quiet())
    assert dataset.root == tmp_path / "cache" / "ESC-50"
    assert dataset.waveforms.shape == (4, 8000)
    assert not dataset.synthesised
    assert (dataset.root / "LICENSE").read_text() == "as it says"
    assert not list((tmp_path / "cache").glob("*.zip*"))
    assert len(server.requests) == 1
    open_dataset(config, console=quiet())
    assert len(server.requests) == 1


@pytest.mark.parametrize("chunked", [False, True], ids=["with-length", "chunked"])
def test_a_cut_connection_is_resumed_where_it_broke(server, tmp_path, chunked):
    server.body = archive()
    server.chunked = chunked
    server.cuts = [5000, 7000]
    root = download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert (root / "meta" / "esc50.csv").is_file()
    asked = [int(wanted[6:-1]) for wanted, _ in server.requests[1:]]
    assert len(asked) == 2
    assert 0 < asked[0] <= 5000 < asked[1] <= 12000
    if not chunked:
        assert asked == [5000, 12000]
    assert [version for _, version in server.requests] == [None, '"v1"', '"v1"']


def test_a_transfer_given_up_is_resumed_by_the_next_call(server, tmp_path):
    server.body = archive()
    server.cuts = [5000, 0, 0, 0]
    with pytest.raises(InputError, match=r"progress; 0\.0 MB are kept, and the same command"):
        download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert (tmp_path / "ESC-50.zip.part").stat().st_size == 5000
    assert not (tmp_path / "ESC-50").exists()
    download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert server.requests[-1][0] == "bytes=5000-"
    assert os.listdir(tmp_path / "ESC-50" / "meta") == ["esc50.csv"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    server.body = archive()
    server.ranges = False
    server.cuts = [5000]
    download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert [wanted for wanted, _ in server.requests] == [None, "bytes=5000-"]
    assert (tmp_path / "ESC-50" / "meta" / "esc50.csv").is_file()


def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(server, tmp_path):
    server.body = archive()
    server.ranges = False
    server.cuts = [5000] * 20
    with pytest.raises(InputError, match="the connection was cut, 3 times without progress"):
        download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert len(server.requests) == 4


def test_a_server_that_resumes_elsewhere_is_read_from_the_start(server, tmp_path):
    server.body = archive()
    server.wrong_start = True
    server.cuts = [5000]
    download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert [wanted for wanted, _ in server.requests] == [None, "bytes=5000-", None]


def test_a_file_changed_between_two_attempts_is_read_from_the_start(server, tmp_path):
    server.body = archive([("ESC-50-abc/old", b"old")])
    server.cuts = [5000, 0, 0, 0]
    with pytest.raises(InputError, match="without progress"):
        download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    server.body = archive([("ESC-50-abc/new", b"new")])
    server.etag = '"v2"'
    root = download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert server.requests[-1] == ("bytes=5000-", '"v1"')
    assert (root / "new").is_file()


def test_a_part_of_another_address_is_not_resumed(server, tmp_path):
    server.body = archive()
    (tmp_path / "ESC-50.zip.part").write_bytes(b"other")
    notes = {"url": "http://elsewhere/x.zip", "validator": ""}
    (tmp_path / "ESC-50.zip.part.json").write_text(json.dumps(notes))
    download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert server.requests == [(None, None)]


def test_a_part_that_was_complete_needs_no_more_bytes(server, tmp_path):
    server.body = archive()
    (tmp_path / "ESC-50.zip.part").write_bytes(server.body)
    notes = {"url": server.url, "validator": server.etag}
    (tmp_path / "ESC-50.zip.part.json").write_text(json.dumps(notes))
    root = download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert (root / "meta" / "esc50.csv").is_file()


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.body = archive()
    server.statuses = [503, 429]
    download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert len(server.requests) == 3


def test_a_missing_archive_is_not_asked_for_again(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(InputError, match=rf"audio\.download-url {server.url}: HTTP 404 Not Found"):
        download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert len(server.requests) == 1


def test_an_unreachable_server_is_named(server, tmp_path):
    config = settings(server, download_url="http://127.0.0.1:9/x.zip")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/x\.zip: .*refused, 3 times"):
        download_esc50(config, tmp_path / "ESC-50", console=quiet())


def test_an_address_that_is_no_web_address_is_refused(server, tmp_path):
    config = settings(server, download_url="file:///etc/passwd")
    with pytest.raises(InputError, match="must begin with http:// or https://, got 'file:"):
        download_esc50(config, tmp_path / "ESC-50", console=quiet())


def test_a_wrong_checksum_names_both_sums_and_leaves_nothing(server, tmp_path):
    server.body = archive()
    real = hashlib.sha256(server.body).hexdigest()
    wanted = "0" * 64
    config = settings(server, download_sha256=wanted)
    with pytest.raises(InputError, match=rf"SHA-256 must be {wanted} .*, got {real}"):
        download_esc50(config, tmp_path / "ESC-50", console=quiet())
    assert [path.name for path in tmp_path.iterdir()] == [".ESC-50.lock"]


def _link():
    member = zipfile.ZipInfo("ESC-50-abc/audio/link.wav")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("../escaped", r"'\.\./escaped' would be written outside"),
        ("ESC-50-abc/audio/../../../escaped", "would be written outside"),
        ("/etc/escaped", "'/etc/escaped' would be written outside"),
        ("C:/escaped", "would be written outside"),
        ("ESC-50-abc\\..\\escaped", "would be written outside"),
        (_link(), r"'ESC-50-abc/audio/link\.wav' is a link"),
        ("ESC-50-abc/./LICENSE", "appears twice"),
    ],
    ids=["parent", "deep-parent", "absolute", "drive", "backslash", "symlink", "twice"],
)
def test_a_member_that_is_not_a_plain_file_inside_stops_the_unpacking(
    server, tmp_path, member, message
):
    server.body = archive([(member, b"/etc/passwd")])
    destination = tmp_path / "deep" / "er" / "ESC-50"
    with pytest.raises(InputError, match=message):
        download_esc50(settings(server), destination, console=quiet())
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [".ESC-50.lock"]


def test_only_the_data_set_s_own_folder_is_unpacked(server, tmp_path):
    server.body = archive([("other/meta/esc50.csv", b""), ("README", b"")])
    root = download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert sorted(os.listdir(root)) == ["LICENSE", "audio", "meta"]


def test_a_bomb_is_refused_before_it_goes_off(server, tmp_path, monkeypatch):
    server.body = archive([("ESC-50-abc/bomb", bytes(10**6))])
    monkeypatch.setattr(download, "MAX_UNPACKED_BYTES", 10**6)
    with pytest.raises(InputError, match=r"must have at most 4 GiB, .* GiB unpacked, and 100000"):
        download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert not (tmp_path / "ESC-50").exists()


def test_an_endless_archive_is_refused(server, tmp_path, monkeypatch):
    server.body = archive()
    server.chunked = True
    monkeypatch.setattr(download, "MAX_ARCHIVE_BYTES", 5000)
    with pytest.raises(InputError, match="must have at most"):
        download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())


def test_an_archive_without_a_data_set_is_named(server, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("README", "nothing here")
    server.body = packed.getvalue()
    with pytest.raises(InputError, match=r"must hold one meta/esc50\.csv with audio/ .*, got 0"):
        download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())


def test_a_page_instead_of_an_archive_is_named(server, tmp_path):
    server.body = b"<html>please log in</html>"
    with pytest.raises(InputError, match="is not a readable zip archive"):
        download_esc50(settings(server), tmp_path / "ESC-50", console=quiet())
    assert not list(tmp_path.glob("*.zip"))


def test_a_damaged_member_is_noticed_without_a_checksum(server, tmp_path):
    body = bytearray(archive())
    body[200:260] = bytes(60)
    server.body = bytes(body)
    with pytest.raises(InputError, match="is not a readable zip archive"):
        download_esc50(settings(server, download_sha256=""), tmp_path / "ESC-50", console=quiet())
    assert not (tmp_path / "ESC-50").exists()


def test_a_folder_with_other_things_is_left_alone(server, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(
        InputError, match=rf"needs a new or empty folder, got {tmp_path}, which holds"
    ):
        download_esc50(settings(server), tmp_path, console=quiet())
    assert server.requests == []


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--download cannot write .*; name another folder"):
        download_esc50(settings(server), tmp_path / "file" / "ESC-50", console=quiet())


def test_a_data_set_that_is_there_is_not_fetched_again(server, tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text("")
    assert download_esc50(settings(server), tmp_path, console=quiet()) == tmp_path
    assert server.requests == []
