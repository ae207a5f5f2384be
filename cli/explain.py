"""The command `tartan explain`: from an id back to the webhook, the tick or the person behind it."""

import re
from collections.abc import Iterable
from typing import Annotated, Any

import asyncpg
import msgspec
import typer
from rich.text import Text
from rich.tree import Tree

from cli.output import console_of_lines, say, with_postgres
from projections.read import resolve_id
from projections.read.queries import Row
from runtime.postgres.pool import snapshot

UNKNOWN = 2
"""Exit code where nothing is named so."""
SHOWN_CHARACTERS_MAX = 60
"""Of a value, in the tree; JSON has all of it."""
_BREAKS = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]
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

    told = with_postgres(work)
    console = console_of_lines()
    if told is None:
        why = f"nothing is named {name}; looked for: {resolve_id.LOOKED_FOR}"
        typer.secho(f"tartan: {why}", err=True, fg="red")
        if as_json:
            say(console, {"error": why})
        raise typer.Exit(UNKNOWN)
    say(console, told if as_json else tree(told))


def tree(told: Row) -> Tree:
    """A document as a tree: what it is, what made it so, and at the end what was behind each of these changesets."""
    root = Tree(Text(_title(told), style="bold"))
    if told["user"] is not None:
        root.add(Text(f"user {told['user']['user_id']} of tenant {told['user']['tenant']}", style="dim"))
    if "changeset" in told:
        root.add(f"at {told['changeset']}")
    for heading, lines in _parts(told):
        if lines:
            branch = root.add(Text(heading, style="bold"))
            for line in lines:
                branch.add(Text(line))
    if told.get("about") is not None:
        root.add(tree(told["about"]))
    behind = root.add(Text("behind it", style="bold"))
    for changeset in sorted(told["changesets"].values(), key=lambda one: (one["partition"], one["offset"])):
        _behind(behind, changeset)
    return root


def _title(told: Row) -> str:
    what, kind = told["is"], told["kind"].replace("_", " ")
    match told["kind"]:
        case "transaction":
            return (
                f"{kind} {what['id']}: {what['amount']} {what['currency']} on {what['date']}, {what['name']}, "
                f"{what['category']}, {'pending' if what['pending'] else 'posted'}, {what['status']}"
            )
        case "ledger_row":
            return f"{kind} {what['own_id']}.{_transfer(what)}"
        case "ledger_account":
            return f"{kind} {what['id']}: {what['kind']} {what['reference']} in {what['currency']}"
        case "account":
            return f"{kind} {what['account_id']} of Item {what['item_id']}: {what['name']}, {what['currency']}"
        case "event":
            return f"{kind} {told['changeset']}.{_event(what)}"
        case "item":
            return f"{kind} {what['item_id']}: {what['institution_name']}, {what['state']}"
        case "changeset":
            return f"{kind} {what['id']}"
        case "review":
            return f"{kind} {_review(what)}"
    return f"{kind} {what['id']}"


def _parts(told: Row) -> Iterable[tuple[str, list[str]]]:
    if told["kind"] == "account":
        yield "one account", [*_going_on(told["is"])]
    yield "versions", [_version(one) for one in reversed(told.get("versions", []))]
    yield (
        "user",
        [f"{one['field']}: {_value(one['value'])}, at {one['changeset']}" for one in told.get("user_fields", [])],
    )
    yield "links between ids", [_link(one) for one in told.get("links", [])]
    yield "reviews", [_review(one) for one in told.get("reviews", [])]
    yield "reports", [_report(one) for one in reversed(told.get("reports", []))]
    yield "ledger balances", [_balance(one) for one in told.get("balances", [])]
    # Numbers are a transaction's own: among those of several, a row is named by both.
    form = "{own_id}.{row}, at {changeset}" if told["kind"] == "ledger_account" else "{row}, at {changeset}"
    yield "ledger", [form.format(row=_transfer(one), **one) for one in told.get("transfers", [])]
    yield "events", [_event(one) for one in told.get("events", [])]
    yield "events", ["they are expired"] if told.get("events_expired") else []


def _going_on(account: Row) -> Iterable[str]:
    if older := account["continues"]:
        yield f"goes on from {older['account_id']} of Item {older['item_id']}"
    if younger := account["continued_by"]:
        yield f"goes on as {younger['account_id']} of Item {younger['item_id']}"


def _version(one: Row) -> str:
    changes = "; ".join(
        f"{each['field']}: {_value(each['before'])} → {_value(each['after'])}" for each in one["changed"] or ()
    )
    event = one["event"] or one["status"]
    return f"{one['version']} {event} at {one['changeset']}, known {one['known_at']}" + (
        f": {changes}" if changes else ""
    )


def _transfer(one: Row) -> str:
    takes_back = f", takes back {one['reverses']}" if one["reverses"] is not None else ""
    return (
        f"{one['number']}: {one['amount']} {one['currency']} {one['layer']} from {one['credit_kind']} "
        f"{one['credit_reference']} to {one['debit_kind']} {one['debit_reference']}, effective {one['effective']}"
        f"{takes_back}"
    )


def _link(one: Row) -> str:
    evidence = ", ".join(f"{name} {_value(value)}" for name, value in dict(one["evidence"]).items())
    return (
        f"{one['transaction_id']} of Item {one['item_id']} is this one: {one['rule']}, score {one['score']}, at "
        f"{one['changeset']} ({evidence})"
    )


def _review(one: Row) -> str:
    decided = f", decided at {one['decided']}" if one["decided"] else ""
    return f"{one['id']} {one['state']}: {one['reason']}, opened at {one['changeset']}{decided}"


def _report(one: Row) -> str:
    limit = f", limit {one['limit']}" if one["limit"] is not None else ""
    return (
        f"{one['version']} {one['source']}: current {one['current']}, available {one['available']}{limit} "
        f"{one['currency']}, at {one['changeset']}"
    )


def _balance(one: Row) -> str:
    return (
        f"{one['account']} {one['layer']}: {one['balance']} {one['currency']} "
        f"(debits {one['debits']}, credits {one['credits']})"
    )


def _event(one: Row) -> str:
    changed = f": {', '.join(one['changed'])}" if one["changed"] else ""
    return f"{one['number']} {one['type']} {one['about']}{changed}"


def _behind(branch: Tree, changeset: Row) -> None:
    origin = changeset["origin"]
    by = f" by {origin['by']}" if origin["by"] else ""
    of = f" of Item {changeset['item_id']}" if changeset["item_id"] else ""
    cause = f" ({origin['cause']})" if origin["cause"] != origin["kind"] else ""
    node = branch.add(Text(f"{changeset['place']} {changeset['type']}{of}, said {changeset['produced_at']}"))
    webhook = origin.get("webhook")
    came = f" {webhook['partition']}:{webhook['offset']}, received {webhook['received_at']}" if webhook else ""
    node.add(Text(f"{origin['kind']}{cause}{by}{came}"))
    if changeset["request_ids"]:
        node.add(Text(f"Plaid's requests {', '.join(changeset['request_ids'])}"))
    for freed in changeset.get("redrives", []):
        _behind(node, freed)


def _value(value: Any) -> str:
    """A value on one line: an empty text in quotes, line breaks as a sign, what is no text as JSON."""
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) and value else msgspec.json.encode(value).decode()
    text = _BREAKS.sub("⏎", text)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "…"
