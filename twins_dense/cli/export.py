"""`twins-dense export`: export a trained model to an ONNX file, an OpenVINO model or a torch.export program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from ..errors import TwinsError
from .options import check_window_padding, optional_backbone_options, parse_levels, parse_source


@click.command("export", short_help="Export a trained model to ONNX, OpenVINO or torch.export.")
@click.argument("arguments", nargs=-1, required=True, metavar="[[CONFIG] MODEL] OUT [KEY=VALUE]...")
@optional_backbone_options
@click.option("--classifier", is_flag=True, help="Export the whole classifier, with the output `logits`.")
def command(
    arguments: tuple[str, ...],
    variant: str | None,
    weights: str | None,
    levels: str,
    window_padding: str,
    classifier: bool,
) -> None:
    """Export a trained model to OUT: NAME.onnx, NAME.xml for OpenVINO, or NAME.pt2 for a torch.export program.

    MODEL is a work directory, a checkpoint of `twins-dense train`, or a published segmentor. Without MODEL, the
    options select a backbone or classifier. The file accepts heights and widths from 64 up, in multiples of 32, and
    says how to prepare images. It appears only after its outputs have been compared with those of the model at several
    sizes.

    \b
    Examples:
      twins-dense export work_dirs/mine mine.onnx
      twins-dense export work_dirs/mine/epoch_12.pth mine.xml
      twins-dense export svt_small.onnx --variant svt_small --weights alt_gvt_small.pth
      twins-dense export c4.onnx --variant svt_base --weights svt_base.in1k-timm --levels c4 --window-padding mask
      twins-dense export classifier.onnx --classifier --variant pcpvt_small --weights pcpvt_small.in1k-official
      twins-dense export svt_small.pt2 --variant svt_small --weights alt_gvt_small.pth
    """
    from ..deploy.export import check_target, export, load_trained

    if variant is None and weights is None:
        source, rest, overrides = parse_source(arguments)
        if len(rest) != 1:
            raise TwinsError("give MODEL and OUT, or OUT with --variant and --weights")
        from ..inference.export import export_model

        if classifier:
            raise TwinsError("--classifier needs --variant and --weights")
        _show(Path(rest[0]), export_model(source, rest[0], overrides=overrides), "largest difference from the model")
        return
    if variant is None or weights is None or len(arguments) != 1:
        raise TwinsError("give OUT with --variant and --weights, or MODEL and OUT without them")
    target = check_target(arguments[0])
    model = load_trained(
        variant,
        weights,
        classifier=classifier,
        out_indices=parse_levels(levels, variant),
        window_padding=check_window_padding(window_padding),
    )
    click.echo(str(model.report))
    _show(
        target,
        export(model.net, target, preprocessing=model.preprocessing, weights_sha256=model.weights_sha256),
        "largest difference from the model, relative to the largest magnitude of each output",
    )


def _show(target: Path, differences: Mapping[str, float], what: str) -> None:
    from ..deploy.formats import files_of

    size = sum(file.stat().st_size for file in files_of(target)) / 1e6
    shown = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    click.echo(f"{target} ({size:.0f} MB): {what}: {shown}")
