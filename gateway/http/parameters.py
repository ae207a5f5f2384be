"""Request parameters: read values strictly and refuse wrong ones by name."""

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
"""Characters of a wrong value that its problem document repeats."""

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
    """One value of a request.

    `read` converts it for handlers and raises ValueError with the reason. `json` is its JSON type in a body; elsewhere
    a value is text.
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
    """Read an id or name: not empty, printable, of bounded length."""
    if not value or len(value) > TEXT_CHARS_MAX or not value.isprintable():
        raise ValueError(f"must be 1 to {TEXT_CHARS_MAX} printable characters")
    return value


def integer(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of whole numbers between two bounds."""

    def read(value: str) -> int:
        # int() reads "1_0", " 1" and "１" too.
        if not re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII) or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return read


def seconds(high: float) -> Callable[[str], float]:
    """Return a reader of durations up to a bound."""

    def read(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value, re.ASCII) or float(value) > high:
            raise ValueError(f"must be a number of seconds from 0 to {high:g}")
        return float(value)

    return read


def date(value: str) -> datetime.date:
    """Read a calendar date."""
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value, re.ASCII):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            pass
    raise ValueError("must be a date as YYYY-MM-DD")


def moment(value: str) -> datetime.datetime:
    """Read a time with its offset from UTC."""
    if _MOMENT.fullmatch(value):
        try:
            return datetime.datetime.fromisoformat(value).astimezone(datetime.UTC)
        except (ValueError, OverflowError):
            pass
    raise ValueError("must be a time with its offset as YYYY-MM-DDTHH:MM:SSZ (in a query + is written %2B)")


def boolean(value: str) -> bool:
    """Read true or false."""
    if value not in ("true", "false"):
        raise ValueError("must be true or false")
    return value == "true"


def texts(values_max: int) -> Callable[[list[Any]], list[str]]:
    """Return a reader of lists of ids or names, at least one."""

    def read(values: list[Any]) -> list[str]:
        if not 1 <= len(values) <= values_max or not all(isinstance(value, str) for value in values):
            raise ValueError(f"must be a list of 1 to {values_max} texts")
        return [text(value) for value in values]

    return read


def own_id(value: str) -> bytes:
    """Read an own id of 32 hexadecimal digits."""
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
    """Read all values of a request; optional ones that are missing are None.

    Raises: Problem 400, naming every wrong, missing, repeated or unknown value at once.
    """
    faults: list[Fault] = []
    fields = [parameter for parameter in parameters if parameter.place == "body"]
    # A body may be left out where none of its fields is required.
    has_body = bool(fields) and (bool(body) or any(field.required for field in fields))
    places: dict[Place, Mapping[str, Any]] = {
        "path": path,
        "query": _once(query, faults),
        "header": headers,
        "body": _object(body, faults) if has_body else {},
    }
    is_object = not any(fault.field == "body" for fault in faults)
    values = {
        parameter.name: _value(parameter, places[parameter.place].get(parameter.name), faults)
        for parameter in parameters
        if parameter.place != "body" or is_object  # the fields of a body that is no object are not missing one by one
    }
    for place in ("query", "body"):
        known = {parameter.name for parameter in parameters if parameter.place == place}
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
        shown = None if parameter.secret or not isinstance(given, str) else _printable(given[:SHOWN_CHARS_MAX])
        faults.append(Fault(parameter.name, str(error), shown))
        return None


def _printable(text: str) -> str:
    """Return text that can be encoded: a header's bytes that are no UTF-8 were read as lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def _once(pairs: Sequence[tuple[str, str]], faults: list[Fault]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values:
            faults.append(Fault(name, "is given more than once"))
        values[name] = value
    return values


def _object(body: bytes, faults: list[Fault]) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    faults.append(Fault("body", "must be a JSON object"))
    return {}
