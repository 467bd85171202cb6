"""Contact sheets and pages of search results."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data.image_files import UNREADABLE, decode_image

_TILE, _LINE, _GAP, _COLUMNS = 176, 20, 10, 6  # pixels, and pictures per line


@dataclass(frozen=True)
class Result:
    """Pictures that belong together: a query with its neighbours, or a group of near duplicates.

    Attributes:
        title: Text above the pictures.
        query: Path of the query; `None` for a group.
        paths: Paths of the other pictures.
        captions: Text below each of them.
    """

    title: str
    query: str | None
    paths: Sequence[str]
    captions: Sequence[str]


def draw_sheet(results: Sequence[Result]) -> Image.Image:
    """Draw a contact sheet: the query on the left, at twice the size, and the other pictures beside it."""
    step, line = _TILE + _GAP, _TILE + _LINE + _GAP
    blocks = []
    for result in results:
        left = 2 * step + _GAP if result.query is not None else 0
        lines = max(-(-len(result.paths) // _COLUMNS), 2 if left else 1)
        block = Image.new("RGB", (left + _COLUMNS * step + _GAP, _LINE + 2 * _GAP + lines * line), "white")
        draw = ImageDraw.Draw(block)
        _write(draw, _GAP, _GAP, result.title, block.width - 2 * _GAP, size=15)
        if result.query is not None:
            block.paste(_thumbnail(result.query, 2 * _TILE + _GAP), (_GAP, _LINE + 2 * _GAP))
        for place, (path, caption) in enumerate(zip(result.paths, result.captions, strict=True)):
            x, y = left + _GAP + place % _COLUMNS * step, _LINE + 2 * _GAP + place // _COLUMNS * line
            block.paste(_thumbnail(path, _TILE), (x, y))
            _write(draw, x, y + _TILE + 3, caption, _TILE, size=12)
        blocks.append(block)
    sheet = Image.new("RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def page_of(results: Sequence[Result], title: str) -> str:
    """Return an HTML page with the pictures as thumbnails, which needs no other file."""
    parts = [
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>'
        "body{font:15px sans-serif;margin:2em}section{border-top:1px solid #ccc;padding:1em 0}"
        "div{display:flex;flex-wrap:wrap;gap:10px}figure{margin:0;width:176px}figcaption{overflow-wrap:anywhere}"
        f".query img{{outline:3px solid #0072b2}}</style><h1>{html.escape(title)}</h1>"
    ]
    for result in results:
        parts.append(f"<section><h2>{html.escape(result.title)}</h2><div>")
        if result.query is not None:
            parts.append(_figure(result.query, "query", "query"))
        parts += [_figure(path, text) for path, text in zip(result.paths, result.captions, strict=True)]
        parts.append("</div></section>")
    return "\n".join(parts)


def _figure(path: str, caption: str, kind: str = "") -> str:
    buffer = io.BytesIO()
    _thumbnail(path, _TILE).save(buffer, "JPEG", quality=85)
    source = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return (
        f'<figure class="{kind}"><img src="data:image/jpeg;base64,{source}" alt="{text}" title="{html.escape(path)}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _thumbnail(path: str, side: int) -> Image.Image:
    """Return a square picture of an image, or a grey one if it can no longer be read."""
    try:
        picture = decode_image(io.BytesIO(Path(path).read_bytes()), upright=True)
    except UNREADABLE:
        return Image.new("RGB", (side, side), "lightgrey")
    return ImageOps.pad(picture, (side, side), Image.Resampling.LANCZOS, color="#f2f2f2")


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, width: int, size: int) -> None:
    """Write a line of text, without its first characters if it is too long."""
    font = ImageFont.load_default(size)
    whole = text
    while font.getlength(text) > width and len(whole) > 1:
        whole = whole[1:]
        text = "…" + whole
    draw.text((x, y), text, fill="black", font=font)
