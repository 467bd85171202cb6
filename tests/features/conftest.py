"""Fixtures for the tests of features."""

from feature_fixtures import done, images, net, photos  # noqa: F401
