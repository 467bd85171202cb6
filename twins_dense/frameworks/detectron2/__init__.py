"""The Twins backbone for any detectron2 project (`backbone`), and training with detectron2's trainer."""
