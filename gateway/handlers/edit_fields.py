"""User fields of a transaction in a request: read them strictly and refuse wrong ones by name."""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from gateway.http import parameters as read
from gateway.http.parameters import Parameter
from projections.read import user_fields
from schemas import money

TEXT_CHARS_MAX = 100
"""Longest category or tag of a user."""
NAME_CHARS_MAX = 200
NOTES_CHARS_MAX = 4_000
TAGS_MAX = 20
SPLITS_MAX = 20
"""Splits of one transaction: each is a transfer, and an event carries them all twice."""
SPLIT_NOTE_CHARS_MAX = 500
AMOUNT_DIGITS_MAX = 38
"""Digits before and after the point together: more than any currency needs, and no text of a megabyte."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LINES = frozenset("\t\n\r")
_AMOUNT = r"^-?[0-9]{1,20}(\.[0-9]{1,18})?$"


def text(characters_max: int, *, lines: bool = False, empty: bool = True) -> Callable[[str], str]:
    """Return a reader of text without control characters; "" is a field that the user emptied."""

    def check(value: str) -> str:
        if len(value) > characters_max or not (value or empty) or _has_controls(value, lines=lines):
            least, but = 0 if empty else 1, " but line breaks and tabs" if lines else ""
            raise ValueError(f"must be text of {least} to {characters_max} characters, no control characters{but}")
        return value

    return check


def tags(values: list[Any]) -> list[str]:
    """Read tags, each at most once."""
    check = text(TEXT_CHARS_MAX, empty=False)
    if len(values) > TAGS_MAX or not all(isinstance(value, str) for value in values):
        raise ValueError(f"must be a list of at most {TAGS_MAX} texts")
    if len(set(values)) < len(values):
        raise ValueError("must name each tag once")
    return [check(value) for value in values]


def splits(parts: list[Any]) -> list[dict[str, str]]:
    """Read the parts of an amount, each with its category."""
    if not 2 <= len(parts) <= SPLITS_MAX:
        raise ValueError(f"must be a list of 2 to {SPLITS_MAX} parts")
    return [_split(number, part) for number, part in enumerate(parts, 1)]


def check_sum(fields: Mapping[str, Any], amount: str, currency: str) -> None:
    """Check that splits add up to the transaction's amount now. The bank may change it later: then they are stale.

    Raises: ValueError.
    """
    if fields.get(user_fields.SPLITS) and user_fields.splits(fields, amount, currency) is None:
        scale = money.ledger_scale(currency)
        raise ValueError(f"must add up to {amount} {currency} exactly, with at most {scale} decimals")


def _split(number: int, part: Any) -> dict[str, str]:
    if not isinstance(part, dict) or not all(isinstance(value, str) for value in part.values()):
        raise ValueError(f"part {number} must be an object of texts, its amount too")
    unknown = part.keys() - _SPLIT.keys()
    missing = {"category", "amount"} - part.keys()
    if unknown or missing:
        fault = f"{min(unknown)!r} is not known" if unknown else f"{min(missing)} is missing"
        raise ValueError(f"part {number}: {fault}")
    try:
        return {name: _SPLIT[name](value) for name, value in part.items()}
    except ValueError as error:
        raise ValueError(f"part {number}: {error}") from None


def _amount(value: str) -> str:
    whole, _, fraction = value.removeprefix("-").partition(".")
    digits = whole + fraction
    if not (digits.isascii() and digits.isdigit() and len(digits) <= AMOUNT_DIGITS_MAX and whole):
        raise ValueError("amount must be plain decimal text")
    return money.decimal_text(Decimal(value))


def _has_controls(value: str, *, lines: bool) -> bool:
    """Return whether the text has a control character (C0, DEL, C1).

    str.isprintable refuses more, which people type: no-break spaces, the joiners within emoji and Persian words, and
    every emoji that is younger than Python's tables.
    """
    controls = set(_CONTROLS.findall(value))
    return bool(controls - _LINES if lines else controls)


_SPLIT: dict[str, Callable[[str], str]] = {
    "category": text(TEXT_CHARS_MAX, empty=False),
    "amount": _amount,
    "note": text(SPLIT_NOTE_CHARS_MAX, lines=True),
}


def _field(name: str, reader: Callable[[Any], Any], description: str, kind: type = str, **schema: Any) -> Parameter:
    named = {str: "string", bool: "boolean", list: "array"}[kind]
    return Parameter(name, "body", reader, {"type": [named, "null"], **schema}, description, json=kind)


FIELDS = (
    _field(user_fields.CATEGORY, text(TEXT_CHARS_MAX), "replaces the bank's category", maxLength=TEXT_CHARS_MAX),
    _field(
        user_fields.NOTES, text(NOTES_CHARS_MAX, lines=True), "shown with the bank's notes", maxLength=NOTES_CHARS_MAX
    ),
    _field(
        user_fields.TAGS,
        tags,
        "any texts, each once",
        list,
        maxItems=TAGS_MAX,
        uniqueItems=True,
        items={"type": "string", "minLength": 1, "maxLength": TEXT_CHARS_MAX},
    ),
    _field(user_fields.NAME, text(NAME_CHARS_MAX), "replaces the bank's name", maxLength=NAME_CHARS_MAX),
    _field(
        user_fields.DISPLAY_DATE,
        lambda value: read.date(value).isoformat(),
        "date to show; the bank's own stays `date`",
        format="date",
    ),
    _field(user_fields.HIDDEN, bool, "true: applications should leave the transaction out", bool),
    _field(
        user_fields.SPLITS,
        splits,
        "parts that add up to the amount",
        list,
        minItems=2,
        maxItems=SPLITS_MAX,
        items={
            "type": "object",
            "required": ["category", "amount"],
            "additionalProperties": False,
            "properties": {
                "category": {"type": "string", "minLength": 1, "maxLength": TEXT_CHARS_MAX},
                "amount": {"type": "string", "pattern": _AMOUNT, "description": "exact decimal text"},
                "note": {"type": "string", "maxLength": SPLIT_NOTE_CHARS_MAX},
            },
        },
    ),
)
"""All are optional: a missing field stays, null clears it, an empty text is a value."""
