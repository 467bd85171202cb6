r"""Semantic FPN, svt_small, trained from scratch on a custom data set: 60 street photos of CamVid with 11 classes.

twins-dense train mmseg/semantic_fpn_svt_small_camvid --data-root data/camvid

The data folder contains images/{training,validation}/*.png and annotations/{training,validation}/*.png. Annotations
have the values 1 to 11 for the classes in the order below, and 0 for pixels without a class. For your own data, change
the class names, the number of classes and the file suffixes. The settings suit two CPU cores: crops of 192 pixels, a
batch size of 6, 800 iterations.
"""

_base_ = "_base_/semantic_fpn_80k.py"

_DATASET = dict(
    type="twins_dense.SegmentationDataset",
    data_root="data/camvid",
    img_suffix=".png",
    seg_map_suffix=".png",
    reduce_zero_label=True,
    metainfo=dict(
        classes=(
            *("sky", "building", "pole", "road", "pavement", "tree"),
            *("sign_symbol", "fence", "car", "pedestrian", "bicyclist"),
        ),
        # The RGB colour of each class in pictures; without a palette, colours are random.
        palette=[
            *([128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0]),
            *([192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192]),
        ],
    ),
)
model = dict(
    data_preprocessor=dict(size=(192, 192)),
    backbone=dict(variant="svt_small", window_padding="mask", drop_path_rate=0.0),
    neck=dict(in_channels=[64, 128, 256, 512]),
    decode_head=dict(num_classes=11),
)
train_dataloader = dict(
    batch_size=6,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        **_DATASET,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="RandomResize", scale=(480, 360), ratio_range=(0.5, 1.25), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(192, 192), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        **_DATASET,
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")],
    ),
)
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale_factor=ratio) for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_cfg = dict(max_iters=800, val_interval=200)
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.01))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", power=0.9, eta_min=1e-6, begin=50, end=800, by_epoch=False),
]
auto_scale_lr = dict(enable=False)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=200))
