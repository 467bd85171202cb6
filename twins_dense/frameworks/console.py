"""Progress lines and tables of evaluations, which both frameworks show on the console.

Runs log them to the logger "twins_dense". The command line passes its output stream to `show_on`; in other programs,
the logging of the program decides what is shown.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

logger = logging.getLogger("twins_dense")

_COCO_ROWS = {"bbox": "box", "segm": "mask"}
_COCO_COLUMNS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "small", "APm": "medium", "APl": "large"}
_SEGMENTATION_COLUMNS = ("mIoU", "mAcc", "aAcc")


class ConsoleHandler(logging.Handler):
    """Write log records as plain lines.

    A record with a true attribute `live` shows the present state: on a terminal, the next record replaces it; elsewhere
    it is dropped.

    Args:
        stream: Output stream.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream
        self._has_live_line = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            is_live, is_terminal = getattr(record, "live", False), self.stream.isatty()
            if is_live and not is_terminal:
                return
            text = self.format(record)
            if record.levelno >= logging.WARNING:
                text = f"{record.levelname.lower()}: {text}"
            start = "\r\x1b[K" if self._has_live_line else ""  # go to the start of the line, and erase it
            if is_live:
                width = shutil.get_terminal_size().columns
                self.stream.write(f"{start}{text[: width - 1]}")
            else:
                self.stream.write(f"{start}{text}\n")
            self._has_live_line = is_live
            self.stream.flush()
        except Exception:  # as the handlers of the standard library do
            self.handleError(record)


class ForwardHandler(logging.Handler):
    """Pass records of a framework's logger, by default warnings and errors, to our logger."""

    def __init__(self, level: int = logging.WARNING) -> None:
        super().__init__(level)

    def emit(self, record: logging.LogRecord) -> None:
        logger.log(record.levelno, "%s", record.getMessage())


