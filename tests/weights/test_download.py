"""Downloads against a server of our own: resumed, checked, refused; and the catalog itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
from cli_fixtures import assert_error, twins
from contracts import SLIM_SVT, VARIANTS, randomise, without_initialisation

import twins_dense as td
from twins_dense.weights.catalog import CATALOG, WeightsSpec, cache_dir
from twins_dense.weights.download import download, fetch_weights, sha256_of

NAME = "svt_small.in1k-mmpretrain"


class Server(ThreadingHTTPServer):
    """Serves `files` by path. Every attribute below may be changed by a test.

    Attributes:
        requests: (method, path, Range header) of each request.
        cut_after: bytes after which a response breaks off; `None` sends all.
        ranges: whether ranges are understood.
        slow: seconds to wait after each 64 KiB.
        hold_at: bytes after which a response waits for `go_on`; `None` sends all.
        headers: to send beside the usual ones.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after: int | None = None
        self.ranges = True
        self.slow = 0.0
        self.hold_at: int | None = None
        self.go_on = threading.Event()
        self.headers: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed or hang up are part of the tests."""


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
                server.go_on.wait(60)
            self.wfile.write(content[position : min(position + 65536, end)])
            time.sleep(server.slow)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TWINS_DENSE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


CONTENT = bytes(range(256)) * 4099  # about a MiB, of a size that no block divides


def published(server: Server, content: bytes = CONTENT, *, sha256: str | None = None) -> WeightsSpec:
    """A catalog entry whose file the server has."""
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


# What arrives


def test_once(server: Server, home: Path) -> None:
    spec = published(server)
    assert download(spec) == home / f"{NAME}.pth"
    assert spec.path.read_bytes() == CONTENT
    assert download(spec) == spec.path
    assert [request[0] for request in server.requests] == ["GET"]
    assert visible(home) == [f"{NAME}.pth"]
    assert not [path for path in home.iterdir() if "part" in path.name]


def test_broken_off_and_gone_on_with(server: Server) -> None:
    spec = published(server)
    server.cut_after = 300_000
    message = refused(spec, "it ended after 300000 of 1049344 bytes", "300000 bytes are kept", "a second call goes on")
    assert spec.url in message
    refused(spec, "it ended after 600000 of 1049344 bytes")
    server.cut_after = None
    assert download(spec).read_bytes() == CONTENT
    assert [request[2] for request in server.requests] == [None, "bytes=300000-", "bytes=600000-"]


def test_a_server_without_ranges_starts_again(server: Server) -> None:
    spec = published(server)
    server.cut_after, server.ranges = 300_000, False
    refused(spec, "it ended after 300000 of")
    server.cut_after = None
    assert download(spec).read_bytes() == CONTENT


def test_killed_while_loading_and_gone_on_with(server: Server, home: Path) -> None:
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
    refused(missing, "can't be fetched", "No such file")


def test_proxies(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host does not exist; the proxy has the file."""
    spec = dataclasses.replace(published(server), url="http://weights.invalid/weights.pth")
    monkeypatch.setenv("http_proxy", server.url)
    assert download(spec).read_bytes() == CONTENT
    assert server.requests == [("GET", "http://weights.invalid/weights.pth", None)]


# What does not


def test_wrong_hash(server: Server, home: Path) -> None:
    spec = published(server, sha256="0123abcd")
    refused(spec, hashlib.sha256(CONTENT).hexdigest(), "published is 0123abcd", "removed", "download it again")
    assert not (home / f".part-{NAME}.pth").exists() and visible(home) == []


def test_a_web_page_in_the_place_of_the_file(server: Server, home: Path) -> None:
    """What a portal or a quota sends, with code 200; the hash alone would not say what it is."""
    refused(published(server, b"\n<html>Sign in</html>", sha256="0123abcd"), "it is a web page")
    assert visible(home) == [] and not (home / f".part-{NAME}.pth").exists()


def test_a_part_of_something_else(server: Server, home: Path) -> None:
    """Gone on with, the file is wrong and removed; the next call starts from nothing."""
    spec = published(server)
    home.mkdir()
    (home / f".part-{NAME}.pth").write_bytes(b"x" * 1000)
    refused(spec, "SHA-256")
    assert download(spec).read_bytes() == CONTENT


def test_not_found(server: Server) -> None:
    spec = dataclasses.replace(published(server), url=f"{server.url}/moved.pth")
    refused(spec, "answers 404", "give its path")


