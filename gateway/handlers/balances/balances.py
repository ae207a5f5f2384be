"""Balances of now: a bank is asked once for all who ask at the same time, and the answer is kept in the log.

The paid request comes first and the record after it. A process that ends between the two loses that one answer, and
who asks again pays again: nothing that the log holds is ever wrong for it.
"""

import asyncio
import datetime
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import asyncpg

from gateway.handlers import item_control
from gateway.handlers.balances.balance_client import Banks, Wish, stopped
from gateway.handlers.command_log import Sayings
from gateway.handlers.item_control import Owned
from gateway.http.database import connected
from gateway.http.idempotency import Answer, Answers
from gateway.http.poll import Waiting
from gateway.http.problems import Problem, not_found
from gateway.http.requests import Call
from projections.read import queries
from runtime import logs
from runtime.plaid.models import AccountsAnswer
from runtime.scheduler.stop_reasons import UNLINKED
from runtime.settings import Price, Settings
from runtime.users.commands import Command, CommandTarget, PreparedCommand
from schemas.encoding import catalogue, codec
from schemas.errors import Retry
from schemas.events import BALANCE_REPORTED_REALTIME
from schemas.log import gate
from schemas.log.records import Account, Cause

CAUSE = "manual"
WAIT_S = 30.0
"""How long an answer waits where the client says nothing: a bank is asked within 30 s or so (PLAID.md 1.4)."""
APPEND_S_MAX = 60.0
"""How long what was paid for is kept ready for a log that takes nothing."""
APPEND_EVERY_S = 1.0
CLOSE_S_MAX = 10.0
"""How long a stop waits for banks that were asked: what they answer later is lost."""

KEPT_S, KEPT_MAX = 600.0, 1_000
"""Answers kept by their keys, about 15 kB each: what the tables show by then is answered from there."""

ASKING, ACCEPTED, APPLIED = "asking", "accepted", "applied"

_log = logs.logger(__name__)


class Told(NamedTuple):
    """What a bank told, and the record that says so.

    `requests`: how many were billed for whoever gets this; none for those who joined another one's.
    """

    changeset: bytes
    accounts: Sequence[Account]
    asked_at: datetime.datetime
    request_id: str | None
    requests: int = 1


class UnderWay(NamedTuple):
    """A request to a bank that others may join."""

    wish: Wish
    told: "asyncio.Task[Told]"

    def answers(self, wish: Wish) -> bool:
        """Whether what this one asks for has all that another one wants."""
        mine, theirs = self.wish.account_ids, wish.account_ids
        has_all = not mine or (bool(theirs) and theirs <= mine)
        return has_all and self.wish.oldest == wish.oldest


