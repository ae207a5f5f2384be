"""The OpenAPI document describes every route and nothing else."""

import re
from importlib import resources
from typing import Any

from aiohttp import web

from gateway.app import Gateway
from gateway.http.openapi import document
from gateway.http.response_schemas import SCHEMAS
from gateway.live.hub import Hub
from gateway.routes import ROUTES
from runtime.settings import Settings

SETTINGS = Settings(
    api_keys="tenant:key", stream_secret="s" * 32, key_encryption_key="MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
)


def served_routes() -> set[tuple[str, str]]:
    app: web.Application = Gateway(SETTINGS, pool=None, plaid=None, hub=Hub(), appender=None).app()  # type: ignore[arg-type]
    found = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    return {(method, path) for method, path in found if path.startswith(("/v1", "/internal"))}


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, item in document(ROUTES)["paths"].items()
        for method, operation in item.items()
    ]


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [ref for name, one in value.items() for ref in ([one] if name == "$ref" else references(one))]
    return [ref for one in value for ref in references(one)] if isinstance(value, list) else []


def test_each_route_that_is_served_is_in_the_document_and_each_in_the_document_is_served() -> None:
    assert {(method, path) for method, path, _ in operations()} == served_routes()


def test_each_operation_has_a_name_of_its_own_a_summary_and_its_path_parameters() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names)) == len(ROUTES)
    for _, path, operation in operations():
        in_path = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        assert all(parameter["required"] for parameter in operation["parameters"] if parameter["in"] == "path")
        assert operation["summary"]
        assert operation["responses"]


def test_each_reference_leads_to_a_schema_and_each_schema_is_used() -> None:
    names = {reference.rpartition("/")[2] for reference in references(document(ROUTES))}

    assert names == set(SCHEMAS)


def test_each_operation_but_the_open_ones_asks_for_a_key() -> None:
    open_ones = {operation["operationId"] for _, _, operation in operations() if not operation["security"]}

    assert open_ones == {"stream", "openapi"}
    for _, _, operation in operations():
        assert ("401" in operation["responses"]) == (operation["operationId"] not in open_ones)


def test_the_page_shows_what_users_say_and_reads_no_field_that_the_api_lacks() -> None:
    page = resources.files("gateway.live").joinpath("static", "page.js").read_text()
    read = set(re.findall(r"\brow\.([a-z_]+)", page)) - {"removed"}  # the page's own mark

    assert read <= SCHEMAS["Transaction"]["properties"].keys()
    assert {"name", "category", "notes", "tags", "display_date", "hidden", "splits", "splits_stale"} <= read


def test_a_body_that_has_to_say_something_is_required_and_a_large_one_is_413() -> None:
    by_id = {operation["operationId"]: operation for _, _, operation in operations()}
    edit = by_id["edit_transaction"]["requestBody"]

    assert (edit["required"], edit["content"]["application/json"]["schema"]["minProperties"]) == (True, 1)
    assert not by_id["read_balances"]["requestBody"]["required"]
    assert [
        operation for operation in by_id.values() if ("requestBody" in operation) != ("413" in operation["responses"])
    ] == []
