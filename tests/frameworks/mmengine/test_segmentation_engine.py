"""Segmentation under MMEngine: training, resuming, two processes, test-time augmentation and prediction."""

from __future__ import annotations

import io
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import mmseg
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cli_fixtures import assert_error, twins
from contracts import randomise
from detection_fixtures import Run, read_scalars, run_python
from PIL import Image
from run_fixtures import DUMP_HOOK, HALT_HOOK, steps, train_and_kill
from segmentation_fixtures import CLASSES, NUM_VAL, resized, write_config
from torch import Tensor

from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.mmengine.runner import load_model
from twins_dense.frameworks.mmengine.samplers import SeededInfiniteSampler
from twins_dense.frameworks.mmengine.segmentors import SegmentationDataset

TOOLS = Path(mmseg.__file__).parent / ".mim" / "tools"
ITERATIONS = 12  # with 2 of 8 images each: three epochs
OWN_PARTS = """
custom_imports = dict(imports=["twins_dense.frameworks.mmengine.segmentors", {module!r}])
custom_hooks = [
    dict(type="IterationSeedHook"),
    dict(type="PlainCheckpointHook"),
    dict(type="MetricsFileHook"),
    {hook},
]
"""


class TestSeededInfiniteSampler:
    @staticmethod
    def drawn(count: int, *, start: int = 0, seed: int = 0, rank: int = 0, world: int = 1) -> list[tuple[int, int]]:
        sampler = SeededInfiniteSampler(range(7), seed=seed)
        sampler.start, sampler.rank, sampler.world_size = start, rank, world
        return list(islice(iter(sampler), count))

    def test_every_seven_draws_are_a_shuffled_data_set(self) -> None:
        draws = self.drawn(35)
        orders = [tuple(index for index, _ in draws[i : i + 7]) for i in range(0, 35, 7)]
        assert all(sorted(order) == list(range(7)) for order in orders)
        assert len(set(orders)) == 5
        assert len({seed for _, seed in draws}) == 35
        assert self.drawn(35) == draws and self.drawn(35, seed=1) != draws

    @pytest.mark.parametrize("start", [1, 6, 7, 20])
    def test_starts_anywhere(self, start: int) -> None:
        assert self.drawn(15, start=start) == self.drawn(15 + start)[start:]

    def test_ranks_share_the_stream(self) -> None:
        whole = self.drawn(30)
        parts = [self.drawn(10, rank=rank, world=3) for rank in range(3)]
        assert [draw for draws in zip(*parts, strict=True) for draw in draws] == whole
        assert self.drawn(4, start=6, rank=1, world=3) == [whole[i] for i in (7, 10, 13, 16)]

    def test_without_shuffling(self) -> None:
        sampler = SeededInfiniteSampler(range(3), shuffle=False, seed=0)
        assert [index for index, _ in islice(iter(sampler), 7)] == [0, 1, 2, 0, 1, 2, 0]


