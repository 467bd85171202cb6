"""`twins-dense export`: a trained model as an ONNX file or a torch.export program."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import TwinsError
from .options import backbone_options, check_window_padding, parse_levels


@click.command("export")
@click.argument("out", metavar="OUT")
@backbone_options
@click.option("--classifier", is_flag=True, help="The whole classifier, whose output is `logits`; not the pyramid.")
def command(out: str, variant: str, weights: str, levels: str, window_padding: str, classifier: bool) -> None:
    """Write a trained backbone or classifier to OUT: NAME.onnx, or NAME.pt2 for a torch.export program.

    The file takes any batch, and any height and width that are multiples of 32, from 64 up. It also says how images are
    to be prepared: as the published weights were, and by the official protocol for all others. Before it appears, its
    outputs are compared with the model's at several sizes: by onnxruntime for ONNX, as a program loaded again for .pt2.

    \b
    Examples:
      twins-dense export svt_small.onnx --variant svt_small --weights alt_gvt_small.pth
      twins-dense export c4.onnx --variant svt_base --weights svt_base.in1k-timm --levels c4 --window-padding mask
      twins-dense export classifier.onnx --classifier --variant pcpvt_small --weights pcpvt_small.in1k-official
      twins-dense export svt_small.pt2 --variant svt_small --weights alt_gvt_small.pth
    """
    from .. import TwinsBackbone, TwinsClassifier, create_classifier, load_weights
    from ..deploy.export import FORMATS, export
    from ..factory import load_backbone_with_report
    from ..weights.catalog import CATALOG, published_as
    from ..weights.download import fetch_weights, sha256_of
    from ..weights.preprocessing import OFFICIAL_PREPROCESSING

    target = Path(out)
    if target.suffix not in FORMATS:
        raise TwinsError(f"OUT {out!r}: end its name in {' or '.join(FORMATS)}")
    if target.exists():
        raise TwinsError(f"OUT {out!r} exists: name a new file")
    out_indices = parse_levels(levels, variant)
    padding = check_window_padding(window_padding)
    net: TwinsBackbone | TwinsClassifier
    if classifier:
        net = create_classifier(variant, window_padding=padding).eval()
        report = load_weights(net, weights)
    else:
        net, report = load_backbone_with_report(variant, weights, out_indices=out_indices, window_padding=padding)
    click.echo(str(report))
    sha256 = sha256_of(fetch_weights(weights))
    published = CATALOG.get(weights) or published_as(sha256)
    differences = export(
        net,
        target,
        preprocessing=published.preprocessing if published else OFFICIAL_PREPROCESSING,
        weights_sha256=sha256,
    )
    shown = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    click.echo(
        f"{target} ({target.stat().st_size / 1e6:.0f} MB) differs from the model by at most (of magnitude): {shown}"
    )
