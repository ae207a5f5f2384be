"""The version of this code, as what it sets aside and publishes says it."""

from functools import cache
from importlib import metadata

UNKNOWN = "unknown"
"""A checkout that was never installed has none."""


@cache
def code_version() -> str:
    """Version of the installed package."""
    try:
        return metadata.version("tartan")
    except metadata.PackageNotFoundError:
        return UNKNOWN
