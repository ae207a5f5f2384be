"""JSON schema parts: types and builders from which the response schemas are made."""

from typing import Any

Schema = dict[str, Any]
Properties = dict[str, Schema]

TEXT: Schema = {"type": "string"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
DATE: Schema = {"type": "string", "format": "date"}
TIME: Schema = {"type": "string", "format": "date-time"}
MAYBE_TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
AMOUNT: Schema = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$", "description": "exact decimal text"}
MAYBE_AMOUNT: Schema = {**AMOUNT, "type": ["string", "null"]}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
MAYBE_INTEGER: Schema = {"type": ["integer", "null"]}
OBJECT: Schema = {"type": "object"}


def record(*groups: Properties, **properties: Schema) -> Schema:
    """Build an object whose properties are all required."""
    merged = {name: schema for group in (*groups, properties) for name, schema in group.items()}
    return {"type": "object", "properties": merged, "required": list(merged)}


def each(schema: Schema, *names: str) -> Properties:
    """Give several properties one schema."""
    return dict.fromkeys(names, schema)


def described(schema: Schema, description: str) -> Schema:
    """Add a description to a schema."""
    return {**schema, "description": description}


def one_of(*values: str, description: str | None = None) -> Schema:
    """Build a text with a closed set of values."""
    return {**TEXT, "enum": list(values), **({"description": description} if description else {})}


def nullable(schema: Schema, description: str | None = None) -> Schema:
    """Allow null besides the values of a schema."""
    return {**schema, "type": [schema["type"], "null"], **({"description": description} if description else {})}


def reference(name: str) -> Schema:
    """Refer to a named schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: str | Schema) -> Schema:
    """Build a list of a schema, or of the schema with this name."""
    return {"type": "array", "items": reference(items) if isinstance(items, str) else items}


def page(field: str, name: str) -> Schema:
    """Build a page of a list with its cursor."""
    return record({field: array(name)}, next_cursor=MAYBE_TEXT)


def without(schema: Schema, *names: str) -> Properties:
    """Return the properties of a schema except these."""
    return {name: property_ for name, property_ in schema["properties"].items() if name not in names}
