"""Whole models: every format computes the same as the framework, and files appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import twins_dense as td
from twins_dense.deploy.compare import compare_detections, compare_logits
from twins_dense.deploy.export import export_whole
from twins_dense.deploy.exportable import Exportable
from twins_dense.deploy.runtimes import open_exported

pytest.importorskip("onnxruntime", reason="installed with the extra export")
pytest.importorskip("openvino", reason="installed with the extra export")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SUFFIXES = (".onnx", ".xml", ".pt2")
ABOUT = {"kind": "segmentor", "classes": ["sky", '<road> "é"'], "threshold": None}


class TinySegmentor(nn.Module):
    """A convolution that sees only the image without its padding."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor]:
        inside = (torch.arange(image.shape[2]) < size[0])[:, None] & (torch.arange(image.shape[3]) < size[1])
        return (self.conv(image / 255 * inside),)


def tiny(net: nn.Module | None = None, reference: Callable[..., tuple[Tensor, ...]] | None = None) -> Exportable:
    net = (net or TinySegmentor()).eval()
    return Exportable(net, reference or net, ("logits",), ABOUT)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format(suffix: str, tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "new" / f"a{suffix}"
    differences = export_whole(model, path, about={"weights_sha256": "abc"})
    assert differences["logits"] <= 1e-4 and differences["labels"] <= 1e-4
    assert {file.name for file in path.parent.iterdir()} == ({"a.xml", "a.bin"} if suffix == ".xml" else {path.name})
    exported = open_exported(path)
    assert exported.path == path
    assert {**ABOUT, "format": 1, "size_step": 32, "weights_sha256": "abc"}.items() <= exported.about.items()
    assert exported.about["versions"]["twins_dense"] == td.__version__
    # A size that was neither traced nor checked, and padding of another colour.
    image, size = torch.rand(1, 3, 96, 160) * 255, torch.tensor([70, 141])
    (found,) = exported({"size": size.numpy(), "image": image.numpy()}).values()
    with torch.no_grad():
        np.testing.assert_allclose(found, model.net(image, size)[0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_differs_does_not_appear(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(
        td.TwinsError, match=r"^the exported logits differs from the model at 480x640, noise by [^\n]+$"
    ):
        export_whole(tiny(reference=TinySegmentor(seed=1).eval()), tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_padding_is_compared(tmp_path: Path) -> None:
    """A model that reads the padding agrees at the sizes without padding, and is refused."""

    class Leaking(TinySegmentor):
        def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor]:
            return (self.conv(image / 255) + 0.0 * size.sum(),)

    with pytest.raises(td.TwinsError, match="differs from the model at 250x331"):
        export_whole(tiny(Leaking(), TinySegmentor().eval()), tmp_path / "a.pt2")


@pytest.mark.parametrize("existing", ["a.xml", "a.bin"])
def test_nothing_is_overwritten(existing: str, tmp_path: Path) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(td.TwinsError, match=f"{existing}' exists: name a new file"):
        export_whole(tiny(), tmp_path / "a.xml")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(existing, "mine")]


def test_training_mode_is_refused(tmp_path: Path) -> None:
    model = tiny()
    with pytest.raises(td.TwinsError, match="training mode"):
        export_whole(replace(model, net=model.net.train()), tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


class TestBadFiles:
    @pytest.fixture(scope="class")
    def good(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("good")
        for suffix in SUFFIXES:
            export_whole(tiny(), folder / f"a{suffix}", sizes=((64, 64),))
        return folder

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
    def test_truncated(self, suffix: str, kept: float, good: Path, tmp_path: Path) -> None:
        for file in good.glob("a.*"):
            content = file.read_bytes()
            (tmp_path / file.name).write_bytes(
                content[: int(kept * len(content))] if file.suffix == suffix else content
            )
        with pytest.raises(td.TwinsError, match=rf"^[^\n]*a\{suffix}'[^\n]* is not [^\n]+: export it again$"):
            open_exported(tmp_path / f"a{suffix}")

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_other_content(self, suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "a.bin").write_bytes(b"x")
        (tmp_path / f"a{suffix}").write_bytes(b"<?xml version='1.0'?><svg/>\n")
        with pytest.raises(td.TwinsError, match=rf"^[^\n]*a\{suffix}' is not [^\n]+: export it again$"):
            open_exported(tmp_path / f"a{suffix}")
        assert capfd.readouterr() == ("", "")

    def test_weights_missing(self, good: Path, tmp_path: Path) -> None:
        os.link(good / "a.xml", tmp_path / "a.xml")
        with pytest.raises(td.TwinsError, match=r"a\.bin': no such file"):
            open_exported(tmp_path / "a.xml")

    def test_folders_and_suffixes(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").mkdir()
        with pytest.raises(td.TwinsError, match=r"a\.onnx': is a folder"):
            open_exported(tmp_path / "a.onnx")
        with pytest.raises(td.TwinsError, match=r"a\.pth' is not an exported model: give a file that ends in \.onnx"):
            open_exported(tmp_path / "a.pth")

    def test_another_program(self, tmp_path: Path) -> None:
        torch.export.save(torch.export.export(nn.Identity(), (torch.zeros(1),)), tmp_path / "a.pt2")
        with pytest.raises(td.TwinsError, match="has no metadata of `twins-dense export`"):
            open_exported(tmp_path / "a.pt2")


def detections(*rows: tuple[int, float, float]) -> dict[str, np.ndarray]:
    """Return detections (label, score, x1) of boxes of 10x10 pixels."""
    labels, scores, lefts = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 3
    boxes = np.stack([lefts, lefts * 0, lefts + 10, lefts * 0 + 10], axis=1)
    masks = np.ones((len(rows), 28, 28)) * scores[:, None, None]
    return {"boxes": boxes, "scores": scores, "labels": labels, "masks": masks}


class TestDetections:
    ONES = ((1, 0.9, 5.0), (2, 0.9, 5.0), (1, 0.8, 50.0))

    def compare(self, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
        return compare_detections(ours, theirs, "here", threshold=0.05)

    def test_order_does_not_matter(self) -> None:
        found = self.compare(
            detections(*self.ONES), detections(*((label, score, x + 0.01) for label, score, x in self.ONES[::-1]))
        )
        assert found == {"boxes": pytest.approx(0.01), "scores": 0.0, "masks": 0.0}

    @pytest.mark.parametrize(
        "rows", [ONES[:2], (*ONES, (1, 0.5, 90.0)), ((2, 0.9, 5.0), *ONES[1:]), ((1, 0.9, 5.1), *ONES[1:])]
    )
    def test_another_object(self, rows: tuple[tuple[int, float, float], ...]) -> None:
        with pytest.raises(
            td.TwinsError, match=r"finds an object that the (file|model) does not find at here: label 1"
        ):
            self.compare(detections(*self.ONES), detections(*rows))

    def test_other_masks(self) -> None:
        other = detections(*self.ONES)
        other["masks"][2, 3, 4] += 0.002
        with pytest.raises(td.TwinsError, match=r"the exported masks differ from the model at here by 2\.0e-03"):
            self.compare(detections(*self.ONES), other)

    def test_scores_at_the_threshold(self) -> None:
        found = self.compare(detections(*self.ONES, (1, 0.05005, 90.0)), detections(*self.ONES, (1, 0.04998, 90.0)))
        assert found["scores"] == 0.0

    def test_the_lowest_scores_of_a_full_list(self) -> None:
        """Of two equal scores at the end of a list of three, either may be kept."""
        ours, theirs = ((*self.ONES[:2], (1, 0.8, x)) for x in (50.0, 90.0))
        assert self.compare(detections(*ours), detections(*theirs))["boxes"] == 0.0

    def test_nothing(self) -> None:
        assert self.compare(detections(), detections((1, 0.0, 5.0))) == {"boxes": 0.0, "scores": 0.0, "masks": 0.0}


def test_labels_are_compared() -> None:
    """Nearly equal logits pass, but not if they change the labels of many pixels."""
    ours = {"logits": np.zeros((1, 2, 100, 100))}
    ours["logits"][0, 0, 0, 0] = 1.0
    theirs = {"logits": ours["logits"].copy()}
    theirs["logits"][0, 1, 50, 50] = 1e-5
    assert compare_logits(ours, theirs, "here")["labels"] == pytest.approx(1e-4)
    theirs["logits"][0, 1, 50] = 1e-5
    with pytest.raises(td.TwinsError, match=r"gives 1\.000% of the pixels another label at here, more than 0\.01%"):
        compare_logits(ours, theirs, "here")
