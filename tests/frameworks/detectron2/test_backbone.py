"""The detectron2 adapter: features, names, padding, builders, and parameter groups for optimisers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import SLIM_PCPVT, SLIM_SVT, WINDOW_PADDINGS, block_settings, random_backbone, shapes_of
from d2_fixtures import CONFIGS, HEADS, MARKS, engine, twins_log, write_lazy
from detection_fixtures import TINY_SVT
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from detectron2.structures import ImageList
from torch import nn

import twins_dense as td
from twins_dense.frameworks.detectron2.backbone import D2Twins, add_twins_config, build_net, optimizer_params
from twins_dense.frameworks.detectron2.cfg_node import read_dump
from twins_dense.frameworks.options import TrainingOptions
from twins_dense.weights.load import load_weights

pytestmark = MARKS
SLIM = pytest.mark.parametrize("spec", [SLIM_PCPVT, SLIM_SVT], ids=["pcpvt", "svt"])
SUBSETS = [(0, 1, 2, 3), (1, 2, 3), (0,), (3,), (0, 2)]


def columns(spec: td.TwinsSpec) -> dict[str, Any]:
    """Return the values for a custom spec in a config file."""
    numbers = {"dims": "dim", "num_heads": "num_heads", "mlp_ratios": "mlp_ratio", "depths": "depth"}
    numbers |= {"sr_ratios": "sr_ratio", "patch_sizes": "patch_size"}
    found = {column: [getattr(stage, number) for stage in spec.stages] for column, number in numbers.items()}
    return {"name": spec.name, "window_size": spec.stages[0].window_size, **found}


class TestAdapter:
    @SLIM
    @pytest.mark.parametrize("window_padding", WINDOW_PADDINGS)
    @torch.no_grad()
    def test_features_are_those_of_create_backbone(self, spec: td.TwinsSpec, window_padding: str) -> None:
        ours = random_backbone(spec, window_padding=window_padding)
        adapter = D2Twins(build_net(columns(spec), window_padding=window_padding)).eval()
        adapter.load_state_dict({f"net.{name}": value for name, value in ours.state_dict().items()})
        images = torch.randn(2, 3, 96, 160)
        found = adapter(images)
        assert list(found) == ["res2", "res3", "res4", "res5"]
        for level, expected in zip(found.values(), ours(images), strict=True):
            assert torch.equal(level, expected)

    @pytest.mark.parametrize("variant", ["pcpvt_small", "svt_small"])
    @torch.no_grad()
    def test_features_of_a_published_variant(self, variant: str) -> None:
        ours = td.create_backbone(variant).eval()
        adapter = D2Twins(build_net(variant)).eval()
        adapter.net.load_state_dict(ours.state_dict())
        images = torch.randn(1, 3, 64, 96)
        for level, expected in zip(adapter(images).values(), ours(images), strict=True):
            assert torch.equal(level, expected)

    @SLIM
    def test_gradients_are_those_of_create_backbone(self, spec: td.TwinsSpec) -> None:
        ours = random_backbone(spec, drop_path_rate=0.3).train()
        adapter = D2Twins(random_backbone(spec, drop_path_rate=0.3)).train()
        images = torch.randn(3, 3, 64, 96)
        for net, call in ((ours, ours), (adapter.net, lambda images: adapter(images).values())):
            torch.manual_seed(1)  # for stochastic depth
            sum((level**2).sum() for level in call(images)).backward()
            assert all(parameter.grad is not None for parameter in net.parameters())
        for first, second in zip(ours.parameters(), adapter.net.parameters(), strict=True):
            assert torch.equal(first.grad, second.grad)

    @SLIM
    @pytest.mark.parametrize("out_indices", SUBSETS)
    @torch.no_grad()
    def test_shapes_are_those_announced(self, spec: td.TwinsSpec, out_indices: tuple[int, ...]) -> None:
        adapter = D2Twins(random_backbone(spec, out_indices=out_indices))
        names = [f"res{index + 2}" for index in out_indices]
        expected = {
            name: ShapeSpec(channels=(8, 12, 20, 28)[index], stride=(4, 8, 16, 32)[index])
            for name, index in zip(names, out_indices, strict=True)
        }
        assert adapter.output_shape() == expected
        levels = adapter(torch.randn(2, 3, 64, 160))
        assert list(levels) == names
        for name, shape in expected.items():
            assert tuple(levels[name].shape) == (2, shape.channels, 64 // shape.stride, 160 // shape.stride)
        # For every choice of levels, because the reduction in stage 1 covers 32 pixels per side.
        assert adapter.size_divisibility == 32

    def test_a_batch_is_padded_to_multiples_of_32(self) -> None:
        """detectron2 pads at the bottom and on the right."""
        adapter = D2Twins(random_backbone(SLIM_SVT))
        images = [torch.ones(3, 61, 45), torch.ones(3, 33, 97)]
        batch = ImageList.from_tensors(
            images, adapter.size_divisibility, padding_constraints=adapter.padding_constraints
        )
        assert tuple(batch.tensor.shape) == (2, 3, 64, 128)
        assert batch.image_sizes == [(61, 45), (33, 97)]
        for padded, image in zip(batch.tensor, images, strict=True):
            assert padded.sum() == image.sum() == padded[:, : image.shape[1], : image.shape[2]].sum()

    @pytest.mark.parametrize("head", HEADS)
    @torch.no_grad()
    def test_detectors_pad_as_the_backbone_asks(self, tmp_path: Path, head: str) -> None:
        model = instantiate(engine.load_config(write_lazy(tmp_path / "tiny.py", tmp_path, head)).model)
        seen: list[tuple[int, ...]] = []
        model.backbone.bottom_up.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
        sizes = [(61, 45), (33, 97)]
        images = [torch.full((3, height, width), 128, dtype=torch.uint8) for height, width in sizes]
        found = model.eval()([{"image": image} for image in images])
        assert seen == [(2, 3, 64, 128)]
        assert [output["instances"].image_size for output in found] == sizes


class TestBuildNet:
    def test_options_reach_the_backbone(self) -> None:
        net = build_net(
            TINY_SVT,
            out_indices=[1, 3],
            window_padding="mask",
            level_norm=False,
            drop_path_rate=0.3,
            checkpointing=True,
        )
        expected = td.create_backbone(
            td.TwinsSpec.from_columns(**TINY_SVT),
            out_indices=(1, 3),
            window_padding="mask",
            level_norm=False,
            drop_path_rate=0.3,
            checkpointing=True,
        )
        assert str(net) == str(expected) and shapes_of(net) == shapes_of(expected)
        assert block_settings(net) == block_settings(expected)
        assert net.spec == expected.spec and net.out_indices == (1, 3) and net.checkpointing

    def test_weights_are_loaded_and_reported(self, tmp_path: Path) -> None:
        spec = td.TwinsSpec.from_columns(**TINY_SVT)
        path = tmp_path / "classifier.pth"
        classifier = td.create_classifier(spec)
        torch.save({"model": classifier.state_dict()}, path)
        with twins_log() as log:
            net = build_net(TINY_SVT, weights=str(path))
        loaded, source = net.state_dict(), classifier.state_dict()
        common = [name for name in loaded if not name.startswith("norm_list.")]
        assert len(common) == len(source) - 4  # all but the classifier's last norm and head
        assert all(torch.equal(loaded[name], source[name]) for name in common)
        (line,) = log
        assert str(load_weights(td.create_backbone(spec), path)) in line
        assert str(path) in line and "norm_list" in line

    @pytest.mark.parametrize("weights", [None, ""])
    def test_no_weights(self, weights: str | None) -> None:
        with twins_log() as log:
            build_net(TINY_SVT, weights=weights)
        assert log == []

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            ({"variant": "svt_smal"}, "did you mean 'svt_small'?"),
            ({"variant": TINY_SVT, "weights": "no/such.pth"}, "no/such.pth"),
            ({"variant": {**TINY_SVT, "dims": (16, 32)}}, "dims has 2"),
            ({"variant": TINY_SVT, "window_padding": "edge"}, "'edge'"),
        ],
    )
    def test_errors(self, arguments: dict[str, Any], part: str) -> None:
        with pytest.raises(td.TwinsError) as caught:
            build_net(**arguments)
        assert part in str(caught.value) and "\n" not in str(caught.value)


def twins_cfg(name: str, *values: Any) -> CfgNode:
    """Return detectron2's defaults with `add_twins_config`, the name of a backbone builder, and overrides."""
    cfg = get_cfg()
    add_twins_config(cfg)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.merge_from_list(values)
    return cfg


