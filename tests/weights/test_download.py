"""Downloads from a local server: they resume, and files that differ from the published ones are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import SLIM_SVT, randomise, without_initialisation

import twins_dense as td
from twins_dense.weights.catalog import CATALOG, WeightsSpec
from twins_dense.weights.download import download, fetch_weights, sha256_of

NAME = "svt_small.in1k-mmpretrain"
pytestmark = pytest.mark.usefixtures("home")


class Server(ThreadingHTTPServer):
    """Server of `files`, by path. Tests may change all attributes.

    Attributes:
        requests: Method, path and Range header of each request.
        cut_after: Number of bytes after which a response is cut off; `None` sends all.
        ranges: Whether the server supports ranges.
        slow: Seconds to wait after each 64 KiB.
        hold_at: Number of bytes after which a response waits until `released` is set; `None` sends all.
        headers: Additional headers of a response.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after: int | None = None
        self.ranges = True
        self.slow = 0.0
        self.hold_at: int | None = None
        self.released = threading.Event()
        self.headers: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: tests kill clients, and clients hang up."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.command, self.path, wanted))
        content = server.files.get(re.sub(r"https?://[^/]+", "", self.path))
        if content is None:
            self.send_error(404)
            return
        start = 0
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        end = len(content) if server.cut_after is None else min(len(content), start + server.cut_after)
        for position in range(start, end, 65536):
            if server.hold_at is not None and position >= server.hold_at:
                server.released.wait(60)
            self.wfile.write(content[position : min(position + 65536, end)])
            time.sleep(server.slow)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


CONTENT = bytes(range(256)) * 4099  # about a MiB, and not a multiple of any block size


def published(server: Server, content: bytes = CONTENT, *, sha256: str | None = None) -> WeightsSpec:
    """Return a catalog entry whose file is on the server."""
    server.files["/weights.pth"] = content
    digest = hashlib.sha256(content).hexdigest()[:8] if sha256 is None else sha256
    return dataclasses.replace(CATALOG[NAME], url=f"{server.url}/weights.pth", sha256=digest)


def visible(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir() if not path.name.startswith("."))


def refused(spec: WeightsSpec, *parts: str) -> str:
    with pytest.raises(td.TwinsError) as caught:
        download(spec)
    message = str(caught.value)
    assert "\n" not in message
    for part in (spec.name, *parts):
        assert part in message, message
    assert not spec.path.exists()
    return message


# Successful downloads


def test_once(server: Server, home: Path) -> None:
    spec = published(server)
    assert download(spec) == home / f"{NAME}.pth"
    assert spec.path.read_bytes() == CONTENT
    assert download(spec) == spec.path
    assert [request[0] for request in server.requests] == ["GET"]
    assert visible(home) == [f"{NAME}.pth"]
    assert not [path for path in home.iterdir() if "part" in path.name]


def test_interrupted_and_resumed(server: Server) -> None:
    spec = published(server)
    server.cut_after = 300_000
    parts = ("the download ended after 300000 of 1049344 bytes", "300000 bytes are kept", "the next call resumes")
    message = refused(spec, *parts)
    assert spec.url in message
    refused(spec, "the download ended after 600000 of 1049344 bytes")
    server.cut_after = None
    assert download(spec).read_bytes() == CONTENT
    assert [request[2] for request in server.requests] == [None, "bytes=300000-", "bytes=600000-"]


def test_a_server_without_ranges_starts_again(server: Server) -> None:
    spec = published(server)
    server.cut_after, server.ranges = 300_000, False
    refused(spec, "the download ended after 300000 of")
    server.cut_after = None
    assert download(spec).read_bytes() == CONTENT


