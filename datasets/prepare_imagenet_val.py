"""Sort ImageNet's flat validation images into folders named by WordNet id, as `twins-dense validate` reads them.

The ground truth is Kaggle's LOC_val_solution.csv, Caffe's val.txt, or a file with one WordNet id per line in the order
of the image names. The original images are kept: the new folders contain hard links, or copies if the file system does
not support hard links.

Example:
  python datasets/prepare_imagenet_val.py ILSVRC2012_img_val LOC_val_solution.csv data/imagenet/val
"""

from __future__ import annotations

import argparse

from twins_dense.cli import run
from twins_dense.imagenet.folders import sort_into_folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder with all images")
    parser.add_argument("ground_truth", help="file with the class of each image")
    parser.add_argument("out", help="folder for the class folders; images in it are kept")
    arguments = parser.parse_args()
    count = sort_into_folders(arguments.images, arguments.ground_truth, arguments.out)
    print(f"{count} images in {arguments.out}")


if __name__ == "__main__":
    run(main)
