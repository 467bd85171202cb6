"""Interrupted and shared extractions end with the same folder, byte for byte, as an uninterrupted one."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from feature_fixtures import NUM_IMAGES, assert_same, program, run

import twins_dense as td
from twins_dense.data.image_lists import ImageList
from twins_dense.features import prepare as preparing

pytest.importorskip("zarr", minversion="3.1", reason="zarr 3 needs Python 3.11")
from twins_dense.features import store as storage

# Program that runs one extraction: SCRIPT OUT IMAGES...
SCRIPT = """
import sys
import torch
from contracts import SLIM_SVT, random_backbone
from pathlib import Path
from twins_dense.data.image_lists import list_images
from twins_dense.features.extract import extract
from twins_dense.features.model import Settings
from twins_dense.features.prepare import Protocol

torch.set_num_threads(1)


def run(out, images, num_workers=1):
    settings = Settings(Protocol("crop", 64), maps=True, pool=True, chunk=2)
    extract(
        random_backbone(SLIM_SVT), list_images(images), Path(out), settings,
        weights_sha256="w", device=torch.device("cpu"), num_workers=num_workers,
    )


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
"""
# Program that kills ten extractions, each in its own process and on a slow disk: two while they start, eight while they
# write. Each extraction writes a byte into a pipe before and after each file. It is killed soon after a random number
# of bytes, and stops by itself some bytes later, so that it never finishes, however late the kill comes.
KILLER = """
import os, random, signal, sys, time
from run import run
from twins_dense.features import store

set_fast, write_fast = store.LocalStore.set, store.write_atomically


def note():
    global remaining
    os.write(begun, b"w")
    remaining -= 1
    time.sleep(0.005 if remaining > 0 else 600)


async def set_slowly(self, key, value):
    note()
    await set_fast(self, key, value)
    note()


def write_slowly(path, content):
    note()
    write_fast(path, content)
    note()


store.LocalStore.set, store.write_atomically = set_slowly, write_slowly
out, images = sys.argv[1], sys.argv[2:]
moments = random.Random(3)
for attempt in range(10):
    wanted = 0 if attempt < 2 else moments.randrange(1, 30)
    remaining = wanted + 10
    writing, begun = os.pipe()
    child = os.fork()
    if not child:
        run(out, images)
        os._exit(0)
    for _ in range(wanted):
        os.read(writing, 1)
    time.sleep(moments.uniform(0, 0.03 if wanted else 0.3))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "was done before it was killed"
    os.close(writing), os.close(begun)
    parts = os.path.join(out, "parts")
    print(len(os.listdir(parts)) if os.path.isdir(parts) else 0, flush=True)
"""


def test_ten_kills(photos: Path, tmp_path: Path) -> None:
    """After ten SIGKILLs in a row and one uninterrupted run, the folder is the same, byte for byte."""
    (tmp_path / "run.py").write_text(SCRIPT)
    (tmp_path / "killer.py").write_text(KILLER)
    copies = tmp_path / "copies"
    copies.mkdir()
    files = sorted(photos.rglob("*.png"))
    for number in range(8 * NUM_IMAGES):  # enough work for ten kills
        (copies / f"{number:03d}.png").write_bytes(files[number % NUM_IMAGES].read_bytes())
    program(tmp_path, "run.py", tmp_path / "whole", copies)
    output = program(tmp_path, "killer.py", tmp_path / "killed", copies)
    finished = [int(line) for line in output.split()]
    assert len(finished) == 10 and not (tmp_path / "killed" / "index.parquet").exists()
    assert finished == sorted(finished) and finished[-1] > finished[0]  # each run resumed where the last was killed
    program(tmp_path, "run.py", tmp_path / "killed", copies)
    assert_same(tmp_path / "killed", tmp_path / "whole")


def test_two_processes(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    program(tmp_path, *launch, "run.py", tmp_path / "two", photos)
    program(tmp_path, "run.py", tmp_path / "one", photos)
    assert_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_disk_that_does_not_answer(
    net: td.TwinsBackbone,
    images: ImageList,
    done: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int,
) -> None:
    """If the disk fails, and not an image, the run stops and can be resumed later."""
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == Path(images.paths[-1]).name:
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(td.TwinsError, match=r"cannot be read now \(Input/output error\): finished chunks are kept"):
            run(net, images, tmp_path, num_workers=num_workers)
    run(net, images, tmp_path)
    assert_same(tmp_path, done)


def test_a_killed_reader(
    net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_killed(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "decode", be_killed)
        with pytest.raises(td.TwinsError, match=r"a data loader worker died .*fewer --workers"):
            run(net, images, tmp_path, num_workers=1)
    run(net, images, tmp_path)
    assert_same(tmp_path, done)


def test_two_runs_at_once(net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path) -> None:
    store = storage.FeatureStore(tmp_path, json.loads((done / "manifest.json").read_text()))
    with store.locked(), pytest.raises(td.TwinsError, match="another extraction is writing to"):
        run(net, images, tmp_path)
    run(net, images, tmp_path)
    assert_same(tmp_path, done)


@pytest.mark.parametrize("where", ["maps", "index"])
def test_a_full_disk(
    net: td.TwinsBackbone,
    images: ImageList,
    done: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """The disk fills up in the middle of the last of three chunks."""

    set_whole, write_whole = storage.LocalStore.set, storage.write_atomically

    async def set_fake(self: Any, key: str, value: Any) -> None:
        if key.startswith("c4/c/2"):
            raise OSError(errno.ENOSPC, "No space left on device")
        await set_whole(self, key, value)

    def write_fake(path: Path, content: bytes) -> None:
        if path.name == "00000002.parquet":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_whole(path, content)

    with monkeypatch.context() as patch:
        if where == "maps":
            patch.setattr(storage.LocalStore, "set", set_fake)
        else:
            patch.setattr(storage, "write_atomically", write_fake)
        with pytest.raises(td.TwinsError, match=r"No space left on device\): finished chunks are kept; .* again"):
            run(net, images, tmp_path)
    assert not (tmp_path / "index.parquet").exists()
    unfinished = td.open_features(tmp_path)
    assert not unfinished.complete and unfinished.rows.tolist() == list(range(8))
    assert run(net, images, tmp_path).num_done == 3  # the last chunk
    assert_same(tmp_path, done)
