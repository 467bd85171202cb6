"""detectron2 runs that are killed and resumed."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cli_fixtures import assert_error, snapshot, twins
from d2_fixtures import HEADS, MARKS, clean_detectron2, engine, read_metrics, write_lazy  # noqa: F401  (a fixture)
from d2_run_fixtures import (
    assert_whole,
    command,
    folder_with_programs,
    last_checkpoint,
    train,
)
from detection_fixtures import child_environment

pytestmark = MARKS
ITERATIONS, PERIOD = 16, 4  # in the tiny configs
KILLED_AT = 9  # the iteration, counted from 0, after which the process is killed


@dataclass(frozen=True)
class Runs:
    """The same run twice; one was killed after iteration KILLED_AT. Tests must not change it; copy it instead."""

    head: str
    config: Path
    whole: Path
    killed: Path


@pytest.fixture(scope="module", params=HEADS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Runs:
    """Runs with stochastic depth 0.2, flips, three sizes, sampled proposals, a warm-up over 6 iterations and two steps.

    RetinaNet uses two workers, and the parameter groups without weight decay of the 3x schedule.
    """
    head = request.param
    root = folder_with_programs(tmp_path_factory.mktemp(head))
    more, schedule = {
        "mask_rcnn": ("", "1x"),
        "retinanet": ("dataloader.train.num_workers = 2\n", "3x"),
    }[head]
    config = write_lazy(root / "tiny.py", toy_data, head, schedule=schedule, more=more)
    result = train(config, root / "whole")
    assert result.returncode == 0, result.stderr

    environment = {**child_environment(), "HALT_AFTER": str(KILLED_AT)}
    with (root / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command(config, root / "killed"), cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 120
        while KILLED_AT not in read_metrics(root / "killed"):
            assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    return Runs(head, config, root / "whole", root / "killed")


class TestKilled:
    def test_what_a_kill_leaves(self, runs: Runs) -> None:
        assert {path.name for path in runs.killed.glob("*.pth")} == {"model_0000003.pth", "model_0000007.pth"}
        assert assert_whole(runs.killed) == 7
        assert max(read_metrics(runs.killed)) == KILLED_AT

    def test_goes_on_as_without_the_kill(self, runs: Runs, tmp_path: Path) -> None:
        moved = tmp_path / "moved"  # the folder may be moved before resuming
        shutil.copytree(runs.killed, moved)
        killed = read_metrics(moved)
        result = train(runs.config, moved, "--resume")
        assert result.returncode == 0, result.stderr

        expected, found = read_metrics(runs.whole), read_metrics(moved)
        assert list(expected) == list(range(ITERATIONS)) == sorted(found)
        num_losses = {"mask_rcnn": 6, "retinanet": 3}[runs.head]  # including their sum
        assert max(killed) > 7
        for iteration, values in found.items():
            # The iterations after the checkpoint were run twice, and logged twice, but only the second time is kept.
            (value,), (once,) = values, expected[iteration]
            assert len(once) == num_losses + 1
            assert value == pytest.approx(once, rel=1e-5, abs=1e-9), iteration
        # The values are not equal merely because nothing changes.
        assert len({values[0]["total_loss"] for values in expected.values()}) == ITERATIONS
        # There are 6 rates in the warm-up, and 3 after it, because there are two steps.
        assert len({values[0]["lr"] for values in expected.values()}) == 9

        ours, theirs = (torch.load(folder / "model_final.pth", weights_only=True) for folder in (moved, runs.whole))
        torch.testing.assert_close(ours["model"], theirs["model"], rtol=1e-5, atol=1e-6)
        assert ours["iteration"] == theirs["iteration"] == ITERATIONS - 1
        assert last_checkpoint(moved) == last_checkpoint(runs.whole) == "model_final.pth"

    def test_resuming_a_finished_run_changes_nothing(self, runs: Runs, tmp_path: Path) -> None:
        shutil.copytree(runs.whole, tmp_path / "run")
        kept = ("*.pth", "last_checkpoint", "metrics.json", "metrics.jsonl")
        before = {path.name: path.read_bytes() for pattern in kept for path in (tmp_path / "run").glob(pattern)}
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.syspath_prepend(runs.config.parent)
            result = twins("train", runs.config, "--work-dir", tmp_path / "run", "--resume")
        assert result.code == 0, result.err
        after = {path.name: path.read_bytes() for pattern in kept for path in (tmp_path / "run").glob(pattern)}
        assert after == before and len(before) == 7


class TestInThisProcess:
    """Show that the comparison above can fail, and test further cases in this process."""

    def test_another_seed_is_another_run(self, exact: Path, runs: Runs) -> None:
        options = ("train.seed=1", "train.max_iter=3", "dataloader.train.num_workers=0")
        result = twins("train", runs.config, "--work-dir", exact / "other", *options)
        assert result.code == 0, result.err
        expected, found = read_metrics(runs.whole), read_metrics(exact / "other")
        assert list(found) == [0, 1, 2]
        for iteration, (values,) in found.items():
            assert values["total_loss"] != pytest.approx(expected[iteration][0]["total_loss"], rel=1e-4)

    @pytest.mark.parametrize("runs", ["retinanet"], indirect=True)
    def test_the_normalizer_of_retinanet_matters(self, exact: Path, runs: Runs) -> None:
        """Without the running mean of positive anchors, the losses after a resume would differ."""
        shutil.copytree(runs.killed, exact / "run")
        path = exact / "run" / "model_0000007.pth"
        content = torch.load(path, weights_only=True)
        (normalizer,) = content["trainer"]["hooks"].pop("ExactResume")["loss_normalizers"]
        assert normalizer > 0
        torch.save(content, path)
        options = ("train.max_iter=9", "dataloader.train.num_workers=0")
        result = twins("train", runs.config, "--work-dir", exact / "run", "--resume", *options)
        assert result.code == 0, result.err
        (expected,), (found,) = read_metrics(runs.whole)[8], read_metrics(exact / "run")[8]
        assert found["loss_cls"] != pytest.approx(expected["loss_cls"], rel=1e-2)

    def test_a_kill_before_the_first_checkpoint(self, exact: Path, toy_data: Path) -> None:
        config = write_lazy(exact / "tiny.py", toy_data)
        work_dir = exact / "early"
        result = train(config, work_dir, KILL_IN="replace", KILL_AT_CALL="1")
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert max(read_metrics(work_dir)) == 2 and not list(work_dir.glob("*.pth"))
        before = snapshot(work_dir)
        refused = twins("train", config, "--work-dir", work_dir, "--resume")
        assert_error(refused, repr(str(work_dir)), "no run to resume", "without --resume")
        assert snapshot(work_dir) == before
        # Starting without --resume is allowed, because there is nothing to lose.
        result = twins("train", config, "--work-dir", work_dir, "train.max_iter=4")
        assert result.code == 0, result.err
        assert assert_whole(work_dir) == 3

    def test_another_batch_size(self, exact: Path, runs: Runs) -> None:
        shutil.copytree(runs.killed, exact / "run")
        before = snapshot(exact / "run")
        option = "dataloader.train.total_batch_size=1"
        result = twins("train", runs.config, "--work-dir", exact / "run", "--resume", "train.max_iter=99", option)
        assert_error(result, "total_batch_size=1", "has used 2")
        after = snapshot(exact / "run")
        assert all(after[name] == content for name, content in before.items() if name.endswith(".pth"))

    def test_another_optimiser_or_none(self, exact: Path, runs: Runs) -> None:
        shutil.copytree(runs.killed, exact / "run")
        path = exact / "run" / "model_0000007.pth"
        for key, value, part in [
            ("state", {}, "the state of its optimiser is empty"),
            ("param_groups", [], "its optimiser has 0 groups of 0 parameters"),
            ("state", {0: {"momentum_buffer": torch.zeros(2)}}, "its optimiser has stored ['momentum_buffer'], but"),
        ]:
            content = torch.load(runs.killed / path.name, weights_only=True)
            content["trainer"]["optimizer"][key] = value
            torch.save(content, path)
            result = twins("train", runs.config, "--work-dir", exact / "run", "--resume")
            assert_error(result, f"{str(path)!r} cannot be resumed: {part}", "start a new run")
        for trainer in (None, {}, {"iteration": 7}, {"iteration": 7, "hooks": {"EarlyStop": 5}}):
            torch.save({**content, "trainer": trainer}, path)
            result = twins("train", runs.config, "--work-dir", exact / "run", "--resume")
            assert_error(result, repr(str(path)), "cannot be resumed")

    def test_a_last_checkpoint_that_is_gone(self, exact: Path, runs: Runs) -> None:
        shutil.copytree(runs.killed, exact / "run")
        for content in ("model_0000099.pth", ""):
            (exact / "run" / "last_checkpoint").write_text(content)
            result = twins("train", runs.config, "--work-dir", exact / "run", "--resume", "train.max_iter=99")
            assert_error(result, str(exact / "run" / "last_checkpoint"), repr(content), "does not exist")

    def test_old_checkpoints_are_removed_after_a_resume_too(self, exact: Path, toy_data: Path) -> None:
        more = "train.checkpointer.update(period=1, max_to_keep=2)\n"
        config, work_dir = write_lazy(exact / "tiny.py", toy_data, "retinanet", more=more), exact / "run"
        assert twins("train", config, "--work-dir", work_dir, "train.max_iter=3").code == 0
        (work_dir / "model_7.pth").write_bytes(b"mine")
        assert twins("train", config, "--work-dir", work_dir, "train.max_iter=5", "--resume").code == 0
        names = {path.name for path in work_dir.glob("*.pth")}
        assert names == {"model_0000003.pth", "model_0000004.pth", "model_final.pth", "model_7.pth"}


class TestWholeCheckpoints:
    @pytest.mark.parametrize(
        ("where", "call", "newest", "named"),
        [
            ("write", 7, 1, 1),  # in the middle of the third checkpoint
            ("replace", 8, 2, 1),  # the checkpoint exists, but `last_checkpoint` has not changed yet
        ],
    )
    def test_a_kill_while_one_is_written(
        self, exact: Path, toy_data: Path, where: str, call: int, newest: int, named: int
    ) -> None:
        config = write_lazy(exact / "tiny.py", toy_data, "retinanet", more="train.checkpointer.period = 1\n")
        work_dir = exact / "run"
        result = train(config, work_dir, "train.max_iter=6", KILL_IN=where, KILL_AT_CALL=str(call))
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert {path.name for path in work_dir.glob("*.pth")} == {f"model_{i:07}.pth" for i in range(newest + 1)}
        assert assert_whole(work_dir) == named
        (left_over,) = [path.name for path in work_dir.iterdir() if path.name.startswith(".")]
        assert not left_over.endswith(".pth")
        result = twins("train", config, "--work-dir", work_dir, "--resume", "train.max_iter=6")
        assert result.code == 0, result.err
        assert assert_whole(work_dir) == 5
        assert max(read_metrics(work_dir)) == 5

    def test_kills_at_random_moments(self, exact: Path, toy_data: Path) -> None:
        """Write a checkpoint in each iteration, of a model whose checkpoints take a while to write."""
        more = (
            "train.checkpointer.update(period=1, max_to_keep=2)\n"
            "model.roi_heads.box_head.fc_dims = [1024, 1024]\n"
            "model.roi_heads.box_predictor.input_shape = ShapeSpec(channels=1024)\n"
        )
        config = write_lazy(exact / "tiny.py", toy_data, more=more)
        work_dir = exact / "run"
        moments = random.Random(0)
        last = -1
        for _ in range(2):
            options = ["--resume"] if last >= 0 else []
            process = subprocess.Popen(
                command(config, work_dir, "train.max_iter=100000", *options),
                cwd=exact,
                env=child_environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            before, deadline = last_checkpoint(work_dir), time.monotonic() + 120
            while last_checkpoint(work_dir) == before:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 1))
            process.kill()
            assert process.wait() == -signal.SIGKILL
            found = assert_whole(work_dir)
            assert found > last
            last = found
