"""COCO 2017 with boxes and masks; use `--data-root` if it is in another folder."""

train_dataloader = dict(
    batch_size=2,  # per GPU; the recipes use 8 GPUs
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="CocoDetectionDataset",
        data_root="data/coco",
        ann_file="annotations/instances_train2017.json",
        image_dir="train2017",
        training=True,
        with_masks=True,
        transforms=[dict(type="RandomHorizontalFlip", p=0.5)],
        filter_empty=True,
        skip_bad=False,
        strict=False,
        allow_outside=False,
        indices=None,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoDetectionDataset",
        data_root="data/coco",
        ann_file="annotations/instances_val2017.json",
        image_dir="val2017",
        training=False,
        with_masks=False,
        skip_bad=False,
        strict=False,
        allow_outside=False,
        indices=None,
    ),
)
val_evaluator = dict(type="CocoMetric", iou_types=("bbox", "segm"), backend="hotcoco")
val_cfg = dict()
