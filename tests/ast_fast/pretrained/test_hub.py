"""Checkpoints fetched from a Hugging Face Hub that runs on this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import soundfile

from ast_fast import extract, predict, pretrained
from ast_fast.pretrained.finetune import finetuning_defaults
from ast_fast.pretrained.hub import checkpoint_here, fetch, fetched_model
from ast_fast.settings.command_line import parse_config
from ast_fast_kernels.errors import InputError

huggingface_hub = pytest.importorskip("huggingface_hub")

REPO = "someone/ast-small"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1.0", "refs/pr/1", COMMIT)
CONFIG, PREPROCESSOR, MODEL = FILES = (
    *("config.json", "preprocessor_config.json", "model.safetensors"),
)
INDEX = "model.safetensors.index.json"


def git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves one model; all but JSON by a redirect to another host, as the Hub's large files."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        """What the Hub says that it has."""
        self.sent = dict(files)
        """What it sends."""
        self.asked: list[str] = []
        """Each file sent, with the byte from which on."""
        self.cut: int | None = None
        """Bytes after which the next file of weights ends early, once."""
        self.gated = False
        self.status = 200
        """Of every answer; another than 200 is an error."""

    def listed(self, name: str, digest: str) -> dict[str, object]:
        """Return what both of the Hub's lists say of a file; they differ in a key's name."""
        data = self.files[name]
        facts: dict[str, object] = {"size": len(data)}
        if not name.endswith(".json"):
            facts["lfs"] = {"size": len(data), "pointerSize": 134, digest: sha256_of(data)}
        return facts


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.server
        info, tree = (f"/api/models/{REPO}/{kind}/" for kind in ("revision", "tree"))
        name = path.rpartition("/")[2]
        if hub.status != 200:
            self.answer(hub.status)
        elif path.startswith("/elsewhere/"):
            self.send_file(name)
        elif path.startswith((info, tree)) and path.partition(f"{name}/")[2] == "":
            self.send_list(path.removeprefix(info).removeprefix(tree), path.startswith(tree))
        elif name in hub.files and path in (f"/{REPO}/resolve/{one}/{name}" for one in REVISIONS):
            self.resolve(name)
        else:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})

    def send_list(self, revision: str, is_tree: bool) -> None:
        if revision not in REVISIONS:
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            return
        files: list[dict[str, object]] = []
        for name, data in self.server.files.items():
            facts = self.server.listed(name, "oid" if is_tree else "sha256")
            named = {"rfilename": name, "blobId": git_digest(data)}
            if is_tree:
                named = {"type": "file", "path": name, "oid": git_digest(data)}
            files.append({**named, **facts})
        listed: object = files if is_tree else {"id": REPO, "sha": COMMIT, "siblings": files}
        self.answer(200, body=json.dumps(listed).encode())

    def resolve(self, name: str) -> None:
        data = self.server.files[name]
        headers = {"X-Repo-Commit": COMMIT}
        if self.server.gated:
            self.answer(403, {"X-Error-Code": "GatedRepo"})
        elif name.endswith(".json"):
            self.send_file(name, headers | {"ETag": f'"{git_digest(data)}"'})
        else:
            headers |= {"X-Linked-ETag": f'"{sha256_of(data)}"', "X-Linked-Size": str(len(data))}
            there = f"http://localhost:{self.server.server_port}/elsewhere/{name}"
            self.answer(302, headers | {"Location": there})

    def send_file(self, name: str, headers: dict[str, str] | None = None) -> None:
        data, headers = self.server.sent[name], dict(headers or {})
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = None
        if self.command == "GET":
            self.server.asked.append(f"{name} from {start}")
            if name.startswith("model") and not name.endswith(".json"):
                cut, self.server.cut = self.server.cut, None
        self.answer(206 if asked else 200, headers, data[start:], cut)

    def answer(
        self,
        status: int,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        self.close_connection = cut is not None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with a small model among other files, and an empty cache for it.

    The library reads its variables once, when it is imported, which another test may have done.
    """
    files = {name: (folder / name).read_bytes() for name in FILES}
    files |= {"README.md": b"#", "pytorch_model.bin": b"pickled", "training_args.bin": b"too"}
    with Hub(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        here = f"http://127.0.0.1:{server.server_port}"
        url = here + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (
            ("ENDPOINT", here),
            ("HUGGINGFACE_CO_URL_TEMPLATE", url),
            ("HF_HUB_CACHE", str(tmp_path / "cache")),
            ("HF_HUB_OFFLINE", False),
        ):
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        in_0_x = huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", url
        monkeypatch.setattr(*in_0_x, raising=False)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def digest(folder: Path) -> str:
    return sha256_of((folder / MODEL).read_bytes())


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", COMMIT])
def test_a_model_is_fetched_once_with_what_it_needs_alone(
    server: Hub, folder: Path, digest: str, capsys: pytest.CaptureFixture[str], revision: str
) -> None:
    found = fetch(REPO, revision=revision)
    assert sorted(path.name for path in found.iterdir()) == sorted(FILES)
    assert found.name == COMMIT
    assert sorted(server.asked) == [f"{name} from 0" for name in sorted(FILES)]
    assert server.asked[-1] == f"{MODEL} from 0"
    note = f"note: {REPO}@{revision} is {REPO}@{COMMIT} with the SHA-256 {digest}, in {found}\n"
    assert capsys.readouterr().err.endswith(note)
    assert pretrained.load(found).class_names == pretrained.load(folder).class_names
    assert fetch(REPO, revision=COMMIT, sha256=digest.upper()) == found
    assert len(server.asked) == len(FILES)
    assert "note" not in capsys.readouterr().err  # all that it says was given


def test_one_of_several_processes_says_what_was_fetched(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        fetch(REPO)
        assert capsys.readouterr().err.count("note: ") == (rank == "0")


def test_a_cut_transfer_goes_on_where_it_ended(
    server: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # 10 MB are kept
    server.cut = 5000
    if huggingface_hub.__version__.startswith("0."):
        with pytest.raises(InputError, match=f"{REPO}@main cannot be fetched: .*Incomplete"):
            fetch(REPO)
    found = fetch(REPO)
    assert server.asked[-2:] == [f"{MODEL} from 0", f"{MODEL} from 5000"]
    assert (found / MODEL).read_bytes() == (folder / MODEL).read_bytes()


@pytest.mark.parametrize("name", [CONFIG, MODEL])
def test_another_file_than_the_hub_lists_is_removed(server: Hub, tmp_path: Path, name: str) -> None:
    """Of the same size, which is all that the library compares."""
    good = server.sent[name]
    server.sent[name] = good[:-2] + b" }" if name == CONFIG else bytes(len(good))
    with pytest.raises(InputError, match=rf"{REPO}@{COMMIT}: {name} must have the checksum \w+, "):
        fetch(REPO)
    left = [path.name for path in (tmp_path / "cache").rglob("*")]
    assert name not in left
    assert sha256_of(good) not in left
    server.sent[name] = good
    assert (fetch(REPO) / name).read_bytes() == good


def test_a_damaged_cache_is_noticed(
    server: Hub, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the Hub too: the links in the cache are named by checksums."""
    path = fetch(REPO) / MODEL
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert checkpoint_here(Path(REPO), download=True, sha256=digest) == path.parent
    path.write_bytes(bytes(path.stat().st_size))
    message = f"{MODEL} must have the checksum {digest}, .*; without HF_HUB_OFFLINE, it is fetched"
    for _ in range(2):  # nothing is removed that could not be fetched again
        with pytest.raises(InputError, match=message):
            fetch(REPO)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="it was removed, and the same command fetches it again"):
        fetch(REPO)
    assert sha256_of((fetch(REPO) / MODEL).read_bytes()) == digest


@pytest.mark.parametrize("checksum", ["", "5d41402abc4b2a76b9719d911017c592", f"{'0' * 32}-2"])
def test_what_the_hub_lists_no_checksum_of_is_not_fetched(
    server: Hub, monkeypatch: pytest.MonkeyPatch, checksum: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "git_digest", lambda _: checksum)
    got = f"'{checksum}'" if checksum else "none"
    message = f"{REPO}@main: {CONFIG} must have a SHA-1 or SHA-256 to be verified by, got {got}; "
    with pytest.raises(InputError, match=f"{message}download it yourself and give its folder"):
        fetch(REPO)
    assert server.asked == []


@pytest.mark.parametrize("kind", ["link", "file"])
@pytest.mark.parametrize("name", FILES)
def test_a_cache_without_checksums_is_refused_and_kept(
    server: Hub, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """Names of a mirror's own, which are no checksums, or systems that have no links."""
    path = fetch(REPO) / name
    blob = path.resolve()
    path.unlink()
    tag, got = f"{'5d41' * 8}-2", "none"
    if kind == "link":
        blob = blob.rename(blob.with_name(tag))
        path.symlink_to(blob)
        got = f"'{tag}'"
    else:
        path.write_bytes(blob.read_bytes())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = (
        f"{name} must have a SHA-1 or SHA-256 to be verified by, got {got}; give {path.parent}"
    )
    with pytest.raises(InputError, match=message):
        fetch(REPO)
    assert path.read_bytes() == server.files[name]


@pytest.mark.parametrize(
    ("name", "arguments", "changes", "message"),
    [
        ("nobody/none", {}, {}, "nobody/none@main must be a model of the Hub that is public or "),
        (REPO, {"revision": "v9"}, {}, f"{REPO}@v9 must be a commit, tag or branch of it, but "),
        (REPO, {}, {"gated": True}, f"{REPO}@main asks for its terms to be accepted on its page"),
        (REPO, {}, {"status": 500}, rf"{REPO}@main cannot be fetched: .*\b500\b"),
        (REPO, {"sha256": "0" * 64}, {}, f"@main: {MODEL} must have the SHA-256 0{{64}}, got "),
        (REPO, {"sha256": "0" * 63}, {}, "sha256 must be 64 hexadecimal digits, got '000"),
        (REPO, {"revision": ""}, {}, "must be owner/name or owner/name@revision, got '.*@'"),
        ("../up", {}, {}, "must be owner/name or owner/name@revision, got '../up'"),
    ],
    ids=lambda value: "" if isinstance(value, (dict, str)) else None,
)
def test_what_cannot_be_fetched_is_one_line(
    server: Hub, name: str, arguments: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    for key, value in changes.items():
        setattr(server, key, value)
    with pytest.raises(InputError, match=message) as caught:
        fetch(name, **arguments)
    assert "\n" not in str(caught.value)
    assert server.asked == []


def test_the_hub_must_be_within_reach(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(InputError, match=f"{REPO}@main cannot be fetched: .*[Cc]onnect"):
        fetch(REPO)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"must be in .*, because HF_HUB_OFFLINE is set, and is"):
        fetch(REPO)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({MODEL: None}, f"must have {MODEL}, which is missing; pytorch_model.bin is pickled, and"),
        ({CONFIG: None}, f"must have {CONFIG}, which is missing"),
        ({MODEL: None, INDEX: b"{}"}, f"must have {MODEL}, which is missing; pytorch_model.bin"),
        ({CONFIG: b'{"model_type": "llama"}'}, "model_type must be audio-spectrogram-transformer"),
    ],
    ids=["pickled", "no-config", "index-alone", "another-model"],
)
def test_weights_of_no_use_are_not_fetched(
    server: Hub, files: dict[str, bytes | None], message: str
) -> None:
    kept = {name: data for name, data in (server.files | files).items() if data is not None}
    server.files = server.sent = kept
    with pytest.raises(InputError, match=message):
        fetch(REPO)
    assert [name for name in server.asked if not name.startswith((CONFIG, PREPROCESSOR))] == []


def test_weights_in_several_files_are_fetched(server: Hub, folder: Path) -> None:
    part = "model-00001-of-00001.safetensors"
    weights = server.files.pop(MODEL)
    names = [*pretrained.load(folder).model.state_dict()]
    server.files |= {
        part: weights,
        INDEX: json.dumps({"weight_map": dict.fromkeys(names, part)}).encode(),
    }
    server.sent = server.files
    assert {path.name for path in fetch(REPO).iterdir()} == {CONFIG, PREPROCESSOR, INDEX, part}
    with pytest.raises(InputError, match=f"{MODEL} must have the SHA-256 0+, got several files"):
        fetch(REPO, sha256="0" * 64)


def test_a_full_disk_is_one_line(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    message = f"{REPO}@main cannot be written to .*cache: No space left on device"
    with pytest.raises(InputError, match=message):
        fetch(REPO)


def test_the_library_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"not installed; pip install 'ast-fast\[hub\]'"):
        fetch(REPO)


def test_what_is_here_is_never_fetched(
    server: Hub, folder: Path, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path(REPO)
    here.parent.mkdir()
    here.symlink_to(folder)
    for path in (here, here / MODEL):
        assert checkpoint_here(path, download=True, sha256=digest) == path
        with pytest.raises(InputError, match=f"{MODEL} must have the SHA-256 1+, got {digest}"):
            checkpoint_here(path, download=False, sha256="1" * 64)
    assert server.asked == []


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 16000)
    soundfile.write(path, samples, 16000)
    return path


def test_predict_fetches_if_it_is_asked_to(
    server: Hub, folder: Path, digest: str, audio: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--device", "cpu", "--json"]
    assert predict.main([REPO, str(audio), *asked]) == 2
    message = f"error: {REPO} must be a checkpoint, but there is none; if it is one of the Hugging "
    assert capsys.readouterr().err == f"{message}Face Hub, --download fetches it\n"
    assert server.asked == []
    assert predict.main([str(folder), str(audio), *asked]) == 0
    expected = capsys.readouterr().out
    given = [f"{REPO}@v1.0", str(audio), "--download", "--sha256", digest, *asked]
    assert predict.main(given) == 0
    assert capsys.readouterr().out == expected


def test_extract_fetches_too(server: Hub, digest: str, audio: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", ["--device", "cpu", "--jobs", "1"]
    given = [REPO, str(audio), "--out", str(out), *options]
    assert extract.main(given) == 2
    assert extract.main([*given, "--download", "--sha256", digest]) == 0
    assert (out / "extract.toml").is_file()


def test_a_run_begins_with_a_fetched_model(server: Hub, digest: str) -> None:
    """Its settings name the folder, so that it resumes without the Hub."""

    def parsed(*arguments: str) -> Any:
        return parse_config(arguments, finetuning_defaults, fetched_model)

    given = ("--model.pretrained", f"{REPO}@v1.0")
    with pytest.raises(InputError, match=r"but there is none; .* --download-model fetches it"):
        parsed(*given)
    config = parsed(*given, "--download-model", "--download-model-sha256", digest)
    assert config.model.pretrained.name == COMMIT
    assert config.model.embed_dim == 128
    assert (config.download_model, config.download_model_sha256) == (False, "")
    with pytest.raises(InputError, match=r"--download-model needs --model\.pretrained"):
        parsed("--download-model")


def test_the_library_s_variables_hold(server: Hub, tmp_path: Path) -> None:
    code = f"from ast_fast.pretrained.hub import fetch; print(fetch({REPO!r}))"
    here, home = f"http://127.0.0.1:{server.server_port}", tmp_path / "home"
    without = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE")
    environment = {key: value for key, value in os.environ.items() if key not in without}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HF_ENDPOINT": here, "HF_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(home)
