"""What operators are told of incidents: one message each, or one of many at once. Core."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from runtime.incidents import incidents
from runtime.incidents.incidents import Incident

NAMED_MAX = 20
"""Subjects that a message of many names; more would be scrolled past, and Slack shortens what is above 4,000."""

# What Slack's text takes as markup: a detail with a word in angle brackets would call a channel.
# Source: Slack documentation, Formatting text for app surfaces, Escaping text.
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class Message(NamedTuple):
    """One message. `body` is its JSON, `about` what it tells of, `begins` whether something new goes wrong."""

    text: str
    fields: dict[str, Any]
    about: tuple[Incident, ...]
    begins: bool

    @property
    def body(self) -> dict[str, Any]:
        """The whole message: Slack and its kin read `text`, programs read the rest."""
        return {"text": self.text.translate(_ESCAPES), **self.fields}


def of_one(one: Incident) -> Message:
    """Tell of one incident: that it began, that it ended, or both where it ended before it was told."""
    words = incidents.describe(one.kind)
    state = _state(one)
    seen = f", seen {one.count} times" if one.count > 1 else ""
    lasted = f" It lasted {_duration(one.closed_at - one.opened_at)}{seen}." if one.closed_at else ""
    about = one.subject if one.subject == words.subject else f"{words.subject} {one.subject}"
    lines = [f"{_OPENINGS[state]}{words.title} ({about}).{lasted}"]
    if not one.alerted and one.detail:
        lines.append(f"Detail: {one.detail}")
    if state == "open":
        lines.append(f"What to do: {words.remedy}")
    return Message("\n".join(lines), {"state": state, **_fields(one)}, (one,), begins=state == "open")


def of_many(many: Sequence[Incident]) -> Message:
    """Tell of many incidents at once: how many of each kind, what to do, and the first of them by name."""
    counts = Counter((_state(one), one.kind) for one in many)
    lines = [f"Tartan: {len(many)} incidents at once"]
    for (state, kind), count in sorted(counts.items()):
        lines.append(f"- {count} x {_OPENINGS[state].removeprefix('Tartan: ')}{incidents.describe(kind).title}")
    begun = [one for one in many if _state(one) == "open"]
    lines += [f"What to do ({kind}): {incidents.describe(kind).remedy}" for kind in sorted({one.kind for one in begun})]
    named = (begun or list(many))[:NAMED_MAX]
    lines.append("First of them: " + ", ".join(f"{one.kind} {one.subject}" for one in named))
    fields = {
        "state": "many",
        "kind": "many",
        "subject": "",
        "count": len(many),
        "opened_at": min(one.opened_at for one in many).isoformat(),
        "closed_at": None,
        "detail": "",
        "kinds": [{"kind": kind, "state": state, "count": count} for (state, kind), count in sorted(counts.items())],
        "incidents": [{"state": _state(one), **_fields(one)} for one in named],
    }
    return Message("\n".join(lines), fields, tuple(many), begins=bool(begun))


_OPENINGS = {"open": "Tartan: ", "closed": "Tartan: over: ", "open_and_closed": "Tartan: began and is already over: "}


def _state(one: Incident) -> str:
    if one.closed_at is None:
        return "open"
    return "closed" if one.alerted else "open_and_closed"


def _fields(one: Incident) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "subject": one.subject,
        "count": one.count,
        "opened_at": one.opened_at.isoformat(),
        "closed_at": _moment(one.closed_at),
        "detail": one.detail,
        "remedy": incidents.describe(one.kind).remedy,
    }


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _duration(lasted: timedelta) -> str:
    seconds = max(0, int(lasted.total_seconds()))
    days, hours, minutes = seconds // 86_400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
