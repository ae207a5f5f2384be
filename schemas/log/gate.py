"""Gate: the optimistic concurrency check of the log, one pure rule by which every reader counts or skips a record.

A chained record counts when its parent is the Item's head, a free one when its id is new. So all readers alike skip a
repeat, or the record of a worker that lost its lease. Nothing of an Item is chained after its unlink, and nothing of a
user counts after the user's erasure.
"""

from dataclasses import dataclass, replace
from enum import Enum

from schemas.log.records import Head

CHAINED, FREE, PART = "chained", "free", "part"
LINK, SYNC, STATE, RESTATED, UNLINK = "link", "sync", "state", "restated", "unlink"
EDIT, DECISION, BALANCE, REDRIVE, ERASURE = "edit", "decision", "balance", "redrive", "erasure"


class Verdict(Enum):
    """Decision of the gate about a record; every skip is counted under its own name."""

    ACCEPTED = "accepted"
    CHUNK = "kept_aside"
    NOT_HEAD = "parent_is_not_head"
    UNLINKED = "item_is_unlinked"
    REPEATED = "free_id_is_known"
    ERASED = "user_is_erased"
    OTHER_USER = "item_has_another_user"
    UNKNOWN_KIND = "kind_is_unknown"


@dataclass(frozen=True, slots=True)
class ItemGate:
    """State of the gate for an Item; `parts`: ids of chunks whose changeset has not come yet."""

    head: bytes | None = None
    user: int | None = None
    unlinked: bool = False
    parts: tuple[bytes, ...] = ()


def decide(head: Head, item: ItemGate, *, erased: bool, known: bool) -> Verdict:
    """Decide whether a record counts.

    Args:
        head: of the record.
        item: state before the record.
        erased: the record's user is erased.
        known: a free record of this id was accepted before (of no meaning for chained ones).
    """
    if erased:
        return Verdict.ERASED
    if item.user is not None and head.user != item.user and head.item_id is not None:
        return Verdict.OTHER_USER
    match head.kind:
        case "free":
            return Verdict.REPEATED if known else Verdict.ACCEPTED
        case "chained" | "part" if item.unlinked:
            return Verdict.UNLINKED
        case "part":
            return Verdict.CHUNK
        case "chained":
            root = head.parent is None and item.head is None and head.type == LINK
            follows = head.parent is not None and head.parent == item.head and head.type != LINK
            return Verdict.ACCEPTED if root or follows else Verdict.NOT_HEAD
    return Verdict.UNKNOWN_KIND


def advance(head: Head, item: ItemGate, verdict: Verdict) -> ItemGate:
    """Return the Item's state after a record with this verdict.

    An accepted chained record ends all chunks, named or not. A free one leaves them: an edit between a chunk and its
    changeset must not tear the update.
    """
    if verdict is Verdict.CHUNK:
        return replace(item, parts=(*item.parts, head.id))
    if verdict is Verdict.ACCEPTED and head.kind == CHAINED:
        return ItemGate(head=head.id, user=head.user, unlinked=head.type == UNLINK)
    return item
