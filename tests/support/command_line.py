"""Command line: run `tartan` in this process and read its exit code and output."""

import json
from typing import Any, NamedTuple

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli import main as cli


class Ended(NamedTuple):
    """Exit code, standard output and standard error of a process."""

    code: object
    out: str
    err: str


def tartan(*arguments: str, **environment: str | None) -> Result:
    """Run a command; an error that it raises is in `Result.exception`, and COLUMNS=200 unless given."""
    variables = {"COLUMNS": "200", **environment}
    return CliRunner().invoke(cli.app, list(arguments), env=variables)  # type: ignore[return-value]


def last_json(result: Result) -> Any:
    """Return the JSON of the last line of the output."""
    return json.loads(result.stdout.splitlines()[-1])


def tartan_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> Ended:
    """Run a command as its process does, which prints errors as one line."""
    monkeypatch.setattr("sys.argv", ["tartan", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return Ended(ended.value.code, *capsys.readouterr())
