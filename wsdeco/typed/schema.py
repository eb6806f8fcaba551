"""The JSON Schema of the messages of a handler class, for documents that describe it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from wsdeco.typed.kinds import Kind, is_named_tuple, is_pydantic, kinds_of, struct_like

__all__ = ["REF", "Schemas", "schemas_of"]

REF: Final = "#/components/schemas/{name}"
"""Where a document keeps the schemas of classes, as AsyncAPI and OpenAPI have it."""


@dataclass(frozen=True, slots=True)
class Schemas:
    """What travels in one direction.

    Attributes:
        messages: The schema of each class of messages, by its name.
        components: The schemas that these refer to, by the name of their class.
    """

    messages: dict[str, dict[str, Any]]
    components: dict[str, dict[str, Any]]


def schemas_of(annotation: object, ref_template: str = REF) -> Schemas:
    """Return the JSON Schema (2020-12) of the messages that an annotation asks for.

    Args:
        annotation: What `on_message` takes or gives; `None` where that has no types.
        ref_template: How the schemas refer to each other; `{name}` stands for the name of a class.

    Returns:
        The schemas; of a union with the member that tells its classes apart.
    """
    kinds = kinds_of(annotation)
    is_union = len([kind for kind in kinds if kind.is_object]) > 1
    components: dict[str, dict[str, Any]] = {}
    messages: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        schema = _schema_of(kind, ref_template, components)
        messages[kind.name] = _tagged(schema, kind) if is_union and kind.own_tag is None and kind.is_object else schema
    return Schemas(messages, components)


def _schema_of(kind: Kind, template: str, components: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if is_pydantic(kind.cls):
        model: Any = kind.form
        # What msgspec calls `{name}` is `{model}` here.
        schema: dict[str, Any] = model.model_json_schema(ref_template=template.replace("{name}", "{model}"))
        components.update(schema.pop("$defs", {}))
        return schema
    form = struct_like(kind.cls) if is_named_tuple(kind.cls) else kind.form
    (schema,), found = msgspec.json.schema_components([form], schema_hook=_schema_of_model, ref_template=template)
    name = schema.get("$ref", "").removeprefix(template.partition("{name}")[0])
    if name in found:
        schema = found.pop(name)
        if template.format(name=name) in str((schema, found)):
            # A class that refers to itself.
            found[name] = schema
    components.update(found)
    return schema


def _schema_of_model(cls: type) -> dict[str, Any]:
    if not is_pydantic(cls):
        raise NotImplementedError
    model: Any = cls
    schema: dict[str, Any] = model.model_json_schema()
    return schema


def _tagged(schema: dict[str, Any], kind: Kind) -> dict[str, Any]:
    field, values = kind.tag
    members = {field: {"const": values[0]}} | schema.get("properties", {})
    return {**schema, "properties": members, "required": [field, *schema.get("required", [])]}
