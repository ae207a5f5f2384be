"""Write the messages about incidents: one each, or one about many at once. Core."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from runtime.incidents import incidents
from runtime.incidents.incidents import Incident

NAMED_MAX = 20
"""Subjects that a message about many incidents names; Slack shortens texts above 4,000 characters."""

# Markup of Slack's text: a detail with a name in angle brackets would notify a channel.
# Source: Slack documentation, Formatting text for app surfaces, Escaping text.
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_OPENINGS = {"open": "Tartan: ", "closed": "Tartan: over: ", "open_and_closed": "Tartan: began and is already over: "}


class Message(NamedTuple):
    """One message. `fields`: the rest of its JSON; `begins`: an incident in it is open."""

    text: str
    fields: dict[str, Any]
    incidents: tuple[Incident, ...]
    begins: bool

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the message: Slack and similar receivers read `text`, programs read the rest."""
        return {"text": self.text.translate(_ESCAPES), **self.fields}


def message_of_one(incident: Incident) -> Message:
    """Write the message about one incident: that it began, that it ended, or both."""
    kind, state = incidents.describe(incident.kind), _state(incident)
    times = f", seen {incident.count} times" if incident.count > 1 else ""
    duration = f" It lasted {_duration(incident.closed_at - incident.opened_at)}{times}." if incident.closed_at else ""
    subject = kind.subject if incident.subject == kind.subject else f"{kind.subject} {incident.subject}"
    lines = [f"{_OPENINGS[state]}{kind.title} ({subject}).{duration}"]
    if not incident.alerted and incident.detail:
        lines.append(f"Detail: {incident.detail}")
    if state == "open":
        lines.append(f"What to do: {kind.remedy}")
    return Message("\n".join(lines), _fields(incident), (incident,), begins=state == "open")


def message_of_many(many: Sequence[Incident]) -> Message:
    """Write one message about many incidents: the number of each kind, the remedies, and the first subjects."""
    counts = sorted(Counter((_state(incident), incident.kind) for incident in many).items())
    lines = [f"Tartan: {len(many)} incidents at once"]
    lines += [
        f"- {count} x {_OPENINGS[state].removeprefix('Tartan: ')}{incidents.describe(kind).title}"
        for (state, kind), count in counts
    ]
    begun = [incident for incident in many if _state(incident) == "open"]
    kinds = sorted({incident.kind for incident in begun})
    lines += [f"What to do ({kind}): {incidents.describe(kind).remedy}" for kind in kinds]
    named = (begun or list(many))[:NAMED_MAX]
    lines.append("First of them: " + ", ".join(f"{incident.kind} {incident.subject}" for incident in named))
    fields = {
        "state": "many",
        "kind": "many",
        "subject": "",
        "count": len(many),
        "opened_at": min(incident.opened_at for incident in many).isoformat(),
        "closed_at": None,
        "detail": "",
        "kinds": [{"kind": kind, "state": state, "count": count} for (state, kind), count in counts],
        "incidents": [_fields(incident) for incident in named],
    }
    return Message("\n".join(lines), fields, tuple(many), begins=bool(begun))


def _state(incident: Incident) -> str:
    if incident.closed_at is None:
        return "open"
    return "closed" if incident.alerted else "open_and_closed"


def _fields(incident: Incident) -> dict[str, Any]:
    return {
        "state": _state(incident),
        "kind": incident.kind,
        "subject": incident.subject,
        "count": incident.count,
        "opened_at": incident.opened_at.isoformat(),
        "closed_at": incident.closed_at.isoformat() if incident.closed_at else None,
        "detail": incident.detail,
        "remedy": incidents.describe(incident.kind).remedy,
    }


def _duration(duration: timedelta) -> str:
    seconds = max(0, int(duration.total_seconds()))
    days, hours, minutes = seconds // 86_400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
