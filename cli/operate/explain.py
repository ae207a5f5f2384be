"""The command `tartan explain`: trace an id back to the webhook, the schedule tick or the person behind it."""

import re
from collections.abc import Iterable
from typing import Annotated, Any

import asyncpg
import msgspec
import typer
from rich.text import Text
from rich.tree import Tree

from cli.output import Json, print_json, print_result, with_postgres
from projections.read import resolve_id
from projections.read.queries import Row
from runtime.postgres.pool import snapshot

UNKNOWN = 2
"""Exit code for an unknown id."""
VALUE_CHARACTERS_MAX = 60
"""Characters of a value in the tree; JSON has all of it."""
_BREAKS = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")

_TITLES = {
    "ledger_account": "{id}: {kind} {reference} in {currency}",
    "account": "{account_id} of Item {item_id}: {name}, {currency}",
    "item": "{item_id}: {institution_name}, {state}",
}
_BALANCE = "{account} {layer}: {balance} {currency} (debits {debits}, credits {credits})"

Name = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Own id, own id.number of a ledger row, partition:offset.number of an event, or Plaid's id."
    ),
]


def explain(name: Name, as_json: Json = False) -> None:
    """Explain a transaction, ledger row, balance, account, event, changeset, review or Item back to its causes."""

    async def work(connection: asyncpg.Connection) -> Row | None:
        async with snapshot(connection):
            return await resolve_id.explain_id(connection, name)

    explanation = with_postgres(work)
    if explanation is None:
        error = f"nothing is named {name}; searched for: {resolve_id.LOOKED_FOR}"
        typer.secho(f"tartan: {error}", err=True, fg="red")
        if as_json:
            print_json({"error": error})
        raise typer.Exit(UNKNOWN)
    print_result(explanation, tree(explanation), as_json=as_json)


def tree(explanation: Row) -> Tree:
    """Build the tree of an explanation: its subject, the rows about it, and last the changesets behind them."""
    root = Tree(Text(_title(explanation), style="bold"))
    if (user := explanation["user"]) is not None:
        root.add(Text(f"user {user['user_id']} of tenant {user['tenant']}", style="dim"))
    if "changeset" in explanation:
        root.add(f"at {explanation['changeset']}")
    for heading, lines in _sections(explanation):
        if lines:
            branch = root.add(Text(heading, style="bold"))
            for line in lines:
                branch.add(Text(line))
    if explanation.get("about") is not None:
        root.add(tree(explanation["about"]))
    causes = root.add(Text("causes", style="bold"))
    for changeset in sorted(explanation["changesets"].values(), key=lambda row: (row["partition"], row["offset"])):
        _add_changeset(causes, changeset)
    return root


def _title(explanation: Row) -> str:
    row, kind = explanation["is"], explanation["kind"]
    match kind:
        case "transaction":
            text = "{id}: {amount} {currency} on {date}, {name}, {category}, {booking}, {status}".format(
                booking="pending" if row["pending"] else "posted", **row
            )
        case "ledger_row":
            text = f"{row['own_id']}.{_transfer(row)}"
        case "event":
            text = f"{explanation['changeset']}.{_event(row)}"
        case "review":
            text = _review(row)
        case _:
            text = _TITLES.get(kind, "{id}").format_map(row)
    return f"{kind.replace('_', ' ')} {text}"


