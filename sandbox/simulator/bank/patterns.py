"""Draw the movements of a bank statement: purchases, wages, transfers, cash, fees, interest, refunds.

Numbers are drawn as `int(rng.random() * n)`: three times faster than `randrange`, and a history of 100,000
transactions draws about a million of them.
"""

import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

from sandbox.simulator.bank.bank import Account
from sandbox.simulator.bank.institutions import AccountPlan
from sandbox.simulator.bank.merchants import category, party
from sandbox.simulator.bank.transactions import NO_META, Category, Counterparty, Merchant, PaymentMeta, Place

SUBCENT_SHARE = 0.012
"""Share of amounts with more decimals than the currency has; Plaid's sandbox was seen to send a third."""

_POWERS: tuple[int, ...] = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)


class Movement(NamedTuple):
    """A movement before it has ids and dates. Units: positive amounts leave the account."""

    amount: Decimal
    name: str
    description: str
    category: Category
    channel: str
    code: str | None
    merchant: Merchant | None = None
    counterparties: tuple[Counterparty, ...] = ()
    place: Place | None = None
    check_number: str | None = None
    meta: PaymentMeta = NO_META
    settles_at_once: bool = False


Pattern = Callable[[random.Random, Account, tuple[Merchant, ...]], Movement]


def money(rng: random.Random, hundredths: int, plan: AccountPlan) -> Decimal:
    """Convert hundredths of a dollar to the account's currency, with its decimals or more."""
    decimals = plan.currency.decimals
    if decimals >= 2 and rng.random() < SUBCENT_SHARE:
        decimals = 3 + int(rng.random() * 5)
    if decimals == 2 and plan.unit == 1:
        return Decimal(hundredths) / 100
    minor = hundredths * plan.unit * _POWERS[decimals] // 100
    if decimals > 2:
        minor += int(rng.random() * _POWERS[decimals - 2])
    return Decimal(minor).scaleb(-decimals)


def purchase(rng: random.Random, account: Account, merchants: tuple[Merchant, ...]) -> Movement:
    """Draw a purchase; low amounts are more frequent than high ones."""
    merchant = merchants[int(rng.random() * len(merchants))]
    hundredths = int(merchant.lowest * (merchant.highest / merchant.lowest) ** (rng.random() * rng.random()))
    place = merchant.places[int(rng.random() * len(merchant.places))] if merchant.places else None
    description = _description(rng, merchant, place)
    return Movement(
        amount=money(rng, hundredths, account.plan),
        name=merchant.name if rng.random() < 0.7 else description,
        description=description,
        category=merchant.category,
        channel=merchant.channel,
        code="purchase",
        merchant=merchant,
        counterparties=merchant.counterparties,
        place=place,
    )


def refund(rng: random.Random, account: Account, merchants: tuple[Merchant, ...]) -> Movement:
    """Draw a refund of a merchant."""
    bought = purchase(rng, account, merchants)
    description = f"{bought.description} REFUND"
    return bought._replace(amount=-bought.amount, description=description, code="refund", settles_at_once=True)


def wages(rng: random.Random, account: Account, _merchants: tuple[Merchant, ...]) -> Movement:
    """Draw wages, paid through the clearing house."""
    employer = _EMPLOYERS[int(rng.random() * len(_EMPLOYERS))]
    reference = f"{int(rng.random() * 1e12):012}"
    return _settled(
        amount=-money(rng, 120_000 + int(rng.random() * 480_000), account.plan),
        name=f"{employer.name} Payroll",
        description=f"ACH Electronic Credit{employer.name.upper()} PAYROLL PPD ID: {reference[:10]}",
        category=_WAGES,
        code="direct debit",
        counterparties=(employer,),
        meta=PaymentMeta(reference_number=reference, ppd_id=reference[:10], payer=employer.name, payment_method="ACH"),
    )


def transfer(rng: random.Random, account: Account, _merchants: tuple[Merchant, ...]) -> Movement:
    """Draw a transfer to or from a person through a payment app."""
    app = _APPS[int(rng.random() * len(_APPS))]
    person = _PEOPLE[int(rng.random() * len(_PEOPLE))]
    outgoing = rng.random() < 0.6
    reference = f"{int(rng.random() * 1e11):011}"
    amount = money(rng, 500 + int(rng.random() * 60_000), account.plan)
    return Movement(
        amount=amount if outgoing else -amount,
        name=f"{app.name} {'to' if outgoing else 'from'} {person}",
        description=f"{app.name.upper()} PAYMENT {reference} {person.upper()}",
        category=_TRANSFER_OUT if outgoing else _TRANSFER_IN,
        channel="other",
        code="transfer",
        counterparties=(app,),
        meta=PaymentMeta(
            reference_number=reference,
            payee=person if outgoing else None,
            payer=None if outgoing else person,
            payment_processor=app.name,
            reason=_REASONS[int(rng.random() * len(_REASONS))],
        ),
    )


def cash(rng: random.Random, account: Account, _merchants: tuple[Merchant, ...]) -> Movement:
    """Draw a cash withdrawal of whole twenties."""
    number = int(rng.random() * 1e6)
    return _settled(
        amount=Decimal((1 + int(rng.random() * 20)) * 20 * account.plan.unit),
        name="ATM Withdrawal",
        description=f"NON-CHASE ATM WITHDRAW {number:06} {int(rng.random() * 9000) + 100} MARKET ST",
        category=_WITHDRAWAL,
        channel="in store",
        code="atm",
    )


def check(rng: random.Random, account: Account, _merchants: tuple[Merchant, ...]) -> Movement:
    """Draw a cheque."""
    number = str(1000 + int(rng.random() * 9000))
    return _settled(
        amount=money(rng, 2_000 + int(rng.random() * 240_000), account.plan),
        name=f"CHECK {number}",
        description=f"CHECK # {number}",
        category=_OTHER_OUT,
        code="cheque",
        check_number=number,
    )


