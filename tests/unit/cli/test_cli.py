"""The command line explains itself, and an error is one line."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from rich.table import Table

from cli import main as cli
from cli import output
from tests.support.command_line import tartan, tartan_process

COMMAND = typer.main.get_command(cli.app)


def walk(command: Any, name: str = "tartan") -> Iterator[tuple[str, Any]]:
    """A command and all below it. Typer brings a click of its own, so its classes are not those of `click`."""
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{name} {word}")


COMMANDS = dict(walk(COMMAND))


def test_every_command_is_found() -> None:
    assert {"tartan run", "tartan migrate", "tartan topics apply", "tartan bench end-to-end"} <= COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_a_sentence_and_each_of_its_options_is_explained(name: str) -> None:
    command = COMMANDS[name]

    assert command.help, f"{name} has no help"
    assert command.help[0].isupper()
    assert command.help.rstrip().endswith(".")
    unexplained = [option.name for option in command.params if not getattr(option, "help", None)]
    assert unexplained == []

    shown = tartan(*name.split()[1:], "--help", COLUMNS=None)
    assert shown.exit_code == 0
    assert " ".join(command.help.split())[:40] in " ".join(shown.output.split())


def test_a_table_shows_what_banks_and_users_write_as_they_wrote_it(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("category", box=None)
    table.add_row("[red]Tea[/nothing] [bold]")

    output.print_text(table)

    assert "[red]Tea[/nothing] [bold]" in capsys.readouterr().out


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str]:
    """Return the exit code and the standard error of a command."""
    ended = tartan_process(monkeypatch, capsys, *words)
    return ended.code, ended.err


def test_an_unknown_stage_is_refused_with_the_names_of_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    code, said = run(monkeypatch, capsys, "run", "ingest", "stream")

    assert code == 2
    assert "stream is no stage; the stages are ingest, streams, projections, gateway" in said


def test_a_wrong_setting_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TARTAN_PORT", "70000")

    code, said = run(monkeypatch, capsys, "ingest")

    assert code == 1
    assert said.startswith("tartan: settings: TARTAN_PORT: ")
    assert said.count("\n") == 1


def test_without_postgres_a_migration_says_where_it_looked_and_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TARTAN_POSTGRES_DSN", "postgresql://me:hush@127.0.0.1:1/tartan")

    code, said = run(monkeypatch, capsys, "migrate")

    assert code == 1
    assert said.startswith("tartan: no database at postgresql://me:***@127.0.0.1:1/tartan: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", ["plan", "apply", "verify"])
def test_without_kafka_the_topics_commands_say_where_they_looked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("TARTAN_KAFKA_ADDRESS", "127.0.0.1:1")

    code, said = run(monkeypatch, capsys, "topics", command)

    assert code == 1
    assert said.splitlines()[-1] == "tartan: no Kafka at 127.0.0.1:1: KafkaConnectionError"


def test_an_error_of_the_network_that_nobody_expected_is_one_line_without_passwords(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ConnectionRefusedError("postgresql://me:hush@db/tartan refused")

    monkeypatch.setattr(cli, "app", fail)

    assert run(monkeypatch, capsys) == (1, "tartan: postgresql://me:***@db/tartan refused\n")
