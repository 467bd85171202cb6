"""Download published checkpoints.

Interrupted downloads resume, and a file gets its final name only after its hash has been checked.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from ..errors import TwinsError, did_you_mean, one_line, requires_extra
from .catalog import CATALOG, WeightsSpec
from .keymap import recognise, unwrap
from .read import check_start, read_checkpoint

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without any data
_HUGGING_FACE = re.compile(r"https://huggingface\.co/(?P<repository>[^/]+/[^/]+)/resolve/main/(?P<file>.+)")

_logger = logging.getLogger(__name__)


def fetch_weights(source: str | os.PathLike[str]) -> Path:
    """Return the path of a checkpoint, downloading it first if `source` is a catalog name and it is not in the cache.

    Args:
        source: Path of a file, or a catalog name. A file takes precedence.

    Raises:
        TwinsError: If there is neither a file nor a catalog entry of this name, or if the download fails.
    """
    path, name = Path(source), str(source)
    if path.exists():
        return path
    if name in CATALOG:
        return download(CATALOG[name])
    raise TwinsError(f"weights {name!r}: no such file; check the path or the catalog name{did_you_mean(name, CATALOG)}")


def download(spec: WeightsSpec) -> Path:
    """Return the path of a catalog entry's file, downloading it to `cache_dir()` first if it is not there.

    An interrupted download resumes. If several processes request the same file, one downloads it and the others wait.

    Raises:
        TwinsError: If the download fails, or if the file is not the published one. Such a file is removed.
    """
    path = spec.path
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{path.name}")
    with FileLock(path.with_name(f".lock-{path.name}")):
        if path.exists():
            return path
        _logger.info("downloading %s", spec.url)
        try:
            published = spec.sha256
            if on_hub := _HUGGING_FACE.fullmatch(spec.url):
                published = _fetch_from_hub(spec, part, **on_hub.groupdict())
            else:
                _fetch(spec, part)
            _check(spec, part, published)
        except TwinsError as error:
            raise TwinsError(f"weights {spec.name!r}: {error}") from None
        os.replace(part, path)
    return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check(spec: WeightsSpec, part: Path, published: str) -> None:
    """Check that a file has the published hash or, if none is published, the right variant; otherwise remove it."""
    try:
        check_start(part)
        digest = sha256_of(part)
        if not digest.startswith(published):
            raise TwinsError(f"its SHA-256 is {digest} instead of {published}; it was removed: download it again")
        if not published and (found := recognise(unwrap(read_checkpoint(part))).variant) != spec.variant:
            raise TwinsError(f"{spec.url} holds {found}; it was removed: download the weights from another source")
    except TwinsError:
        part.unlink()
        raise


def _fetch(spec: WeightsSpec, part: Path) -> None:
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(spec.url, headers={"User-Agent": "twins-dense"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    opener = urllib.request.build_opener()  # urlopen would keep the proxies of its first call
    try:
        with opener.open(request, timeout=_TIMEOUT) as response:
            resumed = response.status == 206  # servers may send the whole file instead, and file:// has no status
            start = start if resumed else 0
            length = response.headers.get("Content-Length")
            total = None if length is None else start + int(length)
            with (
                part.open("ab" if resumed else "wb") as file,
                tqdm(desc=spec.name, total=total, initial=start, unit="B", unit_scale=True, disable=None) as bar,
            ):
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
                size = file.tell()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # no bytes are left to send; the hash shows whether the file is complete
            return
        raise TwinsError(
            f"{spec.url} responded with {error.code} ({error.reason}); download it in another way and give its path"
        ) from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise _unreachable(spec, part, error) from None
    if total is not None and size < total:
        raise _unreachable(spec, part, f"the download ended after {size} of {total} bytes")


def _fetch_from_hub(spec: WeightsSpec, part: Path, repository: str, file: str) -> str:
    """Download with huggingface_hub, which supports tokens and mirrors, and return the hub's SHA-256, if any, or ""."""
    with requires_extra("hub"):
        import huggingface_hub
    folder = part.with_name(f"{part.name}.hub")
    try:
        etag = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, file)).etag
        downloaded = huggingface_hub.hf_hub_download(repository, file, local_dir=folder)
    except Exception as error:  # it lets errors of its HTTP library through, and has changed that library
        raise _unreachable(spec, part, error) from None
    os.replace(downloaded, part)
    shutil.rmtree(folder)
    return etag if etag and re.fullmatch("[0-9a-f]{64}", etag) else ""


def _unreachable(spec: WeightsSpec, part: Path, reason: Any) -> TwinsError:
    reason = one_line(getattr(reason, "reason", None) or reason) or type(reason).__name__
    kept = f"; {part.stat().st_size} bytes are kept, and the next call resumes there" if part.exists() else ""
    return TwinsError(
        f"{spec.url} cannot be downloaded ({reason}){kept}. Check the network (HTTPS_PROXY sets a proxy), "
        "or download the file in another way and give its path"
    )
