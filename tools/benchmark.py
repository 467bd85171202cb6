"""Run `twins-dense benchmark`: python tools/benchmark.py svt_small --rounds 20."""

import sys

from twins_dense.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "benchmark")
    main()
