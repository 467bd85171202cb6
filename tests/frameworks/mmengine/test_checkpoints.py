"""Every run writes checkpoints atomically, and without pickled objects."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detection_fixtures import Run, write_config
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.mmengine.checkpoints import PlainCheckpointHook
from twins_dense.frameworks.mmengine.engine import load_config


class TestCheckpoint:
    def test_nothing_but_tensors_and_plain_python(self, tiny_run: Run) -> None:
        for epoch in (1, 2):
            checkpoint = torch.load(tiny_run.work_dir / f"epoch_{epoch}.pth", weights_only=True)
            assert {"meta", "state_dict", "optimizer", "param_schedulers", "message_hub"} <= checkpoint.keys()
            assert checkpoint["meta"]["epoch"] == epoch and checkpoint["meta"]["iter"] == 4 * epoch
        assert list(checkpoint["meta"]["dataset_meta"]["classes"]) == ["circle", "rectangle", "triangle"]
        assert list(checkpoint["meta"]["dataset_meta"]["category_ids"]) == [1, 2, 5]

    def test_what_a_run_leaves(self, tiny_run: Run) -> None:
        names = {path.name for path in tiny_run.work_dir.iterdir()}
        assert {"epoch_1.pth", "epoch_2.pth", "last_checkpoint", "metrics.json", "metrics.jsonl", "tiny.py"} <= names
        assert "samples" in names and len([name for name in names if name.startswith("best_coco_segm_AP_epoch_")]) == 1
        assert not [name for name in names if name.startswith(".")]
        assert {"evaluation", "report.html"} <= names
        assert len(names) == 11  # and the folder with the log
        assert Path((tiny_run.work_dir / "last_checkpoint").read_text()).name == "epoch_2.pth"
        content = json.loads((tiny_run.work_dir / "metrics.json").read_text())
        assert (content["epoch"], content["iter"]) == (2, 8)
        assert {"coco/bbox_AP", "coco/segm_AP50"} <= content["metrics"].keys()
        resolved = load_config(tiny_run.work_dir / "tiny.py")
        assert resolved.model == load_config(tiny_run.config).model

    @pytest.mark.parametrize("listed", [False, True])
    def test_every_run_has_the_hooks_that_it_needs_once(self, toy_data: Path, tmp_path: Path, listed: bool) -> None:
        needed = ["IterationSeedHook", "PlainCheckpointHook", "MetricsFileHook"]
        more = f"custom_hooks = {[{'type': name} for name in needed] if listed else None}\n"
        config = load_config(write_config(tmp_path / "own.py", toy_data, more=more), ["train_cfg.max_epochs=1"])
        runner = engine.train(config, tmp_path / "run")
        names = [type(hook).__name__ for hook in runner.hooks]
        assert [names.count(name) for name in (*needed, "FiniteLossHook", "ConsoleHook")] == [1] * 5
        (checkpoint,) = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        assert checkpoint.backend_args == {"backend": "atomic"}

    def test_the_log_has_no_notices_about_mmengine_itself(self, tiny_run: Run) -> None:
        (log,) = tiny_run.work_dir.glob("*/*.log")
        assert "Checkpoints will be saved to" in log.read_text() and "will be deprecated" not in log.read_text()

    def test_histories_survive(self) -> None:
        """The hook converts logged values to tensors and back."""
        history = HistoryBuffer([1.5, 2.5, 3.5], [1, 2, 1])
        hub: dict[str, Any] = {"log_scalars": {"train/loss": history}, "runtime_info": {}}
        checkpoint: dict[str, Any] = {"message_hub": hub, "meta": {}}
        hook = PlainCheckpointHook()
        hook.before_save_checkpoint(SimpleNamespace(train_dataloader=SimpleNamespace(batch_size=2)), checkpoint)
        assert checkpoint["meta"] == {"total_batch_size": 2}
        plain = checkpoint["message_hub"]["log_scalars"]["train/loss"]
        assert [type(part) for part in plain] == [torch.Tensor, torch.Tensor]
        hook.after_load_checkpoint(None, checkpoint)
        found = checkpoint["message_hub"]["log_scalars"]["train/loss"]
        assert isinstance(found, HistoryBuffer)
        assert [part.tolist() for part in found.data] == [[1.5, 2.5, 3.5], [1, 2, 1]]
        assert found.mean(2) == pytest.approx((2.5 + 3.5) / (2 + 1))

    def test_mmengine_reads_it_too(self, tiny_run: Run) -> None:
        assert "state_dict" in CheckpointLoader.load_checkpoint(str(tiny_run.checkpoint), map_location="cpu")
