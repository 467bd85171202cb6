"""Unpack the archive of the ADE20K challenge (ADEChallengeData2016.zip, 0.9 GB) and check every image and label.

example:
  python datasets/prepare_ade20k.py ADEChallengeData2016.zip data/ade
"""

from __future__ import annotations

import argparse
import sys

from twins_dense.data.ade import prepare_ade20k
from twins_dense.errors import TwinsError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", help="the downloaded archive")
    parser.add_argument("out_dir", help="where to unpack it; what is unpacked there already is only checked")
    arguments = parser.parse_args()
    try:
        folder = prepare_ade20k(arguments.archive, arguments.out_dir)
    except (TwinsError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{folder} is complete: train with --data-root {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
