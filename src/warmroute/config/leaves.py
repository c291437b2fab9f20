"""The tree's leaves as a table: what each is called, in every source, and what it takes.

Everything that walks the tree (loading, the flags of the command line, the reference page) walks this table, so a new
leaf in tree.py is a flag, a variable, a file key and a documented row without another line.

Invariant: keys, flags and variable names are each unique; `default` is what the tree's own constructor gives.
"""

from __future__ import annotations

import ast
import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from warmroute.config import tree
from warmroute.config.ranges import RANGES, Form, Range

ENV_PREFIX: Final = "WARMROUTE_"
ENGINES: Final = "engines"
SECRETS: Final = frozenset({"api_key"})
"""Names of leaves whose values are never shown."""
HIDDEN: Final = "********"
"""What is shown in their place."""
_NOUNS: Final = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting."""

    key: str
    """Dotted name, `gateway.port`; a field of an engine is `engines[].url`."""
    type: Any
    """Its annotation in the tree, as msgspec understands it."""
    default: object
    """Its default; `REQUIRED` if it has none."""
    range: Range | Form | None

    @property
    def name(self) -> str:
        """The name inside its section."""
        return self.key.rpartition(".")[2]

    @property
    def section(self) -> str:
        """The section's name; empty for `engines` itself."""
        return self.key.rpartition(".")[0]

    @property
    def flag(self) -> str:
        """Its flag on the command line."""
        return "--engine" if self.key == ENGINES else f"--{self.key}"

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return ENV_PREFIX + self.key.replace(".", "_").upper()

    @property
    def choices(self) -> tuple[str, ...]:
        """All values that it may have, if they are few and named."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def optional(self) -> bool:
        """Whether null is a value."""
        return type(None) in get_args(self.type)

    @property
    def kind(self) -> Any:
        """Its type without None."""
        if get_origin(self.type) in (Union, types.UnionType):
            return next(arm for arm in get_args(self.type) if arm is not type(None))
        return self.type

    @property
    def expects(self) -> str:
        """What it takes, as a noun phrase."""
        if self.key == ENGINES:
            return "a list of URLs, or of mappings with a url"
        noun = f"one of {', '.join(self.choices)}" if self.choices else _NOUNS[self.kind]
        phrase = self.range.describe(noun) if self.range else noun
        return f"{phrase}, or null" if self.optional else phrase

    @property
    def doc(self) -> str:
        """Its documentation: the docstring in the tree, with values spelled as operators spell them."""
        cls = tree.EngineConfig if self.section == "engines[]" else SECTIONS.get(self.section, tree.Config)
        doc = docstrings(tree)[f"{cls.__name__}.{self.name}"]
        return doc.replace("None", "null").replace("False:", "false:").replace("True:", "true:")


class _Required:
    """The default of a leaf that must be given."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Final = _Required()


def _sections(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, type[Any]]]:
    for name, kind in get_type_hints(cls).items():
        if isinstance(kind, type) and is_dataclass(kind):
            yield prefix + name, kind
            yield from _sections(kind, f"{prefix}{name}.")


def _leaves(cls: type[Any], prefix: str) -> Iterator[Leaf]:
    hints = get_type_hints(cls)
    for entry in fields(cls):
        key = f"{prefix}.{entry.name}" if prefix else entry.name
        if not is_dataclass(hints[entry.name]):
            default = REQUIRED if entry.default is MISSING else entry.default
            yield Leaf(key, hints[entry.name], default, RANGES.get(key))


SECTIONS: Final[Mapping[str, type[Any]]] = dict(_sections(tree.Config))
"""Section name -> its dataclass, in the tree's order; `discovery.kubernetes` is a section of a section."""
LEAVES: Final[Mapping[str, Leaf]] = {
    leaf.key: leaf
    for cls, prefix in [(tree.Config, ""), *((cls, name) for name, cls in SECTIONS.items())]
    for leaf in _leaves(cls, prefix)
}
"""Every leaf of the tree by key, `engines` as one leaf."""
ENGINE_LEAVES: Final[Mapping[str, Leaf]] = {leaf.name: leaf for leaf in _leaves(tree.EngineConfig, "engines[]")}
"""The fields of one engine, by name."""


@functools.cache
def docstrings(module: types.ModuleType) -> Mapping[str, str]:
    """`Class` and `Class.field` of a module -> docstring, on one line. Read from its source when asked for."""
    found: dict[str, str] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        found[node.name] = " ".join((ast.get_docstring(node) or "").split())
        for statement, following in zip(node.body, node.body[1:], strict=False):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[f"{node.name}.{name}"] = " ".join(text.split())
                case _:
                    pass
    return found
