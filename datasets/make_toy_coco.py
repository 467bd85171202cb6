"""Draw a small data set in COCO format, on which a detector learns within minutes.

Example:
  python datasets/make_toy_coco.py data/toy_coco --num-train 200 --num-val 50
"""

from __future__ import annotations

import argparse

from twins_dense.cli import run
from twins_dense.data.toy import make_toy_coco


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", help="folder of the data set; reused if it is complete and has the same parameters")
    parser.add_argument("--num-train", type=int, default=200, help="number of training images (default: 200)")
    parser.add_argument("--num-val", type=int, default=50, help="number of validation images (default: 50)")
    parser.add_argument(
        "--image-size", type=int, default=128, help="side of the square images in pixels (default: 128)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default: 0)")
    arguments = parser.parse_args()
    out_dir = make_toy_coco(**vars(arguments))
    print(out_dir)


if __name__ == "__main__":
    run(main)
