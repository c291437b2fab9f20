"""A vLLM Deployment with events on, and back: pure functions from a Deployment to what it should be.

Only what must change is changed: the arguments of one container, its ports, labels and annotations of the pods. What
was there before is kept in an annotation of the Deployment, so that `disabled` gives back exactly that.

Invariant: `enabled` of what it gave is the same; `disabled` of what `enabled` gave is what was there before.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from warmroute.core import event_arguments
from warmroute.core.event_arguments import PatchError
from warmroute.core.pods import (
    AIBRIX,
    EVENTS,
    EVENTS_PORT,
    NAME,
    OURS,
    PORT,
    PORT_DEFAULT,
    PREFIXES,
    REPLAY_PORT,
    label,
)

Object: TypeAlias = dict[str, Any]

BEFORE: Final = f"{OURS}before-enable"
"""The Deployment's annotation that keeps what was there: the fields that were changed, and what they became."""
RELEASE_MIN: Final = (0, 9)
"""The first vLLM that has `--kv-events-config`."""
_SHELLS: Final = frozenset({"sh", "bash", "ash", "dash", "zsh"})
_FIELDS: Final = ("command", "args", "ports", "image")
"""Of the container, and below, of the pod's metadata: everything that is changed."""
_POD_FIELDS: Final = ("labels", "annotations")
_LABEL_VALUE_MAX: Final = 63


@dataclass(frozen=True, slots=True)
class Patched:
    """A Deployment as it should be, and what is to be said of it."""

    deployment: Object
    notes: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()
    """Why it would not work though it can be written down."""


def enabled(deployment: Mapping[str, Any], container: str | None = None, image: str | None = None) -> Patched:
    """The Deployment with events on. Raises PatchError if that cannot be done safely."""
    result: Object = copy.deepcopy(dict(deployment))
    template = result["spec"]["template"]
    engine = _engine_container(template, container)
    before = _state(template, engine)
    words, place = _words(engine)
    found = event_arguments.find(words)
    variables = {each["name"]: str(each["value"]) for each in engine.get("env") or () if "value" in each}
    ranks = _number(event_arguments.value_of(found.words, *event_arguments.RANKS_FLAGS)) or 1
    events = event_arguments.completed(found, variables, ranks)
    changed = event_arguments.worked_in(found, events)
    if changed != words:
        engine[place] = changed
    if image is not None:
        engine["image"] = image
    ports = event_arguments.ports(events)
    _declare_ports(engine, ports)
    _mark(template, found.words, str(result["metadata"].get("name", "")), ports)
    after = _state(template, engine)
    if after != before:
        _remember(result["metadata"], engine["name"], before, after)
    return Patched(result, tuple(_notes(found, variables)), tuple(_obstacles(engine, found.words)))


def disabled(deployment: Mapping[str, Any]) -> Object:
    """The Deployment as it was before `enabled`; raises PatchError if that is not known, or was changed since."""
    result: Object = copy.deepcopy(dict(deployment))
    annotations = result["metadata"].get("annotations") or {}
    if BEFORE not in annotations:
        raise PatchError(f"it has no annotation {BEFORE}: `warmroute k8s enable` has not changed it; nothing to undo")
    kept = _kept(annotations.pop(BEFORE))
    if not annotations:
        del result["metadata"]["annotations"]
    template = result["spec"]["template"]
    engine = next((each for each in template["spec"]["containers"] if each["name"] == kept["container"]), None)
    if engine is None:
        raise PatchError(f"its container {kept['container']!r} is gone; remove the annotation {BEFORE} by hand")
    now, after, before = _state(template, engine), kept["after"], kept["before"]
    if other := [name for name in now if not _undoable(now[name], before[name], after[name])]:
        raise PatchError(
            f"its {' and '.join(other)} changed since events were enabled, so that what was there before is not simply "
            f"put back: take {event_arguments.FLAG} out by hand, and remove the annotation {BEFORE}"
        )
    for name in _FIELDS:
        _put(engine, name, _undone(now[name], before[name], after[name]))
    for name in _POD_FIELDS:
        _put(template.setdefault("metadata", {}), name, _undone(now[name], before[name], after[name]))
    return result


def _undoable(now: Any, before: Any, after: Any) -> bool:
    """Whether what we changed of a field is as we left it; of labels and annotations, others' own do not matter."""
    if isinstance(now, dict) and isinstance(after, dict):
        return all(now.get(key) == after.get(key) for key in _differing(before or {}, after))
    return bool(now == after)


def _undone(now: Any, before: Any, after: Any) -> Any:
    """A field without what we changed: another's annotation, as `kubectl rollout restart` leaves one, stays."""
    if now == after or not isinstance(now, dict):
        return before
    first = before or {}
    ours = _differing(first, after)
    return {key: value for key, value in now.items() if key not in ours} | {k: first[k] for k in ours if k in first}


