"""Exported files compute the same as the models at every size, and describe their input."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import assert_error, twins
from contracts import VARIANTS, WINDOW_PADDINGS, random_backbone, randomise
from PIL import Image

import twins_dense as td
from twins_dense.deploy import export as exporting
from twins_dense.deploy.export import export
from twins_dense.deploy.runtimes import open_exported
from twins_dense.models.spec import _VARIANTS
from twins_dense.models.windows import window_key_mask
from twins_dense.weights.preprocessing import OFFICIAL_PREPROCESSING

onnxruntime = pytest.importorskip("onnxruntime", reason="installed with the extra export")
pytest.importorskip("onnxscript", reason="installed with the extra export")

# Warnings inside torch's exporter, which we cannot avoid.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
# The strides, windows and reduction ratios of the published variants, with one block for each kind of attention.
ONE_OF_EACH = {"num_heads": (1, 2, 5, 7), "mlp_ratios": (1, 1, 1, 1), "sr_ratios": (8, 4, 2, 1)}
TINY_PCPVT = td.TwinsSpec.from_columns(
    "tiny_pcpvt", dims=(4, 6, 10, 14), depths=(1, 1, 1, 1), window_size=None, **ONE_OF_EACH
)
TINY_SVT = td.TwinsSpec.from_columns("tiny_svt", dims=(4, 6, 10, 14), depths=(2, 1, 1, 1), window_size=7, **ONE_OF_EACH)
SHAPES = ((1, 224, 224), (3, 224, 224), (1, 512, 704), (3, 512, 704))


@pytest.fixture(scope="module")
def svt(tmp_path_factory: pytest.TempPathFactory) -> tuple[td.TwinsBackbone, Path]:
    """A backbone with the levels c3 and c5, which masks windows at some sizes only, and its ONNX file."""
    net = random_backbone(TINY_SVT, out_indices=(1, 3), window_padding="upstream_mask")
    path = tmp_path_factory.mktemp("export") / "svt.onnx"
    export(net, path, preprocessing=OFFICIAL_PREPROCESSING, weights_sha256="abc")
    return net, path


@torch.no_grad()
def assert_equal(net: torch.nn.Module, path: Path, shapes: Any) -> float:
    """Check the file's outputs to 1e-4 of their largest magnitude, and return the largest difference."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, height, width in shapes:
        images = torch.randn(batch, 3, height, width)
        expected = net(images)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for ours, theirs in zip(expected, session.run(None, {"images": images.numpy()}), strict=True):
            difference = np.abs(ours.numpy() - theirs).max() / ours.abs().max().item()
            assert difference <= 1e-4, (batch, height, width)
            worst = max(worst, float(difference))
    return worst