def bank_fee(rng: random.Random, account: Account, _merchants: tuple[Merchant, ...]) -> Movement:
    """Draw a fee of the bank."""
    name, code, kind = _FEES[int(rng.random() * len(_FEES))]
    amount = money(rng, 100 + int(rng.random() * 3_900), account.plan)
    return _settled(amount=amount, name=name, description=name.upper(), category=kind, code=code)


def interest_earned(rng: random.Random, account: Account, _merchants: tuple[Merchant, ...]) -> Movement:
    """Draw interest that the bank pays."""
    return _interest(rng, account, -1, "Interest Payment", _INTEREST_EARNED)


def interest_owed(rng: random.Random, account: Account, _merchants: tuple[Merchant, ...]) -> Movement:
    """Draw interest that the bank charges."""
    return _interest(rng, account, 1, "INTEREST CHARGE ON PURCHASES", _INTEREST_CHARGE)


def payment_received(rng: random.Random, account: Account, _merchants: tuple[Merchant, ...]) -> Movement:
    """Draw a payment of a card or a loan, which reduces the debt."""
    reference = f"{int(rng.random() * 1e10):010}"
    return _settled(
        amount=-money(rng, 4_000 + int(rng.random() * 140_000), account.plan),
        name="AUTOMATIC PAYMENT - THANK YOU",
        description=f"AUTOPAY {reference} THANK YOU",
        category=_STUDENT_PAYMENT if account.plan.type == "loan" else _CARD_PAYMENT,
        code="payment",
        meta=PaymentMeta(reference_number=reference, payment_method="ACH"),
    )


PATTERNS: dict[str, tuple[tuple[Pattern, ...], tuple[int, ...]]] = {
    "depository": (
        (purchase, transfer, wages, cash, check, bank_fee, interest_earned, refund),
        (66, 76, 82, 87, 91, 94, 96, 100),
    ),
    "credit": ((purchase, refund, payment_received, bank_fee, interest_owed), (86, 91, 96, 98, 100)),
    "loan": ((payment_received, interest_owed), (85, 100)),
}
"""Patterns by account type, with cumulative weights up to 100."""


def _description(rng: random.Random, merchant: Merchant, place: Place | None) -> str:
    text = merchant.descriptor
    if "{n}" in text:
        number = (place.store_number if place else None) or str(int(rng.random() * 99_999_999))
        text = text.replace("{n}", number)
    if place is None or place.city is None:
        return f"{text} {int(rng.random() * 1e10):010}"
    city = place.city.upper()
    return f"{text.replace('{c}', city)} {city} {place.region or place.country} {int(rng.random() * 1e6):06}"


def _interest(rng: random.Random, account: Account, sign: int, name: str, kind: Category) -> Movement:
    amount = sign * money(rng, 1 + int(rng.random() * 4_200), account.plan)
    description = f"INTEREST {int(rng.random() * 1e8):08}"
    return _settled(amount=amount, name=name, description=description, category=kind, code="interest")


def _settled(*, channel: str = "other", **fields: Any) -> Movement:
    """Return a movement that is never pending."""
    return Movement(channel=channel, settles_at_once=True, **fields)


_WAGES = category("INCOME_WAGES")
_TRANSFER_IN = category("TRANSFER_IN_ACCOUNT_TRANSFER")
_TRANSFER_OUT = category("TRANSFER_OUT_ACCOUNT_TRANSFER")
_WITHDRAWAL = category("TRANSFER_OUT_WITHDRAWAL")
_OTHER_OUT = category("TRANSFER_OUT_OTHER_TRANSFER_OUT")
_INTEREST_EARNED = category("INCOME_INTEREST_EARNED")
_INTEREST_CHARGE = category("BANK_FEES_INTEREST_CHARGE")
_CARD_PAYMENT = category("LOAN_PAYMENTS_CREDIT_CARD_PAYMENT")
_STUDENT_PAYMENT = category("LOAN_PAYMENTS_STUDENT_LOAN_PAYMENT")

_FEES = (
    ("Monthly Service Fee", "bank charge", category("BANK_FEES_OTHER_BANK_FEES")),
    ("Foreign Transaction Fee", "bank charge", category("BANK_FEES_FOREIGN_TRANSACTION_FEES")),
    ("ATM Fee", "bank charge", category("BANK_FEES_ATM_FEES")),
    ("Returned Item Fee", "returned item fee", category("BANK_FEES_INSUFFICIENT_FUNDS")),
    ("Late Fee", "late fee", category("BANK_FEES_OTHER_BANK_FEES")),
)

_EMPLOYERS = tuple(
    party(name, "income_source")
    for name in ("Gusto", "ADP Totalsource", "Acme Corp", "Stanford University", "City of Oakland", "Initech")
)

_APPS = (
    party("Venmo", "payment_app", website="venmo.com"),
    party("Zelle", "payment_app", website="zellepay.com"),
    party("Cash App", "payment_app", website="cash.app"),
    party("PayPal", "payment_app", website="paypal.com"),
    party("Wise", "financial_institution", website="wise.com"),
)

_PEOPLE = (
    "Alberta Charleson",
    "José Núñez",
    "Chen Wei",
    "Fatima Al-Sabah",
    "Siobhán O'Neil",
    "Yuki Tanaka",
    'Bob "Bobby" Marsh',
    "Priya Raman",
    "Olu Adeyemi",
    "Zoë Smits",
    "山田 花子",
    "Nina Kraus",
)

_REASONS = (None, None, None, "rent", "dinner 🍕", "thanks!", "utilities / water", "gift\tcard", "loan 3/12")
