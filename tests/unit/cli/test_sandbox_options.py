"""The commands of the sandbox pass their options on by name."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from cli.prove import sandbox
from sandbox.bench.end_to_end import BenchOptions
from sandbox.bench.project import ProjectOptions
from sandbox.bench.replay import ReplayOptions
from sandbox.demo.demo import DemoOptions
from sandbox.simulator.options import Options

COMMANDS: list[tuple[Callable[..., None], type[Any], set[str]]] = [
    (sandbox.plaid_simulator, Options, {"ready"}),
    (sandbox.demo, DemoOptions, set()),
    (sandbox.bench_end_to_end, BenchOptions, set()),
    (sandbox.bench_project, ProjectOptions, set()),
    (sandbox.bench_replay, ReplayOptions, set()),
]


@pytest.mark.parametrize(("command", "options", "own"), COMMANDS)
def test_each_option_of_a_command_is_a_field(command: Callable[..., None], options: type[Any], own: set[str]) -> None:
    passed = inspect.signature(command).parameters.keys() - own
    assert passed <= {field.name for field in fields(options)}
    options(**dict.fromkeys(passed))
