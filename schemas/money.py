"""Exact money: decimal text in the log, value and scale in rows, one fixed ledger scale a currency. Pure.

Error messages never contain an amount: they are logged and stored with quarantined records.

Sign convention, defined here and nowhere else: Plaid's. A positive amount leaves the account, a negative one
comes in, for every type of account (Source: Plaid API, Transaction, `amount`).
"""

from dataclasses import dataclass
from decimal import Decimal

from iso4217 import Currency

from schemas.errors import Quarantine

DIGITS_MAX = 1_000
"""Longest decimal text in the log. Plaid's longest amounts have 17 digits; without a bound one exponent (1e999999)
would fill a record."""

BIGINT_MAX = 2**63 - 1
"""Largest value of a row's `amount_value` (Postgres bigint)."""

SURELY_STORABLE_CHARS = 17
"""Decimal text of so many characters has at most 17 digits and 16 decimals."""

ISO_LEDGER_SCALE = 8
"""Decimals of ledger amounts in ISO 4217 currencies: Plaid sends up to seven, and eight leaves one in hand."""

UNOFFICIAL_LEDGER_SCALE = 18
"""Decimals of ledger amounts in currencies without ISO code: 18 is the finest that is in use (wei)."""

_EXPONENTS: dict[str, int | None] = {currency.code: currency.exponent for currency in Currency}
_POWERS_OF_TEN: tuple[int, ...] = tuple(10**exponent for exponent in range(UNOFFICIAL_LEDGER_SCALE + 1))


@dataclass(frozen=True, slots=True)
class ScaledAmount:
    """An exact amount: `value` * 10 ** -`scale`."""

    value: int
    scale: int


def decimal_text(amount: Decimal) -> str:
    """Return an amount as plain decimal text without exponent and trailing zeros: 12.50 is "12.5".

    Equal amounts give equal text, so texts can be compared for change.
    Raises: Quarantine, where the amount is no finite number or longer than DIGITS_MAX.
    """
    if not amount.is_finite() or abs(amount.adjusted()) > DIGITS_MAX:
        raise Quarantine(f"an amount is not a decimal number of at most {DIGITS_MAX} digits")
    text = format(amount, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def parse_decimal(text: str) -> ScaledAmount:
    """Parse decimal text into value and scale.

    Raises: Quarantine, where the value does not fit a bigint or has more decimals than any ledger keeps.
    """
    whole, _, fraction = text.partition(".")
    value, scale = int(whole + fraction), len(fraction)
    if not -BIGINT_MAX <= value <= BIGINT_MAX:
        raise Quarantine("an amount does not fit a 64-bit value")
    if scale > UNOFFICIAL_LEDGER_SCALE:
        raise Quarantine(f"an amount has more than {UNOFFICIAL_LEDGER_SCALE} decimals")
    return ScaledAmount(value, scale)


def is_storable(text: str) -> bool:
    """Return whether decimal text can be a row's amount."""
    if len(text) <= SURELY_STORABLE_CHARS:
        return True
    try:
        parse_decimal(text)
    except Quarantine:
        return False
    return True


def ledger_scale(currency: str) -> int:
    """Return the number of decimals of ledger amounts in a currency."""
    return ISO_LEDGER_SCALE if is_iso(currency) else UNOFFICIAL_LEDGER_SCALE


def ledger_amount(amount: ScaledAmount, currency: str) -> int:
    """Convert an amount to an integer at its currency's ledger scale.

    Decimals beyond that scale, such as the noise of a bank's binary fractions, are rounded half to even; the row keeps
    them, so the difference is that of `transactions` and `ledger_transfers`.
    """
    missing = ledger_scale(currency) - amount.scale
    if missing >= 0:
        return amount.value * _POWERS_OF_TEN[missing]
    whole, rest = divmod(amount.value, power := _POWERS_OF_TEN[-missing])
    return whole + (2 * rest > power or (2 * rest == power and whole % 2 == 1))


def is_iso(currency: str) -> bool:
    """Return True for an ISO 4217 currency code.

    It decides a ledger's scale for good: a code that a later list lacks must stay (tests/golden/currencies.json).
    """
    return currency in _EXPONENTS


def exponent(currency: str) -> int | None:
    """Return the decimals of a currency by ISO 4217: JPY 0, USD 2, KWD 3; None where the standard has none."""
    return _EXPONENTS.get(currency)


def display_text(text: str, currency: str) -> str:
    """Return decimal text for people, with all decimals of the amount and at least those of its currency."""
    whole, _, fraction = text.partition(".")
    fraction = fraction.ljust(exponent(currency) or 0, "0")
    return f"{whole}.{fraction}" if fraction else whole
