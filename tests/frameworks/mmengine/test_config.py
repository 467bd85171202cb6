"""Config files and overrides are checked when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detection_fixtures import CONFIGS
from run_fixtures import one_line_of

from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine.engine import load_config, set_data_root, set_skip_bad

SMALL = CONFIGS / "mask_rcnn_svt_small_1x.py"


class TestLoadConfig:
    @pytest.mark.parametrize("name", ["nothing.py", ""])
    def test_missing(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(TwinsError) as caught:
            load_config(tmp_path / name)
        one_line_of(caught, str(tmp_path / name), "no such file")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("model = dict(\n", "SyntaxError"),
            ("model = dict(a=1 / 0)\n", "ZeroDivisionError"),
            ("_base_ = 'not_there.py'\n", "not_there.py"),
        ],
    )
    def test_broken(self, tmp_path: Path, text: str, words: str) -> None:
        path = tmp_path / "broken.py"
        path.write_text(text)
        with pytest.raises(TwinsError) as caught:
            load_config(path)
        one_line_of(caught, str(path), "cannot be read", words)

    def test_unknown_key(self, tmp_path: Path) -> None:
        path = tmp_path / "typo.py"
        path.write_text(f"_base_ = {str(SMALL)!r}\noptim_wraper = dict(type='OptimWrapper')\n")
        with pytest.raises(TwinsError) as caught:
            load_config(path)
        one_line_of(caught, str(path), "unknown key 'optim_wraper': did you mean 'optim_wrapper'?", "underscore")

    def test_own_keys_begin_with_an_underscore(self, tmp_path: Path) -> None:
        path = tmp_path / "own.py"
        path.write_text(f"_base_ = {str(SMALL)!r}\n_sizes = (1, 2)\n")
        assert load_config(path)._sizes == (1, 2)

    @pytest.mark.parametrize(
        ("override", "get", "expected"),
        [
            ("optim_wrapper.optimizer.lr=3e-5", lambda c: c.optim_wrapper.optimizer.lr, 3e-5),
            ("model.min_size=[480, 800]", lambda c: c.model.min_size, [480, 800]),
            ("model.backbone.weights=a/b=c.pth", lambda c: c.model.backbone.weights, "a/b=c.pth"),
            ("model.backbone.weights=None", lambda c: c.model.backbone.weights, None),
            ("param_scheduler.0.end=7", lambda c: c.param_scheduler[0].end, 7),
            ("param_scheduler.1.milestones.1=9", lambda c: c.param_scheduler[1].milestones, [8, 9]),
            (
                "train_dataloader.dataset.transforms.0.p=0",
                lambda c: c.train_dataloader.dataset.transforms[0].p,
                0,
            ),
        ],
    )
    def test_override(self, override: str, get: Any, expected: Any) -> None:
        before, after = load_config(SMALL), load_config(SMALL, [override])
        assert get(before) != expected or expected is None
        assert get(after) == expected
        # The other scheduler, for example, is still there.
        assert len(after.param_scheduler) == 2 and after.param_scheduler[1].type == "MultiStepLR"
        assert after.model.type == before.model.type

    def test_the_last_override_counts(self) -> None:
        assert load_config(SMALL, ["model.num_classes=3", "model.num_classes=5"]).model.num_classes == 5

    @pytest.mark.parametrize("override", ["model.num_classes", "", "=3", "--foo"])
    def test_malformed_override(self, override: str) -> None:
        with pytest.raises(TwinsError) as caught:
            load_config(SMALL, [override])
        one_line_of(caught, repr(override), "key=value")

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("model.num_clases=3", "model has no 'num_clases': did you mean 'num_classes'?"),
            ("modl.num_classes=3", "the config has no 'modl': did you mean 'model'?"),
            ("optim_wrapper.optimizer.lr.x=3", "optim_wrapper.optimizer.lr has no 'x'"),
            ("param_scheduler.2.end=3", "param_scheduler has no '2': known are 0, 1"),
            ("param_scheduler.first.end=3", "param_scheduler has no 'first'"),
            ("param_scheduler.-1.end=3", "param_scheduler has no '-1'"),
            ("model.backbone.zzz=1", "model.backbone has no 'zzz': known are variant, window_padding"),
        ],
    )
    def test_unknown_override(self, override: str, words: str) -> None:
        with pytest.raises(TwinsError) as caught:
            load_config(SMALL, [override])
        one_line_of(caught, repr(override), words)


def test_set_data_root_and_skip_bad() -> None:
    config = load_config(SMALL)
    config.test_dataloader = config.val_dataloader.copy()
    loaders = (config.train_dataloader, config.val_dataloader, config.test_dataloader)
    assert {loader.dataset.data_root for loader in loaders} == {"data/coco"}
    assert not any(loader.dataset.skip_bad for loader in loaders)
    set_data_root(config, Path("/else/where"))
    set_skip_bad(config)
    assert {loader.dataset.data_root for loader in loaders} == {"/else/where"}
    assert all(loader.dataset.skip_bad for loader in loaders)
