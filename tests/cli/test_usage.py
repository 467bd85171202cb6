"""The command line: help, exit codes, one clear line for what can't be used, and what each verb leaves behind."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from cli_fixtures import twins
from detection_fixtures import run_python

import twins_dense as td

VERBS = (
    "demo",
    "train",
    "eval",
    "predict",
    "report",
    "check-data",
    "configs",
    "validate",
    "weights",
    "convert",
    "extract",
    "search",
    "export",
    "info",
    "benchmark",
)


class TestUsage:
    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_help(self, flag: str) -> None:
        result = twins(flag)
        assert (result.code, result.err) == (0, "")
        for verb in VERBS:
            assert re.search(rf"^  {verb} ", result.out, re.MULTILINE)
        assert "twins-dense demo" in result.out.split("Examples:")[1]

    @pytest.mark.parametrize("verb", VERBS)
    def test_help_of_a_verb(self, verb: str) -> None:
        result = twins(verb, "--help")
        assert (result.code, result.err) == (0, "")
        assert f"twins-dense {verb}" in result.out.split("Examples:")[1]
        assert "Options:" in result.out

    def test_version(self) -> None:
        result = twins("--version")
        assert result.code == 0 and td.__version__ in result.out

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["fly"], "fly"),
            (["train"], "CONFIG"),
            (["train", "a.py", "--fast"], "--fast"),
            (["predict", "a.py", "b.pth"], "IMAGES"),
            (["predict", "a.py", "b.pth", "c.jpg", "--score", "1.5"], "1.5"),
            (["demo", "--epochs", "0"], "0"),
        ],
    )
    def test_wrong_usage(self, arguments: list[str], words: str) -> None:
        result = twins(*arguments)
        assert result.code == 2
        assert "Traceback" not in result.err
        assert words in result.err.splitlines()[-1]

    @pytest.mark.parametrize("start", [["-m", "twins_dense"], [str(Path(sys.executable).with_name("twins-dense"))]])
    def test_as_a_program(self, tmp_path: Path, start: list[str]) -> None:
        result = run_python(*start, "train", "nowhere.py", cwd=tmp_path)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: config 'nowhere.py': no such file; check the path, or choose a name from ")
        assert list(tmp_path.iterdir()) == []
