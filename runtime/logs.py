"""Structured logs: one JSON object a line, without personal data or tokens."""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from runtime.settings import Settings

_NOISY = {"aiokafka": logging.CRITICAL, "faust": logging.ERROR, "mode": logging.ERROR, "kafka": logging.CRITICAL}
"""Lowest level of noisy libraries: aiokafka writes about 4,000 ERROR lines while a broker restarts (FAUST.md). The
important ones arrive as exceptions and metrics."""

REDACTED = "***"
DEPTH_MAX = 8
"""Depth to which names in a value are checked; deeper values are shown as REDACTED."""

_SECRET_NAME = re.compile(r"token|secret|password|passphrase|authorization|cookie|api_?key|credential|jwt|dsn", re.I)
_SECRET_TEXT = re.compile(
    # Plaid's tokens begin with their kind and environment. Source: Plaid API, "Tokens, identifiers and keys".
    r"(?P<plaid>\b(?:access|public|link|processor|user)-(?:sandbox|development|production)-)[\w-]+"
    r"|(?P<scheme>\bBearer\s+)[\w.~+/=-]+"
    r"|(?P<address>\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s/]+(?=@)"
    r"|(?P<query>[?&](?:password|secret|token|api_key)=)[^\s&]+"
    r"|(?P<jwt>\beyJ)[\w-]+\.[\w-]+(?:\.[\w-]*)?",
    re.I,
)


def configure(settings: Settings, stage: str) -> None:
    """Configure the logs of this process, those of its libraries included."""
    level = getattr(logging, settings.log_level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _of(stage),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    written = _renderers(settings.log_format)
    structlog.configure(
        processors=[*shared, *written],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *written],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name, quiet in _NOISY.items():
        logging.getLogger(name).setLevel(quiet)


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return a logger whose lines name the module."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return bound


def redact(value: Any, *, depth: int = 0) -> Any:
    """Replace the values of secret names by REDACTED, at every depth."""
    if isinstance(value, Mapping):
        if depth == DEPTH_MAX:
            return REDACTED
        return {
            name: REDACTED if _is_secret(name) and inner else redact(inner, depth=depth + 1)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return REDACTED if depth == DEPTH_MAX else [redact(inner, depth=depth + 1) for inner in value]
    return value


def mask(text: str) -> str:
    """Replace everything in a text that has the form of a token, a key or a password."""
    return _SECRET_TEXT.sub(lambda match: next(filter(None, match.groups()), "") + REDACTED, text)


def _is_secret(name: object) -> bool:
    return isinstance(name, str) and _SECRET_NAME.search(name) is not None


def _of(stage: str) -> Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.setdefault("stage", stage)
        return event

    return add


def _renderers(form: str) -> list[Processor]:
    """Return the processors from an event to its line. Exceptions can contain anything, so the whole line is masked."""
    if form == "json":
        return [structlog.processors.format_exc_info, _redacted, structlog.processors.JSONRenderer(), _masked]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    return [_redacted, console, _masked]


def _redacted(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: REDACTED if _is_secret(name) and value else redact(value) for name, value in event.items()}


def _masked(_: WrappedLogger, __: str, line: Any) -> str:
    return mask(line)