class Progress:
    """Log the progress of a loop at intervals of time.

    The first line appears after `first` seconds, or after the first iteration if that takes longer; then one line
    appears every `interval` seconds, and one for the last iteration. Terminals also show a line that is replaced every
    second.

    Args:
        total: Number of iterations of the whole loop.
        done: Number of iterations that were done before, for a resumed run.
        first: Seconds until the first line.
        interval: Seconds between lines.
        last_line: Whether to log a line for the last iteration even if no line is due.
        clock: Function that returns the time in seconds.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        *,
        first: float = 10,
        interval: float = 30,
        last_line: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.interval = interval
        self.last_line = last_line
        self._clock = clock
        self._start = done
        self._last = done
        self._seconds = 0.0  # spent in iterations
        self._pauses = 0.0
        self._since = clock()
        self._next_line = self._since + first
        self._next_live_line = self._since + 1
        self._paused_at: float | None = None
        self._rate: float | None = None

    def pause(self) -> None:
        """Stop the clock of the iterations, for an evaluation or anything else that happens in between."""
        self._paused_at = self._clock()

    def resume(self) -> None:
        """Start the clock again. The ETA assumes that pauses keep their share of the time."""
        if self._paused_at is not None:
            pause = self._clock() - self._paused_at
            self._pauses += pause
            self._since += pause
            self._next_line += pause
            self._paused_at = None

    def update(self, done: int, position: str, values: Callable[[], Mapping[str, float]] = dict) -> None:
        """Count iterations, and log a line if one is due.

        Args:
            done: Number of iterations done so far, including those before a resume.
            position: Start of the line, such as "epoch 3/12  iter 140/1200".
            values: Function that returns losses and the like; it is called only if a line is due.
        """
        self.resume()
        now = self._clock()
        if done > self._last:
            latest = (now - self._since) / (done - self._last)
            # The mean of the run until 20 iterations are done, then a moving average.
            weight = max(0.05, (done - self._last) / (done - self._start))
            self._rate = latest if self._rate is None else (1 - weight) * self._rate + weight * latest
        self._since, self._last = now, done
        is_due = now >= self._next_line or (done == self.total and self.last_line)
        if is_due or now >= self._next_live_line:
            logger.info(self._line(position, values()), extra={"live": not is_due})
            self._next_live_line = now + 1
        if is_due:
            self._next_line = now + self.interval

    def _line(self, position: str, values: Mapping[str, float]) -> str:
        parts = [position, *(f"{name} {_short(name, value)}" for name, value in values.items())]
        if self._rate is not None:
            parts.append(f"{1 / self._rate:.1f} it/s" if 0 < self._rate < 0.5 else f"{self._rate:.2g} s/it")
        left = self.total - self._last
        if self._rate is not None and left:
            pause = self._pauses / max(1, self._last - self._start)
            parts.append(f"ETA {duration(left * (self._rate + pause))}")
        return "  ".join(parts)


def show_on(stream: TextIO) -> None:
    """Show progress, tables and warnings on a stream, and nowhere else."""
    for handler in [handler for handler in logger.handlers if isinstance(handler, ConsoleHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(ConsoleHandler(stream))
    logger.setLevel(logging.INFO)
    logger.propagate = False


def duration(seconds: float) -> str:
    """Return a time in words, such as "45 s", "9 min", "2 h 5 min" or "1 d 3 h"."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def short_path(path: str | Path) -> str:
    """Return a path relative to the current folder if it lies there."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def evaluation_table(metrics: Mapping[str, float]) -> str:
    """Return the main metrics of an evaluation as a small table.

    COCO's metrics have one row for boxes and one for masks, and the columns AP, AP50, AP75, the AP of small, medium and
    large objects, and the AR with the largest number of detections. The metrics of segmentation have one row with mIoU,
    mAcc and aAcc. Other metrics are listed below by name, but scores of single classes (`coco/bbox_AP-NAME`,
    `IoU/NAME`, …) and parts of the validation loss are left out.

    Args:
        metrics: Metrics with the names and units of `metrics.json`.
    """
    metrics = {name: value for name, value in metrics.items() if not is_of_class(name)}
    blocks = []
    coco = {name: value for name, value in metrics.items() if name.startswith(("coco/bbox_", "coco/segm_"))}
    if coco:
        blocks.append(_coco_table(coco))
    segmentation = [name for name in _SEGMENTATION_COLUMNS if name in metrics]
    if segmentation:
        blocks.append(_table([segmentation, [_score(metrics[name]) for name in segmentation]]))
    others = [name for name in metrics if name not in coco and name not in segmentation and not _is_part(name)]
    if others:
        blocks.append("\n".join(f"{name} {metrics[name]:.4g}" for name in others))
    return "\n".join(blocks)


def is_of_class(name: str) -> bool:
    """Return whether a metric is the score of a single class."""
    return re.match(r"coco/(bbox|segm)_AP(50)?-|IoU/|Acc/", name) is not None


def _is_part(name: str) -> bool:
    return name.startswith("val/") and name != "val/loss"


def _coco_table(metrics: Mapping[str, float]) -> str:
    recalls = [int(found[1]) for found in map(re.compile(r"coco/\w+_AR(\d+)").fullmatch, metrics) if found]
    names = {**_COCO_COLUMNS, **({f"AR{max(recalls)}": "AR"} if recalls else {})}
    rows = [["", *names.values()]]
    for kind, title in _COCO_ROWS.items():
        if any(name.startswith(f"coco/{kind}_") for name in metrics):
            rows.append([title.ljust(4), *(_score(metrics.get(f"coco/{kind}_{name}", -1)) for name in names)])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def _score(value: float) -> str:
    """Return a score in 0..1, or a dash for NaN and COCO's -1, which stand for "no ground truth"."""
    return f"{value:.3f}" if value >= 0 else "–"


def _short(name: str, value: float) -> str:
    return f"{value:.3g}" if name == "lr" else f"{value:.4g}"
