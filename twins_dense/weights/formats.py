"""Formats of Twins state dicts: parameter names, prefixes, and the LayerNorm epsilon of each project.

This module contains only tables; `keymap.py` has the code that uses them.
"""

from __future__ import annotations

from typing import NamedTuple

# One row per parameter, one column per group of formats; `None` means that a format has no such parameter.
# {s} is a stage and {last} the last stage. {b} is a block "stage.index", {g} a block with global attention and {l} a
# block with local attention. {p} is weight or bias. mmseg stacks the rows of q, k and v in one matrix; ":q" and ":kv"
# mark its parts.
KEY_TABLE = (
    # official, timm               mmpretrain                             mmseg
    ("patch_embeds.{s}.proj.{p}", "patch_embeds.{s}.projection.{p}", "patch_embeds.{s}.projection.{p}"),
    ("patch_embeds.{s}.norm.{p}", "patch_embeds.{s}.norm.{p}", "patch_embeds.{s}.norm.{p}"),
    ("blocks.{b}.norm1.{p}", "stages.{b}.norm1.{p}", "layers.{b}.norm1.{p}"),
    ("blocks.{l}.attn.qkv.{p}", "stages.{l}.attn.qkv.{p}", "layers.{l}.attn.qkv.{p}"),
    ("blocks.{l}.attn.proj.{p}", "stages.{l}.attn.proj.{p}", "layers.{l}.attn.proj.{p}"),
    ("blocks.{g}.attn.q.{p}", "stages.{g}.attn.q.{p}", "layers.{g}.attn.attn.in_proj_{p}:q"),
    ("blocks.{g}.attn.kv.{p}", "stages.{g}.attn.kv.{p}", "layers.{g}.attn.attn.in_proj_{p}:kv"),
    ("blocks.{g}.attn.proj.{p}", "stages.{g}.attn.proj.{p}", "layers.{g}.attn.attn.out_proj.{p}"),
    ("blocks.{g}.attn.sr.{p}", "stages.{g}.attn.sr.{p}", "layers.{g}.attn.sr.{p}"),
    ("blocks.{g}.attn.norm.{p}", "stages.{g}.attn.norm.{p}", "layers.{g}.attn.norm.{p}"),
    ("blocks.{b}.norm2.{p}", "stages.{b}.norm2.{p}", "layers.{b}.norm2.{p}"),
    ("blocks.{b}.mlp.fc1.{p}", "stages.{b}.ffn.layers.0.0.{p}", "layers.{b}.ffn.layers.0.0.{p}"),
    ("blocks.{b}.mlp.fc2.{p}", "stages.{b}.ffn.layers.1.{p}", "layers.{b}.ffn.layers.1.{p}"),
    ("pos_block.{s}.proj.0.{p}", "position_encodings.{s}.proj.{p}", "position_encodings.{s}.proj.{p}"),
    ("norm_list.{s}.{p}", None, "norm_list.{s}.{p}"),
    ("norm.{p}", "norm_after_stage{last}.{p}", "norm.{p}"),  # mmseg's ImageNet files have it; its models do not use it
    ("head.{p}", "head.fc.{p}", None),
)
COLUMNS = {"official": 0, "timm": 0, "mmpretrain": 1, "mmseg": 2}
# Tasks for which each project has a model, and the prefix of the backbone in that model's state dict. The parameters
# of `head` never have the prefix.
PREFIXES = {
    "official": {"backbone": "", "classifier": "", "segmentor": "backbone."},
    "timm": {"backbone": "", "classifier": ""},
    "mmpretrain": {"backbone": "", "classifier": "backbone."},
    "mmseg": {"backbone": "", "segmentor": "backbone."},
}
FORMATS = tuple(COLUMNS)
TASKS = ("backbone", "classifier", "segmentor")


class NormEps(NamedTuple):
    """Epsilon of the LayerNorms of a model.

    Attributes:
        blocks: In blocks, on output levels and before the classifier's head.
        patch_embeds: In patch embeddings.
        reduced_maps: On the reduced map of global attention.
    """

    blocks: float
    patch_embeds: float
    reduced_maps: float

    def differences(self, other: NormEps, place: str) -> str:
        """Describe the differences from `other`, which is labelled `place`; return "" if there are none."""
        return ", ".join(
            f"eps {ours:g} in {part.replace('_', ' ')} ({place} {theirs:g})"
            for part, ours, theirs in zip(self._fields, self, other, strict=True)
            if ours != theirs
        )


# From the published configs of each project, as (PCPVT, SVT).
NORM_EPS = {
    "official": (NormEps(1e-6, 1e-5, 1e-5), NormEps(1e-6, 1e-5, 1e-5)),
    "timm": (NormEps(1e-6, 1e-5, 1e-5), NormEps(1e-6, 1e-5, 1e-5)),
    "mmpretrain": (NormEps(1e-6, 1e-5, 1e-6), NormEps(1e-5, 1e-5, 1e-5)),
    "mmseg": (NormEps(1e-5, 1e-5, 1e-5), NormEps(1e-5, 1e-5, 1e-5)),
}

# Keys under which training code stores the state dict in a checkpoint, in order of preference: averaged weights
# come first.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# Prefixes of all names in a file: those of DistributedDataParallel and of this package's torchvision detectors.
SHELLS = ("module.", "detector.")
# Prefixes of the backbone inside a model: those of MMEngine and detectron2.
PARENTS = ("backbone.", "bottom_up.", "net.")
# Other parts of such models.
COMPANIONS = (
    *("neck", "decode_head", "auxiliary_head"),  # mmseg
    *("rpn_head", "roi_head", "bbox_head", "mask_head"),  # mmdet
    *("proposal_generator", "roi_heads", "head", "rpn"),  # detectron2, torchvision
)