class TestRun:
    def test_what_a_run_leaves(self, segmentation_run: Run) -> None:
        names = {path.name for path in segmentation_run.work_dir.iterdir() if path.is_file()}
        (best,) = (name for name in names if name.startswith("best_mIoU_iter_"))
        checkpoints = {"iter_3.pth", "iter_6.pth", "iter_8.pth", best}
        assert names == {*checkpoints, "last_checkpoint", "metrics.json", "metrics.jsonl", "report.html", "tiny.py"}
        content = json.loads((segmentation_run.work_dir / "metrics.json").read_text())
        assert content["iter"] == 8 and "epoch" not in content
        assert content["losses"].keys() == {"loss", "decode.loss_ce"}
        of_classes = {f"{kind}/{name}" for kind in ("IoU", "Acc") for name in CLASSES}
        assert content["metrics"].keys() == {"aAcc", "mIoU", "mAcc", *of_classes}
        checkpoint = torch.load(segmentation_run.checkpoint, weights_only=True)
        meta = checkpoint["meta"]["dataset_meta"]
        assert (meta["classes"], meta["reduce_zero_label"]) == (CLASSES, True)
        assert "backbone.patch_embeds.0.proj.weight" in checkpoint["state_dict"]

    def test_it_learns(self, segmentation_run: Run) -> None:
        (records,) = read_scalars(segmentation_run.work_dir)
        losses = [record["loss"] for record in records if "loss" in record]
        assert len(losses) == 8 and min(losses[-3:]) < losses[0]

    def test_evaluate_gives_the_metrics_of_the_run(self, segmentation_run: Run, tmp_path: Path) -> None:
        arguments = ("eval", segmentation_run.config, segmentation_run.checkpoint, "--work-dir", tmp_path / "out")
        assert_error(twins(*arguments, "--detections"), "--detections", "segmentation")
        result = twins(*arguments, "--label-maps")
        assert result.code == 0, result.err
        found = json.loads((tmp_path / "out" / "metrics.json").read_text())
        expected = json.loads((segmentation_run.work_dir / "metrics.json").read_text())
        assert found["metrics"] == expected["metrics"] and found["iter"] == 8
        maps = [
            np.asarray(Image.open(io.BytesIO(path.read_bytes())))
            for path in (tmp_path / "out" / "label_maps").iterdir()
        ]
        assert len(maps) == NUM_VAL and all(values.min() >= 1 and values.max() <= len(CLASSES) for values in maps)
        *_, names, values, _, _ = result.out.splitlines()
        assert names.split() == ["mIoU", "mAcc", "aAcc"]
        assert values.split() == [f"{expected['metrics'][name]:.3f}" for name in names.split()]

    def test_validation_settings_serve_for_the_same_test_data(self, segmentation_run: Run) -> None:
        path = segmentation_run.config
        config = engine.load_config(path, ["val_dataloader.dataset.indices=2", "val_evaluator.iou_metrics=['mDice']"])
        assert config.test_dataloader.dataset.indices == 2 and config.test_evaluator.iou_metrics == ["mDice"]
        config = engine.load_config(path, ["val_dataloader.dataset.indices=2", "test_dataloader.dataset.indices=3"])
        assert config.test_dataloader.dataset.indices == 3

    def test_workers_that_are_not_there_do_not_persist(self, segmentation_run: Run, tmp_path: Path) -> None:
        loader = ("val_dataloader.num_workers=0", "val_dataloader.persistent_workers=True")
        arguments = ("eval", segmentation_run.config, segmentation_run.checkpoint, "--work-dir", tmp_path / "out")
        assert twins(*arguments, *loader).code == 0

    def test_images_of_other_sizes_are_not_one_batch(self, segmentation_run: Run, tmp_path: Path) -> None:
        for verb in (("train",), ("eval", segmentation_run.checkpoint)):
            arguments = (verb[0], segmentation_run.config, *verb[1:], "--work-dir", tmp_path / "out")
            assert_error(twins(*arguments, "val_dataloader.batch_size=3"), "val_dataloader.batch_size=3")
        assert not (tmp_path / "out").exists()

    def test_losses_that_are_not_finite(self, segmentation_run: Run, tmp_path: Path) -> None:
        options = ("optim_wrapper.optimizer.lr=1e30", "param_scheduler=None", "default_hooks.checkpoint.interval=1")
        result = twins("train", segmentation_run.config, "--work-dir", tmp_path / "run", *options)
        assert_error(result, "not finite: ", "decode.loss_ce=nan", "checkpoints written so far are kept")
        states = [torch.load(path, weights_only=True)["state_dict"] for path in (tmp_path / "run").glob("*.pth")]
        assert states and all(value.isfinite().all() for state in states for value in state.values())

    def test_load_from_is_strict_and_loads_all(self, segmentation_run: Run, tmp_path: Path) -> None:
        config = engine.load_config(
            segmentation_run.config, ["train_cfg.max_iters=1", "optim_wrapper.optimizer.lr=0.0"]
        )
        config.load_from = str(segmentation_run.checkpoint)
        config.param_scheduler = None
        runner = engine.train(config, tmp_path / "run")
        state = torch.load(segmentation_run.checkpoint, weights_only=True)["state_dict"]
        for name, value in runner.model.state_dict().items():
            if "running" not in name and "tracked" not in name:
                assert torch.equal(value, state[name]), name

    def test_amp(self, segmentation_run: Run, tmp_path: Path) -> None:
        """Training uses bfloat16 on a GPU and float32 elsewhere, as with configs that enable mixed precision."""
        config = engine.load_config(segmentation_run.config, ["train_cfg.max_iters=1"])
        engine.set_amp(config)
        assert (config.optim_wrapper.type, config.optim_wrapper.dtype) == ("AmpOptimWrapper", "bfloat16")
        assert config.optim_wrapper.optimizer.type == "AdamW"
        runner = engine.train(config, tmp_path / "run")
        expected = "AmpOptimWrapper" if torch.cuda.is_available() else "OptimWrapper"
        assert type(runner.optim_wrapper).__name__ == expected

    def test_amp_on_the_command_line(self, segmentation_run: Run, tmp_path: Path) -> None:
        arguments = ("train", segmentation_run.config, "--work-dir", tmp_path / "run", "--amp", "train_cfg.max_iters=1")
        assert twins(*arguments).code == 0


