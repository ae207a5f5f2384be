"""Read `/transactions/sync` correctly: the reference for all other readers; and deliver simulated webhooks.

The reader is simple: whole paginations only, arrays applied in the order added, modified, removed; a failure within a
pagination restarts it from its first cursor.
"""

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sandbox.simulator.inprocess import InProcessPlaid, WebhookAttempt

RESTARTS_MAX = 50
"""Restarts of one pull; a bank that changes this often between two pages is a mistake of the test."""

Ask = Callable[[str, dict[str, Any]], tuple[int, bytes]]
"""Post a body to a path; return the status and the raw answer."""


class Refused(Exception):
    """An answer other than 200, with Plaid's error code where it has one."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body.get('error_code')}")
        self.status = status
        self.code = body.get("error_code")
        self.body = body


@dataclass(slots=True)
class Reader:
    """Hold one Item's rows as received, by transaction id."""

    ask: Ask
    access_token: str
    count: int = 500
    cursor: str = ""
    options: dict[str, Any] = field(default_factory=lambda: {"include_original_description": True})
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: str = "TRANSACTIONS_UPDATE_STATUS_UNKNOWN"
    pages: list[dict[str, Any]] = field(default_factory=list)

    def pull(self) -> int:
        """Read everything new and return the number of pages. Raises: Refused, where the first page is refused."""
        for _ in range(RESTARTS_MAX):
            pages = self._pages()
            if pages is not None:
                self._apply(pages)
                return len(pages)
        raise AssertionError(f"{RESTARTS_MAX} restarts and no end")

    def _pages(self) -> list[dict[str, Any]] | None:
        cursor = self.cursor
        pages: list[dict[str, Any]] = []
        while True:
            try:
                page = self._page(cursor)
            except Refused:
                if not pages:
                    raise
                return None
            pages.append(page)
            cursor = page["next_cursor"]
            if not page["has_more"]:
                return pages

    def _page(self, cursor: str) -> dict[str, Any]:
        status, raw = self.ask(
            "/transactions/sync",
            {"access_token": self.access_token, "cursor": cursor, "count": self.count, "options": self.options},
        )
        page: dict[str, Any] = json.loads(raw, parse_float=Decimal)
        if status != 200:
            raise Refused(status, page)
        return page

    def _apply(self, pages: list[dict[str, Any]]) -> None:
        for page in pages:
            for row in (*page["added"], *page["modified"]):
                self.rows[row["transaction_id"]] = row
            for row in page["removed"]:
                self.rows.pop(row["transaction_id"], None)
            self.accounts.update((account["account_id"], account) for account in page["accounts"])
            self.status = page["transactions_update_status"]
        self.pages = pages
        self.cursor = pages[-1]["next_cursor"]


def deliver(plaid: InProcessPlaid, until: dt.datetime, post: Callable[[WebhookAttempt], int]) -> int:
    """Run the simulator until a time and post each webhook when it is sent; `post` returns the status."""
    posted = 0
    while (due_at := plaid.next_due_at()) is not None and due_at <= until:
        for attempt in plaid.webhooks(due_at):
            plaid.record_answer(attempt, status=post(attempt))
            posted += 1
    assert plaid.webhooks(until) == []
    return posted
