"""The progress of a detectron2 run on the console."""

from __future__ import annotations

from pathlib import Path

from detectron2.engine import HookBase

from ..console import Progress, logger

_WINDOW = 20  # iterations over which the loss is averaged


class ConsoleHook(HookBase):
    """Log the progress of a run at intervals of time. Register it in the first process, after `LRScheduler`.

    Args:
        folder: The work directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before_train(self) -> None:
        done, total = self.trainer.start_iter, self.trainer.max_iter
        if done:
            logger.info(f"resumed after iteration {done} of {total}")
        logger.info(f"log file: {self.folder / 'log.txt'}")
        self.progress = Progress(total, done)

    def before_step(self) -> None:
        self.progress.resume()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        self.progress.update(done, f"iter {done}/{self.trainer.max_iter}", self._values)
        self.progress.pause()  # other hooks save checkpoints and evaluate

    def _values(self) -> dict[str, float]:
        storage = self.trainer.storage
        return {"loss": storage.history("total_loss").avg(_WINDOW), "lr": storage.history("lr").latest()}
