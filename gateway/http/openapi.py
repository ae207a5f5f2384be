"""The OpenAPI 3.1 document, made from the table of routes."""

from typing import Any

from gateway.http.problems import CONTENT_TYPE
from gateway.http.response_schemas import SCHEMAS
from gateway.routes import ROUTES, Route

ALWAYS = {400: "Problem", 401: "Problem", 429: "Problem", 503: "Problem"}
"""What every route with a key may answer besides its own."""
WITH_BODY = {413: "Problem"}
"""What every route that takes a body may answer, too."""

PHRASES = {
    101: "the connection becomes a WebSocket",
    200: "done",
    201: "made",
    202: "accepted, not done yet",
    400: "a value is wrong",
    401: "no valid key",
    404: "not found",
    409: "not possible in this state",
    413: "the body is too large",
    422: "Plaid refused a token",
    426: "only over WebSocket",
    429: "too many requests",
    502: "Plaid refused, or was not understood",
    503: "try again later",
}


def document() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
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
                "key": {"type": "http", "scheme": "bearer", "description": "a tenant's API key"},
                "cron": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "TARTAN_CRON_SECRET, for a cron of the operator's",
                },
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    guarded = route.guard != "open"
    fields = [one for one in route.parameters if one.place == "body"]
    answers = {**route.answers, **(ALWAYS if guarded else {}), **(WITH_BODY if fields else {})}
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        **({"description": route.description} if route.description else {}),
        "security": [{"key" if route.guard == "tenant" else "cron": []}] if guarded else [],
        "parameters": [
            {
                "name": one.name,
                "in": one.place,
                "required": one.required,
                "description": one.description,
                "schema": dict(one.schema),
            }
            for one in route.parameters
            if one.place != "body"
        ],
        "responses": {str(status): _answer(status, name) for status, name in sorted(answers.items())},
    }
    if fields:
        says_something = route.method == "PATCH"
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {one.name: {**one.schema, "description": one.description} for one in fields},
            "required": [one.name for one in fields if one.required],
            "additionalProperties": False,
            **({"minProperties": 1} if says_something else {}),
        }
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": bool(schema["required"]) or says_something, "content": content}
    return operation


def _answer(status: int, name: str | None) -> dict[str, Any]:
    if name is None:
        return {"description": PHRASES[status]}
    content_type = CONTENT_TYPE if name == "Problem" else "application/json"
    return {
        "description": PHRASES[status],
        "content": {content_type: {"schema": {"$ref": f"#/components/schemas/{name}"}}},
    }
