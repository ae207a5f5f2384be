"""Money is exact: what goes in comes out, or is refused."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import money
from schemas.errors import Quarantine
from tests.support.paths import GOLDEN

AMOUNTS = st.decimals(allow_nan=False, allow_infinity=False, places=7, min_value=-(10**11), max_value=10**11)


@given(AMOUNTS)
def test_text_and_scaled_value_give_the_amount_back(amount: Decimal) -> None:
    scaled = money.parse_decimal(money.decimal_text(amount))

    assert Decimal(scaled.value).scaleb(-scaled.scale) == amount


@given(AMOUNTS)
def test_equal_amounts_have_equal_text(amount: Decimal) -> None:
    assert money.decimal_text(amount) == money.decimal_text(amount.normalize())


@given(AMOUNTS)
def test_a_ledger_amount_is_the_amount_at_the_ledgers_scale(amount: Decimal) -> None:
    exact = money.ledger_amount(money.parse_decimal(money.decimal_text(amount)), "USD")

    assert Decimal(exact).scaleb(-money.ISO_LEDGER_SCALE) == amount


@pytest.mark.parametrize(
    ("written", "text"),
    [("12.50", "12.5"), ("-0.00", "0"), ("1E+3", "1000"), ("1e-7", "0.0000001"), ("100", "100"), ("-5", "-5")],
)
def test_amounts_are_written_plainly(written: str, text: str) -> None:
    assert money.decimal_text(Decimal(written)) == text


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "1e9999", "-1e-9999"])
def test_what_is_no_amount_is_refused(amount: str) -> None:
    with pytest.raises(Quarantine) as refused:
        money.decimal_text(Decimal(amount))

    assert str(Decimal(amount)) not in str(refused.value)


@pytest.mark.parametrize("text", [str(2**63), "-" + str(2**63), "1" * 30, "0." + "1" * 19])
def test_an_amount_beyond_bigint_or_eighteen_decimals_is_refused_not_rounded(text: str) -> None:
    with pytest.raises(Quarantine) as refused:
        money.parse_decimal(text)

    assert text not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.123456789", 12345679),
        ("-0.123456789", -12345679),
        ("89.4500000000003", 8945000000),
        ("0.000000005", 0),
        ("0.000000015", 2),
        ("-0.000000005", 0),
        ("-0.000000015", -2),
    ],
)
def test_more_decimals_than_the_ledger_keeps_are_rounded_half_to_even(text: str, expected: int) -> None:
    assert money.ledger_amount(money.parse_decimal(text), "USD") == expected


def test_an_unofficial_currency_keeps_eighteen_decimals() -> None:
    assert money.ledger_amount(money.parse_decimal("0.123456789"), "DOGE") == 123456789 * 10**9


@pytest.mark.parametrize(("code", "iso"), [("USD", True), ("JPY", True), ("KWD", True), ("BTC", False), ("", False)])
def test_iso_codes_are_known(code: str, iso: bool) -> None:
    assert money.is_iso(code) is iso


def test_a_currencys_scale_and_decimals_stay_whatever_a_later_list_says() -> None:
    """A currency that leaves ISO 4217 has a ledger all the same, and its amounts have the scale that they had."""
    known = json.loads((GOLDEN / "currencies.json").read_text("ascii"))

    assert {code: money.exponent(code) for code in known} == known
    assert {money.ledger_scale(code) for code in known} == {money.ISO_LEDGER_SCALE}


@pytest.mark.parametrize(
    ("text", "currency", "shown"),
    [
        ("1000.5", "USD", "1000.50"),
        ("-3", "KWD", "-3.000"),
        ("700", "JPY", "700"),
        ("0.5", "JPY", "0.5"),
        ("0.0000001", "USD", "0.0000001"),
        ("3", "ETH", "3"),
        ("1", "XXX", "1"),
    ],
)
def test_people_see_the_currencys_decimals_and_every_one_that_is_there(text: str, currency: str, shown: str) -> None:
    assert money.display_text(text, currency) == shown
