"""The report of a data set before training: one page about its classes, objects, problems and duplicates."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ...data.layouts import DataFolder, recognise
from ...errors import TwinsError
from ..data_survey import survey_labels, survey_objects
from .build import check_out, write_page
from .data_labels import label_page
from .data_objects import object_page


def write_data_report(root: str | Path, out: str | Path) -> Path:
    """Recognise the layout of a data set, and write the report about it as one HTML file.

    Images and annotations that cannot be used are listed in the report.

    Args:
        root: Folder of the data set.
        out: Path of the HTML file; an earlier report is replaced.

    Returns:
        `out` as a path.

    Raises:
        TwinsError: If the folder is not recognised, nothing of a split can be used, or `out` cannot be written.
    """
    root, out = Path(root), Path(out)
    if not root.is_dir():
        raise TwinsError(f"--data {str(root)!r} is not a folder: give the folder of the images and annotations")
    check_out(out)
    with tempfile.TemporaryDirectory(prefix="twins_dense-") as scratch:
        page = data_page(recognise(root, out=scratch, skip_bad=True))
    write_page(out, page)
    return out


def data_page(folder: DataFolder) -> str:
    """Return the report of a data set as an HTML page. The same data gives the same page.

    Raises:
        TwinsError: If an annotation file cannot be used, or nothing of a split can be used.
    """
    return object_page(survey_objects(folder)) if folder.task == "detection" else label_page(survey_labels(folder))
