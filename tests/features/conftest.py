"""Fixtures for the tests of features."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("feature_fixtures")

from feature_fixtures import done, images, net, photos  # noqa: E402, F401
