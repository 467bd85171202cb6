"""UPerNet (arXiv 1807.10221) on a Twins pyramid; each experiment sets the variant and its channels."""

_base_ = "segmentor.py"

_LOSS = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)
model = dict(
    decode_head=dict(
        type="UPerHead",
        in_channels=None,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=_LOSS,
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=None,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(_LOSS, loss_weight=0.4),
    ),
)
