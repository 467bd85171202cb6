"""Catalog of the published checkpoints: their URLs, hashes, preprocessing and scores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import TwinsError, did_you_mean
from .preprocessing import OFFICIAL_PREPROCESSING, TIMM_PREPROCESSING, Preprocessing


@dataclass(frozen=True)
class WeightsSpec:
    """A published checkpoint.

    Attributes:
        name: Name in the catalog, "VARIANT.DATASET-SOURCE".
        task: "classification" (ImageNet-1k) or "segmentation" (ADE20K).
        variant: Variant of the backbone.
        format: Format of the parameter names: "official", "timm", "mmpretrain" or "mmseg".
        url: URL of the file.
        sha256: Published SHA-256 of the file, or its first digits if only these are published; "" if there is none.
        preprocessing: Preprocessing that the published scores were measured with.
        scores: Published scores in percent, by metric.
        protocol: Evaluation protocol and publisher of the scores.
    """

    name: str
    task: str
    variant: str
    format: str
    url: str
    sha256: str
    preprocessing: Preprocessing
    scores: Mapping[str, float]
    protocol: str

    @property
    def path(self) -> Path:
        """Path of the downloaded file."""
        suffix = ".safetensors" if self.url.endswith(".safetensors") else ".pth"
        return cache_dir() / f"{self.name}{suffix}"


_ADE20K_PREPROCESSING = Preprocessing(short_side=512, long_side=2048, crop=None, interpolation="bilinear")

_OPENMMLAB = "https://download.openmmlab.com"
_GOOGLE_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="

# variant: top-1 in the official README; Google Drive id; SHA-256 as recorded by a third party
_OFFICIAL = {
    "pcpvt_small": (81.2, "1TWIx_8M-4y6UOKtbCgm1v-UVQ-_lYe6X", ""),
    "pcpvt_base": (82.7, "1BsD3ZRivvPsHoZB1AX-tbirFLtCln8ky", ""),
    "pcpvt_large": (83.1, "17xZXOWEcSGs0quBmMEkBYCxjPRYH-L45", ""),
    "svt_small": (
        81.7,
        "131SVOphM_-SaBytf4kWjo3ony5hpOt4S",
        "eac356ba3f9e5a2a60cffeb621597b8244243a51d1611059b136e2fe2634df11",
    ),
    "svt_base": (
        83.2,
        "1s83To8xgDWY6Ad8VBP3Nx9gqY709rrGu",
        "122d8516c5996e0633838742be9911a9c51872376e9b7594a51d42ac4f160fc1",
    ),
    "svt_large": (
        83.7,
        "1um39wxIaicmOquP2fr_SiZdxNCUou8w-",
        "d7ddf82e02f14510dd049c896c6d6f1e9339ce0307333cda1c4ac3f791215ab9",
    ),
}
# variant: top-1 and top-5 in timm's results for crop 0.9
_TIMM = {
    "pcpvt_small": (81.116, 95.624),
    "pcpvt_base": (82.724, 96.350),
    "pcpvt_large": (83.158, 96.626),
    "svt_small": (81.694, 95.670),
    "svt_base": (83.122, 96.430),
    "svt_large": (83.718, 96.600),
}
# variant: top-1 and top-5 in mmpretrain's model zoo; file name without hash and suffix; first digits of the SHA-256
_MMPRETRAIN = {
    "pcpvt_small": (81.14, 95.69, "twins-pcpvt-small_3rdparty_8xb128_in1k_20220126", "ef23c132"),
    "pcpvt_base": (82.66, 96.26, "twins-pcpvt-base_3rdparty_8xb128_in1k_20220126", "f8c4b0d5"),
    "pcpvt_large": (83.09, 96.59, "twins-pcpvt-large_3rdparty_16xb64_in1k_20220126", "c1ef8d80"),
    "svt_small": (81.77, 95.57, "twins-svt-small_3rdparty_8xb128_in1k_20220126", "8fe5205b"),
    "svt_base": (83.13, 96.29, "twins-svt-base_3rdparty_8xb128_in1k_20220126", "e31cc8e9"),
    "svt_large": (83.60, 96.50, "twins-svt-large_3rdparty_16xb64_in1k_20220126", "4817645f"),
}
_WHOLE_SHA256 = {"ef23c132": "ef23c132078a8355a6c5705cd57e1f24cf356e8b1b44ea8d245abf2f40a130b3"}
# variant: mmseg's file of the official ImageNet weights; first digits of the SHA-256
_MMSEG = {
    "pcpvt_small": ("pcpvt_small_20220308", "e638c41c"),
    "pcpvt_base": ("pcpvt_base_20220308", "0621964c"),
    "pcpvt_large": ("pcpvt_large_20220308", "37579dc6"),
    "svt_small": ("alt_gvt_small_20220308", "7e1c3695"),
    "svt_base": ("alt_gvt_base_20220308", "1b7eb711"),
    "svt_large": ("alt_gvt_large_20220308", "fb5936f3"),
}
# variant and head: mIoU, and mIoU with multiple scales and flipping, in mmseg's model zoo; name and date of the run;
# first digits of the SHA-256
_ADE20K = {
    ("pcpvt_small", "fpn"): (43.26, 44.11, "pcpvt-s_fpn_fpnhead_8x4_512x512_80k", "20211201_204132", "41acd132"),
    ("pcpvt_small", "upernet"): (46.04, 46.92, "pcpvt-s_uperhead_8x4_512x512_160k", "20211201_233537", "8e99c07a"),
    ("pcpvt_base", "fpn"): (45.66, 46.48, "pcpvt-b_fpn_fpnhead_8x4_512x512_80k", "20211130_141019", "d396db72"),
    ("pcpvt_base", "upernet"): (47.91, 48.64, "pcpvt-b_uperhead_8x2_512x512_160k", "20211130_141020", "02094ea5"),
    ("pcpvt_large", "fpn"): (45.94, 46.70, "pcpvt-l_fpn_fpnhead_8x4_512x512_80k", "20211201_105226", "bc6d61dc"),
    ("pcpvt_large", "upernet"): (49.35, 50.08, "pcpvt-l_uperhead_8x2_512x512_160k", "20211201_075053", "c6095c07"),
    ("svt_small", "fpn"): (44.47, 45.42, "svt-s_fpn_fpnhead_8x4_512x512_80k", "20211130_141006", "0a0d3317"),
    ("svt_small", "upernet"): (46.08, 46.96, "svt-s_uperhead_8x2_512x512_160k", "20211130_141005", "e48a2d94"),
    ("svt_base", "fpn"): (46.77, 47.47, "svt-b_fpn_fpnhead_8x4_512x512_80k", "20211201_113849", "88b2907c"),
    ("svt_base", "upernet"): (48.04, 48.87, "svt-b_uperhead_8x2_512x512_160k", "20211202_040826", "0943a1f1"),
    ("svt_large", "fpn"): (46.55, 47.74, "svt-l_fpn_fpnhead_8x4_512x512_80k", "20211130_141005", "1d59bee2"),
    ("svt_large", "upernet"): (49.65, 50.63, "svt-l_uperhead_8x2_512x512_160k", "20211130_141005", "3e2cae61"),
}


def cache_dir() -> Path:
    """Return the folder for downloaded files: `TWINS_DENSE_HOME` if it is set, otherwise ~/.cache/twins_dense."""
    return Path(os.environ.get("TWINS_DENSE_HOME") or "~/.cache/twins_dense").expanduser()


def _imagenet(
    variant: str,
    source: str,
    url: str,
    sha256: str,
    scores: Mapping[str, float],
    protocol: str,
    preprocessing: Preprocessing = OFFICIAL_PREPROCESSING,
) -> WeightsSpec:
    name = f"{variant}.in1k-{source}"
    return WeightsSpec(name, "classification", variant, source, url, sha256, preprocessing, scores, protocol)


def _published() -> Iterator[WeightsSpec]:
    crop = "short side 256 bicubic, centre crop 224"
    for variant, (top1, drive_id, sha256) in _OFFICIAL.items():
        scores = {"top1": top1}
        yield _imagenet(variant, "official", _GOOGLE_DRIVE + drive_id, sha256, scores, f"{crop}; official repository")
    for variant, (top1, top5) in _TIMM.items():
        url = f"https://huggingface.co/timm/twins_{variant}.in1k/resolve/main/model.safetensors"
        scores, protocol = {"top1": top1, "top5": top5}, "crop 0.9 of 224 bicubic; timm"
        yield _imagenet(variant, "timm", url, "", scores, protocol, TIMM_PREPROCESSING)  # the hub gives the SHA-256
    for variant, (top1, top5, file, sha256) in _MMPRETRAIN.items():
        url = f"{_OPENMMLAB}/mmclassification/v0/twins/{file}-{sha256}.pth"
        sha256, scores = _WHOLE_SHA256.get(sha256, sha256), {"top1": top1, "top5": top5}
        yield _imagenet(variant, "mmpretrain", url, sha256, scores, f"{crop}; mmpretrain")
    for variant, (file, sha256) in _MMSEG.items():
        url = f"{_OPENMMLAB}/mmsegmentation/v0.5/pretrain/twins/{file}-{sha256}.pth"
        yield _imagenet(variant, "mmseg", url, sha256, {}, "the official weights without their head; mmseg")
    for (variant, head), (miou, multi_scale_miou, run, date, sha256) in _ADE20K.items():
        config = f"twins_{run}_ade20k"
        yield WeightsSpec(
            f"{variant}.ade20k_{head}-mmseg",
            "segmentation",
            variant,
            "mmseg",
            f"{_OPENMMLAB}/mmsegmentation/v0.5/twins/{config}/{config}_{date}-{sha256}.pth",
            sha256,
            _ADE20K_PREPROCESSING,
            {"mIoU": miou, "mIoU multi-scale": multi_scale_miou},
            "whole image, (2048, 512); mmseg",
        )


CATALOG: dict[str, WeightsSpec] = {spec.name: spec for spec in _published()}


def published_as(sha256: str) -> WeightsSpec | None:
    """Return the entry whose published hash matches this SHA-256, or `None` if there is none."""
    return next((spec for spec in CATALOG.values() if spec.sha256 and sha256.startswith(spec.sha256)), None)


def get_weights_spec(name: str) -> WeightsSpec:
    """Return the catalog entry with this name. An unknown name raises `TwinsError`."""
    if name not in CATALOG:
        raise TwinsError(f"unknown weights {name!r}; `twins-dense weights list` shows all{did_you_mean(name, CATALOG)}")
    return CATALOG[name]
