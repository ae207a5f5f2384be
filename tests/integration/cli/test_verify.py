"""`tartan verify` on a real Postgres."""

import json
from typing import Any

import pytest

from projections.store import writer
from sandbox.infra.postgres import Postgres
from tests.conftest import finish
from tests.support.command_line import tartan_process
from tests.support.projections_database import Database
from tests.support.projections_log import Log, added, transaction


def verified(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[object, str]:
    ended = tartan_process(monkeypatch, capsys, "verify", *options)
    return ended.code, ended.out


@pytest.fixture
def projected(monkeypatch: pytest.MonkeyPatch, postgres: Postgres, template_dsn: str) -> Any:
    """A database with a transaction, which the settings name."""
    assert template_dsn
    log = Log()
    log.link("item")
    log.sync("item", *added(transaction("a")))
    database = Database(finish(postgres.create_database("cli_verify", template="template_of_tests")))

    async def project() -> None:
        await writer.ensure_positions(await database.connection(), 1)
        await database.project(log.records)
        await database.session.close()

    finish(project())
    monkeypatch.setenv("TARTAN_POSTGRES_DSN", database.dsn)
    yield database
    finish(postgres.drop_database("cli_verify"))


def test_the_last_line_is_one_object_and_the_exit_code_says_whether_all_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], projected: Database
) -> None:
    code, out = verified(monkeypatch, capsys, "--no-log", "--json")
    told = json.loads(out.splitlines()[-1])
    assert (code, told["violations"]) == (0, 0)
    assert told["checked"] == sum(one["checked"] for one in told["invariants"].values()) > 0

    finish(projected.alter("UPDATE projection.transactions SET name = 'another'"))
    code, out = verified(monkeypatch, capsys, "--no-log", "--json")
    told = json.loads(out.splitlines()[-1])
    assert (code, told["violations"]) == (1, 1)
    assert told["invariants"]["columns_match_the_payload"]["violations"] == 1

    code, out = verified(monkeypatch, capsys, "--no-log")
    assert code == 1
    assert "columns match the payload" in out


def test_a_database_without_tables_is_an_error_and_no_violation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], postgres: Postgres
) -> None:
    dsn = finish(postgres.create_database("cli_verify_empty"))
    monkeypatch.setenv("TARTAN_POSTGRES_DSN", dsn)

    code, out = verified(monkeypatch, capsys, "--no-log", "--json")
    finish(postgres.drop_database("cli_verify_empty"))

    assert code == 1
    assert "tartan migrate" in json.loads(out.splitlines()[-1])["error"]


def test_without_kafka_nothing_is_called_sound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], projected: Database
) -> None:
    assert projected
    monkeypatch.setenv("TARTAN_KAFKA_ADDRESS", "127.0.0.1:1")

    code, out = verified(monkeypatch, capsys, "--json")

    assert code == 1
    told = json.loads(out.splitlines()[-1])["error"]
    assert told.startswith("no Kafka at 127.0.0.1:1: ")
    assert "--no-log" in told
