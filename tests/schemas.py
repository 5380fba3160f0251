"""Documents against their schemas. That these are schemas takes a second to find out, so only test_schemas.py does."""

from __future__ import annotations

from typing import Any

import jsonschema


def conform(document: Any, schema: dict[str, Any]) -> None:
    """Raise ``jsonschema.ValidationError`` where a document is not as the schema says."""
    jsonschema.Draft202012Validator(schema).validate(document)