class TestOnnx:
    def test_svt(self, svt: tuple[td.TwinsBackbone, Path]) -> None:
        """Test windows without padding, with padding on one axis and on both axes, and a single window."""
        net, path = svt
        assert_equal(net, path, ((1, 224, 224), (3, 160, 224), (2, 448, 96), (1, 128, 160), (5, 64, 64), (1, 96, 736)))

    def test_pcpvt(self, tmp_path: Path) -> None:
        net = random_backbone(TINY_PCPVT)
        differences = export(net, tmp_path / "new" / "pcpvt.onnx")
        assert list(differences) == ["c2", "c3", "c4", "c5"] and max(differences.values()) <= 1e-4
        assert_equal(net, tmp_path / "new" / "pcpvt.onnx", ((1, 224, 224), (3, 64, 96), (2, 736, 64)))
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["pcpvt.onnx"]

    def test_metadata(self, svt: tuple[td.TwinsBackbone, Path]) -> None:
        _, path = svt
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [node.name for node in session.get_inputs()] == ["images"]
        assert [node.name for node in session.get_outputs()] == ["c3", "c5"]
        assert session.get_inputs()[0].shape[1] == 3
        metadata = json.loads(session.get_modelmeta().custom_metadata_map["twins_dense.json"])
        assert metadata["kind"] == "backbone" and metadata["variant"] == "tiny_svt"
        assert metadata["window_padding"] == "upstream_mask" and metadata["weights_sha256"] == "abc"
        assert metadata["levels"] == [
            {"name": "c3", "channels": 6, "stride": 8},
            {"name": "c5", "channels": 14, "stride": 32},
        ]
        assert metadata["preprocessing"]["short_side"] == 256
        assert metadata["preprocessing"]["mean"] == [0.485, 0.456, 0.406]

    def test_a_file_that_differs_does_not_appear(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The comparison finds that the file computes something else, here because it has other weights."""
        trace = exporting._trace
        monkeypatch.setattr(exporting, "_trace", lambda net, inputs, step: trace(other, inputs, step))
        other = random_backbone(TINY_PCPVT, seed=8, out_indices=(0,))
        with pytest.raises(td.TwinsError, match=r"the exported c2 differs from the model at 1x3x224x224"):
            export(random_backbone(TINY_PCPVT, seed=7, out_indices=(0,)), tmp_path / "a.pt2")
        assert list(tmp_path.iterdir()) == []

    def test_reading_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_bytes(b"no model")
        with pytest.raises(td.TwinsError, match=r"a\.onnx' is not an ONNX model"):
            open_exported(tmp_path / "a.onnx")
        with pytest.raises(td.TwinsError, match="no such file"):
            open_exported(tmp_path / "b.onnx")
        onnx = pytest.importorskip("onnx")
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", [x], [y]),
            opset_imports=[onnx.helper.make_opsetid("", 18)],
            ir_version=10,
        )
        onnx.save(model, tmp_path / "c.onnx")
        with pytest.raises(td.TwinsError, match="has no metadata of `twins-dense export`"):
            open_exported(tmp_path / "c.onnx")

    def test_a_missing_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        (tmp_path / "a.onnx").write_bytes(b"")
        with pytest.raises(td.TwinsError, match=r"onnxruntime is not installed.*pip install 'twins-dense\[export\]'"):
            open_exported(tmp_path / "a.onnx")

    @pytest.mark.slow
    @pytest.mark.parametrize("window_padding", WINDOW_PADDINGS)
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_published_variants(self, variant: str, window_padding: Any, tmp_path: Path) -> None:
        if variant.startswith("pcpvt") and window_padding != "zeros":
            pytest.skip("PCPVT has no windows")
        net = randomise(td.create_backbone(variant, window_padding=window_padding), 7).eval()
        export(net, tmp_path / "net.onnx")
        print(f"{variant} {window_padding}: {assert_equal(net, tmp_path / 'net.onnx', SHAPES):.1e}")


class TestProgram:
    @pytest.mark.parametrize("window_padding", WINDOW_PADDINGS)
    def test_sizes(self, window_padding: Any, tmp_path: Path) -> None:
        """A loaded program accepts every kind of size down to the documented minimum, whatever size was traced."""
        net = random_backbone(TINY_SVT, out_indices=(0,), window_padding=window_padding)
        export(net, tmp_path / "a.pt2", weights_sha256="abc")
        files = {"twins_dense.json": ""}
        module = torch.export.load(tmp_path / "a.pt2", extra_files=files).module()
        assert json.loads(files["twins_dense.json"])["window_padding"] == window_padding
        with torch.no_grad():
            for batch, height, width in ((1, 224, 224), (4, 160, 224), (2, 64, 96), (1, 64, 64), (3, 512, 704)):
                images = torch.randn(batch, 3, height, width)
                for found, expected in zip(module(images), net(images), strict=True):
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            with pytest.raises(AssertionError, match="64"):
                module(torch.randn(1, 3, 32, 96))


class TestCommand:
    def test_classifier(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(_VARIANTS, "tiny_pcpvt", TINY_PCPVT)
        net = randomise(td.create_classifier(TINY_PCPVT), 3).eval()
        torch.save(net.state_dict(), tmp_path / "w.pth")
        model = ("--variant", "tiny_pcpvt", "--weights", tmp_path / "w.pth")
        arguments = (tmp_path / "c.onnx", "--classifier", *model)
        result = twins("export", *arguments)
        assert result.code == 0, result.err
        assert "logits" in result.out
        assert_equal(net, tmp_path / "c.onnx", ((2, 224, 224), (1, 96, 160)))
        exported = open_exported(tmp_path / "c.onnx")
        assert exported.about["num_classes"] == 1000 and len(exported.about["weights_sha256"]) == 64
        assert exported({"images": np.zeros((1, 3, 64, 64), np.float32)})["logits"].shape == (1, 1000)
        assert_error(twins("export", *arguments), "exists: name a new file")

        # The file has the same ImageNet scores as the model.
        for number, wnid in enumerate(["n01440764", "n02085620", "n03000684"] * 3):
            (tmp_path / "val" / wnid).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (230, 250, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / wnid / f"{number}.png")
        common = ("validate", "--data", tmp_path / "val", "--subset", "--batch-size", 4, "--workers", 0, "--out")
        for name, what in (("onnx", ("--onnx", tmp_path / "c.onnx")), ("torch", model)):
            result = twins(*common, tmp_path / name, *what)
            assert result.code == 0, result.err
        (from_file,), (from_torch,) = (
            json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("onnx", "torch")
        )
        assert from_file["variant"] == "tiny_pcpvt" and from_file["images"] == 9
        for name in ("top1", "top5", "loss"):
            assert from_file[name] == pytest.approx(from_torch[name], rel=1e-5)

    def test_validating_other_models(self, svt: tuple[td.TwinsBackbone, Path], tmp_path: Path) -> None:
        common = ("validate", "--data", tmp_path)
        assert_error(
            twins(*common, "--onnx", svt[1]), "is not a classifier of 1000 classes: export one with --classifier"
        )
        assert_error(twins(*common, "--onnx", tmp_path / "gone.onnx"), "gone.onnx", "no such file")
        assert_error(
            twins(*common, "--onnx", svt[1], "--amp", "bf16"),
            "leave out --variant, --weights, --reproduce, --device, --amp and --compile",
        )

    def test_bad_input(self, tmp_path: Path) -> None:
        options = ("--variant", "svt_small", "--weights", "w.pth")
        assert_error(twins("export", tmp_path / "a.txt", *options), "end its name in .onnx, .xml or .pt2")
        assert_error(twins("export", tmp_path / "a.onnx", *options), "'w.pth'", "no such file")
        assert_error(twins("export", tmp_path / "a.onnx", *options, "--levels", "c9"), "unknown level 'c9'")
        assert list(tmp_path.iterdir()) == []


def test_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(td.TwinsError, match="training mode"):
        export(random_backbone(TINY_PCPVT).train(), tmp_path / "a.pt2")


@pytest.mark.parametrize(("size", "padded"), [((14, 21), 0), ((13, 21), 1), ((14, 20), 1), ((13, 20), 2)])
def test_the_mask_of_an_export(size: tuple[int, int], padded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exported model always has a mask, which masks exactly the same cells as in eager mode."""
    for only_both in (False, True):
        eager = window_key_mask(size, 7, torch.device("cpu"), only_both=only_both)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_exporting", lambda: True)
            exported = window_key_mask(size, 7, torch.device("cpu"), only_both=only_both)
        assert exported is not None and exported.shape == (math.prod(-(-side // 7) for side in size), 1, 1, 49)
        assert (eager is None) == (padded < (2 if only_both else 1))
        assert torch.equal(exported, torch.ones_like(exported) if eager is None else eager)
