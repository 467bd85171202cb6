"""RetinaNet with the 1x schedule."""

_base_ = ["coco_boxes.py", "retinanet.py", "schedule_1x.py", "runtime.py"]

optim_wrapper = dict(optimizer=dict(lr=1e-4))
