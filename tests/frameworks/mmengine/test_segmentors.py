"""Twins in mmsegmentation: the registered backbone, the configs, and outputs equal to those of mmseg's own Twins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmseg
import numpy as np
import pytest
import torch
from cli_fixtures import assert_error, twins
from contracts import (
    VARIANTS,
    formula_image,
    randomise,
    state_dict_shapes,
    without_initialisation,
)
from detection_fixtures import TINY_SVT
from golden_files import DENSE_FILES, assert_close, formula_state_dict, golden_arrays
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from PIL import Image
from segmentation_fixtures import CLASSES, CONFIGS, resized, write_config
from torch import Tensor, nn

import twins_dense as td
from twins_dense.frameworks.mmengine import enable_mmseg
from twins_dense.frameworks.mmengine.engine import load_config

enable_mmseg()

from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

CONFIG_FILES = sorted(path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts)
THEIRS = Path(mmseg.__file__).parent / ".mim" / "configs" / "twins"
# Largest allowed difference, in units of the largest magnitude.
TOLERANCE = 1e-4


def build(config: dict[str, Any]) -> Any:
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(config)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def our_model(head: str, variant: str) -> Any:
    schedule = {"semantic_fpn": "80k", "upernet": "160k"}[head]
    return load_config(CONFIGS / f"{head}_{variant}_{schedule}.py").model


def their_model(head: str, variant: str) -> Any:
    family, size = variant.split("_")
    name = {"semantic_fpn": "fpn_fpnhead", "upernet": "uperhead"}[head]
    (path,) = THEIRS.glob(f"twins_{family}-{size[0]}_{name}_*.py")
    model = Config.fromfile(path).model
    model.backbone.init_cfg = None
    return model


# The backbone


class TestRegisteredBackbone:
    def test_is_the_package_s_own(self) -> None:
        net = build(
            {
                "type": "twins_dense.TwinsBackbone",
                "variant": "svt_small",
                "out_indices": (1, 3),
                "window_padding": "mask",
                "partial_patches": "pad",
                "norm_eps": 1e-5,
                "level_norm": False,
                "drop_path_rate": 0.3,
                "checkpointing": True,
            }
        )
        assert type(net) is td.TwinsBackbone
        assert net.pyramid.strides == (8, 32) and net.norm_list is None and net.checkpointing
        assert {module.eps for module in net.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}
        assert net.blocks[0][0].attn.window_padding == "mask" and net.patch_embeds[0].partial_patches == "pad"

    def test_columns_as_variant_and_weights(self, tmp_path: Path) -> None:
        settings = {"type": "twins_dense.TwinsBackbone", "variant": TINY_SVT}
        net = randomise(build(settings), 3)
        torch.save(net.state_dict(), tmp_path / "tiny.pth")
        again = build({**settings, "weights": str(tmp_path / "tiny.pth")})
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"variant": "svt_small", "windows_padding": "mask"}, "windows_padding"),
            ({"variant": "svt_small", "init_cfg": None}, "init_cfg"),
            ({"variant": "svt_smal"}, "did you mean 'svt_small'"),
            ({"variant": "svt_small", "partial_patches": "ceil"}, "choose one of 'drop', 'pad'"),
            ({}, "no variant"),
        ],
    )
    def test_what_is_refused(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises((TypeError, ValueError), match=words):
            build({"type": "twins_dense.TwinsBackbone", **settings})

    @pytest.mark.parametrize("path", [p for p in DENSE_FILES if p.stem.startswith("seg")], ids=lambda path: path.stem)
    @torch.no_grad()
    def test_golden(self, path: Path) -> None:
        _, variant, size = path.stem.split("-")
        settings = {"type": "twins_dense.TwinsBackbone", "variant": variant, "window_padding": "upstream_mask"}
        net = without_initialisation(lambda: build(settings)).eval()
        td.load_weights(net, formula_state_dict("seg", variant))
        height, width = map(int, size.split("x"))
        assert_close(golden_arrays(net.pyramid.names, net(formula_image(height, width))), path)


# The same outputs as mmseg's own SVT and PCPVT


@pytest.fixture(scope="module")
def images() -> dict[tuple[int, int], Tensor]:
    """Images of 512x512 and 512x683, a usual size in ADE20K: 512 is not a multiple of 7, and 683 of neither 7 nor 4."""
    return {size: torch.randn(1, 3, *size) for size in ((512, 512), (512, 683))}


@pytest.mark.parametrize("variant", ["svt_small", "pcpvt_small"])
@torch.no_grad()
def test_semantic_fpn_equals_mmseg_s(variant: str, images: dict[tuple[int, int], Tensor]) -> None:
    theirs = randomise(build(their_model("semantic_fpn", variant)), 5).eval()
    ours = without_initialisation(lambda: build(our_model("semantic_fpn", variant))).eval()
    report = td.load_segmentor(ours, theirs.state_dict())
    assert (report.format, report.variant, report.norm_eps) == ("mmseg", variant, "")
    assert not report.initialised and not report.dropped and len(report.loaded) == len(ours.state_dict())
    for size, image in images.items():
        levels, expected = ours.backbone(image), theirs.backbone(image)
        assert [level.shape[2:] for level in levels] == [
            (-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)
        ]
        for level, their_level in zip(levels, expected, strict=True):
            assert_equal(level, their_level)
        assert_equal(ours(image), theirs(image))
    back = td.convert_state_dict(ours.state_dict(), to="mmseg")
    for name, value in theirs.state_dict().items():
        assert torch.equal(back[name], value), name
    assert back.keys() == theirs.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(512, 512), (512, 683)])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_upernet_equals_mmseg_s(variant: str, size: tuple[int, int]) -> None:
    theirs = randomise(build(their_model("upernet", variant)), 5).eval()
    ours = without_initialisation(lambda: build(our_model("upernet", variant))).eval()
    td.load_segmentor(ours, theirs.state_dict())
    image = torch.randn(1, 3, *size)
    assert_equal(ours(image), theirs(image))


@pytest.mark.parametrize(("height", "width"), [(131, 203), (224, 160)])
@pytest.mark.parametrize("variant", ["svt_small", "pcpvt_small"])
@torch.no_grad()
def test_partial_patches_matter(variant: str, height: int, width: int) -> None:
    """At sizes that are not multiples of the strides, only "pad" gives mmseg's outputs; elsewhere both settings do."""
    theirs = randomise(build(their_model("upernet", variant).backbone), 5).eval()
    image = torch.randn(1, 3, height, width)
    expected = theirs(image)
    for partial_patches in ("pad", "drop"):
        net = td.create_backbone(
            variant, window_padding="upstream_mask", partial_patches=partial_patches, norm_eps=1e-5
        ).eval()
        td.load_weights(net, theirs.state_dict())
        levels = net(image)
        if partial_patches == "drop" and height % 32:
            assert levels[0].shape[2:] == (height // 4, width // 4) != expected[0].shape[2:]
        else:
            for level, their_level in zip(levels, expected, strict=True):
                assert_equal(level, their_level)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_the_published_segmentors_have_a_place_for_every_entry(head: str, variant: str) -> None:
    """Tests the twelve models whose checkpoints mmseg has published, with mmseg's and with official names."""
    shapes = dict(state_dict_shapes("mmseg_upernet", variant))
    with torch.device("meta"):
        ours = build(our_model(head, variant)).state_dict()
        if head == "semantic_fpn":  # the backbone is the same with the other head
            theirs = their_model(head, variant)
            parts = nn.ModuleDict({name: build(theirs[name]) for name in ("neck", "decode_head")})
            shapes = {name: shape for name, shape in shapes.items() if name.startswith("backbone.")}
            shapes.update({name: tuple(value.shape) for name, value in parts.state_dict().items()})
        their_state = {name: torch.empty(shape) for name, shape in shapes.items()}
    converted = td.convert_state_dict(their_state, to="official")
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.items()}
    back = td.convert_state_dict(ours, to="mmseg")
    assert {k: tuple(v.shape) for k, v in back.items()} == shapes


