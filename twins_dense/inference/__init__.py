"""Trained models as Python objects: load one, predict on images, evaluate it."""

from .load import load_model
from .model import Model
from .results import Classification, Detections, Segmentation

__all__ = ["Classification", "Detections", "Model", "Segmentation", "load_model"]
