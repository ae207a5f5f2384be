"""Validate requests with plaid-python's own models: refuse what its client could not have sent.

The models are imported at the first validation, so that a benchmark without validation never imports them.
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
    request, required = _model(model)
    unknown = ", ".join(sorted(set(body) - set(request.openapi_types)))
    if unknown:
        raise PlaidFailure("UNKNOWN_FIELDS", f"the following fields are not recognized by this endpoint: {unknown}")
    missing = ", ".join(name for name in required if name not in body)
    if missing:
        raise PlaidFailure("MISSING_FIELDS", f"the following required fields are missing: {missing}")
    utils = importlib.import_module("plaid.model_utils")
    exceptions = importlib.import_module("plaid.exceptions")
    configuration = importlib.import_module("plaid.configuration").Configuration()
    try:
        utils.validate_and_convert_types(dict(body), (request,), ["body"], True, True, configuration=configuration)
    except (exceptions.OpenApiException, TypeError, ValueError) as error:
        raise PlaidFailure("INVALID_FIELD", str(error).splitlines()[0]) from error


@cache
def _model(name: str) -> tuple[Any, tuple[str, ...]]:
    """Return a model and the names of its required fields."""
    module, class_name = name.split(":")
    model = getattr(importlib.import_module(f"plaid.model.{module}"), class_name)
    parameters = inspect.signature(model._from_openapi_data).parameters.values()
    return model, tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty)
