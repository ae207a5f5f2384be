"""Plaid inside the process against the real client over HTTP: the same questions, the same answers and errors."""

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from runtime.plaid.client import Plaid, PlaidRefused
from runtime.plaid.models import SyncPage
from runtime.settings import Settings
from sandbox.simulator.api import dispatcher
from sandbox.simulator.api.plaid_errors import KINDS
from sandbox.simulator.api.server import running
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.clock import ManualClock
from sandbox.simulator.control import failure_modes
from sandbox.simulator.control.faults import CONNECTION_FAULTS, SLOW, Fault
from sandbox.simulator.inprocess import InProcessPlaid
from sandbox.simulator.options import Options
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from schemas.errors import Retry

START = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
PATIENCE_S = 0.3
"""How long the client over HTTP waits; the one inside the process waits as long in virtual time."""

WAIT_S = 20.0

Twin = Plaid | InProcessPlaid
Ask = Callable[[Twin, Item], Awaitable[object]]

ASKS: dict[str, Ask] = {
    "/transactions/sync": lambda plaid, item: plaid.sync_page(item.access_token, None),
    "/accounts/get": lambda plaid, item: plaid.accounts(item.access_token),
    "/item/get": lambda plaid, item: plaid.item(item.access_token),
    "/transactions/refresh": lambda plaid, item: plaid.refresh(item.access_token),
    "/item/remove": lambda plaid, item: plaid.remove(item.access_token),
}


@dataclass
class Side:
    """One of two worlds of the same seed, and the client that asks it."""

    plaid: Twin
    world: SimulatedPlaid
    clock: ManualClock
    item: Item


@asynccontextmanager
async def twins(**options: Any) -> AsyncIterator[tuple[Side, Side]]:
    """The same bank twice: behind HTTP, and inside the process."""
    chosen = Options(**({"rate_limits": "off", "history_transactions": 30, "novelty": 0.3} | options))
    clocks = ManualClock(START), ManualClock(START)
    settings = Settings(
        plaid_client_id=chosen.client_id, plaid_secret=SecretStr(chosen.secret), plaid_timeout_s=PATIENCE_S
    )
    async with running(chosen, clocks[0]) as server:
        world = SimulatedPlaid(chosen, clocks[1])
        over_http = Plaid(settings.model_copy(update={"plaid_url": server.url}))

        async def sleep(seconds: float) -> None:
            del seconds  # the twin's clock stands still, too

        inside = InProcessPlaid(world, sleep=sleep, timeout_s=PATIENCE_S, days_requested=settings.days_requested)
        try:
            yield (
                Side(over_http, server.plaid, clocks[0], server.plaid.create_item("ada")),
                Side(inside, world, clocks[1], world.create_item("ada")),
            )
        finally:
            await over_http.close()


async def outcome(ask: Awaitable[object]) -> object:
    """What an answer says, or how it was refused, in a form that can be compared."""
    try:
        return await ask
    except PlaidRefused as error:
        return ("refused", error.error_type, error.error_code, error.status, error.request_id, error.reason)
    except Retry as error:
        return ("retry", str(error), error.wait_s)


async def both(sides: tuple[Side, Side], ask: Ask) -> object:
    """Ask both; they say the same."""
    first, second = [await outcome(ask(side.plaid, side.item)) for side in sides]
    assert first == second
    return first


def in_both(sides: tuple[Side, Side], act: Callable[[Side], object]) -> None:
    for side in sides:
        act(side)


@pytest.mark.parametrize("path", list(ASKS))
async def test_a_good_answer_is_the_same(path: str) -> None:
    async with twins() as sides:
        said = await both(sides, ASKS[path])

        assert not isinstance(said, tuple) or said[0] not in ("refused", "retry")


@pytest.mark.parametrize("path", list(ASKS))
async def test_every_refusal_is_the_same_at_every_endpoint(path: str) -> None:
    async with twins() as sides:
        for code, kind in KINDS.items():
            in_both(sides, lambda side, code=code: side.world.faults.declare(Fault(code=code, endpoint=path)))

            said = await both(sides, ASKS[path])

            assert isinstance(said, tuple)
            assert said[:4] == ("refused", kind.type, code, kind.status)


@pytest.mark.parametrize("code", CONNECTION_FAULTS)
@pytest.mark.parametrize("path", ["/transactions/sync", "/item/remove"])
async def test_every_way_in_which_a_connection_breaks_is_the_same(path: str, code: str) -> None:
    async with twins() as sides:
        in_both(sides, lambda side: side.world.faults.declare(Fault(code=code, endpoint=path)))

        said = await both(sides, ASKS[path])
        again = await both(sides, ASKS[path])

        assert isinstance(said, tuple)
        assert said[0] == "retry"
        heard = code not in ("BAD_GATEWAY", "UNSENT")
        gone = isinstance(again, tuple) and again[0] == "refused"
        assert gone == (heard and path == "/item/remove"), "a removal that was heard has happened"


