"""Sort ImageNet's flat validation images into folders named by WordNet id, as `twins-dense validate` reads them.

The ground truth is Kaggle's LOC_val_solution.csv, Caffe's val.txt, or a file with one WordNet id a line in the order of
the images' names. The images stay where they are: the folders hold hard links, or copies where the disk has no links.

example:
  python datasets/prepare_imagenet_val.py ILSVRC2012_img_val LOC_val_solution.csv data/imagenet/val
"""

from __future__ import annotations

import argparse

from twins_dense.cli import run
from twins_dense.imagenet.folders import sort_into_folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="the folder of the flat images")
    parser.add_argument("ground_truth", help="the file that says which class each image has")
    parser.add_argument("out", help="the folder to make; what is there already is left as it is")
    arguments = parser.parse_args()
    count = sort_into_folders(arguments.images, arguments.ground_truth, arguments.out)
    print(f"{count} images in {arguments.out}")


if __name__ == "__main__":
    run(main)
