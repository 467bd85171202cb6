"""The common part of both segmentors: a Twins pyramid with mmsegmentation's settings, so that its checkpoints fit."""

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),  # size of the training crops
    ),
    backbone=dict(
        type="twins_dense.TwinsBackbone",
        variant=None,
        # The published segmentors were trained with this setting; "mask" hides all padding (see docs/segmentation.md).
        window_padding="upstream_mask",
        # mmsegmentation's values; UPerNet checkpoints of the official repository need "drop" and None.
        partial_patches="pad",
        norm_eps=1e-5,
        level_norm=None,
        drop_path_rate=0.2,
        weights=None,
        freeze=None,
        checkpointing=False,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
