"""A loss that is not finite stops a detectron2 run before it reaches the parameters or a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_fixtures import Result, assert_error, twins
from d2_fixtures import HEADS, MARKS, clean_detectron2, engine, read_metrics, write_lazy  # noqa: F401  (a fixture)
from d2_run_fixtures import (
    BAD,
    assert_whole,
    ids_by_iteration,
    last_checkpoint,
    train,
)

pytestmark = MARKS


class TestNotFinite:
    def fails(self, config: Path, work_dir: Path, *options: object) -> Result:
        result = twins("train", config, "--work-dir", work_dir, "train.checkpointer.period=1", *options)
        assert_error(result, "not finite", "checkpoints written so far are kept", "optimizer.lr")
        return result

    def test_one_image(self, exact: Path, toy_data: Path) -> None:
        """The last checkpoint is from before that image, and the run can resume from it once the image is fixed."""
        config = write_lazy(exact / "tiny.py", toy_data, "retinanet", more=BAD)
        options = ("train.max_iter=4", "train.checkpointer.period=1")
        result = twins("train", config, "--work-dir", exact / "good", *options)
        assert result.code == 0, result.err
        *before, last = ids_by_iteration(config, 4)
        bad_id = next(image_id for image_id in last if all(image_id not in batch for batch in before))
        work_dir = exact / "run"
        result = self.fails(config, work_dir, "train.max_iter=4", f"dataloader.train.mapper.bad_id={bad_id}")
        assert result.err.startswith("error: iteration 3: not finite: loss_cls=nan, loss_box_reg=nan")
        assert last_checkpoint(work_dir) == "model_0000002.pth" and assert_whole(work_dir, with_config=False) == 2
        ours, theirs = (torch.load(f / "model_0000002.pth", weights_only=True) for f in (work_dir, exact / "good"))
        torch.testing.assert_close(ours["model"], theirs["model"], rtol=1e-5, atol=1e-6)
        assert sorted(read_metrics(work_dir)) == [0, 1, 2]
        result = twins("train", config, "--work-dir", work_dir, "--resume", "train.max_iter=5")
        assert result.code == 0, result.err
        assert assert_whole(work_dir, with_config=False) == 4

    @pytest.mark.parametrize(
        ("head", "override", "named", "iteration"),
        [
            ("mask_rcnn", "optimizer.lr=1e30", "loss_rpn_", 1),
            ("retinanet", "optimizer.lr=1e30", "loss_", 1),
            ("mask_rcnn", "model.pixel_std=[0,0,0]", "loss_rpn_", 0),
            ("retinanet", "model.pixel_std=[0,0,0]", "loss_cls=nan", 0),
            (
                "mask_rcnn",
                "model.roi_heads.box_predictor.loss_weight={loss_cls: inf}",
                "loss_cls=inf (all losses: ",
                0,
            ),
        ],
    )
    def test_other_causes(
        self, exact: Path, toy_data: Path, head: str, override: str, named: str, iteration: int
    ) -> None:
        config = write_lazy(exact / "tiny.py", toy_data, head)
        result = self.fails(config, exact / "run", override)
        assert result.err.startswith(f"error: iteration {iteration}: not finite: ")
        assert named in result.err
        names = {path.name for path in (exact / "run").glob("*.pth")}
        assert names == {f"model_{number:07}.pth" for number in range(iteration)}
        if iteration:
            assert assert_whole(exact / "run") == iteration - 1

    def test_in_the_last_iteration(self, exact: Path, toy_data: Path) -> None:
        """The run stops there, and nothing is evaluated."""
        config = write_lazy(exact / "tiny.py", toy_data, "retinanet")
        options = ("model.pixel_std=[0,0,0]", "train.max_iter=1", "train.eval_period=1")
        result = self.fails(config, exact / "run", *options)
        assert "Start inference" not in result.out

    def test_as_a_program(self, exact: Path, toy_data: Path) -> None:
        config = write_lazy(exact / "tiny.py", toy_data)
        result = train(config, exact / "run", "optimizer.lr=1e30")
        assert result.returncode == 2
        assert "Traceback" not in result.stderr and "Traceback" not in result.stdout
        assert "Traceback" not in (exact / "run" / "log.txt").read_text()
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith("error: iteration 1: not finite: ")
        assert result.stderr.rstrip().endswith(line)
