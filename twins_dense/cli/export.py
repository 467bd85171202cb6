"""`twins-dense export`: export a trained model to an ONNX file or a torch.export program."""

from __future__ import annotations

import click

from .options import backbone_options, check_window_padding, parse_levels


@click.command("export", short_help="Export a backbone or classifier to ONNX or torch.export.")
@click.argument("out", metavar="OUT")
@backbone_options
@click.option("--classifier", is_flag=True, help="Export the whole classifier, with the output `logits`.")
def command(out: str, variant: str, weights: str, levels: str, window_padding: str, classifier: bool) -> None:
    """Export a trained backbone or classifier to OUT: NAME.onnx, or NAME.pt2 for a torch.export program.

    The file takes any batch size, and any height and width from 64 up, in multiples of 32. It also says how to
    prepare images: as in the catalog for published weights, and by the official protocol for all other weights. The
    file appears only after its outputs were compared with those of the model at several sizes.

    \b
    Examples:
      twins-dense export svt_small.onnx --variant svt_small --weights alt_gvt_small.pth
      twins-dense export c4.onnx --variant svt_base --weights svt_base.in1k-timm --levels c4 --window-padding mask
      twins-dense export classifier.onnx --classifier --variant pcpvt_small --weights pcpvt_small.in1k-official
      twins-dense export svt_small.pt2 --variant svt_small --weights alt_gvt_small.pth
    """
    from ..deploy.export import check_target, export, load_trained

    target = check_target(out)
    model = load_trained(
        variant,
        weights,
        classifier=classifier,
        out_indices=parse_levels(levels, variant),
        window_padding=check_window_padding(window_padding),
    )
    click.echo(str(model.report))
    differences = export(model.net, target, preprocessing=model.preprocessing, weights_sha256=model.weights_sha256)
    shown = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    click.echo(
        f"{target} ({target.stat().st_size / 1e6:.0f} MB): largest difference from the model, relative to the largest "
        f"magnitude of each output: {shown}"
    )
