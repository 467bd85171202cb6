"""UPerNet with the 160k schedule on ADE20K at 512x512."""

_base_ = ["ade20k.py", "upernet.py", "schedule_160k.py", "runtime.py"]

train_dataloader = dict(batch_size=2)
