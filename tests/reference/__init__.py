"""Slow and simple reference code for the tests. It imports nothing from the package."""
