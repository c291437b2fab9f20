"""The effective configuration as an operator reads it, and the reference page as the tree tells it.

Invariant: `render_json`'s `config` is itself a configuration file that gives the same Config, but for secrets: what
they are is never shown.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from warmroute.config import tree
from warmroute.config.leaves import (
    ENGINE_LEAVES,
    ENGINES,
    HIDDEN,
    LEAVES,
    REQUIRED,
    SECRETS,
    SECTIONS,
    Leaf,
    docstrings,
)
from warmroute.config.loading import Loaded

BEGIN: Final = (
    "<!-- reference: begin. Made from the tree by `warmroute check-config --reference docs/configuration.md` -->"
)
END: Final = "<!-- reference: end -->"


def render(loaded: Loaded) -> str:
    """One line per leaf, `key = value   # source`, in the tree's order; an engine's fields only where they say more."""
    rows = list(_rows(loaded))
    width = max(len(setting) for setting, _ in rows)
    return "\n".join(f"{setting:<{width}}   # {source}" for setting, source in rows)


def _rows(loaded: Loaded) -> Iterator[tuple[str, str]]:
    values = _shown(loaded)
    for key, leaf in LEAVES.items():
        source = str(loaded.sources[key])
        if key != ENGINES:
            yield f"{key} = {_scalar(_section(values, leaf.section)[leaf.name])}", source
            continue
        if not loaded.config.engines:
            yield f"{key} = []", source
        for number, engine in enumerate(values[ENGINES]):
            for name, value in engine.items():
                if value != ENGINE_LEAVES[name].default:
                    yield f"{ENGINES}[{number}].{name} = {_scalar(value)}", source


def _shown(loaded: Loaded) -> dict[str, Any]:
    """The tree with its secrets hidden."""
    values = asdict(loaded.config)
    for section in (*values[ENGINES], *(_section(values, name) for name in SECTIONS)):
        section.update({name: HIDDEN for name in SECRETS if section.get(name) is not None})
    return values


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    return functools.reduce(lambda section, part: section[part], name.split("."), values)


def _scalar(value: object) -> str:
    return value if isinstance(value, str) and value.isprintable() and value else json.dumps(value)


def render_json(loaded: Loaded) -> str:
    """`config`: the tree, `sources`: dotted key -> source, `notes`: what else there is to say."""
    shown = {
        "config": _shown(loaded),
        "sources": {key: str(source) for key, source in loaded.sources.items()},
        "notes": loaded.notes,
    }
    return json.dumps(shown, indent=2)


def reference() -> str:
    """All settings as Markdown: one table per section."""
    docs = docstrings(tree)
    forms = (
        "An entry is a URL or a mapping of these settings. As a flag: `--engine URL`, once per engine; as a variable: "
        f"`{LEAVES[ENGINES].variable}`, URLs separated by commas."
    )
    parts = [f"### `engines`\n\n{docs['EngineConfig']} {forms}\n\n{_table(ENGINE_LEAVES)}"]
    for section, cls in SECTIONS.items():
        leaves = {leaf.name: leaf for leaf in LEAVES.values() if leaf.section == section}
        table = f"\n\n{_table(leaves)}" if leaves else ""
        parts.append(f"### `{section}`\n\n{docs[cls.__name__]}{table}")
    return "\n\n".join(parts)


def _table(leaves: Mapping[str, Leaf]) -> str:
    rows = [
        f"| `{leaf.key}` | {'*required*' if leaf.default is REQUIRED else f'`{_default(leaf.default)}`'} "
        f"| {leaf.expects} | {leaf.doc} |"
        for leaf in leaves.values()
    ]
    return "\n".join(["| setting | default | takes | meaning |", "|---|---|---|---|", *rows])


def _default(value: object) -> str:
    return "null" if value is None else _scalar(value)


def with_reference(page: str) -> str:
    """`page` with the part between its two markers made anew. Raises ValueError if it has no such part."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no part between {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"
