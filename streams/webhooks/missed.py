"""Find webhooks that were sent and did not arrive, by comparing /item/get with the log. Core.

Plaid names only the latest webhook of an Item, so the counts are a sample; each webhook that is named counts once, at
the first check that is later than the time it had to arrive. A webhook that was lost before one that arrived is made
up for by that one.
"""

from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

import msgspec
from msgspec import Struct

from runtime.plaid.item_models import ItemAnswer, parse_time
from schemas.log.records import Webhook
from streams.sync import plaid_errors
from streams.webhooks import reactions

GRACE_S = 120.0
"""Time that a webhook may be on its way: Plaid's first retry comes after 30 s, ingest and log take milliseconds. One
that arrives with Plaid's second retry, 2.5 minutes late, counts as missed: a sync was late for it."""
SKEW_S = 2.0
"""Plaid gives the time of sending by its clock, we the time of receipt by ours; ingest alarms at more than this."""
SHARE_MAX = 0.01
"""Share of missed webhooks within the hour above which an incident opens."""
MISSED_MIN = 3
"""Fewer than these are no share: one of two is chance."""
WINDOW_S = 300
WINDOWS = 12
"""The last hour, in windows of five minutes."""

WEBHOOK, UPDATE, ERROR, REPAIR = "webhook", "update", "error", "repair"
REASONS = (WEBHOOK, UPDATE, ERROR, REPAIR)

_SKEW = timedelta(seconds=SKEW_S)


class SweptItem(NamedTuple):
    """An Item to be checked. `at`: now; `swept_before`: the last check; `has_history`: a sync was read to its end."""

    item_id: str
    sealed_token: bytes
    at: datetime
    swept_before: datetime | None
    created_at: datetime
    last_webhook_at: datetime | None
    last_attempt_at: datetime | None
    due_at: datetime | None
    stopped: str | None
    has_history: bool


class Finding(NamedTuple):
    """Result of a check. `sent`, `missed`: of the webhook that Plaid names, where it counts now.

    `reason`: one of REASONS, why the Item is to be synced; None: nothing was missed, or a sync run deals with it.
    """

    sent: bool = False
    missed: bool = False
    reason: str | None = None


class Window(Struct, frozen=True, array_like=True):
    """Counts of five minutes. Units: `began` in seconds since 1970."""

    began: int
    sent: int
    missed: int


class Loss(Struct, frozen=True):
    """Counts of all processes. `since`: the first count, ISO 8601."""

    sent: int
    missed: int
    since: str
    windows: tuple[Window, ...] = ()


def check(item: SweptItem, answer: ItemAnswer, *, grace_s: float = GRACE_S) -> Finding:
    """Compare Plaid's answer about an Item with its row."""
    settled_at = item.at - timedelta(seconds=grace_s)
    sent_at = _webhook_sent_at(item, answer)
    counts = is_lost = False
    if sent_at is not None and sent_at <= settled_at:
        is_lost = item.last_webhook_at is None or item.last_webhook_at < sent_at - _SKEW
        counts = item.swept_before is None or sent_at > item.swept_before - timedelta(seconds=grace_s)
    updated_at = parse_time(answer.last_successful_update)
    is_broken = bool(answer.error_code) and (
        plaid_errors.classify(answer.error_type or "", answer.error_code or "") in plaid_errors.BROKEN
    )
    broken_at = repaired_at = None
    if item.stopped is None and is_broken:
        broken_at = parse_time(answer.last_failed_update) or item.at
    elif item.stopped is not None and not is_broken:
        repaired_at = item.at
    # A sync run that began after these has dealt with them. Where the two clocks leave a doubt, a lost webhook counts
    # as not dealt with; an update counts as dealt with, because its own webhook mostly caused a sync run at once.
    signs = (
        (WEBHOOK, sent_at if is_lost else None, _SKEW),
        (UPDATE, updated_at if updated_at is not None and updated_at <= settled_at else None, -_SKEW),
        (ERROR, broken_at, _SKEW),
        (REPAIR, repaired_at, _SKEW),
    )
    reasons = (reason for reason, since, skew in signs if since is not None and not _is_dealt_with(item, since + skew))
    return Finding(counts, counts and is_lost, next(reasons, None))


def add_counts(loss: Loss | None, now: datetime, *, sent: int, missed: int) -> Loss:
    """Add the counts of a check, and drop windows older than an hour."""
    if loss is None:
        loss = Loss(0, 0, now.isoformat())
    seconds = int(now.timestamp())
    began = seconds - seconds % WINDOW_S
    before = tuple(window for window in loss.windows if began - WINDOWS * WINDOW_S < window.began < began)
    # Another process's clock may be a little ahead; its window is added to this one.
    same = [window for window in loss.windows if window.began >= began]
    current = Window(began, sent + sum(window.sent for window in same), missed + sum(window.missed for window in same))
    windows = (*before, current) if current.sent or current.missed else before
    return Loss(loss.sent + sent, loss.missed + missed, loss.since, windows)


def loss_ratio(loss: Loss) -> float:
    """Return the share of webhooks missed within the last hour; 0 where none was sent."""
    sent = sum(window.sent for window in loss.windows)
    return sum(window.missed for window in loss.windows) / sent if sent else 0.0


def is_alarming(loss: Loss) -> bool:
    """Return whether the loss is an incident."""
    return sum(window.missed for window in loss.windows) >= MISSED_MIN and loss_ratio(loss) > SHARE_MAX


def _webhook_sent_at(item: SweptItem, answer: ItemAnswer) -> datetime | None:
    """Return when the webhook was sent that Plaid names, if it is one that marks this Item; None otherwise.

    A legacy code marks only while no history was read; a webhook of the time before the Item was registered could
    mark nothing.
    """
    reaction = _reaction_to(answer.last_webhook_code or "")
    if reaction not in ("marked", "hinted") and not (reaction == "legacy" and not item.has_history):
        return None
    sent_at = parse_time(answer.last_webhook_at)
    return sent_at if sent_at is not None and sent_at > item.created_at + _SKEW else None


@lru_cache(maxsize=256)
def _reaction_to(code: str) -> str:
    """Return the reaction to a webhook with this code, whose type Plaid does not name."""
    for webhook_type in ("TRANSACTIONS", "ITEM"):
        body = msgspec.json.encode({"webhook_type": webhook_type, "webhook_code": code, "item_id": "item"})
        reaction = reactions.react(Webhook(0, body, b"", "", ""), partition=0, offset=0).kind
        if reaction in ("marked", "hinted", "legacy"):
            return reaction
    return "nothing"


def _is_dealt_with(item: SweptItem, since: datetime) -> bool:
    """Return whether a sync run began later, which found it or is retried by itself, or whether one is due now."""
    is_due = item.due_at is not None and item.due_at <= item.at
    return is_due or (item.last_attempt_at is not None and item.last_attempt_at > since)
