"""How many generated cases a property test looks at: `EXAMPLES=20 make test` looks at twenty times as many."""

import os

FACTOR = int(os.environ.get("EXAMPLES", "1"))


def examples(count: int) -> int:
    """`count` cases, times what was asked for."""
    return count * FACTOR