def _differing(before: Object, after: Object) -> list[str]:
    return [key for key in before | after if before.get(key) != after.get(key)]


def configuration(before: Mapping[str, Any], after: Mapping[str, Any]) -> Object:
    """What to apply server-side, as the field manager that owns our part alone, to make `before` into `after`."""
    meta = {key: after["metadata"][key] for key in ("name", "namespace") if key in after["metadata"]}
    kept = (after["metadata"].get("annotations") or {}).get(BEFORE)
    applied: Object = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta}
    if kept is not None:
        meta["annotations"] = {BEFORE: kept}
    record = _kept(kept or before["metadata"]["annotations"][BEFORE])
    states = (record["before"], record["after"])
    now, was = (_state_of(each, record["container"]) for each in (after, before))
    ours: Object = {"name": record["container"]}
    for name in ("command", "args", "image"):
        if now[name] is not None and (states[0][name] != states[1][name] or was[name] != now[name]):
            ours[name] = now[name]
    added = [port for port in now["ports"] or () if port not in (states[0]["ports"] or ())]
    if added:
        ours["ports"] = added
    pod_meta = {}
    for name in _POD_FIELDS:
        first, then = states[0][name] or {}, states[1][name] or {}
        ours_of = {*_differing(first, then), *_differing(was[name] or {}, now[name] or {})}
        mine = {key: value for key, value in (now[name] or {}).items() if key in ours_of}
        if mine:
            pod_meta[name] = mine
    applied["spec"] = {"template": ({"metadata": pod_meta} if pod_meta else {}) | {"spec": {"containers": [ours]}}}
    return applied


def is_enabled(deployment: Mapping[str, Any], container: str | None = None) -> bool:
    """Whether events are on as they should be. Raises PatchError if that cannot be told."""
    patched = enabled(deployment, container).deployment
    return bool(patched["spec"] == deployment["spec"])


