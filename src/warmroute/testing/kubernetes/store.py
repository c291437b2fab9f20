"""What an API server keeps: objects, their versions, and the history that watches are answered from.

Invariant: versions count up with every change of any object; whoever takes a list at version v and applies every change
after v has what the store has.
"""

from __future__ import annotations

import bisect
import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Object: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str, str]
"""Resource (`pods`), namespace, name."""


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the history."""

    version: int
    resource: str
    namespace: str
    before: Object | None
    after: Object | None
    """None: deleted."""


class GoneError(Exception):
    """The history does not go back that far."""


class Store:
    """The objects. `on_change` is called after each change."""

    def __init__(self) -> None:
        self.version = 100
        self.objects: dict[Key, Object] = {}
        self.history: list[Change] = []
        self.on_change: Callable[[], None] = lambda: None
        self._forgotten = self.version
        self._uids = 0

    def put(self, resource: str, new: Mapping[str, Any]) -> Object:
        """Make or replace an object; the stored one. A uid is given unless it has one."""
        stored: Object = copy.deepcopy(dict(new))
        meta = stored.setdefault("metadata", {})
        key = (resource, meta.setdefault("namespace", "default"), meta["name"])
        before = self.objects.get(key)
        if "uid" not in meta:
            self._uids += before is None
            meta["uid"] = before["metadata"]["uid"] if before else f"uid-{self._uids}"
        if stored.get("spec") is not None:
            same = before is not None and before.get("spec") == stored["spec"]
            meta["generation"] = (before or stored)["metadata"].get("generation", 0) + (not same)
        self.version += 1
        meta["resourceVersion"] = str(self.version)
        self.objects[key] = stored
        self._note(key, before, stored)
        return stored

    def change(self, resource: str, name: str, edit: Callable[[Object], object], namespace: str = "default") -> Object:
        """Edit an object in place, as a controller would."""
        changed = copy.deepcopy(self.objects[resource, namespace, name])
        edit(changed)
        return self.put(resource, changed)

    def delete(self, resource: str, name: str, namespace: str = "default") -> None:
        """Take an object away."""
        key = (resource, namespace, name)
        before = self.objects.pop(key)
        self.version += 1
        last = copy.deepcopy(before)
        last["metadata"]["resourceVersion"] = str(self.version)
        self.history.append(Change(self.version, resource, namespace, last, None))
        self.on_change()

    def compact(self) -> None:
        """Forget the history: whoever wants to go on from before now must list again."""
        self.history.clear()
        self._forgotten = self.version

    def select(self, resource: str, namespace: str | None, selector: str) -> list[Object]:
        """The objects of a namespace (None: all) that a label selector fits, by name."""
        found = [
            each
            for (kind, place, _), each in sorted(self.objects.items())
            if kind == resource and namespace in (None, place) and fits(selector, each)
        ]
        return copy.deepcopy(found)

    def since(self, version: int, resource: str, namespace: str | None, selector: str) -> Iterator[tuple[str, Object]]:
        """What a watch from `version` on is told. Raises GoneError.

        An object that comes under the selector is ADDED, one that leaves it is DELETED.
        """
        if version < self._forgotten:
            raise GoneError(f"too old resource version: {version} ({self._forgotten})")
        first = bisect.bisect_right(self.history, version, key=lambda change: change.version)
        for change in self.history[first:]:
            if change.resource != resource or namespace not in (None, change.namespace):
                continue
            was = change.before is not None and fits(selector, change.before)
            if change.after is None:
                if was:
                    yield "DELETED", change.before or {}
            elif fits(selector, change.after):
                yield ("MODIFIED" if was else "ADDED"), change.after
            elif was:
                yield "DELETED", change.after

    def _note(self, key: Key, before: Object | None, after: Object | None) -> None:
        self.history.append(Change(self.version, key[0], key[1], before, after))
        self.on_change()


def fits(selector: str, candidate: Object) -> bool:
    """Whether a label selector fits an object: `a`, `!a`, `a=b`, `a==b`, `a!=b`, `a in (b,c)`, with commas between."""
    labels: Mapping[str, str] = candidate["metadata"].get("labels") or {}
    return all(_holds(term.strip(), labels) for term in re.split(r",(?![^(]*\))", selector) if term.strip())


def _holds(term: str, labels: Mapping[str, str]) -> bool:
    if match := re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", term):
        listed = {value.strip() for value in match[3].split(",")}
        return (labels.get(match[1]) in listed) is (match[2] == "in")
    if match := re.fullmatch(r"([^!=\s]+)\s*(==|=|!=)\s*(\S*)", term):
        return (labels.get(match[1]) == match[3]) is (match[2] != "!=")
    return term.removeprefix("!") not in labels if term.startswith("!") else term in labels
