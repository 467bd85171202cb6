"""Draw a small data set in COCO format, to see a detector learn in minutes.

example:
  python datasets/make_toy_coco.py data/toy_coco --num-train 200 --num-val 50
"""

from __future__ import annotations

import argparse

from twins_dense.cli import run
from twins_dense.data.toy import make_toy_coco


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", help="the folder to make; a complete one of the same parameters is reused")
    parser.add_argument("--num-train", type=int, default=200, help="number of training images (default: 200)")
    parser.add_argument("--num-val", type=int, default=50, help="number of validation images (default: 50)")
    parser.add_argument("--image-size", type=int, default=128, help="side of an image in pixels (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    arguments = parser.parse_args()
    out_dir = make_toy_coco(**vars(arguments))
    print(out_dir)


if __name__ == "__main__":
    run(main)
