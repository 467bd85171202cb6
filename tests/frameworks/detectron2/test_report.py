"""The report at the end of a training run with detectron2."""

from __future__ import annotations

from pathlib import Path

from cli_fixtures import twins
from d2_fixtures import MARKS, clean_detectron2, write_lazy  # noqa: F401  (a fixture)
from detection_fixtures import NUM_VAL

from twins_dense.evaluation.metrics_file import read_metrics
from twins_dense.evaluation.record import read_record

pytestmark = MARKS


def test_train_ends_with_a_report(tmp_path: Path, toy_data: Path) -> None:
    config = write_lazy(tmp_path / "tiny.py", toy_data, more="train.update(max_iter=4, eval_period=4)")
    result = twins("train", config, "--work-dir", tmp_path / "run")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1].endswith(f"the report is {tmp_path / 'run' / 'report.html'}")
    record = read_record(tmp_path / "run" / "evaluation")
    assert record.is_complete and len(record.entries) == NUM_VAL
    assert Path(record.about.checkpoint).name == "model_best.pth"
    trained, evaluated = (read_metrics(tmp_path / "run" / name) for name in ("", "evaluation"))
    assert evaluated["coco/bbox_AP"] == trained["coco/bbox_AP"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for part in ("Report of run", "Learning curves", "detectron2", "GeneralizedRCNN, tiny", "Worst images"):
        assert part in page
