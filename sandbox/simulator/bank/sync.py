"""Cut an Item's log into the pages of `/transactions/sync`.

The cursors of a pagination contain its start and the length of the log at its first page. If the log has grown since,
the next page is refused with a mutation error. The changes are folded (each id once, with its outcome) or unfolded
(each change as it happened, an id possibly on several pages but never twice on one): Plaid promises neither.
"""

import base64
import binascii
import datetime as dt
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank.bank import Item, Phase
from sandbox.simulator.bank.randomness import share
from sandbox.simulator.bank.transactions import Change

COUNT_DEFAULT = 100
COUNT_MAX = 500
"""Source: Plaid API, /transactions/sync, count."""

VIEWS_MAX = 512
"""Cached views of paginations in progress; others are computed again on their next page."""

INITIAL_DAYS = 30
"""Source: Plaid documentation, Transactions webhooks: the initial update holds 30 days."""

NOT_ASSOCIATED = "cursor not associated with access_token"


class Cursor(NamedTuple):
    """A position between updates (`until` is None) or within a pagination.

    `origin`: the start of a stream that began with the cursor "now". `account_id`: the account of a filtered stream.
    `seen`: one more than the length of the log when only a part of the history was ready; 0 where nothing or all was
    read. `arrangement`: that of the Item when the pagination began.
    """

    item_id: str
    epoch: int
    account_id: str
    origin: int
    start: int
    until: int | None = None
    offset: int = 0
    page: int = 0
    seen: int = 0
    arrangement: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """All changes of one pagination, in the order of its pages."""

    changes: Sequence[Change]
    page_size_max: int


@dataclass(slots=True)
class Page:
    """One page. `number` counts from 1 within its pagination."""

    number: int
    next_cursor: str
    has_more: bool
    added: list[Change] = field(default_factory=list)
    modified: list[Change] = field(default_factory=list)
    removed: list[Change] = field(default_factory=list)


def encode(cursor: Cursor) -> str:
    """Encode a cursor as opaque base64, well below Plaid's 256 characters."""
    fields = ("" if part is None else str(part) for part in cursor)
    return base64.b64encode("|".join(fields).encode()).decode()


def decode(text: str) -> Cursor:
    """Decode a cursor. Raises: PlaidFailure (INVALID_FIELD), where the text is no cursor."""
    try:
        item_id, epoch, account_id, origin, start, until, *rest = (
            base64.b64decode(text, validate=True).decode().split("|")
        )
        offset, page, seen, arrangement = map(int, rest)
        end = int(until) if until else None
        return Cursor(item_id, int(epoch), account_id, int(origin), int(start), end, offset, page, seen, arrangement)
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise PlaidFailure("INVALID_FIELD", "cursor is not a valid cursor") from error


def position(item: Item, text: str, *, account_id: str) -> Cursor:
    """Return the position of a request.

    Raises: PlaidFailure, where the cursor is of another stream (INVALID_FIELD) or an earlier epoch (the Item's code).
    """
    if text in ("", "now"):
        origin = len(item.log) if text == "now" else 0
        return Cursor(item.item_id, item.cursor_epoch, account_id, origin, origin)
    cursor = decode(text)
    if (cursor.item_id, cursor.account_id) != (item.item_id, account_id) or cursor.start > len(item.log):
        raise PlaidFailure("INVALID_FIELD", NOT_ASSOCIATED)
    if cursor.epoch != item.cursor_epoch:
        code = item.refused_cursor_code
        raise PlaidFailure(code, NOT_ASSOCIATED if code == "INVALID_FIELD" else None)
    return cursor


def phase_at(item: Item, cursor: Cursor) -> Phase:
    """Return the phase of the history for a request: a history that is read again may not be ready."""
    from_start = not cursor.start and not cursor.origin
    return item.reread if from_start and item.reread is not None else item.phase


