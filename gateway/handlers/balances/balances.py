"""Balances: request real-time balances once for simultaneous clients, append them to the log, answer when visible.

The paid request comes first and the record after it. A process that ends between the two loses that one answer, and a
client that repeats the request pays again; the log never holds a wrong balance for it.
"""

import asyncio
import datetime
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import asyncpg

from gateway.handlers.balances.balance_client import BalanceClient, BalanceQuery, stopped
from gateway.handlers.command_log import CommandLog
from gateway.handlers.ownership import OwnedItem, item_of
from gateway.http.database import connected
from gateway.http.idempotency import Answer, IdempotentAnswers
from gateway.http.poll import Poller
from gateway.http.problems import Problem
from gateway.http.requests import Call
from projections.read import queries
from runtime import logs
from runtime.plaid.models import AccountsAnswer
from runtime.scheduler.stop_reasons import UNLINKED
from runtime.settings import Settings
from runtime.settings_syntax import Price
from runtime.users.commands import Command, CommandTarget, PreparedCommand
from schemas.encoding import catalogue, codec
from schemas.errors import Retry
from schemas.events import BALANCE_REPORTED_REALTIME
from schemas.log import gate
from schemas.log.records import Account, Cause

CAUSE = "manual"
WAIT_S = 30.0
"""Default wait of an answer: a bank takes up to 30 s or so (PLAID.md 1.4)."""
APPEND_S_MAX = 60.0
"""Longest time that a paid answer is held for a log that accepts nothing."""
APPEND_EVERY_S = 1.0
CLOSE_S_MAX = 10.0
"""Longest wait of a stop for calls to banks; later answers are lost."""
TTL_S, ANSWERS_MAX = 600.0, 1_000
"""Answers by idempotency key, about 15 kB each; older ones are read from the tables."""

ASKING, ACCEPTED, APPLIED = "asking", "accepted", "applied"
FIELDS = (
    *("account_id", "name", "mask", "type", "subtype", "currency", "current", "available", "limit"),
    "last_updated_datetime",
)
"""Fields of a reported account in the answer."""

_log = logs.logger(__name__)


class ReportedBalances(NamedTuple):
    """Balances that a bank reported, and the id of their record.

    `requests`: calls billed to this client; 0 for a client that shared another client's call.
    """

    changeset: bytes
    accounts: Sequence[Account]
    asked_at: datetime.datetime
    request_id: str | None
    requests: int = 1


class SharedCall(NamedTuple):
    """A call to a bank that is under way, and its query."""

    query: BalanceQuery
    task: "asyncio.Task[ReportedBalances]"

    def covers(self, query: BalanceQuery) -> bool:
        """Return whether the call brings all that another query requests."""
        mine, theirs = self.query.account_ids, query.account_ids
        has_all = not mine or (bool(theirs) and theirs <= mine)
        return has_all and self.query.oldest == query.oldest


