"""Define the imaginary institutions and their accounts.

Ids are those of Plaid's sandbox where it has a similar institution; `ins_9...` exist only here.
"""

from typing import NamedTuple

from sandbox.simulator.bank.transactions import Currency

US_DOLLAR = Currency("USD", None, 2)
CANADIAN_DOLLAR = Currency("CAD", None, 2)
EURO = Currency("EUR", None, 2)
POUND = Currency("GBP", None, 2)
YEN = Currency("JPY", None, 0)
KUWAITI_DINAR = Currency("KWD", None, 3)
STELLAR = Currency(None, "XLM", 7)
"""An unofficial currency with the most decimals that Plaid was seen to send."""

CURRENCIES = {
    currency.iso_code or str(currency.unofficial_code): currency
    for currency in (US_DOLLAR, CANADIAN_DOLLAR, EURO, POUND, YEN, KUWAITI_DINAR, STELLAR)
}


class AccountPlan(NamedTuple):
    """An account that an institution opens for a new Item.

    Units: `usual_balance` in dollars; `unit`: units of the currency in a dollar.
    """

    name: str
    official_name: str | None
    type: str
    subtype: str
    currency: Currency
    usual_balance: int
    unit: int = 1
    limit: int | None = None
    reports_available: bool = True
    reports_transactions: bool = True
    reports_current: bool = True


class Institution(NamedTuple):
    """A bank.

    `links_pendings`: share of posted rows that name their pending row. `dates_balances`: it reports the time of its
    balances, requires `min_last_updated_datetime` for credit cards and cannot be refreshed. `in_rotation`: a default
    bank for Items.
    """

    institution_id: str
    name: str
    country: str
    shows_pendings: bool
    links_pendings: float
    plans: tuple[AccountPlan, ...]
    dates_balances: bool = False
    in_rotation: bool = True


_CHECKING = AccountPlan(
    "Plaid Checking", "Plaid Gold Standard 0% Interest Checking", "depository", "checking", US_DOLLAR, 4_200
)
_SAVINGS = AccountPlan(
    "Plaid Saving", "Plaid Silver Standard 0.1% Interest Saving", "depository", "savings", US_DOLLAR, 15_000
)
_CREDIT = AccountPlan(
    "Plaid Credit Card",
    "Plaid Diamond 12.5% APR Interest Credit Card",
    "credit",
    "credit card",
    US_DOLLAR,
    1_400,
    limit=8_000,
)
_STUDENT = AccountPlan("Plaid Student Loan", None, "loan", "student", US_DOLLAR, 24_000, reports_available=False)

INSTITUTIONS = (
    Institution(
        "ins_109508",
        "First Platypus Bank",
        "US",
        True,
        0.92,
        (
            _CHECKING,
            _CHECKING._replace(name="Joint Checking", official_name=None, usual_balance=2_700),
            _SAVINGS,
            _CREDIT,
            _CREDIT._replace(name="Plaid Travel Card", official_name=None, limit=20_000),
            _STUDENT,
            _STUDENT._replace(name="Plaid Graduate Loan", usual_balance=41_000),
            AccountPlan(
                "Plaid Mortgage",
                None,
                "loan",
                "mortgage",
                US_DOLLAR,
                310_000,
                reports_available=False,
                reports_transactions=False,
            ),
        ),
    ),
    Institution(
        "ins_109509",
        "First Gingham Credit Union",
        "US",
        True,
        0.5,
        (
            _CHECKING._replace(name="Gingham Share Draft", official_name=None),
            _SAVINGS._replace(name="Gingham Share", official_name=None),
            _CREDIT._replace(name="Gingham Visa", official_name=None, limit=None, reports_available=False),
        ),
    ),
    Institution(
        "ins_109511",
        "Tartan Bank",
        "US",
        True,
        0.98,
        (
            _CHECKING._replace(name="Tartan Checking"),
            _SAVINGS._replace(name="Tartan Money Market", subtype="money market"),
            _CREDIT._replace(name="Tartan Rewards"),
            _STUDENT,
        ),
    ),
    Institution(
        "ins_109512",
        "Houndstooth Bank",
        "CA",
        False,
        0.0,
        (
            _CHECKING._replace(name="Houndstooth Chequing", currency=CANADIAN_DOLLAR, official_name=None),
            _CREDIT._replace(name="Houndstooth Mastercard", currency=CANADIAN_DOLLAR, official_name=None),
            _CHECKING._replace(name="Houndstooth US Dollar Account", reports_available=False),
        ),
    ),
    Institution(
        "ins_117650",
        "Royal Bank of Plaid",
        "GB",
        True,
        0.8,
        (
            _CHECKING._replace(name="Current Account", currency=POUND, official_name=None),
            _CHECKING._replace(name="Euro Account", currency=EURO, official_name=None),
            _CREDIT._replace(name="Platinum Credit Card", currency=POUND, official_name=None),
        ),
    ),
    Institution(
        "ins_900001",
        "桜銀行 Sakura Bank",
        "JP",
        True,
        0.9,
        (
            _CHECKING._replace(name="普通預金", currency=YEN, unit=150, official_name="Sakura Futsū Yokin"),
            _CREDIT._replace(name="Sakura Card", currency=YEN, unit=150, official_name=None),
        ),
    ),
    Institution(
        "ins_900002",
        "Dinar National Bank",
        "KW",
        True,
        0.9,
        (
            _CHECKING._replace(name="Salary Account", currency=KUWAITI_DINAR, official_name=None),
            _SAVINGS._replace(name="Dinar Savings", currency=KUWAITI_DINAR, official_name=None),
            _CREDIT._replace(name="Dinar Signature", currency=KUWAITI_DINAR, official_name=None),
        ),
    ),
    Institution(
        "ins_900003",
        "Stellar Exchange",
        "US",
        False,
        0.0,
        (
            _CHECKING._replace(name="Lumens", subtype="cash management", currency=STELLAR, unit=8, official_name=None),
            _CHECKING._replace(name="Dollar Wallet", subtype="cash management", official_name=None),
            AccountPlan("Holdings", None, "investment", "brokerage", US_DOLLAR, 9_000, reports_transactions=False),
        ),
    ),
    Institution(
        "ins_900004",
        "Capital Gingham",
        "US",
        False,
        0.0,
        (
            _CHECKING._replace(name="360 Checking", official_name=None),
            _CREDIT._replace(name="Venture", official_name=None),
            _CHECKING._replace(
                name="Limited Purpose Checking",
                official_name=None,
                subtype="limited purpose checking",
                reports_available=False,
                reports_current=False,
            ),
        ),
        dates_balances=True,
        in_rotation=False,
    ),
)

ROTATION = tuple(institution.institution_id for institution in INSTITUTIONS if institution.in_rotation)
