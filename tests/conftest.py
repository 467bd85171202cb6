"""Fixtures that every test gets."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite(
    "cli_fixtures",
    "contracts",
    "detection_fixtures",
    "feature_fixtures",
    "golden_files",
    "loading_fixtures",
    "run_fixtures",
)

from detection_fixtures import tiny_run, toy_data  # noqa: E402, F401  (fixtures, shared by several files)
from segmentation_fixtures import label_data, segmentation_run  # noqa: E402, F401

# The same examples in every run, and no time limits on a busy machine.
settings.register_profile(
    "twins_dense", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("twins_dense")

# The models here are small. With more threads than free cores, torch's threads wait for each other in busy loops: on
# two cores beside another job, the comparison with timm took 134 s with two threads and 20 s with one.
# Set OMP_NUM_THREADS to run the tests, and the processes that they start, with another number of threads.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Run on the CPU everywhere, as the processes that tests start do, unless tests of a GPU are asked for."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """A test gets the same random numbers whichever tests run before it."""
    torch.manual_seed(0)
