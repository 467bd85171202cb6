"""The configs that come with the package are found by name, copied with inherited files, and part of the wheel."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from cli_fixtures import assert_error, snapshot, twins
from detection_fixtures import CONFIGS, ROOT, run_python

import twins_dense as td
from twins_dense.frameworks import open_config
from twins_dense.frameworks.shipped_configs import configs_dir, copy_config, find_config, list_configs

NAME = "torchvision/mask_rcnn_svt_small_1x"
PATH = CONFIGS / "mask_rcnn_svt_small_1x.py"


def test_every_experiment_has_a_name() -> None:
    names = list_configs()
    folders = [ROOT / "configs" / name for name in ("torchvision", "mmseg", "detectron2")]
    files = [path for folder in folders for path in folder.glob("*.*")]
    assert configs_dir() == ROOT / "configs"
    assert sorted(find_config(name) for name in names) == sorted(files) and len(names) == len(files) > 60
    assert not [name for name in names if {"_base_", "common"} & {*name.split("/")}]
    expected = [f"mmseg/upernet_svt_{size}_160k" for size in ("base", "large", "small")]
    assert list_configs("mmseg/upernet_svt_*") == expected


@pytest.mark.parametrize("name", [NAME, f"{NAME}.py", str(PATH), PATH])
def test_names_and_paths_find_the_same(name: str | Path) -> None:
    assert find_config(name) == PATH


def test_yaml_keeps_its_suffix() -> None:
    """Two configs differ only in their suffix."""
    found = [find_config(f"detectron2/mask_rcnn_svt_small_1x{suffix}").suffix for suffix in ("", ".py", ".yaml")]
    assert found == [".py", ".py", ".yaml"]


def test_a_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path(f"{NAME}.py")
    own.parent.mkdir()
    own.touch()
    assert find_config(own) == own and find_config(NAME) == PATH


UNKNOWN = ["torchvision/mask_rcnn_svt_smal_1x", "no.py", "torchvision", "torchvision/_base_/runtime"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names(name: str) -> None:
    with pytest.raises(td.TwinsError, match=r"no such file; check the path, or choose a name") as caught:
        find_config(name)
    assert repr(name) in str(caught.value) and "\n" not in str(caught.value)
    assert ("did you mean 'torchvision/mask_rcnn_svt_small_1x'?" in str(caught.value)) == ("smal_1x" in name)


class TestCopy:
    @pytest.mark.parametrize("name", [NAME, "mmseg/semantic_fpn_svt_small_camvid", "torchvision/retinanet_svt_base_3x"])
    def test_works_outside_the_repository(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        copied, *inherited = copy_config(name, "mine")
        assert copied == Path("mine") / f"{name.split('/')[1]}.py" and inherited
        assert sorted(path for path in Path("mine").rglob("*") if path.is_file()) == sorted([copied, *inherited])
        assert open_config(copied)[1].to_dict() == open_config(name)[1].to_dict()
        # A change of an inherited file has an effect.
        (base,) = [path for path in inherited if path.name == "runtime.py"]
        base.write_text(base.read_text().replace("randomness = dict(seed=0)", "randomness = dict(seed=7)"))
        assert open_config(copied)[1].randomness.seed == 7

    def test_lazy_configs(self, tmp_path: Path) -> None:
        copied = copy_config("detectron2/retinanet_svt_small_3x", tmp_path)
        names = [path.relative_to(tmp_path).as_posix() for path in copied]
        assert names[0] == "retinanet_svt_small_3x.py"
        assert {"common/retinanet_3x.py", "common/retinanet.py", "common/backbone.py", "common/coco.py"} <= {*names}
        assert "common/mask_rcnn.py" not in names

    def test_yaml(self, tmp_path: Path) -> None:
        assert [path.name for path in copy_config("detectron2/mask_rcnn_svt_small_1x.yaml", tmp_path)] == [
            "mask_rcnn_svt_small_1x.yaml"
        ]

    @pytest.mark.parametrize("existing", ["mask_rcnn_svt_small_1x.py", "_base_/runtime.py"])
    def test_nothing_is_overwritten(self, existing: str, tmp_path: Path) -> None:
        path = tmp_path / existing
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        before = snapshot(tmp_path)
        with pytest.raises(td.TwinsError, match="already exists: choose another folder"):
            copy_config(NAME, tmp_path)
        assert snapshot(tmp_path) == before


class TestCommand:
    def test_list(self) -> None:
        assert twins("configs", "list").out.splitlines() == list_configs()
        assert twins("configs", "list", "*/*pcpvt_large_1x").out.splitlines() == list_configs("*/*pcpvt_large_1x")
        assert_error(twins("configs", "list", "nothing*"), "no config matches 'nothing*'")

    def test_show(self) -> None:
        assert twins("configs", "show", NAME).out == PATH.read_text()
        assert_error(twins("configs", "show", "torchvision/mask"), "'torchvision/mask'", "no such file")

    def test_copy(self, tmp_path: Path) -> None:
        result = twins("configs", "copy", NAME, tmp_path / "mine")
        assert result.code == 0 and result.out.splitlines()[0] == str(tmp_path / "mine" / PATH.name)
        assert_error(twins("configs", "copy", NAME, tmp_path / "mine"), "already exists: choose another folder")


def test_the_wheel_has_them(tmp_path: Path) -> None:
    """The wheel also contains `py.typed` and the templates of the report, and its configs are found by name, too."""
    source = tmp_path / "source"
    for name in ("twins_dense", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", str(tmp_path))
    result = run_python("-m", "pip", "wheel", "--quiet", *options, str(source))
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        opened.extractall(tmp_path / "installed")
    configs = {path.relative_to(source).as_posix() for path in (source / "configs").rglob("*") if path.is_file()}
    assert len(configs) > 80 and {f"twins_dense/{name}" for name in configs} | {"twins_dense/py.typed"} <= names
    templates = "twins_dense/evaluation/report/templates"
    shipped = {f"{templates}/{path.name}" for path in (ROOT / templates).iterdir()}
    assert f"{templates}/page.html.j2" in shipped and shipped <= names
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\n"
        "from twins_dense.frameworks.shipped_configs import find_config, list_configs\n"
        f"print(len(list_configs()), find_config({NAME!r}))"
    )
    result = run_python("-c", code, cwd=tmp_path)
    expected = tmp_path / "installed" / "twins_dense" / "configs" / f"{NAME}.py"
    assert result.stdout.split() == [str(len(list_configs())), str(expected)], result.stderr