def build_on_meta(cfg: CfgNode) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(cfg)


class TestCfgNode:
    def test_registered_names(self) -> None:
        names = {name for name, _ in BACKBONE_REGISTRY if "twins" in name}
        assert names == {"build_twins_backbone", "build_twins_fpn_backbone", "build_retinanet_twins_fpn_backbone"}

    @pytest.mark.parametrize("variant", ["svt_small", "pcpvt_large"])
    def test_plain(self, variant: str) -> None:
        backbone = build_on_meta(twins_cfg("build_twins_backbone", "MODEL.TWINS.VARIANT", variant))
        assert isinstance(backbone, D2Twins)
        with torch.device("meta"):
            assert shapes_of(backbone.net) == shapes_of(td.create_backbone(variant))
        assert list(backbone.output_shape()) == ["res2", "res3", "res4", "res5"]

    def test_fpn(self) -> None:
        cfg = twins_cfg("build_twins_fpn_backbone", "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"])
        found = build_on_meta(cfg)(torch.zeros(1, 3, 64, 128, device="meta"))
        sizes = {"p2": (16, 32), "p3": (8, 16), "p4": (4, 8), "p5": (2, 4), "p6": (1, 2)}
        assert {name: tuple(level.shape) for name, level in found.items()} == {
            name: (1, 256, *size) for name, size in sizes.items()
        }

    def test_fpn_for_retinanet(self) -> None:
        keys = ("MODEL.TWINS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"])
        backbone = build_on_meta(twins_cfg("build_retinanet_twins_fpn_backbone", *keys))
        assert list(backbone.bottom_up.output_shape()) == ["res3", "res4", "res5"]
        assert (backbone.top_block.in_feature, backbone.top_block.p6.in_channels) == ("res5", 512)
        found = backbone(torch.zeros(1, 3, 64, 128, device="meta"))
        sizes = {"p3": (8, 16), "p4": (4, 8), "p5": (2, 4), "p6": (1, 2), "p7": (1, 1)}
        assert {name: tuple(level.shape[2:]) for name, level in found.items()} == sizes

    @pytest.mark.parametrize(
        ("variant", "value", "has_norms"),
        [
            ("svt_small", None, True),
            ("pcpvt_small", None, False),
            ("svt_small", False, False),
            ("pcpvt_small", True, True),
        ],
    )
    def test_level_norm(self, variant: str, value: bool | None, has_norms: bool) -> None:
        keys = ("MODEL.TWINS.VARIANT", variant, "MODEL.TWINS.LEVEL_NORM", str(value))  # as on the command line
        backbone = build_on_meta(twins_cfg("build_twins_backbone", *keys))
        assert (backbone.net.norm_list is not None) == has_norms

    @pytest.mark.parametrize("value", WINDOW_PADDINGS)
    def test_window_padding(self, value: str) -> None:
        net = build_on_meta(twins_cfg("build_twins_backbone", "MODEL.TWINS.WINDOW_PADDING", value)).net
        assert {padding for _, padding in block_settings(net)} == {value, None}  # blocks with and without windows

    def test_other_settings(self) -> None:
        keys = ("MODEL.TWINS.DROP_PATH_RATE", 0.4, "MODEL.TWINS.CHECKPOINTING", True)
        net = build_on_meta(twins_cfg("build_twins_backbone", *keys)).net
        with torch.device("meta"):
            assert block_settings(net) == block_settings(td.create_backbone("svt_small", drop_path_rate=0.4))
        assert net.checkpointing

    @pytest.mark.parametrize(
        ("key", "value", "part"),
        [
            ("VARIANT", "svt_smal", "did you mean 'svt_small'?"),
            ("WINDOW_PADDING", "edge", "'edge'"),
            (
                "OUT_FEATURES",
                ["res5", "res2"],
                "['res5', 'res2']: list one or more of res2, res3, res4, res5, in this order",
            ),
            (
                "OUT_FEATURES",
                ["res2", "res2"],
                "['res2', 'res2']: list one or more of res2, res3, res4, res5, in this order",
            ),
            ("OUT_FEATURES", [], "[]: list one or more of res2, res3, res4, res5"),
            ("OUT_FEATURES", ["res6"], "'res6'"),
            ("OUT_FEATURES", ["c3"], "'c3'"),
            ("WEIGHTS", "no/such.pth", "no/such.pth"),
        ],
    )
    def test_errors(self, key: str, value: Any, part: str) -> None:
        with pytest.raises(td.TwinsError) as caught:
            build_on_meta(twins_cfg("build_twins_backbone", f"MODEL.TWINS.{key}", value))
        assert part in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["build_twins_fpn_backbone", "build_retinanet_twins_fpn_backbone"])
    @pytest.mark.parametrize(
        ("out_features", "in_features", "parts"),
        [
            (["res3", "res4"], ["res3", "res4", "res5"], ("MODEL.TWINS.OUT_FEATURES=['res3', 'res4'] lacks res5",)),
            (["res5"], ["res3", "res4", "res5"], ("OUT_FEATURES=['res5'] lacks res3, res4", "list all of them")),
            (["res3", "res4", "res5"], ["res3", "res4"], ("MODEL.FPN.IN_FEATURES=['res3', 'res4']", "end with res5")),
            (["res3", "res4", "res5"], ["res5", "res4"], ("MODEL.FPN.IN_FEATURES=['res5', 'res4']", "consecutive")),
            (["res3", "res4", "res5"], ["res3", "res5"], ("MODEL.FPN.IN_FEATURES=['res3', 'res5']", "consecutive")),
            (["res3", "res4", "res5"], ["c5"], ("MODEL.FPN.IN_FEATURES=['c5']",)),
            (["res3", "res4", "res5"], [], ("MODEL.FPN.IN_FEATURES=[]",)),
        ],
    )
    def test_levels_that_do_not_fit(
        self, name: str, out_features: list[str], in_features: list[str], parts: tuple[str, ...]
    ) -> None:
        keys = ("MODEL.TWINS.OUT_FEATURES", out_features, "MODEL.FPN.IN_FEATURES", in_features)
        with pytest.raises(td.TwinsError) as caught:
            build_on_meta(twins_cfg(name, *keys))
        assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "name", ["build_twins_backbone", "build_twins_fpn_backbone", "build_retinanet_twins_fpn_backbone"]
    )
    def test_a_forgotten_call(self, name: str) -> None:
        cfg = get_cfg()
        cfg.MODEL.BACKBONE.NAME = name
        with pytest.raises(td.TwinsError, match=r"no MODEL\.TWINS: call add_twins_config\(cfg\) before"):
            build_on_meta(cfg)

    @pytest.mark.parametrize("num_frozen", [0, 1, 2, 4])
    def test_freeze_at_is_a_number_of_stages(self, num_frozen: int) -> None:
        net = build_on_meta(twins_cfg("build_twins_backbone", "MODEL.BACKBONE.FREEZE_AT", num_frozen)).net
        assert net.num_frozen_stages == num_frozen
        for stage, modules in enumerate(zip(net.patch_embeds, net.blocks, strict=True)):
            trained = {parameter.requires_grad for module in modules for parameter in module.parameters()}
            assert trained == {stage >= num_frozen}

    def test_the_option_replaces_freeze_at(self, tmp_path: Path) -> None:
        shipped = (CONFIGS / "mask_rcnn_svt_small_1x.yaml").read_text()
        path = tmp_path / "frozen.yaml"
        path.write_text(shipped.replace("    NAME: build_twins_fpn", "    FREEZE_AT: 1\n    NAME: build_twins_fpn"))
        config = engine.load_config(path)
        assert read_dump(config.model.cfg).MODEL.BACKBONE.FREEZE_AT == 1
        engine.set_training(config, TrainingOptions(freeze="stages:2"))
        with torch.device("meta"):
            assert build_backbone(read_dump(config.model.cfg)).bottom_up.net.num_frozen_stages == 2

    def test_nothing_is_frozen_by_default(self) -> None:
        """detectron2's own default is 2, for ResNets."""
        assert get_cfg().MODEL.BACKBONE.FREEZE_AT == 2
        net = build_on_meta(twins_cfg("build_twins_backbone")).net
        assert all(parameter.requires_grad for parameter in net.parameters())

    @pytest.mark.parametrize(
        ("values", "parts"),
        [
            (("MODEL.BACKBONE.FREEZE_AT", 5), ("MODEL.BACKBONE.FREEZE_AT=5", "from 0 to 4")),
            (("MODEL.BACKBONE.FREEZE_AT", -1), ("MODEL.BACKBONE.FREEZE_AT=-1", "from 0 to 4")),
            (
                ("MODEL.BACKBONE.FREEZE_AT", 1, "MODEL.TWINS.FREEZE", "stages:2"),
                ("MODEL.BACKBONE.FREEZE_AT=1", "MODEL.TWINS.FREEZE='stages:2'", "set one of them"),
            ),
        ],
    )
    def test_bad_freeze_at(self, values: tuple[Any, ...], parts: tuple[str, ...]) -> None:
        with pytest.raises(td.TwinsError) as caught:
            build_on_meta(twins_cfg("build_twins_backbone", *values))
        assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)

    def test_weights(self, tmp_path: Path) -> None:
        path = tmp_path / "classifier.pth"
        torch.save(td.create_classifier("svt_small").state_dict(), path)
        with twins_log() as log:
            backbone = build_backbone(twins_cfg("build_twins_backbone", "MODEL.TWINS.WEIGHTS", str(path)))
        for name, value in torch.load(path, weights_only=True).items():
            if not name.startswith(("head.", "norm.")):
                assert torch.equal(backbone.net.state_dict()[name], value), name
        (line,) = log
        assert str(path) in line


