"""detectron2: the Twins backbone for any detectron2 project (`backbone`), and training with its trainer."""
