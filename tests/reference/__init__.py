"""Slow and obvious code that the tests compare the package with. It imports nothing of the package."""
