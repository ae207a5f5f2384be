"""Number of generated cases: `EXAMPLES=20 make test` draws twenty times as many, `EXAMPLES=0.2` a fifth."""

import os

FACTOR = float(os.environ.get("EXAMPLES", "1"))


def examples(count: int) -> int:
    """Return `count` times the factor of EXAMPLES, at least one."""
    return max(1, round(count * FACTOR))
