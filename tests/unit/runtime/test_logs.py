"""Logs are JSON lines, those of libraries included, and hold no token, key or password."""

import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from runtime import logs
from runtime.settings import Settings

SECRETS = {
    "access token": ("access-sandbox-12345678-1234-1234-1234-123456789012", "12345678"),
    "public token": ("public-production-0a1b2c3d-1234-1234-1234-0a1b2c3d4e5f", "0a1b2c3d4e5f"),
    "link token": ("link-development-0a1b2c3d-1234-1234-1234-0a1b2c3d4e5f", "0a1b2c3d"),
    "bearer": ("Bearer dGhpcyBpcyBub3QgYSB0b2tlbg==", "dGhpcyBpcyBub3QgYSB0b2tlbg"),
    "address": ("postgresql://tartan:pa55w%40rd@db.internal:5432/tartan", "pa55w"),
    "address with an @ in the password": ("postgresql://tartan:first@second@db.internal/tartan", "second"),
    "query": ("postgresql://db.internal/tartan?user=tartan&password=pa55word", "pa55"),
    "jwt": ("eyJhbGciOiJFUzI1NiJ9.eyJpYXQiOjE3MDAwMDAwMDB9.c2lnbmF0dXJl", "eyJpYXQiOjE3MDAwMDAwMDB9"),
}
"""A text that must not be logged, and a part of it that nobody may read."""


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    """Give pytest its own handlers back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_one_json_object_with_time_level_stage_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(), "ingest")

    logs.logger("ingest.app").info("listening", port=8080)
    logs.logger("ingest.app").debug("not shown")

    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "listening", "port": 8080, "level": "info", "stage": "ingest", "module": "ingest.app"}


def test_what_libraries_log_and_warn_of_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(), "streams")

    logging.getLogger("asyncio").error("late by %s", "2 s")
    logging.getLogger("aiokafka.client").error("one of 4,000 while a broker restarts")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)

    late, careful = lines(capsys)
    assert (late["event"], late["level"], late["logger"], late["stage"]) == (
        "late by 2 s",
        "error",
        "asyncio",
        "streams",
    )
    assert "careful" in careful["event"]


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_masked_wherever_it_stands(capsys: pytest.CaptureFixture[str], form: str, kind: str) -> None:
    logs.configure(Settings.model_validate({"log_format": form}), "ingest")
    secret, hidden = SECRETS[kind]
    failure = ValueError(f"Plaid refused {secret}")

    logs.logger("m").info(f"told of {secret} at last", reason=secret, deep=[{"said": (f"<{secret}>",)}])
    logs.logger("m").error("failed", reason=str(failure), exc_info=failure)
    logging.getLogger("library").error("failed with %s", secret, exc_info=failure)

    said = capsys.readouterr().err
    assert said.count("Plaid refused") >= 2  # the reason and the trace
    assert hidden not in said


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "access_token",
        "sealed_token",
        "secret",
        "plaid_secret",
        "Authorization",
        "password",
        "api_key",
        "cookie",
    ],
)
def test_what_is_called_a_secret_is_not_shown_at_any_depth(capsys: pytest.CaptureFixture[str], name: str) -> None:
    logs.configure(Settings(), "ingest")

    logs.logger("m").info("said", **{name: "hush"}, headers={name: "hush", "sent": [{name: b"hush"}]})

    (line,) = lines(capsys)
    assert line[name] == logs.REDACTED
    assert line["headers"] == {name: logs.REDACTED, "sent": [{name: logs.REDACTED}]}


def test_what_is_no_secret_stays_readable() -> None:
    for text in (
        "no Kafka at 127.0.0.1:9092: KafkaConnectionError",
        "postgresql://tartan@127.0.0.1:5432/tartan",
        "http://127.0.0.1:8080/webhooks/plaid",
        "topic tartan.changesets has 5 partitions",
        "public-facing link-state access-control",
    ):
        assert logs.mask(text) == text


def test_a_secret_that_is_empty_or_missing_is_shown_as_such() -> None:
    assert logs.redact({"token": None, "secret": "", "n": 1}) == {"token": None, "secret": "", "n": 1}


_values = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(_values, st.sampled_from(["token", "client_secret", "AUTHORIZATION"]))
def test_no_value_breaks_the_redaction_or_survives_a_secret_name(value: Any, name: str) -> None:
    assert logs.redact({name: value or "x", "kept": 1}) == {name: logs.REDACTED, "kept": 1}
    json.dumps(logs.redact({"outer": value}))


def test_a_value_that_contains_itself_ends() -> None:
    endless: list[Any] = []
    endless.append(endless)

    assert logs.REDACTED in json.dumps(logs.redact({"v": endless}))
