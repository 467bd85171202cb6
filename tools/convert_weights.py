"""Run `twins-dense convert`: python tools/convert_weights.py IN OUT --to timm."""

import sys

from twins_dense.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    main()
