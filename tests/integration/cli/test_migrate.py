"""`tartan migrate` on a real Postgres."""

import sys

import pytest

from cli import main as cli
from sandbox.infra.postgres import Postgres


def migrate(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setenv("TARTAN_POSTGRES_DSN", dsn)
    monkeypatch.setattr(sys, "argv", ["tartan", "migrate"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, 1)


def test_a_migration_says_that_it_is_done_and_may_be_run_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database: str
) -> None:
    for _ in range(2):
        migrate(monkeypatch, database)

    assert capsys.readouterr().out == "The tables are up to date.\n" * 2


@pytest.mark.parametrize(
    ("instead", "said"),
    [("postgres:wrong@", "password authentication failed"), ("nobody:wrong@", "password authentication failed")],
)
def test_refused_credentials_are_one_line_without_the_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], postgres: Postgres, instead: str, said: str
) -> None:
    migrate(monkeypatch, f"postgresql://{instead}{postgres.address}/tartan")

    shown = capsys.readouterr().err
    assert said in shown
    assert postgres.address in shown
    assert "wrong" not in shown
    assert shown.count("\n") == 1


def test_a_database_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], postgres: Postgres
) -> None:
    migrate(monkeypatch, postgres.dsn("nowhere"))

    shown = capsys.readouterr().err
    assert 'database "nowhere" does not exist' in shown
    assert shown.count("\n") == 1
