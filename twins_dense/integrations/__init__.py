"""Adapters of the backbone to the frameworks whose heads read its pyramid; each is imported on its own."""


def enable_mmseg() -> None:
    """Make mmsegmentation work from PyPI alone, and register ours in it: `twins_dense.TwinsBackbone` and data sets.

    To be called before mmseg is imported; calling it again does nothing. A config says the same with
    `custom_imports = dict(imports=["twins_dense.integrations.mmseg"])`.
    """
    from . import mmseg  # noqa: F401  (importing it does it)
