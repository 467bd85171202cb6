"""Semantic FPN with the 80k schedule on ADE20K at 512x512."""

_base_ = ["ade20k.py", "semantic_fpn.py", "schedule_80k.py", "runtime.py"]