@torch.no_grad()
def test_official_upernet() -> None:
    """The official repository's models contain the classifier's norm and head, which they never use."""
    ours = randomise(build(our_model("upernet", "svt_small")), 5)
    state = {name: value.clone() for name, value in ours.state_dict().items()}
    for name, shape in {"norm.weight": (512,), "norm.bias": (512,), "head.weight": (9, 512), "head.bias": (9,)}.items():
        state[f"backbone.{name}"] = torch.zeros(shape)
    randomise(ours, 6)
    report = td.load_segmentor(ours, {"meta": {}, "state_dict": state})
    assert report.format == "official" and len(report.dropped) == 4
    assert "eps 1e-06 in blocks (here 1e-05)" in str(report)
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


class TestPublishedFile:
    """Use a checkpoint of mmseg's own SVT, in the format of mmsegmentation 0.x, on the command line."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        columns = {key: TINY_SVT[key] for key in ("num_heads", "mlp_ratios", "depths", "sr_ratios")}
        model = their_model("semantic_fpn", "svt_small")
        model.backbone.update(embed_dims=[16, 32, 32, 64], windiow_sizes=[7] * 4, **columns)
        model.neck.update(in_channels=[16, 32, 32, 64], out_channels=16)
        model.decode_head.update(in_channels=[16] * 4, channels=16, num_classes=3)
        self.model = randomise(build(model), 5).eval()
        meta = {"CLASSES": CLASSES, "PALETTE": [[9, 9, 9], [99, 99, 9], [9, 99, 99]], "iter": 80000}
        torch.save({"meta": meta, "state_dict": self.model.state_dict()}, tmp_path / "published.pth")
        return tmp_path / "published.pth"

    @torch.no_grad()
    def test_evaluates_and_predicts(self, file: Path, label_data: Path, tmp_path: Path) -> None:
        config = write_config(tmp_path / "published.py", label_data)
        result = twins("eval", config, file, "--work-dir", tmp_path / "out")
        assert result.code == 0, result.err
        photo = label_data / "images" / "validation" / "0.png"
        result = twins("predict", config, file, photo, "--out", tmp_path / "drawn")
        assert result.code == 0, result.err
        found = np.array(Image.open(tmp_path / "drawn" / "0.png")) - 1
        image = np.array(Image.open(photo))
        expected = self.model(resized(image[:, :, ::-1], 1.0))
        expected = nn.functional.interpolate(expected, image.shape[:2], mode="bilinear", align_corners=False)[0]
        best = expected.topk(2, dim=0).values
        clear = (best[0] - best[1] > TOLERANCE * expected.abs().max()).numpy()
        assert (expected.argmax(0).numpy() == found)[clear].all() and clear.mean() > 0.95
        assert len(np.unique(found)) > 1

    def test_of_another_model(self, file: Path, label_data: Path, tmp_path: Path) -> None:
        config = write_config(tmp_path / "published.py", label_data)
        result = twins("eval", config, file, "--work-dir", tmp_path / "out", "model.neck.out_channels=8")
        assert_error(result, str(file), "neck.", "Give the config and overrides")

    def test_with_other_classes(self, file: Path, label_data: Path, tmp_path: Path) -> None:
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["meta"]["CLASSES"] = ("ground", "moon", "bar")
        torch.save(checkpoint, file)
        result = twins("eval", write_config(tmp_path / "p.py", label_data), file, "--work-dir", tmp_path / "out")
        assert_error(result, "2 disc", "2 moon", str(file))

    def test_is_what_training_starts_from(self, file: Path, label_data: Path, tmp_path: Path) -> None:
        more = f"load_from = {str(file)!r}\noptim_wrapper = dict(optimizer=dict(lr=0.0))\nparam_scheduler = None\n"
        config = write_config(tmp_path / "start.py", label_data, iterations=1, more=more)
        result = twins("train", config, "--work-dir", tmp_path / "work")
        assert result.code == 0, result.err
        state = torch.load(tmp_path / "work" / "iter_1.pth", weights_only=True)["state_dict"]
        expected = td.convert_state_dict(self.model.state_dict(), to="official")
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            if "running" not in name and "tracked" not in name:
                assert torch.equal(state[name], value), name


# The configs


def test_all_configs_are_found() -> None:
    names = {path.stem for path in CONFIG_FILES}
    published = {f"semantic_fpn_{v}_80k" for v in VARIANTS} | {f"upernet_{v}_160k" for v in VARIANTS}
    assert len(CONFIG_FILES) == 13 and names == published | {"semantic_fpn_svt_small_camvid"}


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_config_trains_a_step_and_evaluates(path: Path) -> None:
    """Losses are finite, every parameter gets a gradient, and every pixel a class, at 64 pixels instead of 512."""
    config = load_config(path)
    num_classes = config.model.decode_head.num_classes
    config.model.data_preprocessor.size = (64, 64)
    config.model.backbone.drop_path_rate = 0.0
    torch.manual_seed(0)
    model = build(config.model).train()
    batch = {"inputs": [], "data_samples": []}
    for _ in range(2):
        batch["inputs"].append(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8))
        labels = torch.randint(0, num_classes, (1, 64, 64))
        meta = {"ori_shape": (64, 64), "img_shape": (64, 64)}
        batch["data_samples"].append(SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta))
    data = model.data_preprocessor(batch, training=True)
    losses = {name: value for name, value in model(**data, mode="loss").items() if "loss" in name}
    assert losses.keys() == {"decode.loss_ce"} | ({"aux.loss_ce"} if path.stem.startswith("upernet") else set())
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.count_nonzero()]
    assert without == []
    model.eval()
    with torch.inference_mode():
        found = model.val_step(batch)
    assert all(sample.pred_sem_seg.data.shape == (1, 64, 64) for sample in found)


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_recipe(path: Path) -> None:
    config = load_config(path)
    backbone, optimizer = config.model.backbone, config.optim_wrapper.optimizer
    assert (backbone.partial_patches, backbone.norm_eps) == ("pad", 1e-5)
    assert config.sync_bn == "torch" and config.model.decode_head.norm_cfg.type == "BN"
    assert optimizer.type == "AdamW" and config.train_cfg.type == "ResumableIterLoop"
    if path.stem.endswith("camvid"):
        return
    batch = 8 * config.train_dataloader.batch_size
    assert batch == config.auto_scale_lr.base_batch_size and config.auto_scale_lr.enable
    assert backbone.window_padding == "upstream_mask"
    assert backbone.drop_path_rate == (0.3 if backbone.variant == "svt_large" else 0.2)
    if path.stem.startswith("semantic_fpn"):
        assert (config.train_cfg.max_iters, batch) == (80000, 32)
        assert (optimizer.lr, optimizer.weight_decay) == (1e-4, 1e-4)
        (decay,) = config.param_scheduler
        assert (decay.power, decay.eta_min, decay.end) == (0.9, 1e-6, 80000)
    else:
        assert (config.train_cfg.max_iters, batch) == (160000, 32 if backbone.variant == "pcpvt_small" else 16)
        assert (optimizer.lr, optimizer.weight_decay) == (6e-5, 0.01)
        warm_up, decay = config.param_scheduler
        assert (warm_up.start_factor, warm_up.end) == (1e-6, 1500)
        assert (decay.power, decay.eta_min, decay.begin, decay.end) == (1.0, 0.0, 1500, 160000)
        assert config.optim_wrapper.paramwise_cfg.custom_keys == {
            "pos_block": {"decay_mult": 0},
            "norm": {"decay_mult": 0},
        }


def test_one_line_switches_the_mask() -> None:
    config = load_config(CONFIGS / "upernet_svt_small_160k.py", ["model.backbone.window_padding=mask"])
    with torch.device("meta"):
        assert build(config.model).backbone.blocks[0][0].attn.window_padding == "mask"
