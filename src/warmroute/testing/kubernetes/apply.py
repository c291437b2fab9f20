"""Server-side apply, as far as Deployments need it: who owns which field, and what goes when an owner lets go.

Lists of containers, ports and variables are maps by their keys; every other list is one value. What was put, not
applied, belongs to `kubectl`.

Invariant: a field goes away only when its last owner applies without it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeAlias

Object: TypeAlias = dict[str, Any]
Path: TypeAlias = tuple[Any, ...]

_KEYS = {"containers": ("name",), "ports": ("containerPort", "protocol"), "env": ("name",)}
_ANOTHER = "kubectl"


class Owners:
    """Who owns what, by object."""

    def __init__(self) -> None:
        self._owners: dict[Any, dict[Path, set[str]]] = {}

    def conflicts(self, key: Any, found: Object, given: Object, manager: str) -> list[str]:
        """Fields of others that `given` would change."""
        now, owners = dict(_leaves(found)), self._of(key, found)
        return [
            ".".join(map(str, path))
            for path, value in _leaves(given)
            if path in now and now[path] != value and owners.get(path, set()) - {manager}
        ]

    def applied(self, key: Any, found: Object, given: Object, manager: str) -> Object:
        """`found` with `given` applied by `manager`, by force."""
        now, wanted = dict(_leaves(found)), dict(_leaves(given))
        owners = copy.deepcopy(self._of(key, found))
        for path in [path for path, who in owners.items() if manager in who and path not in wanted]:
            owners[path].discard(manager)
            if not owners[path]:
                del owners[path]
                now.pop(path, None)
        for path, value in wanted.items():
            owners[path] = {*owners.get(path, ()), manager} if now.get(path) == value else {manager}
            now[path] = value
        self._owners[key] = owners
        return copy.deepcopy(_built(now))

    def _of(self, key: Any, found: Object) -> dict[Path, set[str]]:
        owners = self._owners.setdefault(key, {})
        for path, _ in _leaves(found):
            owners.setdefault(path, {_ANOTHER})
        return owners


def _leaves(found: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(found, dict) and found:
        for name, value in found.items():
            yield from _leaves(value, (*path, name))
    elif isinstance(found, list) and path and path[-1] in _KEYS:
        for item in found:
            keys = tuple((key, item.get(key, "TCP" if key == "protocol" else None)) for key in _KEYS[path[-1]])
            yield from _leaves(item, (*path, keys))
    else:
        yield path, found


def _built(leaves: dict[Path, Any]) -> Object:
    root: Object = {}
    for path, value in leaves.items():
        place = root
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    built: Object = _listed(root)
    return built


def _listed(found: Any) -> Any:
    """Items by their keys become lists again."""
    if not isinstance(found, dict):
        return found
    values = {key: _listed(value) for key, value in found.items()}
    return list(values.values()) if values and all(isinstance(key, tuple) for key in values) else values
