"""RetinaNet on a Twins pyramid; each experiment sets the variant."""

model = dict(
    type="TwinsRetinaNet",
    backbone=dict(
        variant=None, window_padding="zeros", level_norm=None, drop_path_rate=0.2, weights=None, checkpointing=False
    ),
    num_classes=80,
    min_size=800,
    max_size=1333,
    fpn_channels=256,
    options=dict(),
)
