"""Syntax of the settings that are no plain values: prices, weights of tenants, keys."""

import base64
import binascii
import re
from typing import NamedTuple

from schemas import money

KEY_BYTES = 32

_AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,8})?", re.ASCII)


class Price(NamedTuple):
    """The price of one request: plain decimal text, and the currency's ISO 4217 code."""

    amount: str
    currency: str


def parse_price(text: str) -> Price | None:
    """Parse an amount and its currency's ISO 4217 code; None where nothing is set. Raises: ValueError."""
    if not text:
        return None
    amount, _, currency = text.partition(" ")
    if not (_AMOUNT.fullmatch(amount) and currency.isupper() and money.is_iso(currency)):
        raise ValueError("is not an amount and an ISO 4217 code, as 0.10 USD")
    return Price(amount, currency)


def parse_weights(text: str) -> dict[str, float]:
    """Parse tenant:number pairs. Raises: ValueError."""
    parsed: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        tenant, colon, number = entry.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not (tenant and colon and 0.001 <= weight <= 1000):
            raise ValueError(f"{entry!r} is not tenant:number with a number from 0.001 to 1000")
        parsed[tenant] = weight
    return parsed


def parse_key(text: str) -> bytes:
    """Decode 32 bytes of base64. Raises: ValueError."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError("is not base64") from error
    if len(key) != KEY_BYTES:
        raise ValueError(f"decodes to {len(key)} bytes, a key has {KEY_BYTES}")
    return key