class Balances:
    """The handler of requests for real-time balances."""

    def __init__(
        self, settings: Settings, *, pool: asyncpg.Pool, client: BalanceClient, commands: CommandLog, poller: Poller
    ) -> None:
        self._pool = pool
        self._client = client
        self._commands = commands
        self._poller = poller
        self._price = settings.price()
        self._answers = IdempotentAnswers[ReportedBalances](ttl_s=TTL_S, answers_max=ANSWERS_MAX)
        self._calls: dict[str, list[SharedCall]] = {}

    async def close(self) -> None:
        """Wait for calls under way, before the pool, the appender and the client of Plaid are closed."""
        tasks = [call.task for calls in self._calls.values() for call in calls]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_S_MAX)
            for task in late:
                task.cancel()

    async def read_balances(self, call: Call) -> Answer:
        """Request balances, and answer once readers see them, or at the end of the client's wait."""
        async with connected(self._pool) as connection:
            item = await item_of(connection, call)
        wait_s = WAIT_S if call.values["wait"] is None else call.values["wait"]
        ends_at = time.monotonic() + wait_s
        task = asyncio.ensure_future(self._request_once(call, item))
        done, _ = await asyncio.wait({task}, timeout=wait_s)
        if not done:
            task.add_done_callback(_log_unanswered)
            return Answer(HTTPStatus.ACCEPTED, _document(item, ASKING, None, self._price))
        reported = task.result()
        left_s = max(ends_at - time.monotonic(), 0.0)
        is_visible = await self._poller.until(lambda: self._is_visible(reported), wait_s=left_s)
        if is_visible or await self._is_visible(reported):
            return Answer(HTTPStatus.OK, _document(item, APPLIED, reported, self._price))
        return Answer(HTTPStatus.ACCEPTED, _document(item, ACCEPTED, reported, self._price))

    async def _request_once(self, call: Call, item: OwnedItem) -> ReportedBalances:
        """Request balances once a key. A record that is in the tables already is read from there."""
        key = call.values["Idempotency-Key"]
        query = BalanceQuery(frozenset(call.values["account_ids"] or ()), call.values["min_last_updated_datetime"])
        body = f"balances\0{item.item_id}\0{sorted(query.account_ids)}\0{query.oldest}".encode()

        async def request() -> ReportedBalances:
            prepared = await self._commands.prepare(_target(item), key=key, body=body)
            if key is not None and await self._commands.is_accepted(prepared):
                return await self._read_earlier(item, query, prepared)
            _check_ready(item)
            return await self._share(item, query, prepared, by=call.tenant)

        return await self._answers.once(tenant=call.tenant, key=key, body=body, action=request)

    async def _read_earlier(self, item: OwnedItem, query: BalanceQuery, prepared: PreparedCommand) -> ReportedBalances:
        async with connected(self._pool) as connection:
            changeset = await connection.fetchrow(_CHANGESET, prepared.id)
            rows = await connection.fetch(_REALTIME, item.item_id, list(query.account_ids))
        assert changeset is not None, "it was accepted, and nothing deletes it"
        accounts = [codec.decoder(row["realtime_payload_schema"])(row["realtime_payload"], 0)[0] for row in rows]
        return ReportedBalances(prepared.id, accounts, changeset["produced_at"], changeset["request_id"])

    async def _share(
        self, item: OwnedItem, query: BalanceQuery, prepared: PreparedCommand, *, by: str
    ) -> ReportedBalances:
        """Call the bank, or wait for a call under way that covers the query and costs nothing then."""
        calls = self._calls.setdefault(item.item_id, [])
        for call in calls:
            if call.covers(query):
                reported = await asyncio.shield(call.task)
                accounts = [
                    account
                    for account in reported.accounts
                    if not query.account_ids or account.account_id in query.account_ids
                ]
                return reported._replace(accounts=accounts, requests=0)
        started = SharedCall(query, asyncio.ensure_future(self._call_and_append(item, query, prepared, by=by)))
        calls.append(started)
        started.task.add_done_callback(lambda _: self._forget(item.item_id, started))
        # Shielded: a paid answer is appended even if its client hangs up.
        return await asyncio.shield(started.task)

    def _forget(self, item_id: str, call: SharedCall) -> None:
        calls = self._calls[item_id]
        calls.remove(call)
        if not calls:
            del self._calls[item_id]

    async def _call_and_append(
        self, item: OwnedItem, query: BalanceQuery, prepared: PreparedCommand, *, by: str
    ) -> ReportedBalances:
        asked_at = datetime.datetime.now(datetime.UTC)
        answer = await self._client.balances(item, query, by=by)
        await self._append(item, answer, prepared, by=by)
        return ReportedBalances(prepared.id, answer.accounts, asked_at, answer.request_id)

    async def _append(self, item: OwnedItem, answer: AccountsAnswer, prepared: PreparedCommand, *, by: str) -> None:
        """Append the balances. Readers accept a prepared command once, so an append in doubt is repeated.

        Raises: Problem 503, where the log accepts nothing for a minute.
        """
        events = [(BALANCE_REPORTED_REALTIME, catalogue.ACCOUNT, codec.encode(account)) for account in answer.accounts]
        command = Command(gate.BALANCE, events)
        cause = Cause(CAUSE, request_ids=[answer.request_id] if answer.request_id else [], by=by)
        ends_at = time.monotonic() + APPEND_S_MAX
        while True:
            try:
                await self._commands.append(_target(item), command, prepared, cause=cause, wait_s=0.0)
            except Retry as error:
                if time.monotonic() >= ends_at:
                    _log.error("a paid balance is lost", item_id=item.item_id, reason=str(error))
                    detail = "the bank has answered, and the log took nothing: the answer is lost and billed"
                    raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "balance_lost", detail) from error
            else:
                return
            await asyncio.sleep(APPEND_EVERY_S)

    async def _is_visible(self, reported: ReportedBalances) -> bool:
        async with connected(self._pool) as connection:
            return await queries.is_applied(connection, reported.changeset)


def _check_ready(item: OwnedItem) -> None:
    """Raise Problem 409 where the Item is unlinked, stopped or not synced yet."""
    if item.unlinked_at is not None or item.unlink_requested:
        raise stopped(UNLINKED)
    if item.stopped is not None:
        raise stopped(item.stopped)
    if item.head_offset is None:
        detail = "the item was linked a moment ago; its first sync brings its balances"
        raise Problem(HTTPStatus.CONFLICT, "item_linking", detail, headers={"Retry-After": "2"})


def _target(item: OwnedItem) -> CommandTarget:
    return CommandTarget(item.item_id, item.user, item.partition)


def _log_unanswered(task: "asyncio.Task[ReportedBalances]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        reason = error.kind if isinstance(error, Problem) else type(error).__name__
        _log.warning("balances asked for were not told", reason=reason)


def _document(item: OwnedItem, status: str, reported: ReportedBalances | None, price: Price | None) -> dict[str, Any]:
    document: dict[str, Any] = {"item_id": item.item_id, "status": status}
    if reported is None:
        return document | {"accounts": [], "asked_at": None, "request_id": None, "cost": None}
    cost = {
        "requests": reported.requests,
        "billed": reported.requests > 0,
        "unit_price": price.amount if price else None,
        "currency": price.currency if price else None,
    }
    accounts = [{name: getattr(account, name) for name in FIELDS} for account in reported.accounts]
    return document | {
        "accounts": accounts,
        "asked_at": reported.asked_at,
        "request_id": reported.request_id,
        "cost": cost,
    }


_CHANGESET = "SELECT produced_at, cause->'request_ids'->>0 AS request_id FROM reads.changesets WHERE id = $1"

_REALTIME = """
    SELECT realtime_payload, realtime_payload_schema FROM reads.accounts
    WHERE item_id = $1 AND realtime_payload IS NOT NULL AND (cardinality($2::text[]) = 0 OR account_id = ANY($2))
    ORDER BY account_id"""
