"""COCO 2017 with boxes and masks, in $DETECTRON2_DATASETS/coco unless `--data-root` or the fields below are set."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader

from twins_dense.frameworks.detectron2.data import build_train_loader, coco_dataset
from twins_dense.frameworks.detectron2.detection_evaluator import DetectionEvaluator

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(coco_dataset)(
            name="coco_2017_train",
            training=True,
            with_masks="${..mapper.use_instance_mask}",
            data_root=None,
            ann_file=None,
            image_dir=None,
            filter_empty=True,
            skip_bad=False,
            strict=False,
            allow_outside=False,
            indices=None,
        ),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[
                L(T.RandomFlip)(horizontal=True),
                L(T.ResizeShortestEdge)(short_edge_length=[800], max_size=1333, sample_style="choice"),
            ],
            image_format="RGB",
            use_instance_mask=True,
            instance_mask_format="polygon",
        ),
        total_batch_size=16,
        num_workers=4,
        seed="${train.seed}",
    ),
    test=L(build_detection_test_loader)(
        dataset=L(coco_dataset)(
            name="coco_2017_val",
            training=False,
            data_root=None,
            ann_file=None,
            image_dir=None,
            skip_bad=False,
            strict=False,
            allow_outside=False,
            indices=None,
        ),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
            image_format="${...train.mapper.image_format}",
        ),
        num_workers=4,
    ),
    evaluator=L(DetectionEvaluator)(dataset_name="${..test.dataset.name}"),
)

# Each image is first resized and cropped to 384-600 pixels with probability 0.5, then resized to a random short side.
multi_scale_crop = [
    L(T.RandomFlip)(horizontal=True),
    L(T.RandomApply)(
        tfm_or_aug=L(T.AugmentationList)(
            augs=[
                L(T.ResizeShortestEdge)(short_edge_length=[400, 500, 600], max_size=1333, sample_style="choice"),
                L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
            ]
        ),
        prob=0.5,
    ),
    L(T.ResizeShortestEdge)(short_edge_length=list(range(480, 801, 32)), max_size=1333, sample_style="choice"),
]
