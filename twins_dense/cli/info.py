"""`twins-dense info`: show the parameters and multiply-accumulates of the variants."""

from __future__ import annotations

import json
import re
from typing import Any

import click

from ..errors import TwinsError


@click.command("info", short_help="Show parameters and multiply-accumulates.")
@click.argument("variants", nargs=-1)
@click.option(
    "--size", default="800x1216", show_default=True, help="Image size for the backbone, HEIGHTxWIDTH in pixels."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(variants: tuple[str, ...], size: str, as_json: bool) -> None:
    """Show the parameters and multiply-accumulates of VARIANTS (default: all), attention included.

    \b
    Examples:
      twins-dense info
      twins-dense info svt_small --size 512x512 --json
    """
    import torch

    from .. import create_backbone, create_classifier, list_variants
    from ..models.complexity import count_macs, count_parameters

    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    if match is None:
        raise TwinsError(f"--size {size!r}: give HEIGHTxWIDTH in pixels, for example 800x1216")
    height, width = map(int, match.groups())
    rows: list[dict[str, Any]] = []
    dense_macs = f"backbone_macs_{size}"
    with torch.device("meta"):
        for variant in variants or list_variants():
            classifier, backbone = create_classifier(variant), create_backbone(variant)
            rows.append(
                {
                    "variant": variant,
                    "classifier_parameters": count_parameters(classifier),
                    "classifier_macs_224x224": count_macs(classifier, (224, 224)),
                    "backbone_parameters": count_parameters(backbone),
                    dense_macs: count_macs(backbone, (height, width)),
                    "channels": backbone.pyramid.channels,
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'':14}{'classifier':>20}  {'dense backbone':>24}  channels of c2…c5")
    click.echo(f"{'variant':14}{'M params':>9}{'GMACs 224²':>11}  {'M params':>9}{'GMACs ' + size:>15}")
    for row in rows:
        click.echo(
            f"{row['variant']:14}"
            f"{row['classifier_parameters'] / 1e6:9.2f}{row['classifier_macs_224x224'] / 1e9:11.2f}  "
            f"{row['backbone_parameters'] / 1e6:9.2f}{row[dense_macs] / 1e9:15.2f}  "
            f"{' '.join(map(str, row['channels']))}"
        )
