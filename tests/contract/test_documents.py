"""The documents say what is there: links lead to files, tests that are named exist, commands are commands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from jsonschema import Draft7Validator

from cli import main as cli
from cli.set_up import docs
from gateway.routes import ROUTES
from runtime import settings
from runtime.incidents.incidents import KINDS
from schemas.contract import asyncapi
from schemas.contract.reference import fill_page
from tests.support.paths import ROOT

ASYNCAPI = Draft7Validator(json.loads((ROOT / "tests" / "golden" / "asyncapi-3.0.0.json").read_text("utf-8")))
"""The specification's own schema: @asyncapi/specs 6.11.1, schemas/3.0.0-without-$id.json, Apache-2.0, white space
removed. Source: https://github.com/asyncapi/spec-json-schemas."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PRESENT = [page for page in PAGES if page.name != "upgrading.md"]
"""Pages that name nothing of an earlier release."""
DEFINED = set(
    re.findall(r"def (test_\w+)", "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py")))
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_of_this_repository(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8"))

    missing = [link for link in links if not link.startswith("https://") and not (page.parent / link).exists()]

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", page.read_text("utf-8")))

    assert named - DEFINED == set()


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_the_commands_that_a_page_names_exist(page: Path) -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    said = "\n".join(re.findall(r"`[^`\n]+`|^    .+$", page.read_text("utf-8"), re.MULTILINE))

    assert set(re.findall(r"\btartan ([a-z][a-z-]*)", said)) - commands.keys() == set()
    assert set(re.findall(r"\bmake ([a-z]+)", said)) - targets == set()
    for group in ("items", "dead-letters", "reviews", "topics", "schemas", "bench"):
        assert set(re.findall(rf"\btartan {group} ([a-z][a-z-]*)", said)) - commands[group].commands.keys() == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_endpoints_that_a_page_names_exist(page: Path) -> None:
    def nameless(path: str) -> str:
        return re.sub(r"\{\w+\}", "{}", path)

    served = {(route.method, nameless(route.path)) for route in ROUTES}
    named = re.findall(r"`(GET|POST|PATCH|DELETE) (/(?:v1|internal)/[^`?\s]*)", page.read_text("utf-8"))

    assert {(method, nameless(path)) for method, path in named} - served == set()


def test_the_manual_names_every_command_of_an_operator() -> None:
    page = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("operations.md", "archive-and-rebuild.md"))
    operate = [
        one.name
        for one in (*cli.app.registered_commands, *cli.app.registered_groups)
        if one.rich_help_panel == cli.OPERATE
    ]

    assert operate
    assert [name for name in operate if f"`tartan {name}" not in page and f" tartan {name} " not in page] == []


def test_operations_says_of_each_kind_of_incident_what_the_alert_says() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")

    rows = dict(re.findall(r"^\| `(\w+)` \| \w+ \| (.+) \|$", page, re.MULTILINE))

    assert {kind: f"{words.title}. {words.remedy}" for kind, words in KINDS.items()}.items() <= rows.items()


@pytest.mark.parametrize("name", docs.pages())
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    assert (ROOT / "docs" / name).read_text("utf-8") == docs.pages()[name], "run: tartan docs --write docs"


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_the_metrics_that_a_page_names_exist(page: Path) -> None:
    known = {name for name, *_ in docs.collectors()}
    named = set(re.findall(r"`(tartan_[a-z_]+?)(?:_total|_bucket|_count|_sum)?`", page.read_text("utf-8")))

    assert named - known - {"tartan_projector", "tartan_eraser"} == set()


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_the_settings_that_a_page_names_exist(page: Path) -> None:
    known = {variable for variable, *_ in settings.described()}
    named = set(re.findall(r"\b(TARTAN_[A-Z_]+)\b", page.read_text("utf-8")))

    # Read by `tartan link` and `tartan up`, which are no stages.
    assert named - known - {"TARTAN_API_KEY", "TARTAN_GATEWAY_URL"} == set()


def test_the_page_of_events_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "events.md").read_text("utf-8")

    assert page == fill_page(page), "run: tartan schemas docs --write docs/events.md"


def test_the_asyncapi_document_is_what_the_code_says() -> None:
    text = (ROOT / "docs" / "asyncapi.json").read_text("utf-8")

    assert json.loads(text) == asyncapi.document("tartan."), "run: tartan schemas asyncapi --write docs/asyncapi.json"


def test_the_asyncapi_document_is_valid() -> None:
    assert [error.message for error in ASYNCAPI.iter_errors(asyncapi.document("tartan."))] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("channels", "items", "address"), 7),
        (("operations", "read.items", "action"), "listen"),
        (("components", "messages", "item.linked", "contentType"), None),
        (("info", "version"), None),
        (("an unknown part",), {}),
    ],
)
def test_an_asyncapi_document_that_is_broken_is_not_valid(path: tuple[str, ...], value: object) -> None:
    broken = asyncapi.document("tartan.")
    part: Any = broken
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value

    assert list(ASYNCAPI.iter_errors(broken))


def test_references_within_the_asyncapi_document_lead_somewhere() -> None:
    document = asyncapi.document("tartan.")

    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        part: Any = document
        for name in reference.split("/"):
            part = part[name]
        assert part
