"""The tree as a JSON Schema of the configuration file: for editors, and for charts that carry one.

It says what a schema can say: names, types, ranges, choices. Forms of text and settings that contradict each other are
left to `load`.

Invariant: it refuses nothing that `load` takes from a file (a test holds this, leaf by leaf).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, get_args, get_origin

from warmroute.config import tree
from warmroute.config.leaves import ENGINE_LEAVES, ENGINES, LEAVES, REQUIRED, SECTIONS, Leaf, docstrings
from warmroute.config.ranges import Range

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
"""The newest that every Helm 3 reads."""
_TYPES: Final = {int: "integer", float: "number", bool: "boolean", str: "string"}


def json_schema() -> dict[str, Any]:
    """A schema that a configuration file, as parsed, satisfies."""
    root = _mapping(docstrings(tree)["Config"], LEAVES.values())
    return {"$schema": DRAFT, "title": "Warmroute's configuration", **root}


def _mapping(doc: str, leaves: Iterable[Leaf], prefix: str = "") -> dict[str, Any]:
    """The mapping whose settings begin with `prefix`; those that go deeper are in mappings of their own."""
    here: dict[str, Leaf | list[Leaf]] = {}
    for leaf in leaves:
        name, deeper, _ = leaf.key.removeprefix(prefix).partition(".")
        if deeper:
            nested = here.setdefault(name, [])
            assert isinstance(nested, list)  # noqa: S101  a leaf is no section: the tree's own shape
            nested.append(leaf)
        else:
            here[name] = leaf
    return {
        "description": doc,
        "type": ["object", "null"] if prefix else "object",  # a section may be empty
        "additionalProperties": False,
        "properties": {name: _node(name, node, prefix) for name, node in here.items()},
    }


def _node(name: str, node: Leaf | list[Leaf], prefix: str) -> dict[str, Any]:
    if isinstance(node, Leaf):
        return _engines() if node.key == ENGINES else _leaf(node)
    section = SECTIONS.get(prefix + name)
    doc = "" if section is None else docstrings(tree)[section.__name__]
    return _mapping(doc, node, f"{prefix}{name}.")


def _engines() -> dict[str, Any]:
    engine = _mapping(docstrings(tree)["EngineConfig"], ENGINE_LEAVES.values(), "engines[].")
    engine |= {"type": "object", "required": [leaf.name for leaf in ENGINE_LEAVES.values() if leaf.default is REQUIRED]}
    url = {"type": "string", "description": ENGINE_LEAVES["url"].doc}
    return {"description": LEAVES[ENGINES].doc, "type": "array", "items": {"oneOf": [url, engine]}}


def _leaf(leaf: Leaf) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": _description(leaf)}
    if leaf.default is not REQUIRED:
        schema["default"] = list(leaf.default) if isinstance(leaf.default, tuple) else leaf.default
    if leaf.choices:
        return schema | {"enum": [*leaf.choices, *([None] if leaf.optional else [])]}
    return schema | _typed(leaf)


def _typed(leaf: Leaf) -> dict[str, Any]:
    if get_origin(leaf.kind) is tuple:
        return {"type": "array", "items": {"type": _TYPES[get_args(leaf.kind)[0]]}}
    kind = _TYPES[leaf.kind]
    typed: dict[str, Any] = {"type": [kind, "null"] if leaf.optional else kind}
    if isinstance(leaf.range, Range):
        low, high = (int(bound) if bound == int(bound) else bound for bound in (leaf.range.low, leaf.range.high))
        typed |= {"exclusiveMinimum" if leaf.range.above else "minimum": low, "maximum": high}
    return typed


def _description(leaf: Leaf) -> str:
    """What it means and, where only `load` can tell, what it takes."""
    if leaf.choices or isinstance(leaf.range, Range) or leaf.range is None:
        return leaf.doc
    return f"{leaf.doc} Takes {leaf.expects}."