class Balances:
    """The handler of requests for balances of now."""

    def __init__(
        self, settings: Settings, *, pool: asyncpg.Pool, banks: Banks, sayings: Sayings, waiting: Waiting
    ) -> None:
        self._pool = pool
        self._banks = banks
        self._sayings = sayings
        self._waiting = waiting
        self._price = settings.price()
        self._answers = Answers[Told](kept_s=KEPT_S, kept_max=KEPT_MAX)
        self._under_way: dict[str, list[UnderWay]] = {}

    async def close(self) -> None:
        """Wait for banks that were asked, before the pool, the appender and the client of Plaid are closed."""
        asked = [one.told for all_of_item in self._under_way.values() for one in all_of_item]
        if asked:
            _, late = await asyncio.wait(asked, timeout=CLOSE_S_MAX)
            for task in late:
                task.cancel()

    async def read_balances(self, call: Call) -> Answer:
        """Ask the Item's bank, and answer once readers see what it told; sooner where the client waits no longer."""
        async with connected(self._pool) as connection:
            item = await item_control.item(connection, call.tenant, call.values["item_id"])
        if item is None:
            raise not_found("item")
        wait_s = WAIT_S if call.values["wait"] is None else call.values["wait"]
        ends = time.monotonic() + wait_s
        asking = asyncio.ensure_future(self._once(call, item))
        done, _ = await asyncio.wait({asking}, timeout=wait_s)
        if not done:
            asking.add_done_callback(_told_nobody)
            return Answer(HTTPStatus.ACCEPTED, _document(item, ASKING, None, self._price))
        told = asking.result()
        left_s = ends - time.monotonic()
        is_shown = await self._waiting.until(lambda: self._is_shown(told), wait_s=max(left_s, 0.0))
        if is_shown or await self._is_shown(told):
            return Answer(HTTPStatus.OK, _document(item, APPLIED, told, self._price))
        return Answer(HTTPStatus.ACCEPTED, _document(item, ACCEPTED, told, self._price))

    async def _once(self, call: Call, item: Owned) -> Told:
        """What the bank tells, once a key. A record that is in the tables already has its balances there."""
        key = call.values["Idempotency-Key"]
        wish = Wish(frozenset(call.values["account_ids"] or ()), call.values["min_last_updated_datetime"])
        body = f"balances\0{item.item_id}\0{sorted(wish.account_ids)}\0{wish.oldest}".encode()

        async def act() -> Told:
            ticket = await self._sayings.prepare(_about(item), key=key, body=body)
            if key is not None and await self._sayings.is_accepted(ticket):
                return await self._told_before(item, wish, ticket)
            _refuse(item)
            return await self._joined(item, wish, ticket, by=call.tenant)

        return await self._answers.once(tenant=call.tenant, key=key, body=body, act=act)

    async def _told_before(self, item: Owned, wish: Wish, ticket: PreparedCommand) -> Told:
        async with connected(self._pool) as connection:
            before = await connection.fetchrow(_BEFORE, ticket.id)
            rows = await connection.fetch(_REALTIME, item.item_id, list(wish.account_ids))
        assert before is not None, "it was accepted, and nothing deletes it"
        accounts = [codec.decoder(row["realtime_schema"])(row["realtime_words"], 0)[0] for row in rows]
        return Told(ticket.id, accounts, before["produced_at"], before["request_id"])

    async def _joined(self, item: Owned, wish: Wish, ticket: PreparedCommand, *, by: str) -> Told:
        """Ask the bank, or wait for one who asks it now."""
        under_way = self._under_way.setdefault(item.item_id, [])
        for one in under_way:
            if one.answers(wish):
                return _shared(await asyncio.shield(one.told), wish)
        asking = UnderWay(wish, asyncio.ensure_future(self._asked(item, wish, ticket, by=by)))
        under_way.append(asking)
        asking.told.add_done_callback(lambda _: self._forget(item.item_id, asking))
        # Shielded: what is paid for is kept, whoever hangs up.
        return await asyncio.shield(asking.told)

    def _forget(self, item_id: str, asked: UnderWay) -> None:
        under_way = self._under_way[item_id]
        under_way.remove(asked)
        if not under_way:
            del self._under_way[item_id]

    async def _asked(self, item: Owned, wish: Wish, ticket: PreparedCommand, *, by: str) -> Told:
        asked_at = datetime.datetime.now(datetime.UTC)
        answer = await self._banks.balances(item, wish, by=by)
        await self._keep(item, answer, ticket, by=by)
        return Told(ticket.id, answer.accounts, asked_at, answer.request_id)

    async def _keep(self, item: Owned, answer: AccountsAnswer, ticket: PreparedCommand, *, by: str) -> None:
        """Append what was told. The same ticket is taken once, so an append in doubt is made again.

        Raises: Problem 503, where the log takes nothing for a minute.
        """
        said = Command(
            gate.BALANCE, [(BALANCE_REPORTED_REALTIME, catalogue.ACCOUNT, codec.encode(one)) for one in answer.accounts]
        )
        cause = Cause(CAUSE, request_ids=[answer.request_id] if answer.request_id else [], by=by)
        ends = time.monotonic() + APPEND_S_MAX
        while True:
            try:
                await self._sayings.say(_about(item), said, ticket, cause=cause, wait_s=0.0)
            except Retry as error:
                if time.monotonic() >= ends:
                    _log.error("a paid balance is lost", item_id=item.item_id, reason=str(error))
                    detail = "the bank has answered, and the log took nothing: the answer is lost and billed"
                    raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "balance_lost", detail) from error
            else:
                return
            await asyncio.sleep(APPEND_EVERY_S)

    async def _is_shown(self, told: Told) -> bool:
        async with connected(self._pool) as connection:
            return await queries.is_applied(connection, told.changeset)


def _shared(told: Told, wish: Wish) -> Told:
    """What somebody who joined another one's request is told, and does not pay for."""
    wanted = [one for one in told.accounts if not wish.account_ids or one.account_id in wish.account_ids]
    return told._replace(accounts=wanted, requests=0)


def _refuse(item: Owned) -> None:
    """Raises: Problem 409, where there is no use in asking the Item's bank."""
    if item.unlinked_at is not None or item.unlink_requested:
        raise stopped(UNLINKED)
    if item.stopped is not None:
        raise stopped(item.stopped)
    if item.head_offset is None:
        detail = "the item was linked a moment ago; its first sync brings its balances"
        raise Problem(HTTPStatus.CONFLICT, "item_linking", detail, headers={"Retry-After": "2"})


def _about(item: Owned) -> CommandTarget:
    return CommandTarget(item.item_id, item.user, item.partition)


def _told_nobody(asking: "asyncio.Task[Told]") -> None:
    """What became of a request whose client waits no longer."""
    if not asking.cancelled() and (error := asking.exception()) is not None:
        reason = error.kind if isinstance(error, Problem) else type(error).__name__
        _log.warning("balances asked for were not told", reason=reason)


def _document(item: Owned, status: str, told: Told | None, price: Price | None) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "status": status,
        "accounts": [_account(account) for account in told.accounts] if told else [],
        "asked_at": told.asked_at if told else None,
        "request_id": told.request_id if told else None,
        "cost": None
        if told is None
        else {
            "requests": told.requests,
            "billed": told.requests > 0,
            "unit_price": price.amount if price else None,
            "currency": price.currency if price else None,
        },
    }


def _account(account: Account) -> dict[str, Any]:
    return {
        "account_id": account.account_id,
        "name": account.name,
        "mask": account.mask,
        "type": account.type,
        "subtype": account.subtype,
        "currency": account.currency,
        "current": account.current,
        "available": account.available,
        "limit": account.limit,
        "last_updated_datetime": account.last_updated_datetime,
    }


_BEFORE = "SELECT produced_at, cause->'request_ids'->>0 AS request_id FROM reads.changesets WHERE id = $1"

_REALTIME = """
    SELECT realtime_words, realtime_schema FROM reads.accounts
    WHERE item_id = $1 AND realtime_words IS NOT NULL AND (cardinality($2::text[]) = 0 OR account_id = ANY($2))
    ORDER BY account_id"""