def test_killed_and_resumed(server: Server, home: Path) -> None:
    spec = published(server)
    server.hold_at = 1 << 20  # the first of two blocks that the download writes
    code = (
        "import dataclasses; from twins_dense.weights.catalog import CATALOG;"
        "from twins_dense.weights.download import download;"
        f"download(dataclasses.replace(CATALOG[{NAME!r}], url={spec.url!r}, sha256={spec.sha256!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    part = home / f".part-{NAME}.pth"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < part.stat().st_size < len(CONTENT) and visible(home) == []
    kept = part.stat().st_size
    server.hold_at = None
    assert download(spec).read_bytes() == CONTENT
    assert server.requests[-1][2] == f"bytes={kept}-"


def test_killed_between_the_last_byte_and_its_name(server: Server, home: Path) -> None:
    """The server has nothing left to send and answers 416."""
    spec = published(server)
    home.mkdir()
    (home / f".part-{NAME}.pth").write_bytes(CONTENT)
    assert download(spec).read_bytes() == CONTENT


def test_two_processes_at_once(server: Server, home: Path) -> None:
    spec = published(server)
    server.slow = 0.05
    code = (
        "import dataclasses; from twins_dense.weights.catalog import CATALOG;"
        "from twins_dense.weights.download import download;"
        f"print(download(dataclasses.replace(CATALOG[{NAME!r}], url={spec.url!r}, sha256={spec.sha256!r})))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=100)[0].strip() for process in processes] == [str(spec.path)] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert spec.path.read_bytes() == CONTENT
    assert len(server.requests) == 1  # the second waited and found the file


def test_file_urls(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(CONTENT)
    spec = dataclasses.replace(
        CATALOG[NAME], url=(tmp_path / "a.pth").as_uri(), sha256=hashlib.sha256(CONTENT).hexdigest()
    )
    assert download(spec).read_bytes() == CONTENT
    missing = dataclasses.replace(CATALOG["svt_base.in1k-mmpretrain"], url=(tmp_path / "b.pth").as_uri())
    refused(missing, "cannot be downloaded", "No such file")


def test_proxies(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host does not exist; the proxy has the file."""
    spec = dataclasses.replace(published(server), url="http://weights.invalid/weights.pth")
    monkeypatch.setenv("http_proxy", server.url)
    assert download(spec).read_bytes() == CONTENT
    assert server.requests == [("GET", "http://weights.invalid/weights.pth", None)]


# Failed downloads


def test_wrong_hash(server: Server, home: Path) -> None:
    spec = published(server, sha256="0123abcd")
    refused(spec, hashlib.sha256(CONTENT).hexdigest(), "instead of 0123abcd", "removed", "download it again")
    assert not (home / f".part-{NAME}.pth").exists() and visible(home) == []


def test_a_web_page_instead_of_the_file(server: Server, home: Path) -> None:
    """Login and quota pages have status 200. A mismatch of hashes alone would not explain the problem."""
    refused(published(server, b"\n<html>Sign in</html>", sha256="0123abcd"), "it is a web page")
    assert visible(home) == [] and not (home / f".part-{NAME}.pth").exists()


def test_a_part_of_something_else(server: Server, home: Path) -> None:
    """After resuming, the file is wrong and removed. The next call starts from the beginning."""
    spec = published(server)
    home.mkdir()
    (home / f".part-{NAME}.pth").write_bytes(b"x" * 1000)
    refused(spec, "SHA-256")
    assert download(spec).read_bytes() == CONTENT


def test_not_found(server: Server) -> None:
    spec = dataclasses.replace(published(server), url=f"{server.url}/moved.pth")
    refused(spec, "responded with 404", "give its path")


def test_nobody_listens() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # a port in use on which nobody listens
        spec = dataclasses.replace(CATALOG[NAME], url=f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth")
        refused(spec, "cannot be downloaded", "refused", "Check the network", "give its path")


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real name server is not queried: it may be slow, or resolve every name."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    spec = dataclasses.replace(CATALOG[NAME], url="http://weights.invalid/weights.pth")
    refused(spec, "cannot be downloaded", "[Errno", "Check the network", "give its path")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "it is a web page"),
        (b"", "it is empty"),
        (b"PK\x03\x04 and no more", "it is not a complete torch checkpoint"),
    ],
)
def test_files_without_a_published_hash_are_read(server: Server, content: bytes, expected: str, home: Path) -> None:
    refused(published(server, content, sha256=""), expected)
    assert not (home / f".part-{NAME}.pth").exists()


def test_files_without_a_published_hash_hold_the_variant(server: Server, tmp_path: Path) -> None:
    torch.save(td.create_backbone(SLIM_SVT).state_dict(), tmp_path / "slim.pth")
    refused(published(server, (tmp_path / "slim.pth").read_bytes(), sha256=""), "holds a custom Twins with dims (8,")
    torch.save(td.create_backbone("svt_small", out_indices=(0,)).state_dict(), tmp_path / "part.pth")
    refused(published(server, (tmp_path / "part.pth").read_bytes(), sha256=""), "holds a custom Twins with dims (64,)")


# The Hugging Face hub


HUB_PATH = "/timm/twins_svt_small.in1k/resolve/main/model.safetensors"


def hub_download(server: Server, home: Path) -> subprocess.CompletedProcess[str]:
    """Download in a new process, because huggingface_hub reads its settings when it is imported."""
    pytest.importorskip("huggingface_hub", reason="an extra: pip install 'twins-dense[hub]'")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "twins_dense", "weights", "download", "svt_small.in1k-timm"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("right", [True, False])
def test_hugging_face(server: Server, home: Path, right: bool) -> None:
    """The hub gives the SHA-256 of the file, and the file is checked against it."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    server.files[HUB_PATH] = CONTENT
    server.headers = {"X-Repo-Commit": "a" * 40, "ETag": f'"{digest if right else "b" * 64}"'}
    result = hub_download(server, home)
    path = home / "svt_small.in1k-timm.safetensors"
    if right:
        assert (result.returncode, result.stdout.strip()) == (0, str(path)), result.stderr
        assert path.read_bytes() == CONTENT
    else:
        assert result.returncode == 2
        assert f"its SHA-256 is {digest} instead of bbb" in result.stderr and "Traceback" not in result.stderr
        assert not path.exists()


def test_hugging_face_without_the_file(server: Server, home: Path) -> None:
    result = hub_download(server, home)
    assert result.returncode == 2
    assert result.stderr.startswith("error: weights 'svt_small.in1k-timm': https://huggingface.co")
    assert "cannot be downloaded" in result.stderr and len(result.stderr.splitlines()) == 1


def test_hugging_face_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(CATALOG["svt_small.in1k-timm"], "huggingface_hub is not installed: pip install 'twins-dense[hub]'")


# Catalog names instead of paths


def test_names_work_where_paths_do(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = randomise(without_initialisation(lambda: td.create_classifier("svt_small")), seed=3).state_dict()
    torch.save({"state_dict": td.convert_state_dict(state, to="mmpretrain")}, tmp_path / "a.pth")
    spec = published(server, (tmp_path / "a.pth").read_bytes())
    monkeypatch.setitem(CATALOG, NAME, spec)
    with pytest.warns(UserWarning, match="norm_list"):
        net = td.create_backbone("svt_small", out_indices=(0, 1), weights=NAME)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items() if "norm_list" not in name)
    report = td.load_weights(without_initialisation(lambda: td.create_classifier("svt_small")), NAME)
    assert (report.source, report.format, report.dropped) == (NAME, "mmpretrain", ())
    assert len(server.requests) == 1
    with pytest.raises(td.TwinsError, match=f"weights '{NAME}': this is svt_small, the model is pcpvt_small"):
        td.create_backbone("pcpvt_small", out_indices=(0,), weights=NAME)


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).write_bytes(b"")
    assert fetch_weights(NAME) == Path(NAME)


def test_near_misses_are_named() -> None:
    with pytest.raises(td.TwinsError, match=r"no such file; check the path.*did you mean 'svt_small.in1k-mmpretrain'"):
        fetch_weights("svt_small.in1k-mmpretran")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the standard's first example (FIPS 180-4)
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