async def test_an_answer_that_comes_too_late_is_none_and_one_that_is_only_late_is_read() -> None:
    async with twins() as sides:
        said = []
        for delay_s in (PATIENCE_S * 3, PATIENCE_S / 10):
            in_both(sides, lambda side, s=delay_s: side.world.faults.declare(Fault(code=SLOW, delay_s=s)))
            said.append(await both(sides, ASKS["/transactions/sync"]))

        assert said[0] == ("retry", "no answer from Plaid: ReadTimeoutError", None)
        assert isinstance(said[1], SyncPage)


async def test_a_rate_limit_strikes_at_the_same_request() -> None:
    async with twins(rate_limits="production") as sides:
        said = [await both(sides, ASKS["/item/get"]) for _ in range(16)]

        refusals = [one for one in said if isinstance(one, tuple) and one[0] == "refused"]
        assert [one[1:4] for one in refusals] == [("RATE_LIMIT_EXCEEDED", "ITEM_GET_LIMIT", 429)]


async def test_pages_mutations_and_lost_cursors_are_the_same() -> None:
    async with twins(history_transactions=60) as sides:
        said = await both(sides, lambda plaid, item: plaid.sync_page(item.access_token, None, count=25))
        assert isinstance(said, SyncPage)
        second = said.next_cursor
        in_both(sides, lambda side: side.world.faults.declare(Fault(code="MUTATION", page=2)))

        mutated = await both(sides, lambda plaid, item: plaid.sync_page(item.access_token, second, count=25))
        again = await both(sides, ASKS["/transactions/sync"])
        assert isinstance(again, SyncPage)
        end = again.next_cursor
        in_both(sides, lambda side: failure_modes.refuse_cursors(side.item))
        refused = await both(sides, lambda plaid, item: plaid.sync_page(item.access_token, end))
        restated = await both(sides, ASKS["/transactions/sync"])

        assert mutated[2] == "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"  # type: ignore[index]
        assert refused[2] == "INVALID_FIELD"  # type: ignore[index]
        assert isinstance(restated, SyncPage)
        assert {row.transaction_id for row in restated.added} == set(sides[0].item.live)


async def test_states_of_items_and_banks_are_the_same() -> None:
    async with twins() as sides:
        bank = sides[0].item.institution.institution_id
        acts: dict[str, Callable[[Side], object]] = {
            "INSTITUTION_NOT_RESPONDING": lambda side: side.world.institution_down(
                bank, code="INSTITUTION_NOT_RESPONDING"
            ),
            "up": lambda side: side.world.institution_up(bank),
            "ITEM_LOGIN_REQUIRED": lambda side: side.world.break_item(side.item, "ITEM_LOGIN_REQUIRED"),
            "repaired": lambda side: side.world.repair_item(side.item),
            "USER_PERMISSION_REVOKED": lambda side: side.world.break_item(side.item, "USER_PERMISSION_REVOKED"),
        }
        for code, act in acts.items():
            in_both(sides, act)

            said = {
                path: await both(sides, ASKS[path]) for path in ("/transactions/sync", "/accounts/get", "/item/get")
            }

            refusals = {one[2] for one in said.values() if isinstance(one, tuple) and one[0] == "refused"}
            assert refusals == ({code} if code.isupper() else set())
            assert said["/item/get"].item_id == sides[0].item.item_id  # type: ignore[attr-defined]


async def test_the_same_bytes_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []
    answer = dispatcher.answer

    def noting(world: SimulatedPlaid, path: str, headers: Any, raw: bytes) -> dispatcher.Answer:
        asked.append((path, json.loads(raw)))
        return answer(world, path, headers, raw)

    monkeypatch.setattr("sandbox.simulator.api.server.answer", noting)
    monkeypatch.setattr("sandbox.simulator.inprocess.answer", noting)
    async with twins() as sides:
        for ask in (*list(ASKS.values())[:-1], lambda plaid, item: plaid.sync_page(item.access_token, "c", count=7)):
            await both(sides, ask)
            over_http, inside = asked[-2:]

            assert over_http == inside


async def test_the_key_that_signs_is_the_same() -> None:
    async with twins() as sides:
        kid = sides[0].world.keyring.current.kid

        said = await both(sides, lambda plaid, _item: plaid.verification_key(kid))
        unknown = await both(sides, lambda plaid, _item: plaid.verification_key("none"))

        assert isinstance(said, bytes)
        assert json.loads(said)["kid"] == kid
        assert unknown[2] == "INVALID_WEBHOOK_VERIFICATION_KEY_ID"  # type: ignore[index]


async def test_the_same_webhooks_go_out_with_the_same_signatures() -> None:
    got: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        got.put_nowait((await request.read(), request.headers["Plaid-Verification"]))
        return web.Response()

    app = web.Application()
    app.router.add_post("/webhooks", take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks"
        async with twins(webhook_url=url, rotate_key_every=2) as sides:
            await both(sides, ASKS["/transactions/sync"])
            in_both(sides, lambda side: side.world.step(side.item.item_id))
            in_both(sides, lambda side: side.world.break_item(side.item, "ITEM_LOGIN_REQUIRED"))

            async with asyncio.timeout(WAIT_S):
                posted = {await got.get(), await got.get()}
            inside = sides[1].plaid
            assert isinstance(inside, InProcessPlaid)
            sent = {(one.body, one.jwt) for one in inside.webhooks(START)}

            assert posted == sent
            assert len(sent) == 2
    finally:
        await runner.cleanup()
