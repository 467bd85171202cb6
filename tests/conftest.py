"""Fixtures and settings for all tests."""

from __future__ import annotations

import os

import pytest
import torch
import yapf  # noqa: F401  (MMEngine's first import of it writes a cache, for which parallel processes would collide)
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite(
    "browser_fixtures",
    "cli_fixtures",
    "contracts",
    "detection_fixtures",
    "feature_fixtures",
    "golden_files",
    "loading_fixtures",
    "report_fixtures",
    "run_fixtures",
)

from browser_fixtures import browser  # noqa: E402, F401  (shared fixtures)
from detection_fixtures import tiny_run, toy_data  # noqa: E402, F401  (shared fixtures)
from segmentation_fixtures import label_data, segmentation_run  # noqa: E402, F401

# Use the same examples in every run, and no time limits, because machines may be busy.
settings.register_profile(
    "twins_dense", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("twins_dense")

# Test models are small. If there are more threads than free cores, torch's threads wait for each other in busy loops:
# on two cores shared with another job, the comparison with timm took 134 s with two threads and 20 s with one.
# Set OMP_NUM_THREADS to use another number of threads in the tests and the processes that they start.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs unless GPU tests are selected; the processes that tests start never use a GPU."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Seed torch, so that the random numbers of a test do not depend on the tests before it."""
    torch.manual_seed(0)
