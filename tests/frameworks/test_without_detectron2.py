"""Without detectron2, everything else works, and its own part says how to install it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from detection_fixtures import ROOT, run_python

# Runs in a separate process. For each line of code in argv, it prints the output, the error output, and the exit code
# or the exception.
PROGRAM = """
import contextlib, io, json, sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "detectron2":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocker())
found = []
for code in sys.argv[1:]:
    out, err, end = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(code, {"__name__": "__main__"})
        except SystemExit as stop:
            end = stop.code
        except BaseException as error:
            end = [type(error).__name__, str(error)]
    found.append([out.getvalue(), err.getvalue(), end])
print(json.dumps(found))
"""
LAZY = ROOT / "configs" / "detectron2" / "mask_rcnn_svt_small_1x.py"
IMPORT = """
import sys
import twins_dense
import twins_dense.frameworks.mmengine.detectors
import twins_dense.frameworks.mmengine.engine
from twins_dense.frameworks import engine_of
print(engine_of({torchvision!r}).__name__, "detectron2" in sys.modules)
"""
COMMAND = """
import sys
from twins_dense.cli import main
sys.argv = ["twins-dense", *{arguments!r}]
main()
"""
SCRIPT = """
import runpy, sys
sys.argv = [{path!r}, "--config-file", {config!r}]
runpy.run_path({path!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("without")
    (folder / "photo.jpg").write_bytes(b"not looked at")
    lazy = str(LAZY)
    codes = {
        "import": IMPORT.format(torchvision=str(ROOT / "configs" / "torchvision" / "mask_rcnn_svt_small_1x.py")),
        "backbone": "import twins_dense.frameworks.detectron2.backbone",
        "train": COMMAND.format(arguments=["train", lazy]),
        "train yaml": COMMAND.format(arguments=["train", str(LAZY.with_suffix(".yaml"))]),
        "eval": COMMAND.format(arguments=["eval", lazy, "model_final.pth"]),
        "predict": COMMAND.format(arguments=["predict", lazy, "model_final.pth", "photo.jpg"]),
        "tools/train_net.py": SCRIPT.format(path=str(ROOT / "tools" / "train_net.py"), config=lazy),
        "help": COMMAND.format(arguments=["train", "--help"]),
    }
    result = run_python("-c", PROGRAM, *codes.values(), cwd=folder)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in folder.iterdir()] == ["photo.jpg"]
    return dict(zip(codes, json.loads(result.stdout), strict=True))


def assert_says_how_to_install(line: str) -> None:
    assert "\n" not in line
    assert "detectron2 is not installed" in line
    assert "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'" in line


def test_the_rest_works(found: dict[str, list[Any]]) -> None:
    assert found["import"] == ["twins_dense.frameworks.mmengine.engine False\n", "", None]
    out, err, code = found["help"]
    assert "--num-gpus" in out and (err, code) == ("", None)


def test_the_backbone_raises_one_import_error(found: dict[str, list[Any]]) -> None:
    out, err, (kind, line) = found["backbone"]
    assert (out, err, kind) == ("", "", "ImportError")
    assert_says_how_to_install(line)


@pytest.mark.parametrize("command", ["train", "train yaml", "eval", "predict", "tools/train_net.py"])
def test_the_command_line_is_one_line(found: dict[str, list[Any]], command: str) -> None:
    out, err, code = found[command]
    assert (out, code) == ("", 2)
    assert err.startswith("error: ") and err.endswith("\n")
    assert_says_how_to_install(err.removesuffix("\n"))


def test_a_part_of_detectron2_that_is_missing_is_not_hidden(tmp_path: Path) -> None:
    """If another module is missing, such as one that detectron2 needs, its own name is reported."""
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("import no_such_module_of_detectron2\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import twins_dense.frameworks.detectron2.backbone"
    result = run_python("-c", code)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_module_of_detectron2'"
