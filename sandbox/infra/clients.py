"""Clients of the sandbox's own: the simulator's control API, and the gateway as an application's back end uses it."""

from types import TracebackType
from typing import Any, Self

import aiohttp

from schemas.errors import Halt
from schemas.log.digest import AccountState, TransactionState, state_digest

TIMEOUT_S = 120.0
"""A benchmark's bank makes 100,000 transactions in one request."""


class _Json:
    """A session that speaks JSON and raises Halt, with the answer, on what is no success."""

    def __init__(self, address: str, headers: dict[str, str] | None = None) -> None:
        self._address = address
        self._session = aiohttp.ClientSession(
            headers=headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), connector=aiohttp.TCPConnector(limit=64)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def _ask(self, method: str, path: str, body: object = None, **query: str) -> Any:
        async with self._session.request(method, self._address + path, json=body, params=query) as answer:
            if answer.status >= 400:
                raise Halt(f"{method} {path} answered {answer.status}: {(await answer.text())[:500]}")
            return await answer.json()


class Bank(_Json):
    """The simulated bank's control API."""

    async def make_items(self, user: str, *, count: int = 1, transactions: int | None = None) -> list[dict[str, Any]]:
        """Make Items with history at once; each has a `public_token` and an `item_id`."""
        wish = {"user": user, "count": count, "transactions": transactions, "ready": True}
        answer = await self._ask("POST", "/simulator/items", wish)
        items: list[dict[str, Any]] = answer["items"]
        return items

    async def step(self, item_id: str | None = None, *, changes: int = 1, count: int = 1) -> None:
        """Let updates happen now; their webhooks go out."""
        await self._ask("POST", "/simulator/step", {"item_id": item_id, "changes": changes, "count": count})

    async def live(self, rate_per_s: float) -> None:
        """Let the bank live by itself at this rate; 0 stops it."""
        await self._ask("POST", "/simulator/activity", {"rate_per_s": rate_per_s})

    async def fault(self, **fault: object) -> None:
        """Declare a fault."""
        await self._ask("POST", "/simulator/faults", fault)

    async def rates(self, **rates: float) -> None:
        """Set the shares of webhooks that are lost, repeated or delayed, and of requests that fail."""
        await self._ask("POST", "/simulator/rates", rates)

    async def quiet(self) -> bool:
        """Whether no webhook is on its way."""
        answer = await self._ask("GET", "/simulator/quiet")
        return bool(answer["quiet"])

    async def stats(self) -> dict[str, Any]:
        """Counts of requests and webhooks."""
        answer: dict[str, Any] = await self._ask("GET", "/simulator/stats")
        return answer

    async def deliveries(self) -> list[dict[str, Any]]:
        """Each webhook attempt with its times."""
        answer = await self._ask("GET", "/simulator/stats", None, records="1")
        records: list[dict[str, Any]] = answer["records"]
        return records

    async def truth(self) -> list[dict[str, Any]]:
        """What a perfect reader must hold in the end."""
        answer = await self._ask("GET", "/simulator/truth")
        items: list[dict[str, Any]] = answer["items"]
        return items

    async def digest(self) -> str:
        """The state digest of the truth."""
        return truth_digest(await self.truth())


class Application(_Json):
    """A back end that uses Tartan's REST API."""

    def __init__(self, gateway_url: str, api_key: str) -> None:
        super().__init__(gateway_url, {"Authorization": f"Bearer {api_key}"})

    async def link(self, user_id: str, public_token: str) -> dict[str, Any]:
        """Link an Item."""
        answer: dict[str, Any] = await self._ask(
            "POST", "/v1/items", {"user_id": user_id, "public_token": public_token}
        )
        return answer

    async def link_token(self, user_id: str) -> str:
        """A token with which a browser opens Plaid Link."""
        answer = await self._ask("POST", "/v1/link/token", {"user_id": user_id})
        return str(answer["link_token"])

    async def stream_token(self, user_id: str) -> str:
        """A short-lived token with which a browser opens the user's stream."""
        answer = await self._ask("POST", f"/v1/users/{user_id}/stream-token")
        return str(answer["token"])

    async def item(self, item_id: str) -> dict[str, Any]:
        """An Item and its state."""
        answer: dict[str, Any] = await self._ask("GET", f"/v1/items/{item_id}")
        return answer

    async def sync(self, item_id: str, *, wait_s: float) -> dict[str, Any]:
        """Ask Plaid now, and wait for what comes of it."""
        answer: dict[str, Any] = await self._ask("POST", f"/v1/items/{item_id}/sync", None, wait=str(wait_s))
        return answer

    async def unlink(self, item_id: str, *, wait_s: float) -> dict[str, Any]:
        """End an Item, and wait until it is."""
        answer: dict[str, Any] = await self._ask("DELETE", f"/v1/items/{item_id}", None, wait=str(wait_s))
        return answer

    async def transactions(self, user_id: str, **filters: str) -> dict[str, Any]:
        """A page of a user's transactions."""
        answer: dict[str, Any] = await self._ask("GET", f"/v1/users/{user_id}/transactions", None, **filters)
        return answer


def truth_digest(items: list[dict[str, Any]]) -> str:
    """The state digest of the simulator's truth, comparable with that of the tables."""
    return state_digest(
        (transaction_state(item["item_id"], row) for item in items for row in item["transactions"]),
        (account_state(item["item_id"], row) for item in items for row in item["accounts"]),
    )


def transaction_state(item_id: str, row: dict[str, Any]) -> TransactionState:
    """One transaction of the truth as the digest wants it."""
    return (
        item_id,
        row["transaction_id"],
        row["account_id"],
        row["amount"],
        _currency(row),
        row["date"],
        row["pending"],
        row["name"],
        row["merchant_name"],
        row["category_detailed"],
    )


def account_state(item_id: str, row: dict[str, Any]) -> AccountState:
    """One account of the truth as the digest wants it."""
    return item_id, row["account_id"], row["current"], row["available"], row["limit"], _currency(row)


def _currency(row: dict[str, Any]) -> str:
    return str(row["iso_currency_code"] or row["unofficial_currency_code"] or "XXX")