def test_nobody_listens() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # a port that is taken, but not listened to
        spec = dataclasses.replace(CATALOG[NAME], url=f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth")
        refused(spec, "can't be fetched", "refused", "Check the network", "give its path")


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without asking the network's name server, which may take its time or know every name."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    spec = dataclasses.replace(CATALOG[NAME], url="http://weights.invalid/weights.pth")
    refused(spec, "can't be fetched", "[Errno", "Check the network", "give its path")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "it is a web page"),
        (b"", "it is empty"),
        (b"PK\x03\x04 and no more", "it is no whole torch checkpoint"),
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
    """In a process of its own, because huggingface_hub reads its settings when it is imported."""
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
    """The hub tells the file's SHA-256, and the file is compared with it."""
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
        assert f"its SHA-256 is {digest}, published is bbb" in result.stderr and "Traceback" not in result.stderr
        assert not path.exists()


def test_hugging_face_without_the_file(server: Server, home: Path) -> None:
    result = hub_download(server, home)
    assert result.returncode == 2
    assert result.stderr.startswith("error: weights 'svt_small.in1k-timm': https://huggingface.co")
    assert "can't be fetched" in result.stderr and len(result.stderr.splitlines()) == 1


# The catalog


def test_the_catalog_is_complete() -> None:
    sources = [
        "in1k-official",
        "in1k-timm",
        "in1k-mmpretrain",
        "in1k-mmseg",
        "ade20k_fpn-mmseg",
        "ade20k_upernet-mmseg",
    ]
    assert set(CATALOG) == {f"{variant}.{source}" for variant in VARIANTS for source in sources}
    assert len({spec.url for spec in CATALOG.values()}) == 36
    for name, spec in CATALOG.items():
        assert spec.name == name and name.startswith(spec.variant) and name.endswith(spec.format)
        assert re.fullmatch(r"([0-9a-f]{8}){0,8}", spec.sha256)
        if "openmmlab" in spec.url:  # the file's name ends in the start of its hash
            assert re.search(r"-([0-9a-f]{8})\.pth$", spec.url)[1] == spec.sha256[:8]  # type: ignore[index]
    whole = [name for name, spec in CATALOG.items() if len(spec.sha256) == 64]
    assert whole == [
        *(f"svt_{size}.in1k-official" for size in ("small", "base", "large")),
        "pcpvt_small.in1k-mmpretrain",
    ]


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWINS_DENSE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "twins_dense"
    monkeypatch.setenv("TWINS_DENSE_HOME", "~/weights")
    assert cache_dir() == Path.home() / "weights"


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


# The command line


def test_list(home: Path) -> None:
    home.mkdir()
    (home / f"{NAME}.pth").touch()
    rows = twins("weights", "list").out.splitlines()
    assert len(rows) == 36 and len([row for row in rows if " here " in row]) == 1
    (row,) = [row for row in rows if row.startswith(NAME)]
    assert "here" in row and "top1 81.77, top5 95.57" in row
    listed = json.loads(twins("weights", "list", "*.ade20k_*", NAME, "--json").out)
    assert len(listed) == 13 and [entry["here"] for entry in listed if entry["name"] == NAME] == [True]


def test_verify(home: Path, tmp_path: Path) -> None:
    assert twins("weights", "verify").out == f"nothing is downloaded to {home}\n"
    home.mkdir()
    (home / f"{NAME}.pth").write_bytes(b"abc")
    result = twins("weights", "verify")
    assert "WRONG" in result.out
    assert_error(result, "1 of 1 files differ from the published ones")


def test_verify_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which published file is this?"""
    (tmp_path / "mine.pth").write_bytes(b"abc")
    result = twins("weights", "verify", tmp_path / "mine.pth")
    assert result.code == 0 and result.out.endswith("mine.pth  no published hash\n")
    monkeypatch.setitem(CATALOG, NAME, dataclasses.replace(CATALOG[NAME], sha256="ba7816bf"))
    assert twins("weights", "verify", tmp_path / "mine.pth").out.endswith(f"mine.pth  {NAME}\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("verify", "svt_base.in1k-timm"), "svt_base.in1k-timm is not downloaded"),
        (("verify", "nothing.pth"), "weights 'nothing.pth': no such file"),
        (("download", "svt_bas.in1k-timm"), "did you mean 'svt_base.in1k-timm'?"),
        (("list", "svt"), "unknown weights 'svt'"),
    ],
)
def test_wrong_names(arguments: tuple[str, ...], expected: str) -> None:
    assert_error(twins("weights", *arguments), expected)
