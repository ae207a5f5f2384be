"""No float anywhere on the way of money: in the code, and in what comes out at its end."""

import ast
import json
import re
from collections.abc import Iterator

import pytest

from projections.model import pg_copy
from projections.model.book import BANK
from projections.store import rows
from runtime.plaid import models
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import money
from schemas.encoding import codec
from schemas.ids import ledger_account_id
from schemas.log.records import Account, Transaction
from streams.sync import pages
from tests.support.paths import ROOT
from tests.support.projections_log import Log, added, balance, owners

PACKAGES = ("schemas", "runtime", "streams", "projections", "gateway", "sandbox/simulation/memory")

EDGES = frozenset({"runtime/plaid/models.py", "streams/sync/pages.py", "streams/sync/changeset.py"})
"""Where amounts come in, beside the modules that import schemas.money."""
CARRIERS = frozenset(
    {
        "schemas/encoding/codec.py",
        "schemas/encoding/flat.py",
        "schemas/log/records.py",
        "schemas/log/digest.py",
        "projections/fold/balances.py",
        "projections/model/pg_copy.py",
        "projections/events/field_diff.py",
        "projections/fold/apply_edits.py",
        "projections/fold/fold.py",
        "projections/model/book.py",
        "projections/store/gate_state.py",
        "projections/store/loader.py",
        "sandbox/simulation/memory/projection_tables.py",
        "projections/events/public_events.py",
        "projections/publish/browser_messages.py",
        "projections/read/queries.py",
        "projections/decode/changeset.py",
        "projections/store/upsert_sql.py",
        "projections/store/writer.py",
        "projections/read/as_of.py",
        "projections/store/views.py",
        "projections/verify/invariants.py",
    }
)
"""What hands amounts on."""
OWN_JSON = frozenset(
    {
        "projections/ledger/user_field_values.py",
        "projections/store/gate_state.py",
        "projections/events/public_events.py",
        "projections/read/queries.py",
    }
)
"""Read JSON of our own making, in which amounts are text: what users say has whole numbers only (edits.applied)."""
SECONDS = frozenset({"runtime/settings.py", "runtime/settings_syntax.py"})
"""Their floats are times; the price of a balance is text."""
TIMED = frozenset({"projections/reconcile/job.py", "runtime/operators/reconciliations.py"})
"""Have floats in lines that name seconds, and nowhere else."""


JSON = "JSON's numbers as floats"


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def imports_money(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and (node.module == "schemas.money" or (node.module == "schemas" and "money" in {n.name for n in node.names}))
        for node in ast.walk(tree)
    )


def floats(tree: ast.Module) -> list[str]:
    """Where a module makes a float: by name, as a literal, by a true division, or by reading JSON."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Name(id="float"):
                found.append(f"line {node.lineno}: float")
            case ast.Constant(value=float()):
                found.append(f"line {node.lineno}: {node.value}")
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                found.append(f"line {node.lineno}: a division")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="json"), attr="loads" | "load")):
                if not any(keyword.arg == "parse_float" for keyword in node.keywords):
                    found.append(f"line {node.lineno}: {JSON}")
    return found


def number(told: str) -> int:
    return int(told.removeprefix("line ").partition(":")[0])


def test_no_module_on_the_way_makes_a_float() -> None:
    modules = dict(sources())
    on_the_way = EDGES | CARRIERS | {name for name, tree in modules.items() if imports_money(tree)}

    found = {name: floats(modules[name]) for name in on_the_way - SECONDS}

    for name in OWN_JSON:
        found[name] = [one for one in found[name] if not one.endswith(JSON)]
    for name in TIMED:
        lines = (ROOT / name).read_text("utf-8").splitlines()
        found[name] = [one for one in found[name] if not re.search(r"_s\b", lines[number(one) - 1], re.IGNORECASE)]
    assert {name: told for name, told in found.items() if told} == {}


@pytest.mark.parametrize("line", ["x = float(y)", "x = 0.01", "x = y / 2", "x = json.loads(y)", "def f(x: float): ..."])
def test_the_search_finds_each_way_to_a_float(line: str) -> None:
    assert floats(ast.parse(line))


# A double has 15 to 17 digits: each of these is another number once it was one, or another text.
AMOUNTS = ["12345678901.23456", "0.1234567", "1234567.1234567", "-90071992547.40993", "0.30000001", "100.10"]
COINS = ["0.000000000000000001", "9.123456789012345678", "-1.000000000000000001", "9007199254740993"]


@pytest.mark.parametrize(("amount", "currency"), [*((one, "USD") for one in AMOUNTS), *((one, "ETH") for one in COINS)])
def test_an_amount_is_the_same_number_from_plaids_bytes_to_ledger_row_and_event(amount: str, currency: str) -> None:
    kind = "iso_currency_code" if money.is_iso(currency) else "unofficial_currency_code"
    currencies = {"iso_currency_code": None, "unofficial_currency_code": None, kind: currency}
    body = (
        json.dumps(
            {
                "added": [
                    {
                        "transaction_id": "t",
                        "account_id": "a",
                        "amount": 4711,
                        "pending": False,
                        "date": "2026-03-01",
                        "pending_transaction_id": None,
                        "name": "Shop",
                        **currencies,
                    }
                ],
                "modified": [],
                "removed": [],
                "next_cursor": "c",
                "has_more": False,
                "request_id": "r",
                "transactions_update_status": "HISTORICAL_UPDATE_COMPLETE",
                "accounts": [
                    {
                        "account_id": "a",
                        "name": "A",
                        "mask": "0",
                        "official_name": None,
                        "type": "depository",
                        "subtype": "checking",
                        "balances": {"current": 4711, "available": None, "limit": None, **currencies},
                    }
                ],
            }
        )
        .replace("4711", amount)
        .encode()
    )
    exact = money.decimal_text(money.Decimal(amount))

    update = pages.merge_pages([models.sync_page(body)], fresh=True)
    [change] = update.changes
    assert isinstance(change.record, Transaction)
    log = Log()
    log.link("item")
    log.sync("item", *added(change.record), *balance(update.accounts["a"]), history_status="HISTORICAL_UPDATE_COMPLETE")
    memory = MemoryProjections(owners)
    memory.project(log.records)

    [row] = memory.rows.values()
    said, reported = codec.decode(Transaction, row.payload), memory.accounts["item", "a"].cached_payload
    assert reported is not None
    assert (said.amount, codec.decode(Account, reported).current) == (exact, exact)
    columns = dict(zip(rows.TRANSACTION_COLUMNS, rows.transaction_values(row), strict=True))
    assert money.ScaledAmount(columns["amount_value"], columns["amount_scale"]) == money.parse_decimal(exact)
    debits, credits_ = memory.balances[ledger_account_id(1, BANK, "a", currency), "posted"]
    assert debits - credits_ == money.ledger_amount(
        money.parse_decimal(exact), currency
    )  # as reported: the opening makes it so
    [moved] = [one for one in memory.transfers if one.own_id == row.own_id]
    assert moved.amount == abs(money.ledger_amount(money.parse_decimal(exact), currency))
    assert moved.amount_field == pg_copy.numeric(moved.amount)
    [event] = [one for one in memory.folded[-1].net_events if one.type == "transaction.added"]
    assert exact.encode() in event.data
