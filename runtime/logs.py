"""Structured logs: one JSON object a line, without personal data or tokens."""

import logging
import sys

import structlog

from runtime.settings import Settings

_NOISY = {"aiokafka": logging.CRITICAL, "faust": logging.ERROR, "mode": logging.ERROR, "kafka": logging.CRITICAL}
"""aiokafka writes about 4,000 ERROR lines while a broker restarts (FAUST.md); what matters of them reaches us as
exceptions and metrics."""


def configure(settings: Settings, stage: str) -> None:
    """Set up the logs of this process."""
    level = getattr(logging, settings.log_level.upper())
    logging.basicConfig(
        level=max(level, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
    for name, quiet in _NOISY.items():
        logging.getLogger(name).setLevel(quiet)
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(stage=stage)


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger that says which module speaks."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return bound
