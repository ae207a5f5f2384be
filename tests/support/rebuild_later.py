"""A later release, as a process.

`python -m tests.support.rebuild_later WHAT COMMAND ...` is `tartan COMMAND ...` of it.

WHAT is `column`: transactions have a new one, of words that were in the log all along; or `category`: what the bank
gave no category for is booked under another one.
"""

import sys

from sqlalchemy import Column, Text

from projections.decode import transaction
from projections.store import tables

WEBSITE = "website"


def main() -> None:
    tables.FOLD += 1  # type: ignore[misc]
    what, *command = sys.argv[1:]
    {"column": _with_a_column, "category": _with_another_category}[what]()
    # Only now: what is imported is made of what was changed.
    from cli import main as cli

    sys.argv = ["tartan", *command]
    cli.main()


def _with_a_column() -> None:
    tables.transactions.append_column(Column(WEBSITE, Text))
    transaction.COLUMNS = (*transaction.COLUMNS, WEBSITE)  # type: ignore[misc]
    transaction._TEXTS |= {WEBSITE}  # type: ignore[misc]
    ending = tuple(
        line.replace("c_category_confidence)", f"c_category_confidence, c_{WEBSITE})") for line in transaction._ENDING
    )
    assert ending != transaction._ENDING
    transaction._ENDING = ending  # type: ignore[misc,assignment]


def _with_another_category() -> None:
    transaction.UNCATEGORISED = b"UNKNOWN"  # type: ignore[misc]


if __name__ == "__main__":
    main()
