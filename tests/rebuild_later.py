"""A later release, as a process: `python -m tests.rebuild_later WHAT COMMAND ...` is `tartan COMMAND ...` of it.

WHAT is `column`: transactions have a new one, of words that were in the log all along; or `category`: what the bank
gave no category for is booked under another one.
"""

import sys

from sqlalchemy import Column, Text

from projections import tables, words

WEBSITE = "website"


def main() -> None:
    tables.FOLD = 2  # type: ignore[misc]
    what, *command = sys.argv[1:]
    {"column": _with_a_column, "category": _with_another_category}[what]()
    # Only now: what is imported is made of what was changed.
    import cli

    sys.argv = ["tartan", *command]
    cli.main()


def _with_a_column() -> None:
    tables.transactions.append_column(Column(WEBSITE, Text))
    words.COLUMNS = (*words.COLUMNS, WEBSITE)  # type: ignore[misc]
    words._TEXTS |= {WEBSITE}  # type: ignore[misc]
    ending = tuple(
        line.replace("c_category_confidence)", f"c_category_confidence, c_{WEBSITE})") for line in words._ENDING
    )
    assert ending != words._ENDING
    words._ENDING = ending  # type: ignore[misc,assignment]

    from projections import rows
    from schemas import codec

    of_this_release = rows.transaction_values
    rows.transaction_values = lambda row: (  # type: ignore[misc]
        *of_this_release(row), codec.decoder(row.schema)(row.words, 0)[0].website
    )  # fmt: skip


def _with_another_category() -> None:
    words.UNCATEGORISED = b"UNKNOWN"  # type: ignore[misc]


if __name__ == "__main__":
    main()
