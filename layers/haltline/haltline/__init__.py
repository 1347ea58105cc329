"""Haltline: an agent chat that stops."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("haltline")
except PackageNotFoundError:  # found by path, as in a Lambda layer
    __version__ = "0.1.0"
