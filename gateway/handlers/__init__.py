"""Handlers of the REST API, one module a noun; a method is named like the operation of its route."""
