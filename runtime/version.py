"""The version of this code."""

from functools import cache
from importlib import metadata

UNKNOWN = "unknown"
"""Version of a checkout that was never installed."""


@cache
def code_version() -> str:
    """Return the version of the installed package."""
    try:
        return metadata.version("tartan")
    except metadata.PackageNotFoundError:
        return UNKNOWN
