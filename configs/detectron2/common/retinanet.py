"""RetinaNet (arXiv 1708.02002) on c3 to c5, p6 from c5, and p7 from p6, with the settings of the published recipes."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead

from .backbone import bottom_up, pixels

_CHANNELS = 256  # number of channels of each pyramid level
_STRIDES = [8, 16, 32, 64, 128]

bottom_up.net.out_indices = [1, 2, 3]
model = L(RetinaNet)(
    backbone=L(FPN)(
        bottom_up=bottom_up,
        in_features=["res3", "res4", "res5"],
        out_channels=_CHANNELS,
        # Each experiment sets in_channels to the number of channels of c5.
        top_block=L(LastLevelP6P7)(in_channels=None, out_channels=_CHANNELS, in_feature="res5"),
    ),
    head=L(RetinaNetHead)(
        input_shape=[ShapeSpec(channels=_CHANNELS)] * len(_STRIDES),
        num_classes="${..num_classes}",
        num_anchors=9,
        conv_dims=[256, 256, 256, 256],
    ),
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[4 * stride * 2 ** (step / 3) for step in range(3)] for stride in _STRIDES],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=_STRIDES,
        offset=0.0,  # the first anchor is centred on the corner of the image
    ),
    anchor_matcher=L(Matcher)(thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    num_classes=80,
    focal_loss_alpha=0.25,
    focal_loss_gamma=2.0,
    test_score_thresh=0.05,
    test_topk_candidates=1000,
    test_nms_thresh=0.5,
    max_detections_per_image=100,
    pixel_mean=pixels.mean,
    pixel_std=pixels.std,
    input_format="RGB",
)
