"""OpenAPI 3.1 document: build it from the table of routes, the texts and the response schemas."""

from collections.abc import Iterable
from typing import Any

from gateway.http.openapi_texts import DESCRIPTIONS, SUMMARIES
from gateway.http.problems import CONTENT_TYPE
from gateway.http.response_schemas import SCHEMAS
from gateway.http.route import Route

WITH_KEY = {400: "Problem", 401: "Problem", 429: "Problem", 503: "Problem"}
"""Answers that every route with a credential has besides its own."""
WITH_BODY = {413: "Problem"}
"""Answers that every route with a body has besides its own."""

PHRASES = {
    101: "the connection becomes a WebSocket",
    200: "done",
    201: "created",
    202: "accepted, not done yet",
    400: "a value is wrong",
    401: "no valid key",
    404: "not found",
    409: "not possible in this state",
    413: "the body is too large",
    422: "Plaid refused a token",
    426: "only over WebSocket",
    429: "too many requests",
    502: "Plaid refused, or its answer cannot be read",
    503: "try again later",
}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """Build the whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    bearer = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tartan",
            "version": "1",
            "description": "Bank data of an application's users, kept true. Amounts are exact decimal text; a "
            "positive one leaves the account.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "key": {**bearer, "description": "a tenant's API key"},
                "cron": {**bearer, "description": "TARTAN_CRON_SECRET, for a cron of the operator's"},
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    is_guarded = route.guard != "open"
    fields = [parameter for parameter in route.parameters if parameter.place == "body"]
    answers = {**route.answers, **(WITH_KEY if is_guarded else {}), **(WITH_BODY if fields else {})}
    description = DESCRIPTIONS.get(route.operation)
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": SUMMARIES[route.operation],
        **({"description": description} if description else {}),
        "security": [{"key" if route.guard == "tenant" else "cron": []}] if is_guarded else [],
        "parameters": [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.required,
                "description": parameter.description,
                "schema": dict(parameter.schema),
            }
            for parameter in route.parameters
            if parameter.place != "body"
        ],
        "responses": {str(status): _answer(status, schema) for status, schema in sorted(answers.items())},
    }
    if fields:
        is_patch = route.method == "PATCH"
        required = [field.name for field in fields if field.required]
        schema = {
            "type": "object",
            "properties": {field.name: {**field.schema, "description": field.description} for field in fields},
            "required": required,
            "additionalProperties": False,
            **({"minProperties": 1} if is_patch else {}),
        }
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": bool(required) or is_patch, "content": content}
    return operation


def _answer(status: int, schema: str | None) -> dict[str, Any]:
    if schema is None:
        return {"description": PHRASES[status]}
    content_type = CONTENT_TYPE if schema == "Problem" else "application/json"
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"description": PHRASES[status], "content": {content_type: {"schema": reference}}}
