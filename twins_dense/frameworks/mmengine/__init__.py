"""MMEngine: training by its Runner, with torchvision's detectors and mmsegmentation's segmentors."""

from __future__ import annotations

import logging
import warnings

# MMEngine 0.10 and mmcv 2.1 are frozen. What they warn about in their own use of newer packages helps no user.
for _module in ("mmengine", "mmcv", "mmseg"):
    for _category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=_category, module=rf"{_module}\b")

# MMEngine's CheckpointHook still uses two classes that MMEngine has deprecated, and says so in the log of every run.
# The log has no categories, so these records can only be told by their text.
_DEPRECATED = ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')


def silence_deprecations(logger: logging.Logger) -> None:
    """Drop MMEngine's deprecation notices about itself from a logger."""
    logger.addFilter(lambda record: not str(record.msg).startswith(_DEPRECATED))


def enable_mmseg() -> None:
    """Make mmsegmentation work with mmcv-lite from PyPI, and register our backbone and data sets in it.

    Call it before mmseg is imported; calling it again does nothing. In a config, the same is said by
    `custom_imports = dict(imports=["twins_dense.frameworks.mmengine.segmentors"])`.
    """
    from . import segmentors  # noqa: F401  (importing it does the work)