@pytest.fixture(scope="module")
def long_config(tmp_path_factory: pytest.TempPathFactory, label_data: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("resume") / "plain.py", label_data, iterations=ITERATIONS)


@pytest.fixture(scope="module")
def whole_run(long_config: Path) -> Path:
    engine.train(engine.load_config(long_config), long_config.parent / "whole")
    return long_config.parent / "whole"


class TestResume:
    def test_goes_on_as_without_the_kill(
        self, long_config: Path, whole_run: Path, label_data: Path, tmp_path: Path
    ) -> None:
        """The run is killed at iteration 5, in the second epoch; the last checkpoint is from the first epoch."""
        (long_config.parent / "halt_hook.py").write_text(HALT_HOOK)
        hook = OWN_PARTS.format(module="halt_hook", hook='dict(type="HaltHook", iteration=5)')
        halting = write_config(long_config.parent / "halt.py", label_data, iterations=ITERATIONS, more=hook)
        train_and_kill(halting, long_config.parent / "killed", 5)
        killed = tmp_path / "moved"
        shutil.copytree(long_config.parent / "killed", killed)
        assert {path.name for path in killed.glob("*.pth")} == {"iter_3.pth", "best_mIoU_iter_4.pth"}
        result = twins("train", long_config, "--work-dir", killed, "--resume")
        assert result.code == 0, result.err

        expected = steps(read_scalars(whole_run)[0])
        before, after = (steps(records) for records in read_scalars(killed))
        assert list(expected) == list(range(1, ITERATIONS + 1))
        assert list(before) == [1, 2, 3, 4, 5] and list(after) == list(range(4, ITERATIONS + 1))
        for part in (before, after):
            for step, values in part.items():
                assert set(values) == {"lr", "loss", "decode.loss_ce", "mean_loss"}
                assert values == pytest.approx(expected[step], rel=1e-5, abs=1e-8), step
        assert len({values["loss"] for values in expected.values()}) == ITERATIONS
        ours, theirs = (torch.load(folder / "iter_12.pth", weights_only=True) for folder in (killed, whole_run))
        for name, value in theirs["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-5, atol=1e-6)
        metrics = [json.loads((folder / "metrics.json").read_text())["metrics"] for folder in (killed, whole_run)]
        assert metrics[0] == metrics[1]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_reads_no_image_of_the_iterations_before(
        self, long_config: Path, whole_run: Path, tmp_path: Path, workers: int
    ) -> None:
        shutil.copytree(whole_run, tmp_path / "run")
        (tmp_path / "run" / "last_checkpoint").write_text("iter_9.pth")
        shown: list[tuple[int, int]] = []
        overrides = [f"train_dataloader.num_workers={workers}", f"train_dataloader.persistent_workers={bool(workers)}"]
        with pytest.MonkeyPatch.context() as patch:
            plain = SegmentationDataset.__getitem__

            def noted(self: Any, key: Any) -> Any:
                if isinstance(key, tuple):
                    shown.append(key)
                return plain(self, key)

            patch.setattr(SegmentationDataset, "__getitem__", noted)
            runner = engine.train(engine.load_config(long_config, overrides), tmp_path / "run", resume=True)
        assert runner.iter == ITERATIONS
        if workers == 0:  # workers record theirs in other processes
            sampler = SeededInfiniteSampler(range(8), seed=0)
            assert shown == list(islice(iter(sampler), 18, 24))
        expected = steps(read_scalars(whole_run)[0])
        found = steps(read_scalars(tmp_path / "run")[-1])
        assert list(found) == [10, 11, 12]
        for step, values in found.items():
            assert values == pytest.approx(expected[step], rel=1e-5, abs=1e-8)


def test_two_processes(label_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the same parameters and statistics, share the images of an epoch, and report one process's metrics."""
    (tmp_path / "dump_hook.py").write_text(DUMP_HOOK)
    more = OWN_PARTS.format(module="dump_hook", hook='dict(type="DumpHook")')
    config = write_config(tmp_path / "two.py", label_data, iterations=4, more=more)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "twins_dense", "train")
    result = run_python(*launch, str(config), "--work-dir", str(tmp_path / "work"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2))
    assert first["world"] == second["world"] == 2
    assert first["sums"] == second["sums"]  # including running means and variances of BatchNorm
    for begin in (0, 2):  # 2 processes with 2 images each see 8 images in 2 iterations
        shown = [path for rank in (first, second) for batch in rank["images"][begin : begin + 2] for path in batch]
        assert len(set(shown)) == 8
    state = torch.load(tmp_path / "work" / "iter_4.pth", weights_only=True)["state_dict"]
    assert first["sums"] == pytest.approx({name: value.double().sum().item() for name, value in state.items()})
    assert NUM_VAL % 2 == 1  # one process has one more image, and no image counts twice
    monkeypatch.syspath_prepend(tmp_path)
    expected = engine.evaluate(engine.load_config(config), tmp_path / "work" / "iter_4.pth", tmp_path / "eval")
    assert json.loads((tmp_path / "work" / "metrics.json").read_text())["metrics"] == expected


@pytest.fixture
def opinionated(segmentation_run: Run, tmp_path: Path) -> Path:
    """A checkpoint with random weights, which predicts different classes, unlike after eight iterations of training."""
    checkpoint = torch.load(segmentation_run.checkpoint, weights_only=True)
    model, _ = load_model(engine.load_config(segmentation_run.config), segmentation_run.checkpoint)
    checkpoint["state_dict"] = randomise(model, 4).state_dict()
    torch.save(checkpoint, tmp_path / "random.pth")
    return tmp_path / "random.pth"


def test_tta_is_the_average_over_sizes_and_flips(segmentation_run: Run, opinionated: Path, tmp_path: Path) -> None:
    overrides = ["test_dataloader.dataset.indices=1"]
    found: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        from mmseg.evaluation import IoUMetric

        process = IoUMetric.process

        def noted(self: Any, data_batch: Any, data_samples: Any) -> None:
            found.append(data_samples[0]["pred_sem_seg"]["data"])
            process(self, data_batch, data_samples)

        patch.setattr(IoUMetric, "process", noted)
        scores = []
        for tta in (False, True):
            config = engine.load_config(segmentation_run.config, overrides)
            if tta:
                engine.set_tta(config)
            scores.append(engine.evaluate(config, opinionated, tmp_path / str(tta)))
    single, averaged = (labels.squeeze() for labels in found)
    assert not torch.equal(single, averaged)

    model, _ = load_model(engine.load_config(segmentation_run.config), opinionated)
    folder = segmentation_run.data
    image = cv2.imread(str(folder / "images" / "validation" / "0.png"))
    probabilities = torch.zeros(3, 64, 80)
    with torch.inference_mode():
        for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
            for flip in (False, True):
                inputs = resized(image, ratio)
                logits = model(inputs.flip(3) if flip else inputs)  # at a quarter of the size
                logits = F.interpolate(logits, inputs.shape[2:], mode="bilinear", align_corners=False)
                logits = logits.flip(3) if flip else logits
                logits = F.interpolate(logits, (64, 80), mode="bilinear", align_corners=False)
                probabilities += logits.softmax(1)[0] / 12
    best = probabilities.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(probabilities.argmax(0)[clear], averaged[clear])
    # Compare the mean IoU, computed class by class over the pixels that are not ignored.
    truth = torch.from_numpy(np.array(Image.open(folder / "annotations" / "validation" / "0.png")).astype(np.int64)) - 1
    labels = torch.where(clear, probabilities.argmax(0), averaged)[truth >= 0]
    truth = truth[truth >= 0]
    ious = [((labels == c) & (truth == c)).sum() / ((labels == c) | (truth == c)).sum() for c in range(3)]
    assert scores[1]["mIoU"] == pytest.approx(float(sum(ious)) / 3, abs=0.00005 + 1e-6)  # mmseg rounds to 0.01 %


def test_tta_on_the_command_line(segmentation_run: Run, tiny_run: Run, tmp_path: Path) -> None:
    result = twins(
        "eval", segmentation_run.config, segmentation_run.checkpoint, "--tta", "--work-dir", tmp_path / "out"
    )
    assert result.code == 0, result.err
    assert "mIoU" in result.out
    result = twins("eval", tiny_run.config, tiny_run.checkpoint, "--tta", "--work-dir", tmp_path / "no")
    assert_error(result, str(tiny_run.config), "no tta_model", "leave out --tta")


class TestPredict:
    def test_overlay_labels_and_legend(self, segmentation_run: Run, opinionated: Path, tmp_path: Path) -> None:
        photos = segmentation_run.data / "images" / "validation"
        out = tmp_path / "out"
        result = twins(
            *("predict", segmentation_run.config, opinionated),
            *(photos / "0.png", f"{photos}/[12].png", "--out", out),
        )
        assert result.code == 0, result.err
        entries = json.loads((out / "predictions.json").read_text())
        assert [Path(entry["file"]).name for entry in entries] == ["0.png", "1.png", "2.png"]
        with Image.open(out / "legend.png") as legend:
            assert legend.mode == "RGB" and legend.height > 3 * 20
        model, meta = load_model(engine.load_config(segmentation_run.config), opinionated)
        for entry in entries:
            image = np.array(Image.open(entry["file"]))
            with Image.open(entry["labels"]) as stored:
                assert stored.mode == "L"
                labels = np.array(stored)
            assert (
                labels.shape == image.shape[:2] and len(np.unique(labels)) > 1 and 0 < labels.min() <= labels.max() <= 3
            )
            with torch.inference_mode():
                logits = model(resized(image[:, :, ::-1], 1.0))
                logits = F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)[0]
            best = logits.topk(2, dim=0).values
            clear = (best[0] - best[1] > 1e-4).numpy()
            assert (logits.argmax(0).numpy() + 1 == labels)[clear].all() and clear.mean() > 0.99
            shares = {name: (labels == value).mean() for value, name in enumerate(CLASSES, 1)}
            assert entry["classes"] == pytest.approx({name: share for name, share in shares.items() if share})
            picture = np.array(Image.open(entry["picture"])).astype(float)
            expected = (image.astype(float) + np.array(meta["palette"])[labels - 1]) / 2
            assert np.abs(picture - expected).mean() < 12  # JPEG
        assert "3 images" in result.out

    def test_another_model(self, segmentation_run: Run, tmp_path: Path) -> None:
        arguments = ("predict", segmentation_run.config, segmentation_run.checkpoint)
        photo = segmentation_run.data / "images" / "validation" / "0.png"
        result = twins(*arguments, photo, "--out", tmp_path / "out", "model.decode_head.num_classes=5")
        assert_error(result, str(segmentation_run.checkpoint), "conv_seg", "(3, 16, 1, 1)", "(5, 16, 1, 1)")
        assert not (tmp_path / "out").exists()


