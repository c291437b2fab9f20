"""A YAML file's text as plain data, read as YAML 1.2's core schema reads it.

PyYAML reads YAML 1.1, where `mode: off` is false, `12:30` is 750, `010` is 8 and `2024-01-01` a date: not what the
writer of a configuration file means. And it lets a later key silently win over an equal earlier one.

Invariant: a document is data of dict, list, str, int, float, bool and None; every mapping's keys are distinct; anything
else is a ConfigError that names file, line and column.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, ClassVar, Final

import yaml

from warmroute.errors import ConfigError

_DIGITS: Final = "0123456789"
_TAG: Final = "tag:yaml.org,2002:"
_CORE_SCHEMA: Final = (
    # tag, pattern, characters that such a scalar can begin with ("" stands for an empty one)
    ("null", r"~|null|Null|NULL|", ["", "~", "n", "N"]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+" + _DIGITS)),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+." + _DIGITS)),
)


class _CoreLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's plain data and without equal keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in {"null", "bool", "int", "float", "str", "seq", "map"}
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that the mapping has already."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


for _name, _pattern, _first in _CORE_SCHEMA:
    _CoreLoader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), _first)


def parse_document(text: str, file_name: str) -> object:
    """The one document in `text`; None if there is nothing in it. Raises ConfigError naming the place."""
    try:
        return yaml.load(text, Loader=_CoreLoader)  # noqa: S506  a SafeLoader by inheritance
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file_name}:{mark.line + 1}:{mark.column + 1}" if mark else file_name
        raise ConfigError(place, f"not understood as YAML: {error.problem}", "Mend the file there.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(file_name, f"not understood as YAML: {problem}", "Mend the file.") from None
