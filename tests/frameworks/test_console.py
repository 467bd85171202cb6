"""Progress lines appear at intervals of time, and tables show the main metrics."""

from __future__ import annotations

import io
import logging
import math

import pytest

from twins_dense.frameworks.console import (
    ConsoleHandler,
    ForwardHandler,
    Progress,
    duration,
    evaluation_table,
    logger,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if not record.live]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def all_records(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger=logger.name)


class TestProgress:
    def test_lines_at_intervals_of_time(self, caplog: pytest.LogCaptureFixture) -> None:
        """Iterations of 2 seconds: a line after 10 seconds, then one every 30 seconds, and one for the last."""
        clock = Clock()
        progress = Progress(30, clock=clock)
        for done in range(1, 31):
            clock.now += 2
            progress.update(done, f"iter {done}/30", lambda: {"loss": 1.23456, "lr": 1e-5})
        assert lines_of(caplog) == [
            "iter 5/30  loss 1.235  lr 1e-05  2 s/it  ETA 50 s",
            "iter 20/30  loss 1.235  lr 1e-05  2 s/it  ETA 20 s",
            "iter 30/30  loss 1.235  lr 1e-05  2 s/it",
        ]

    def test_the_first_line_does_not_wait_for_a_second_slow_iteration(self, caplog: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        progress = Progress(100, clock=clock)
        clock.now += 45
        progress.update(1, "iter 1/100")
        assert lines_of(caplog) == ["iter 1/100  45 s/it  ETA 1 h 14 min"]

    def test_pauses_count_for_the_eta_only(self, caplog: pytest.LogCaptureFixture) -> None:
        """Iterations of 1 s and an evaluation of 20 s: at iteration 40, each iteration counts 1.5 s in the ETA."""
        clock = Clock()
        progress = Progress(60, clock=clock)
        for done in range(1, 50):
            clock.now += 1
            progress.update(done, f"iter {done}/60")
            if done == 20:
                progress.pause()
                clock.now += 20
                progress.resume()
        assert lines_of(caplog) == ["iter 10/60  1 s/it  ETA 50 s", "iter 40/60  1 s/it  ETA 30 s"]

    def test_a_resumed_run_counts_its_own_iterations(self, caplog: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        progress = Progress(1000, 900, clock=clock)
        clock.now += 20
        progress.update(910, "iter 910/1000")
        assert lines_of(caplog) == ["iter 910/1000  2 s/it  ETA 3 min"]

    def test_values_are_computed_only_for_lines(self) -> None:
        clock, calls = Clock(), []
        progress = Progress(1000, clock=clock)
        for done in range(1, 900):
            clock.now += 0.1
            progress.update(done, "", lambda: calls.append(1) or {})
        assert 80 < len(calls) < 100  # each second, for terminals


class TestConsoleHandler:
    def test_elsewhere_than_on_a_terminal(self) -> None:
        stream = io.StringIO()
        self.log_to(stream)
        assert stream.getvalue() == "start\nwarning: hot\nend\n"

    def test_a_terminal_replaces_live_lines(self) -> None:
        stream = Terminal()
        self.log_to(stream)
        erase = "\r\x1b[K"
        assert stream.getvalue() == f"start\none{erase}two{erase}warning: hot\nend\n"

    def log_to(self, stream: io.StringIO) -> None:
        handler = ConsoleHandler(stream)
        logger.addHandler(handler)
        try:
            logger.info("start")
            logger.info("one", extra={"live": True})
            logger.info("two", extra={"live": True})
            logger.warning("hot")
            logger.info("end")
        finally:
            logger.removeHandler(handler)

    def test_warnings_of_a_framework(self, caplog: pytest.LogCaptureFixture) -> None:
        other = logging.Logger("framework")
        other.addHandler(ForwardHandler())
        other.info("a table of hooks")
        other.warning("100%% %s", "sure")
        assert [(record.name, record.getMessage()) for record in caplog.records] == [(logger.name, "100% sure")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86399, "1 d 0 h"),
        (200000, "2 d 7 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class TestEvaluationTable:
    def test_boxes_and_masks(self) -> None:
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR300", "ARs", "ARm", "ARl")
        metrics = {f"coco/bbox_{name}": number / 100 for number, name in enumerate(names)}
        metrics |= {"coco/segm_AP": 0.5, "coco/segm_APs": -1.0, "coco/segm_AP50": math.nan, "coco/segm_AP-cat": 0.25}
        metrics |= {"coco/segm_AP50-cat": 0.5}
        assert evaluation_table(metrics).splitlines() == [
            "         AP   AP50   AP75  small  medium  large     AR",
            "box   0.000  0.010  0.020  0.030   0.040  0.050  0.080",
            "mask  0.500      –      –      –       –      –      –",
        ]

    def test_segmentation(self) -> None:
        metrics = {"aAcc": 0.9, "mIoU": 0.41249, "mAcc": 0.5, "IoU/sky": 0.3, "val/loss": 1.5}
        assert evaluation_table(metrics).splitlines() == [
            " mIoU   mAcc   aAcc",
            "0.412  0.500  0.900",
            "val/loss 1.5",
        ]