def progress(deployment: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a Deployment is rolled out, and where it is. Raises PatchError if it never will be."""
    status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    for condition in status.get("conditions") or ():
        if condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            raise PatchError(f"the rollout does not get on: {condition.get('message', 'its deadline has passed')}")
    numbers = [status.get(name, 0) for name in ("updatedReplicas", "availableReplicas", "replicas")]
    seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    return seen and numbers == [wanted] * 3, f"{numbers[0]} of {wanted} pods are new, {numbers[1]} available"


def pods_of(deployment: Mapping[str, Any]) -> str:
    """The label selector of its pods, as a query has it."""
    selector = deployment["spec"]["selector"]
    terms = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for each in selector.get("matchExpressions") or ():
        values = f"({','.join(each.get('values') or ())})"
        forms = {"In": "{} in {}", "NotIn": "{} notin {}", "Exists": "{}", "DoesNotExist": "!{}"}
        terms.append(forms[each["operator"]].format(each["key"], values))
    return ",".join(terms)


def _kept(text: str) -> Object:
    """What the annotation keeps. Raises PatchError if somebody has changed it."""
    try:
        kept: Object = json.loads(text)
        container, *states = kept["container"], kept["before"], kept["after"]
        whole = isinstance(container, str) and all(state.keys() == {*_FIELDS, *_POD_FIELDS} for state in states)
    except (ValueError, LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise PatchError(f"its annotation {BEFORE} is not what `warmroute k8s enable` wrote: remove it by hand")
    return kept


def _remember(metadata: Object, container: str, before: Object, after: Object) -> None:
    """Keep what was there before the first change; what came between two changes of ours is not ours to undo."""
    annotations = dict(metadata.get("annotations") or {})
    first = _kept(annotations[BEFORE]) if BEFORE in annotations else None
    if first is not None and (first["container"], first["after"]) != (container, before):
        return
    kept = {"container": container, "before": before if first is None else first["before"], "after": after}
    metadata["annotations"] = annotations | {BEFORE: json.dumps(kept, separators=(",", ":"))}


def _engine_container(template: Mapping[str, Any], wanted: str | None) -> Object:
    containers: list[Object] = template["spec"]["containers"]
    if wanted is not None:
        fitting = [each for each in containers if each["name"] == wanted]
    else:
        fitting = [each for each in containers if _runs_vllm(each)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(each["name"] for each in fitting or containers)
    if wanted is not None:
        raise PatchError(f"it has no container {wanted!r}; it has {names}")
    what = "several containers that run vLLM" if fitting else "no container that is known to run vLLM"
    raise PatchError(f"it has {what} ({names}): say which one with --container")


def _runs_vllm(container: Mapping[str, Any]) -> bool:
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    image = str(container.get("image", "")).rpartition("/")[2]
    return "vllm" in image or "vllm" in container["name"] or any("vllm" in word for word in words)


def _words(engine: Mapping[str, Any]) -> tuple[list[str], str]:
    """The words of the command line to change, and the field that they are in. Raises PatchError."""
    command, args = list(engine.get("command") or ()), list(engine.get("args") or ())
    everything = [*command, *args]
    if unquoted := next((word for word in everything if not isinstance(word, str)), None):
        raise PatchError(f"{unquoted!r} among the arguments of its container {engine['name']!r} is no text: quote it")
    for word, following in itertools.pairwise(everything):
        if word.rpartition("/")[2] in _SHELLS and re.fullmatch(r"-\w*c", following):
            raise PatchError(
                f"the command of its container {engine['name']!r} is text for a shell, which is not taken apart here. "
                f"Add this to `vllm serve` there by hand: {_by_hand()}. Or write command and args as lists"
            )
    told = [event_arguments.is_told(words) for words in (command, args)]
    if all(told):
        raise PatchError("both command and args say something of KV events: keep it in one of them, then try again")
    in_command = told[0] or (not args and any(word.startswith("--") for word in command))
    return (command, "command") if in_command else (args, "args")


def _by_hand() -> str:
    events = event_arguments.completed(event_arguments.find(()), {}, 1)
    return f"{event_arguments.FLAG} '{json.dumps(events, separators=(',', ':'))}'"


def _declare_ports(engine: Object, numbers: tuple[int, int]) -> None:
    declared = engine.get("ports") or []
    names = {port.get("name") for port in declared}
    new: list[Object] = []
    for name, number in zip(("kv-events", "kv-replay"), numbers, strict=True):
        if all(port["containerPort"] != number for port in declared):
            named = {} if name in names else {"name": name}
            new.append(named | {"containerPort": number, "protocol": "TCP"})
    if new:
        engine["ports"] = [*declared, *new]


def _mark(template: Object, words: tuple[str, ...], name: str, ports: tuple[int, int]) -> None:
    """Labels and annotations by which pods are found, and their ports."""
    meta = template.setdefault("metadata", {})
    labels = dict(meta.get("labels") or {})
    if label(labels, NAME) is None:
        model = event_arguments.value_of(words, "--served-model-name") or event_arguments.value_of(words, "--model")
        labels[AIBRIX + NAME] = _label_value(model or name)
    api_port = _number(event_arguments.value_of(words, "--port"))
    if api_port not in (None, PORT_DEFAULT) and label(labels, PORT) is None:
        labels[AIBRIX + PORT] = str(api_port)
    for prefix in [prefix for prefix in PREFIXES if prefix + EVENTS in labels] or [AIBRIX]:
        labels[prefix + EVENTS] = "true"
    annotations = dict(meta.get("annotations") or {})
    annotations |= {OURS + EVENTS_PORT: str(ports[0]), OURS + REPLAY_PORT: str(ports[1])}
    ranks = _number(event_arguments.value_of(words, *event_arguments.RANKS_FLAGS))
    if ranks is not None and ranks > 1:
        annotations[f"{OURS}data-parallel-size"] = str(ranks)
    meta["labels"], meta["annotations"] = labels, annotations


def _notes(found: event_arguments.Found, variables: Mapping[str, str]) -> Iterator[str]:
    idle = [name for name in event_arguments.UNKNOWN_VARIABLES if name in variables]
    if idle:
        yield f"no release of vLLM reads {', '.join(idle)}: what they say is in {event_arguments.FLAG} now"
    if "--no-enable-prefix-caching" in found.words:
        yield "--no-enable-prefix-caching is given: the engine caches no prefixes and will publish nothing of use"


def _obstacles(engine: Mapping[str, Any], words: tuple[str, ...]) -> Iterator[str]:
    match = re.search(r":v?(\d+)\.(\d+)", str(engine.get("image", "")).rpartition("/")[2])
    if match is not None and (int(match[1]), int(match[2])) < RELEASE_MIN:
        yield (
            f"the image {engine['image']} has no {event_arguments.FLAG}, which came with vLLM 0.9: "
            "name a newer one with --image"
        )
    host = event_arguments.value_of(words, "--host")
    if host in ("127.0.0.1", "localhost", "::1"):
        yield f"it listens on --host {host}, where no gateway reaches it"


def _state(template: Mapping[str, Any], engine: Mapping[str, Any]) -> Object:
    """Everything that is changed, as it is; None: not there."""
    meta = template.get("metadata") or {}
    found = {name: engine.get(name) for name in _FIELDS} | {name: meta.get(name) for name in _POD_FIELDS}
    return copy.deepcopy(found)


def _state_of(deployment: Mapping[str, Any], container: str) -> Object:
    template = deployment["spec"]["template"]
    return _state(template, next(each for each in template["spec"]["containers"] if each["name"] == container))


def _put(place: Object, name: str, value: object) -> None:
    if value is None:
        place.pop(name, None)
    else:
        place[name] = value


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _label_value(model: str) -> str:
    """A model's name as a label may have it: without what stands before the last slash."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rpartition("/")[2])[:_LABEL_VALUE_MAX]
    return kept.strip("-._") or "model"
