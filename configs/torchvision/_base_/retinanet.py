"""RetinaNet on a Twins pyramid; each experiment sets the variant."""

model = dict(
    type="TwinsRetinaNet",
    backbone=dict(
        variant=None,
        window_padding="zeros",
        level_norm=None,
        drop_path_rate=0.2,
        weights=None,
        freeze=None,
        checkpointing=False,
    ),
    num_classes=80,
    min_size=800,
    max_size=1333,
    fpn_channels=256,
    anchor_sizes=(
        32,
        64,
        128,
        256,
        512,
    ),  # in pixels of the resized image, for p3 to p7; each level also has 2^(1/3) and 2^(2/3) times its size
    max_dets=100,  # detections per image, for the model and the metric
    options=dict(),
)
