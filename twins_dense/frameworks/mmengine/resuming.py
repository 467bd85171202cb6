"""Hooks that MMEngine needs so that a run with evaluations can be killed at any moment and resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ... import stopping
from ...atomic import write_atomically
from ...distributed import any_process
from ..work_dir import STOPPED_NAME, stopped_after
from .hooks import EVALUATED, by_iterations

_EARLY_STOPPING = "early_stopping"  # key of its state in the message hub, which checkpoints store


@HOOKS.register_module()
class EvaluatedCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, but a checkpoint is saved again after its evaluation.

    The checkpoint then holds the state after the evaluation: the best score so far, the state of early stopping and
    the content of `metrics.json`. MMEngine saves it again only if the score is the best so far. When a run stops early,
    its last weights are saved even if no checkpoint is due.

    Only one best checkpoint is kept in the folder, even if a run was killed while it replaced the file, or if the
    folder was moved.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        info = runner.message_hub.runtime_info
        if runner.iter:
            self.last_ckpt = info.get("last_ckpt")
        if self.save_best and "best_ckpt" in info:  # the folder may have moved
            self.best_ckpt_path = str(Path(self.out_dir) / Path(info["best_ckpt"]).name)
            runner.message_hub.update_info("best_ckpt", self.best_ckpt_path)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        last, self.last_ckpt = self.last_ckpt, None  # otherwise, the base class may save the checkpoint as well
        super().after_val_epoch(runner, metrics)
        self.last_ckpt = last
        best = runner.message_hub.runtime_info.get("best_ckpt")
        for path in Path(self.out_dir).glob("best_*.pth") if best and is_main_process() else ():
            if path.name != Path(best).name:
                path.unlink()
        step = runner.epoch if self.by_epoch else runner.iter
        is_saved = last is not None and Path(last).name == self.filename_tmpl.format(step)
        if is_saved or runner.train_loop.stop_training:
            self._save_checkpoint_with_step(runner, step, {"epoch": runner.epoch, "iter": runner.iter})

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, int]) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        if is_main_process():  # the run has passed the iteration at which it was stopped
            (Path(runner.work_dir) / STOPPED_NAME).unlink(missing_ok=True)


@HOOKS.register_module()
class ResumableEarlyStoppingHook(EarlyStoppingHook):
    """MMEngine's EarlyStoppingHook, but checkpoints store its state, and only a better score counts as one.

    Args:
        monitor: Name of the metric.
        rule: "greater" or "less", whichever is better.
        patience: Number of evaluations without a better score after which the run stops.
    """

    priority = "LOW"  # before CheckpointHook, which saves the state

    def __init__(self, monitor: str, rule: str, patience: int) -> None:
        # For the base class, an equal score is an improvement unless it has to exceed a difference.
        super().__init__(monitor, rule, min_delta=1e-12, strict=True, patience=patience)

    def before_train(self, runner: Runner) -> None:
        state = runner.message_hub.runtime_info.get(_EARLY_STOPPING)
        if runner.iter and state is not None:
            self.wait_count, self.best_score = state["wait_count"], state["best_score"]
            runner.train_loop.stop_training = self.wait_count >= self.patience

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        super().after_val_epoch(runner, metrics)
        state = {"wait_count": self.wait_count, "best_score": float(self.best_score)}
        runner.message_hub.update_info(_EARLY_STOPPING, state)


class ResumedEvaluationHook(Hook):
    """Evaluate before training goes on, if the run was killed between a checkpoint and its evaluation."""

    priority = "LOWEST"  # after the other hooks have restored their state

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        if getattr(loop, "first_batch", 0):  # in the middle of an epoch
            return
        if not runner.iter or runner.val_loop is None or runner.message_hub.runtime_info.get(EVALUATED) == runner.iter:
            return
        done, total = (loop.iter, loop.max_iters) if by_iterations(runner) else (loop.epoch, loop.max_epochs)
        if done >= loop.val_begin and (done % loop.val_interval == 0 or done == total):
            runner.val_loop.run()


class StopHook(Hook):
    """Save a checkpoint and end the run after the current iteration, if SIGTERM asks for it (see `stopping`).

    During an evaluation, the run ends after the current batch. The checkpoint is called `stopped.pth`, and the next
    regular checkpoint replaces it. No checkpoint is saved if there is already one of the same iteration.
    """

    priority = "LOWEST"  # after the other hooks have finished the iteration

    def __init__(self) -> None:
        self.saved = -1  # the iteration of the last checkpoint

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint["meta"].get("iter", -1)
        runner.train_loop.first_batch = checkpoint["meta"].get("first_batch", 0)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint["meta"]["iter"]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        is_requested = any_process(stopping.is_requested())
        if is_requested and runner.optim_wrapper.should_update():  # gradients that are accumulated are not saved
            place = {} if by_iterations(runner) else {"first_batch": batch_idx + 1}
            self._stop(runner, {"epoch": runner.epoch, "iter": runner.iter + 1, **place})

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        # Processes can have different numbers of batches, so they could not agree to save a checkpoint here.
        if stopping.is_requested() and (self.saved == runner.iter or get_world_size() == 1):
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # put the trained weights back
                    hook.after_val_epoch(runner)
            self._stop(runner, {"epoch": runner.epoch, "iter": runner.iter})

    def _stop(self, runner: Runner, meta: dict[str, int]) -> NoReturn:
        folder, done = Path(runner.work_dir), meta["iter"]
        if self.saved != done:
            backend = {"backend": "atomic"}
            runner.save_checkpoint(str(folder), STOPPED_NAME, meta=meta, backend_args=backend)
            if is_main_process():
                write_atomically(folder / "last_checkpoint", str(folder / STOPPED_NAME).encode())
            barrier()
        raise stopped_after(folder, done)
