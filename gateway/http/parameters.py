"""Values in requests: read strictly, and refused by name. The table of routes says which there are."""

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from gateway.http.problems import Fault, invalid

TEXT_CHARS_MAX = 200
"""Longest id: Plaid's have 37 characters, applications' own are UUIDs or addresses."""

SHOWN_CHARS_MAX = 100
"""A wrong value is shown up to here."""

_OWN_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)

Place = Literal["path", "query", "body", "header"]

_JSON_TYPES: Mapping[type, str] = {
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    int: "a number",
    float: "a number",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value. `read` turns it into what handlers want and raises ValueError with the reason.

    `json`: the JSON type that it has in a body; everywhere else a value is text.
    """

    name: str
    place: Place
    read: Callable[[Any], Any]
    schema: Mapping[str, Any]
    description: str
    required: bool = False
    secret: bool = False
    json: type = str


def text(value: str) -> str:
    """An id or name: not empty, printable, of bounded length."""
    if not value or len(value) > TEXT_CHARS_MAX or not value.isprintable():
        raise ValueError(f"must be 1 to {TEXT_CHARS_MAX} printable characters")
    return value


def integer(low: int, high: int) -> Callable[[str], int]:
    """A reader of whole numbers between two bounds."""

    def read(value: str) -> int:
        # int() reads "1_0", " 1" and "１" too.
        if not re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII) or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return read


def seconds(high: float) -> Callable[[str], float]:
    """A reader of durations up to a bound."""

    def read(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value, re.ASCII) or float(value) > high:
            raise ValueError(f"must be a number of seconds from 0 to {high:g}")
        return float(value)

    return read


def date(value: str) -> datetime.date:
    """A calendar date."""
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value, re.ASCII):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            pass
    raise ValueError("must be a date as YYYY-MM-DD")


def moment(value: str) -> datetime.datetime:
    """A time with its offset from UTC."""
    if _MOMENT.fullmatch(value):
        try:
            return datetime.datetime.fromisoformat(value).astimezone(datetime.UTC)
        except (ValueError, OverflowError):
            pass
    raise ValueError("must be a time with its offset as YYYY-MM-DDTHH:MM:SSZ (in a query + is written %2B)")


def boolean(value: str) -> bool:
    """true or false."""
    if value not in ("true", "false"):
        raise ValueError("must be true or false")
    return value == "true"


def texts(values_max: int) -> Callable[[list[Any]], list[str]]:
    """A reader of lists of ids or names, at least one."""

    def read(values: list[Any]) -> list[str]:
        if not 1 <= len(values) <= values_max or not all(isinstance(value, str) for value in values):
            raise ValueError(f"must be a list of 1 to {values_max} texts")
        return [text(value) for value in values]

    return read


def own_id(value: str) -> bytes:
    """A transaction's own id."""
    if not _OWN_ID.fullmatch(value):
        raise ValueError("must be 32 hexadecimal digits")
    return bytes.fromhex(value)


def read_all(
    parameters: Sequence[Parameter],
    *,
    path: Mapping[str, str],
    query: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    body: bytes,
) -> dict[str, Any]:
    """Read all values of a request; those that are optional and missing are None.

    Raises: Problem 400, naming every wrong, missing, repeated or unknown one at once.
    """
    faults: list[Fault] = []
    places: dict[Place, Mapping[str, Any]] = {
        "path": path,
        "query": _once(query, faults),
        "header": headers,
        "body": _fields(parameters, body, faults),
    }
    has_object = not any(fault.field == "body" for fault in faults)
    values = {
        one.name: _value(one, places[one.place].get(one.name), faults)
        for one in parameters
        if one.place != "body" or has_object  # the fields of what is no object are not missing one by one
    }
    for place in ("query", "body"):
        known = {one.name for one in parameters if one.place == place}
        faults += [Fault(name, "is not known here") for name in places[place] if name not in known]
    if faults:
        raise invalid(*faults)
    return values


def _value(parameter: Parameter, given: Any, faults: list[Fault]) -> Any:
    if given is None:
        if parameter.required:
            faults.append(Fault(parameter.name, "is missing"))
        return None
    if not isinstance(given, parameter.json):
        faults.append(Fault(parameter.name, f"must be {_JSON_TYPES[parameter.json]}, is {_JSON_TYPES[type(given)]}"))
        return None
    try:
        return parameter.read(given)
    except ValueError as error:
        shown = None if parameter.secret or not isinstance(given, str) else given[:SHOWN_CHARS_MAX]
        faults.append(Fault(parameter.name, str(error), shown))
        return None


def _once(pairs: Sequence[tuple[str, str]], faults: list[Fault]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values:
            faults.append(Fault(name, "is given more than once"))
        values[name] = value
    return values


def _fields(parameters: Sequence[Parameter], body: bytes, faults: list[Fault]) -> Mapping[str, Any]:
    """The fields of the body; it may be left out where none is required."""
    wanted = [one for one in parameters if one.place == "body"]
    if not wanted or not (body or any(one.required for one in wanted)):
        return {}
    return _object(body, faults)


def _object(body: bytes, faults: list[Fault]) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    faults.append(Fault("body", "must be a JSON object"))
    return {}