class Pager:
    """Cut logs into pages; cache the views of paginations in progress.

    Shape: a page has at most `count` changes, fewer where the seed splits an update or an unfolded id would repeat.
    Idempotence: the same cursor and log give the same page.
    """

    def __init__(self, *, seed: int, unfolded_share: float, page_split_share: float) -> None:
        self._seed = seed
        self._unfolded_share = unfolded_share
        self._page_split_share = page_split_share
        self._views: OrderedDict[Cursor, View] = OrderedDict()

    def page(self, item: Item, cursor: Cursor, count: int) -> Page:
        """Return the page at a cursor. Raises: PlaidFailure, where the log changed during the pagination."""
        until = len(item.log)
        if cursor.until is None:
            cursor = cursor._replace(arrangement=item.arrangement)
        elif (cursor.until, cursor.arrangement) != (until, item.arrangement):
            raise PlaidFailure("TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION")
        view = self._view(item, cursor._replace(until=until, offset=0, page=0))
        chosen, end = _cut(view, cursor.offset, count)
        has_more = end < len(view.changes)
        if has_more:
            following = cursor._replace(until=until, offset=end, page=cursor.page + 1)
        elif phase_at(item, cursor) == "INITIAL_UPDATE_COMPLETE" and item.reread is not None:
            following = cursor._replace(until=None, offset=0, page=0, seen=until + 1, arrangement=0)
        else:
            following = cursor._replace(start=until, until=None, offset=0, page=0, seen=0, arrangement=0)
        page = Page(number=cursor.page + 1, next_cursor=encode(following), has_more=has_more)
        arrays = {"added": page.added, "modified": page.modified, "removed": page.removed}
        for change in chosen:
            arrays[change.kind].append(change)
        return page

    def _view(self, item: Item, key: Cursor) -> View:
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._compute(item, key)
            while len(self._views) > VIEWS_MAX:
                self._views.popitem(last=False)
        self._views.move_to_end(key)
        return view

    def _compute(self, item: Item, key: Cursor) -> View:
        purpose = (item.ordinal, key.start, key.until, key.account_id)
        changes: list[Change]
        if key.start == 0:
            changes = _history(item, key)
        elif share(self._seed, "unfolded", *purpose) < self._unfolded_share:
            changes = item.log[key.start : key.until]
        else:
            unseen = share(self._seed, "ghosts", *purpose) < 0.5
            changes = fold(item.log[key.start : key.until], removals_of_unseen=unseen)
        hidden = {account.account_id for account in item.accounts.values() if account.revoked or account.hidden}
        if hidden:
            changes = [change for change in changes if change.transaction.account_id not in hidden]
        if key.account_id:
            changes = [change for change in changes if change.transaction.account_id == key.account_id]
        if key.origin:
            changes = _since_origin(changes, item.log[key.origin : key.start])
        return View(changes, self._size_max(len(changes), purpose))

    def _size_max(self, changes: int, purpose: tuple[object, ...]) -> int:
        if share(self._seed, "split", *purpose) >= self._page_split_share:
            return COUNT_MAX
        pages = 2 + int(share(self._seed, "pages", *purpose) * 3)
        return max(1, -(-changes // pages))


def _history(item: Item, key: Cursor) -> list[Change]:
    """Return all live rows that are ready, and the removals of a part that was read before."""
    rows = list(item.live.values())
    if item.reread == "INITIAL_UPDATE_COMPLETE" and not key.origin:
        youngest = max((row.date for row in rows), default=dt.date.min)
        rows = [row for row in rows if (youngest - row.date).days < INITIAL_DAYS]
    changes = [Change("added", row) for row in rows]
    if key.seen:
        later = fold(item.log[key.seen - 1 : key.until], removals_of_unseen=True)
        changes += [change for change in later if change.kind == "removed"]
    return changes


def fold(changes: Sequence[Change], *, removals_of_unseen: bool) -> list[Change]:
    """Return each id once, with its outcome, ordered by its last change.

    An id that was added and removed is left out, or with `removals_of_unseen` returned as a removal.
    """
    outcomes: dict[str, tuple[Change, Change]] = {}
    for change in changes:
        first, _ = outcomes.pop(change.transaction.transaction_id, (change, change))
        outcomes[change.transaction.transaction_id] = (first, change)
    folded = []
    for first, last in outcomes.values():
        if last.kind == "removed" and first.kind == "added":
            if removals_of_unseen:
                folded.append(last)
        elif first.kind == "added" and last.kind == "modified":
            folded.append(Change("added", last.transaction))
        else:
            folded.append(last)
    return folded


def _cut(view: View, index: int, count: int) -> tuple[list[Change], int]:
    end = min(len(view.changes), index + min(count, view.page_size_max))
    chosen = list(view.changes[index:end])
    ids = [change.transaction.transaction_id for change in chosen]
    if len(set(ids)) == len(ids):
        return chosen, end
    # The arrays of a page have no order between them, so an id that occurs again begins the next page.
    seen: set[str] = set()
    for size, transaction_id in enumerate(ids):
        if transaction_id in seen:
            return chosen[:size], index + size
        seen.add(transaction_id)
    raise AssertionError("a repeated id was counted and not found")


def _since_origin(changes: Sequence[Change], earlier: Sequence[Change]) -> list[Change]:
    # Source: Plaid documentation, Transactions Sync migration guide: with "now", a row that was created before
    # and modified after arrives as added.
    known = {change.transaction.transaction_id for change in earlier if change.kind != "removed"}
    return [
        Change("added", change.transaction)
        if change.kind == "modified" and change.transaction.transaction_id not in known
        else change
        for change in changes
    ]