class TestOptimizerParams:
    @pytest.fixture(params=HEADS)
    def model(self, request: pytest.FixtureRequest, tmp_path: Path) -> nn.Module:
        return instantiate(engine.load_config(write_lazy(tmp_path / "tiny.py", tmp_path, request.param)).model)

    def test_every_parameter_once(self, model: nn.Module) -> None:
        for no_decay in ([], ["pos_block", "norm"], ["no such name"], [""]):
            groups = optimizer_params(model, no_decay=no_decay)
            found = [id(parameter) for group in groups for parameter in group["params"]]
            assert len(found) == len(set(found))
            assert set(found) == {id(parameter) for parameter in model.parameters()}

    def test_without_decay_are_position_encodings_and_norms(self, model: nn.Module) -> None:
        """The expected parameters are found by the types of the modules, not by their names."""
        expected = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
        expected |= {id(parameter) for parameter in model.backbone.bottom_up.net.pos_block.parameters()}
        decayed, without = optimizer_params(model, no_decay=["pos_block", "norm"])
        assert {id(parameter) for parameter in without["params"]} == expected
        assert without["weight_decay"] == 0.0 and "weight_decay" not in decayed
        optimizer = torch.optim.AdamW([decayed, without], weight_decay=0.05)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]

    def test_no_names_no_groups(self, model: nn.Module) -> None:
        (group,) = optimizer_params(model)
        assert list(group) == ["params"]

    def test_frozen_ones_are_left_out(self, model: nn.Module) -> None:
        model.backbone.bottom_up.net.patch_embeds.requires_grad_(False)
        frozen = {id(parameter) for parameter in model.backbone.bottom_up.net.patch_embeds.parameters()}
        groups = optimizer_params(model, no_decay=["pos_block", "norm"])
        found = {id(parameter) for group in groups for parameter in group["params"]}
        assert found == {id(parameter) for parameter in model.parameters()} - frozen
        assert frozen