class TestMmsegsOwnTools:
    """Run the same config files with mmsegmentation's own scripts."""

    def test_train_and_resume(self, segmentation_run: Run, tmp_path: Path) -> None:
        arguments = (str(TOOLS / "train.py"), str(segmentation_run.config), "--work-dir", str(tmp_path / "work"))
        result = run_python(*arguments, "--cfg-options", "train_cfg.max_iters=6")
        assert result.returncode == 0, result.stderr
        result = run_python(*arguments, "--resume")
        assert result.returncode == 0, result.stderr
        expected = steps(read_scalars(segmentation_run.work_dir)[0])
        first, resumed = (steps(records) for records in read_scalars(tmp_path / "work"))
        assert list(first) == [1, 2, 3, 4, 5, 6] and list(resumed) == [7, 8]
        for step, values in {**first, **resumed}.items():
            assert values["loss"] == pytest.approx(expected[step]["loss"], rel=1e-5)

    def test_test(self, segmentation_run: Run, tmp_path: Path) -> None:
        arguments = (str(segmentation_run.config), str(segmentation_run.checkpoint), "--work-dir", str(tmp_path))
        result = run_python(str(TOOLS / "test.py"), *arguments)
        assert result.returncode == 0, result.stderr
        metrics = json.loads((segmentation_run.work_dir / "metrics.json").read_text())["metrics"]
        assert f"mIoU: {100 * metrics['mIoU']:.4f}" in result.stdout
