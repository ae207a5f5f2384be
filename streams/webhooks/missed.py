"""Webhooks that were sent and did not come: what /item/get says, compared with what the log has. Core.

Plaid names only the latest webhook of an Item, so what is counted is a sample, and each webhook that is named counts
once: at the first look that is later than the time it had to arrive. What was lost before a webhook that came is
healed by that one.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

import msgspec
from msgspec import Struct

from runtime.plaid.models import ItemAnswer
from schemas.log.records import Webhook
from streams.sync import plaid_errors
from streams.sync.plaid_errors import Action
from streams.webhooks import rules

GRACE_S = 120.0
"""How long a webhook may be on its way: Plaid's first retry comes after 30 s, ingest and log take milliseconds. What
Plaid's second retry brings, 2.5 minutes late, counts as missed: a sync was late for it."""
SKEW_S = 2.0
"""Plaid says when it sent, by its clock, and we know when we received, by ours; ingest alarms at more than this."""
SHARE_MAX = 0.01
"""Share of missed webhooks within the hour above which operators are told."""
MISSED_MIN = 3
"""Fewer than these are no share: one of two is chance."""
WINDOW_S = 300
WINDOWS = 12
"""The last hour, in steps of five minutes."""

WEBHOOK, UPDATE, ERROR, REPAIR = "webhook", "update", "error", "repair"
REASONS = (WEBHOOK, UPDATE, ERROR, REPAIR)


class Swept(NamedTuple):
    """An Item to be looked at. `at`: now; `swept_before`: the last look; `has_history`: a sync was read to its end."""

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
    """What a look found. `sent`, `missed`: of the webhook that Plaid names, where it counts now.

    `reason`: one of REASONS, why the Item is to be synced; None: nothing was missed, or a pass deals with it already.
    """

    sent: bool = False
    missed: bool = False
    reason: str | None = None


class Window(Struct, frozen=True, array_like=True):
    """Five minutes. Units: `began` in seconds since 1970."""

    began: int
    sent: int
    missed: int


class Loss(Struct, frozen=True):
    """What was counted, of all processes. `since`: the first count, ISO 8601."""

    sent: int
    missed: int
    since: str
    windows: tuple[Window, ...] = ()


def judge(swept: Swept, answer: ItemAnswer, *, grace_s: float = GRACE_S) -> Finding:
    """Compare what Plaid says of an Item with what is known here."""
    settled_at = swept.at - timedelta(seconds=grace_s)
    sent_at = _sent_at(swept, answer)
    counts = lost = False
    if sent_at is not None and sent_at <= settled_at:
        lost = swept.last_webhook_at is None or swept.last_webhook_at < sent_at - _SKEW
        counts = swept.swept_before is None or sent_at > swept.swept_before - timedelta(seconds=grace_s)
    # A pass that began after these has dealt with them. What is lost is not taken for dealt with where two clocks leave
    # a doubt; an update is, because its own webhook mostly caused a pass at once.
    heard = [
        (WEBHOOK, sent_at if lost else None, _SKEW),
        (UPDATE, _settled(answer.last_successful_update, settled_at), -_SKEW),
        (ERROR, _broken_at(swept, answer), _SKEW),
        (REPAIR, swept.at if swept.stopped is not None and not _is_broken(answer) else None, _SKEW),
    ]
    reasons = (reason for reason, at, skew in heard if at is not None and not _is_dealt_with(swept, at + skew))
    return Finding(counts, counts and lost, next(reasons, None))


def counted(loss: Loss | None, at: datetime, *, sent: int, missed: int) -> Loss:
    """Add what a look found, and forget what is older than an hour."""
    if loss is None:
        loss = Loss(0, 0, at.isoformat())
    now = int(at.timestamp())
    began = now - now % WINDOW_S
    kept = [window for window in loss.windows if began - WINDOWS * WINDOW_S < window.began < began]
    # Another process's clock may be a little ahead; its window is this one, too.
    same = [window for window in loss.windows if window.began >= began]
    current = Window(began, sent + sum(window.sent for window in same), missed + sum(window.missed for window in same))
    windows = (*kept, current) if current.sent or current.missed else tuple(kept)
    return Loss(loss.sent + sent, loss.missed + missed, loss.since, windows)


def share(loss: Loss) -> float:
    """Share of what was missed within the last hour; 0 where nothing was sent."""
    sent, missed = _sums(loss.windows)
    return missed / sent if sent else 0.0


def is_alarming(loss: Loss) -> bool:
    """Whether operators have to know of it."""
    _, missed = _sums(loss.windows)
    return missed >= MISSED_MIN and share(loss) > SHARE_MAX


_SKEW = timedelta(seconds=SKEW_S)


def _sums(windows: Sequence[Window]) -> tuple[int, int]:
    return sum(window.sent for window in windows), sum(window.missed for window in windows)


def _sent_at(swept: Swept, answer: ItemAnswer) -> datetime | None:
    """When the webhook was sent that Plaid names, if it is one that marks this Item; None otherwise.

    A legacy code says something only while no history was read; a webhook of the time before the Item was registered
    could mark nothing.
    """
    reaction = _reaction(answer.last_webhook_code or "")
    if reaction not in ("marked", "hinted") and not (reaction == "legacy" and not swept.has_history):
        return None
    sent_at = _moment(answer.last_webhook_at)
    return sent_at if sent_at is not None and sent_at > swept.created_at + _SKEW else None


@lru_cache(maxsize=256)
def _reaction(code: str) -> str:
    """What intake makes of a webhook with this code. Plaid does not say of which type it was."""
    for kind in ("TRANSACTIONS", "ITEM"):
        body = msgspec.json.encode({"webhook_type": kind, "webhook_code": code, "item_id": "item"})
        reaction = rules.react(Webhook(0, body, b"", "", ""), partition=0, offset=0).reaction
        if reaction in ("marked", "hinted", "legacy"):
            return reaction
    return "nothing"


def _is_broken(answer: ItemAnswer) -> bool:
    action = plaid_errors.action(answer.error_type or "", answer.error_code) if answer.error_code else None
    return action in (Action.USER, Action.GONE)


def _broken_at(swept: Swept, answer: ItemAnswer) -> datetime | None:
    """Since when an Item is broken of which that is not known; where Plaid does not say since when: since now."""
    if swept.stopped is not None or not _is_broken(answer):
        return None
    return _moment(answer.last_failed_update) or swept.at


def _is_dealt_with(swept: Swept, since: datetime) -> bool:
    """Whether a pass began later, which found it or is tried again by itself; or one is due now."""
    is_due = swept.due_at is not None and swept.due_at <= swept.at
    return is_due or (swept.last_attempt_at is not None and swept.last_attempt_at > since)


def _settled(text: str | None, settled_at: datetime) -> datetime | None:
    at = _moment(text)
    return at if at is not None and at <= settled_at else None


def _moment(text: str | None) -> datetime | None:
    """Read a time as Plaid writes it; None where it is none."""
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
