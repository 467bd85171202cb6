"""Unpack the archive of the ADE20K challenge (ADEChallengeData2016.zip, 0.9 GB) and check every image and label.

Example:
  python datasets/prepare_ade20k.py ADEChallengeData2016.zip data/ade
"""

from __future__ import annotations

import argparse

from twins_dense.cli import run
from twins_dense.data.label_maps import prepare_ade20k


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", help="the downloaded archive")
    parser.add_argument("out_dir", help="folder to unpack it into; files from an earlier call are only checked")
    arguments = parser.parse_args()
    folder = prepare_ade20k(arguments.archive, arguments.out_dir)
    print(f"{folder} is complete: train with --data-root {folder}")


if __name__ == "__main__":
    run(main)
