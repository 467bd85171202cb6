"""The Twins backbone; each experiment sets the variant."""

from detectron2.config import LazyCall as L

from twins_dense.frameworks.detectron2.backbone import D2Twins, build_net

bottom_up = L(D2Twins)(
    net=L(build_net)(
        variant=None,
        out_indices=[0, 1, 2, 3],
        window_padding="zeros",
        level_norm=None,  # the default of the family for dense models: with norms for SVT, without for PCPVT
        drop_path_rate=0.2,
        weights=None,  # an ImageNet checkpoint
        freeze=None,  # the part that is not trained: "backbone", or "stages:N" for the first N
        checkpointing=False,
    )
)
# ImageNet's mean and standard deviation for RGB images in 0..255.
pixels = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
