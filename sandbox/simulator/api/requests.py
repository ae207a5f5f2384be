"""Requests judged with plaid-python's own models: what its client could not have sent is refused.

The models are loaded when a check is first asked for; a benchmark that does without never imports them.
"""

import importlib
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from sandbox.simulator.api.plaid_errors import PlaidFailure


def validate(model: str, body: Mapping[str, Any]) -> None:
    """Deserialize a body with a request model, named `module:Class`.

    Raises: PlaidFailure (MISSING_FIELDS, UNKNOWN_FIELDS or INVALID_FIELD).
    """
    request = _model(model)
    unknown = sorted(set(body) - set(request.openapi_types))
    if unknown:
        raise PlaidFailure(
            "UNKNOWN_FIELDS", f"the following fields are not recognized by this endpoint: {', '.join(unknown)}"
        )
    missing = [name for name in _required(model) if name not in body]
    if missing:
        raise PlaidFailure("MISSING_FIELDS", f"the following required fields are missing: {', '.join(missing)}")
    utils = importlib.import_module("plaid.model_utils")
    exceptions = importlib.import_module("plaid.exceptions")
    configuration = importlib.import_module("plaid.configuration").Configuration()
    try:
        utils.validate_and_convert_types(dict(body), (request,), ["body"], True, True, configuration=configuration)
    except (exceptions.OpenApiException, TypeError, ValueError) as error:
        raise PlaidFailure("INVALID_FIELD", str(error).splitlines()[0]) from error


@cache
def _model(name: str) -> Any:
    module, class_name = name.split(":")
    return getattr(importlib.import_module(f"plaid.model.{module}"), class_name)


@cache
def _required(name: str) -> tuple[str, ...]:
    parameters = inspect.signature(_model(name)._from_openapi_data).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty)
