"""Training of torchvision's detectors and mmsegmentation's segmentors with MMEngine's Runner."""

from __future__ import annotations

import logging
import warnings

# MMEngine 0.10 and mmcv 2.1 get no more updates, so warnings about their own use of newer packages help no user.
for _module in ("mmengine", "mmcv", "mmseg"):
    for _category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=_category, module=rf"{_module}\b")

# MMEngine's CheckpointHook uses two classes that MMEngine itself has deprecated, which every run would log. Log records
# have no categories, so they can only be recognised by their text.
_DEPRECATED = ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')


def silence_deprecations(logger: logging.Logger) -> None:
    """Filter MMEngine's deprecation notices about itself out of a logger."""
    logger.addFilter(lambda record: not str(record.msg).startswith(_DEPRECATED))


def enable_mmseg() -> None:
    """Make mmsegmentation work with mmcv-lite from PyPI, and register our backbone and data sets in it.

    Call this before mmseg is imported; calling it again does nothing. The equivalent in a config is
    `custom_imports = dict(imports=["twins_dense.frameworks.mmengine.segmentors"])`.
    """
    from . import segmentors  # noqa: F401  (the import has these effects)
