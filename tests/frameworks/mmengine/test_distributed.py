"""Two processes train one model with equal parameters, a scaled learning rate and the metrics of one process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_fixtures import NUM_VAL, read_scalars, run_python, write_config
from run_fixtures import DUMP_HOOK

from twins_dense.frameworks.mmengine import engine

MORE = """
custom_imports["imports"].append("dump_hook")
custom_hooks.append(dict(type="DumpHook"))
test_evaluator = val_evaluator
# Batches of one image, because two processes would form other batches than one. The last digits of the scores depend on
# the batch, and the order of nearly equal scores on the last digits.
val_dataloader.update(batch_size=1)
"""


@dataclass(frozen=True)
class DistributedRun:
    config: Path
    work_dir: Path
    ranks: list[dict[str, Any]]
    log: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> DistributedRun:
    """One epoch in two processes: 8 images in batches of 2 are 2 iterations per process."""
    root = tmp_path_factory.mktemp("distributed")
    (root / "dump_hook.py").write_text(DUMP_HOOK)
    config = write_config(root / "two.py", toy_data, epochs=2, more=MORE)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "twins_dense", "train")
    result = run_python(*launch, str(config), "--work-dir", str(root / "work"), cwd=root)
    assert result.returncode == 0, result.stderr
    ranks = [json.loads((root / f"rank_{rank}.json").read_text()) for rank in range(2)]
    (log,) = (root / "work").glob("*/*.log")
    return DistributedRun(config, root / "work", ranks, log.read_text())


def test_one_of_everything(run: DistributedRun) -> None:
    assert [rank["world"] for rank in run.ranks] == [2, 2]
    names = sorted(path.name for path in run.work_dir.iterdir() if path.is_file())
    (best,) = (name for name in names if name.startswith("best_coco_segm_AP_epoch_"))
    written = [
        "epoch_1.pth",
        "epoch_2.pth",
        "last_checkpoint",
        "metrics.json",
        "metrics.jsonl",
        "report.html",
        "two.py",
    ]
    assert names == [best, *written]
    assert json.loads((run.work_dir / "metrics.json").read_text())["iter"] == 4
    (records,) = read_scalars(run.work_dir)
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]


def test_both_ranks_have_the_same_parameters(run: DistributedRun) -> None:
    first, second = (rank["sums"] for rank in run.ranks)
    assert first == second
    state = torch.load(run.work_dir / "epoch_2.pth", weights_only=True)["state_dict"]
    assert first == pytest.approx({name: value.double().sum().item() for name, value in state.items()})
    trained = torch.load(run.work_dir / "epoch_1.pth", weights_only=True)["state_dict"]
    assert any(not torch.equal(trained[name], state[name]) for name in state)


def test_the_ranks_share_the_images(run: DistributedRun) -> None:
    """Each of the 8 images appears once per epoch, on one of the ranks; random numbers differ between ranks."""
    for epoch in (0, 1):
        shown = [i for rank in run.ranks for batch in rank["images"][2 * epoch : 2 * epoch + 2] for i in batch]
        assert sorted(shown) == list(range(1, 9))
    assert run.ranks[0]["images"][:2] != run.ranks[0]["images"][2:]
    assert run.ranks[0]["draw"] != run.ranks[1]["draw"]


def test_the_learning_rate_is_scaled_by_the_number_of_ranks(run: DistributedRun) -> None:
    """The rate is 1e-3 for 16 images, and the batch size is 2 x 2; the warm-up goes from 0.01 to 1 in 5 steps."""
    (records,) = read_scalars(run.work_dir)
    found = [record["lr"] for record in records if "lr" in record]
    assert found == pytest.approx([1e-3 * 4 / 16 * (0.01 + 0.99 * i / 5) for i in range(4)])
    assert "batch size is 4. Scaling the original LR by 0.25" in run.log


def test_metrics_are_those_of_one_process(run: DistributedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of validation images is odd, so one process has one more, and no image counts twice."""
    assert NUM_VAL % 2 == 1
    monkeypatch.syspath_prepend(run.config.parent)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        assert name not in os.environ
    expected = engine.evaluate(engine.load_config(run.config), run.work_dir / "epoch_2.pth", tmp_path / "eval")
    found = json.loads((run.work_dir / "metrics.json").read_text())["metrics"]
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(expected) == 24 + 2 * 2 * 3  # of all classes together, and of each class
    assert any(value > 0 for value in found.values())  # otherwise, equal metrics would prove little
