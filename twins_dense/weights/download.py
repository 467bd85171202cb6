"""Fetch published files: resumed where they broke off, and named only once they are what was published."""

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

from ..errors import TwinsError, did_you_mean, one_line
from .catalog import CATALOG, WeightsSpec
from .keymap import recognise, unwrap
from .read import check_start, read_checkpoint

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_HUGGING_FACE = re.compile(r"https://huggingface\.co/(?P<repository>[^/]+/[^/]+)/resolve/main/(?P<file>.+)")

_logger = logging.getLogger(__name__)


def fetch_weights(source: str | os.PathLike[str]) -> Path:
    """A file's path as it is; of a name of the catalog the downloaded file, fetched first where it is not here yet.

    Raises:
        TwinsError: where there is neither such a file nor such a name, or the download fails.
    """
    path, name = Path(source), str(source)
    if path.exists():
        return path
    if name in CATALOG:
        return download(CATALOG[name])
    raise TwinsError(
        f"weights {name!r}: no such file; check the path, or the name in the catalog{did_you_mean(name, CATALOG)}"
    )


def download(spec: WeightsSpec) -> Path:
    """The file of a catalog entry in `cache_dir()`, fetched where it is not there; a broken download is gone on with.

    Processes that want the same file wait for the first of them.

    Raises:
        TwinsError: where it can't be fetched, or is not what was published; then it is removed.
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
            published = _fetch_from_hub(spec, part) if _HUGGING_FACE.fullmatch(spec.url) else _fetch(spec, part)
            _check(spec, part, published)
        except TwinsError as error:
            raise TwinsError(f"weights {spec.name!r}: {error}") from None
        os.replace(part, path)
    return path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check(spec: WeightsSpec, part: Path, published: str) -> None:
    """Keep the file only if its hash is the published one; where none is published, if it holds the variant."""
    try:
        check_start(part)
        digest = sha256_of(part)
        if not digest.startswith(published):
            raise TwinsError(f"its SHA-256 is {digest}, published is {published}; it was removed: download it again")
        if not published and (found := recognise(unwrap(read_checkpoint(part))).variant) != spec.variant:
            raise TwinsError(f"{spec.url} holds {found}; it was removed")
    except TwinsError:
        part.unlink()
        raise


def _fetch(spec: WeightsSpec, part: Path) -> str:
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(spec.url, headers={"User-Agent": "twins-dense"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    opener = urllib.request.build_opener()  # urlopen would keep the proxies that were set at its first call
    try:
        with opener.open(request, timeout=_TIMEOUT) as response:
            goes_on = response.status == 206  # a server may send all of it instead; a file:// has no status
            start = start if goes_on else 0
            length = response.headers.get("Content-Length")
            total = None if length is None else start + int(length)
            with (
                part.open("ab" if goes_on else "wb") as file,
                tqdm(desc=spec.name, total=total, initial=start, unit="B", unit_scale=True, disable=None) as bar,
            ):
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
                size = file.tell()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing is left to send: the hash says whether that is all of it
            return spec.sha256
        raise TwinsError(
            f"{spec.url} answers {error.code} ({error.reason}); download the file another way and give its path"
        ) from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise _unreachable(spec, part, error) from None
    if total is not None and size < total:
        raise _unreachable(spec, part, f"it ended after {size} of {total} bytes")
    return spec.sha256


def _fetch_from_hub(spec: WeightsSpec, part: Path) -> str:
    """Through huggingface_hub, for its tokens, mirrors and storage; returns the hub's own SHA-256."""
    try:
        import huggingface_hub
    except ImportError:
        raise TwinsError("it lies on the Hugging Face hub, which needs: pip install 'twins-dense[hub]'") from None
    match = _HUGGING_FACE.fullmatch(spec.url)
    assert match is not None
    folder = part.with_name(f"{part.name}.hub")
    try:
        url = huggingface_hub.hf_hub_url(match["repository"], match["file"])
        etag = huggingface_hub.get_hf_file_metadata(url).etag
        file = huggingface_hub.hf_hub_download(match["repository"], match["file"], local_dir=folder)
    except Exception as error:  # the hub passes on what its HTTP library raises, and changes that library
        raise _unreachable(spec, part, error) from None
    os.replace(file, part)
    shutil.rmtree(folder)
    return etag if etag and re.fullmatch("[0-9a-f]{64}", etag) else ""


def _unreachable(spec: WeightsSpec, part: Path, reason: Any) -> TwinsError:
    reason = one_line(getattr(reason, "reason", None) or reason or type(reason).__name__)
    kept = f"; {part.stat().st_size} bytes are kept, and a second call goes on there" if part.exists() else ""
    return TwinsError(
        f"{spec.url} can't be fetched ({reason}){kept}. Check the network (HTTPS_PROXY sets a proxy), "
        "or download the file another way and give its path"
    )
