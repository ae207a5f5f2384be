"""`tartan migrate` on a real Postgres."""

import pytest

from sandbox.infra.postgres import Postgres
from tests.support.command_line import Ended, tartan_process


def migrate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dsn: str) -> Ended:
    monkeypatch.setenv("TARTAN_POSTGRES_DSN", dsn)
    return tartan_process(monkeypatch, capsys, "migrate")


def test_a_migration_says_that_it_is_done_and_may_be_run_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database: str
) -> None:
    runs = [migrate(monkeypatch, capsys, database) for _ in range(2)]

    assert [(run.code, run.out) for run in runs] == [(0, "The tables are up to date.\n")] * 2


@pytest.mark.parametrize(
    ("user", "reason"),
    [("postgres:wrong@", "password authentication failed"), ("nobody:wrong@", "password authentication failed")],
)
def test_refused_credentials_are_one_line_without_the_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], postgres: Postgres, user: str, reason: str
) -> None:
    code, _, shown = migrate(monkeypatch, capsys, f"postgresql://{user}{postgres.address}/tartan")

    assert code == 1
    assert reason in shown
    assert postgres.address in shown
    assert "wrong" not in shown
    assert shown.count("\n") == 1


def test_a_database_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], postgres: Postgres
) -> None:
    code, _, shown = migrate(monkeypatch, capsys, postgres.dsn("nowhere"))

    assert code == 1
    assert 'database "nowhere" does not exist' in shown
    assert shown.count("\n") == 1
