"""Trained models as Python objects: load one, predict on images, evaluate it."""
