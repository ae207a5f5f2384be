"""Print the result of a benchmark."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console


def print_result(result: Mapping[str, Any], console: Console, *, as_json: bool) -> None:
    """Print a result: as one JSON line to stdout, or formatted to the console."""
    if as_json:
        print(json.dumps(result))
    else:
        console.print_json(json.dumps(result))