def _sections(explanation: Row) -> Iterable[tuple[str, list[str]]]:
    if explanation["kind"] == "account":
        linked = (("continues", explanation["is"]["continues"]), ("continued by", explanation["is"]["continued_by"]))
        yield (
            "linked accounts",
            [f"{link} {row['account_id']} of Item {row['item_id']}" for link, row in linked if row],
        )
    yield "versions", [_version(row) for row in reversed(explanation.get("versions", []))]
    yield "repaired fields", [f"{name}: {reason}" for name, reason in explanation.get("repairs", {}).items()]
    edits = explanation.get("user_fields", [])
    yield "user", [f"{row['field']}: {_value(row['value'])}, at {row['changeset']}" for row in edits]
    yield "links between ids", [_link(row) for row in explanation.get("links", [])]
    yield "reviews", [_review(row) for row in explanation.get("reviews", [])]
    yield "reports", [_report(row) for row in reversed(explanation.get("reports", []))]
    yield "ledger balances", [_BALANCE.format_map(row) for row in explanation.get("balances", [])]
    # Numbers are a transaction's own: among those of several, a row is named by both.
    form = "{own_id}.{text}, at {changeset}" if explanation["kind"] == "ledger_account" else "{text}, at {changeset}"
    yield "ledger", [form.format(text=_transfer(row), **row) for row in explanation.get("transfers", [])]
    yield "events", [_event(row) for row in explanation.get("events", [])]
    yield "events", ["expired"] if explanation.get("events_expired") else []


def _version(row: Row) -> str:
    changes = "; ".join(
        f"{change['field']}: {_value(change['before'])} → {_value(change['after'])}" for change in row["changed"] or ()
    )
    event = row["event"] or row["status"]
    text = f"{row['version']} {event} at {row['changeset']}, known at {row['known_at']}"
    return f"{text}: {changes}" if changes else text


def _transfer(row: Row) -> str:
    reversal = f", reverses {row['reverses']}" if row["reverses"] is not None else ""
    return (
        f"{row['number']}: {row['amount']} {row['currency']} {row['layer']} from {row['credit_kind']} "
        f"{row['credit_reference']} to {row['debit_kind']} {row['debit_reference']}, effective {row['effective']}"
        f"{reversal}"
    )


def _link(row: Row) -> str:
    evidence = ", ".join(f"{name} {_value(value)}" for name, value in dict(row["evidence"]).items())
    return (
        f"{row['transaction_id']} of Item {row['item_id']} is the same: {row['rule']}, score {row['score']}, at "
        f"{row['changeset']} ({evidence})"
    )


def _review(row: Row) -> str:
    decided = f", decided at {row['decided']}" if row["decided"] else ""
    return f"{row['id']} {row['state']}: {row['reason']}, opened at {row['changeset']}{decided}"


def _report(row: Row) -> str:
    limit = f", limit {row['limit']}" if row["limit"] is not None else ""
    return (
        f"{row['version']} {row['source']}: current {row['current']}, available {row['available']}{limit} "
        f"{row['currency']}, at {row['changeset']}"
    )


def _event(row: Row) -> str:
    changed = f": {', '.join(row['changed'])}" if row["changed"] else ""
    return f"{row['number']} {row['type']} {row['about']}{changed}"


def _add_changeset(branch: Tree, changeset: Row) -> None:
    origin, webhook = changeset["origin"], changeset["origin"].get("webhook")
    item = f" of Item {changeset['item_id']}" if changeset["item_id"] else ""
    node = branch.add(Text(f"{changeset['place']} {changeset['type']}{item}, produced at {changeset['produced_at']}"))
    cause = f" ({origin['cause']})" if origin["cause"] != origin["kind"] else ""
    person = f" by {origin['by']}" if origin["by"] else ""
    source = f" {webhook['partition']}:{webhook['offset']}, received {webhook['received_at']}" if webhook else ""
    node.add(Text(f"{origin['kind']}{cause}{person}{source}"))
    if changeset["request_ids"]:
        node.add(Text(f"Plaid's requests {', '.join(changeset['request_ids'])}"))
    for redriven in changeset.get("redrives", []):
        _add_changeset(node, redriven)


def _value(value: Any) -> str:
    """Format a value on one line: line breaks as a sign, anything but a text as JSON."""
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) and value else msgspec.json.encode(value).decode()
    text = _BREAKS.sub("⏎", text)
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[:VALUE_CHARACTERS_MAX] + "…"
