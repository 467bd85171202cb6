"""Fixtures that every test gets."""

from __future__ import annotations

import pytest
import torch
from detection_fixtures import tiny_run, toy_data  # noqa: F401  (fixtures, shared by several files)
from hypothesis import settings

pytest.register_assert_rewrite("contracts")

# The same examples in every run, and no time limit for an example on a busy machine.
settings.register_profile("twins_dense", derandomize=True, deadline=None, database=None)
settings.load_profile("twins_dense")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """A test gets the same random numbers whichever tests run before it."""
    torch.manual_seed(0)
