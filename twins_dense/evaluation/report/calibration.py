"""The section of the report about calibration."""

from __future__ import annotations

from ..calibration import Calibration
from .charts import calibration_chart
from .page import Section, render


def calibration_section(calibration: Calibration, noun: str) -> Section:
    """Return the section about calibration.

    Args:
        calibration: The calibration.
        noun: The things that are predicted: "pixels", "images" or "detections".
    """
    chart = calibration_chart(
        calibration.confidence.tolist(),
        calibration.accuracy.tolist(),
        calibration.counts.tolist(),
        y_label=f"share of correct {noun}",
        description=f"Share of correct {noun} by confidence; the diagonal is perfect calibration.",
    )
    html = render("calibration.html.j2", calibration=calibration, chart=chart, noun=noun)
    return Section("calibration", "Calibration", html)
