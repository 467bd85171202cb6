"""`python -m twins_dense`, which is what torchrun can start."""

from .cli import main

main()
