"""Chats whose template is a loop over the messages: only new messages are rendered and tokenized.

Most templates are a beginning, one loop over the messages, and an end. Such a one is cut in two: its *outline*, in
which the loop's body only notes which message it stands for, and the *body*. What the outline gives is kept per
everything it can have seen: the request's other fields, the first message and the number of messages. It runs with
messages of which only the first can be looked at; who looks at another ends this way of doing it. What the body gives
is kept per message, as the client wrote it, and per what it reads of the loop. What the body reads beside these must be
the request's or the model's own, and nothing that the template itself has set.

Invariant: `ids` gives exactly the ids of the rendered prompt, or None: then it must be rendered whole. That is compared
for every new outline and now and then for a request; one difference ends this way of doing it, loudly.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import jinja2
import jinja2.nodes

from warmroute.core.conversation import decoded_message, settings
from warmroute.core.kept import Kept
from warmroute.core.openai import Fields, elements, flag, given
from warmroute.core.parts import Part, join
from warmroute.edge.tokenizer_local.encoder import CACHE_CHARS_MAX, Encoder
from warmroute.edge.tokenizer_local.templates import Templates
from warmroute.errors import TokenizeError

_log = logging.getLogger(__name__)

COMPARED_FIRST = 64
"""So many new outlines are compared with prompts that are rendered whole,"""
COMPARED_EVERY = 1024
"""and of so many chats one."""
FAILURES_MAX = 100
"""So often the outline of a template may fail until one is made: chats may be refused, and so may looking at them."""
OUTLINE_CHARS_MAX = 16 * 1024 * 1024
"""Of first messages whose outlines are kept."""
SETTINGS_MAX = 4096
"""Distinct fields beside the messages (tools, template arguments); beyond it all are forgotten."""

_SLOT = "_warmroute_slot"
_LOOP_KEPT = ("first", "last", "index", "index0", "revindex", "revindex0", "length")
"""What a body may read of its loop: numbers and truth values."""
_UNKNOWABLE = frozenset({"strftime_now", "lipsum", "random", "self", "super", "caller"})
"""Names whose value is another each time, or of another template."""
_FOREIGN = (
    jinja2.nodes.Include,
    jinja2.nodes.Import,
    jinja2.nodes.FromImport,
    jinja2.nodes.Extends,
    jinja2.nodes.Block,
)


class _Peeked(Exception):  # noqa: N818 - no error: a template is found to be of another kind
    pass


class _Unseen:
    """A message that an outline must not look at."""

    __slots__ = ("_place",)

    def __init__(self, place: int) -> None:
        object.__setattr__(self, "_place", place)

    def _peeked(self, *_: Any) -> Any:
        raise _Peeked

    __getattribute__ = __getitem__ = __iter__ = __len__ = __contains__ = __bool__ = _peeked
    __eq__ = __hash__ = __str__ = __repr__ = __format__ = _peeked


_place_of: Callable[[Any], int] = _Unseen.__dict__["_place"].__get__
"""The position of an unseen message."""


class _Slot(str):
    """What an outline gives where a message belongs: a text that stays what it is among the others."""

    __slots__ = ("place", "seen")
    place: int
    seen: tuple[Any, ...]

    def __str__(self) -> str:
        return self


class _Cut(NamedTuple):
    """A template, cut in two."""

    outline: jinja2.Template
    body: jinja2.Template
    target: str
    """What the body calls its message."""
    reads: tuple[str, ...]
    """What it reads of the loop."""


class _About(NamedTuple):
    """A request's fields beside its messages."""

    number: bytes
    """Never given to two that differ."""
    template: str
    raw_calls: bool


class _Outline(NamedTuple):
    """What a chat consists of."""

    before: list[Part]
    slots: list[tuple[int, bytes]]
    """Each message's place, and what else its ids depend on."""
    seen: dict[int, tuple[Any, ...]]
    """Place -> what it reads of the loop."""
    after: list[Part]


class Turns:
    """Ids of chats, message by message. Belongs to one event loop."""

    def __init__(self, encoder: Encoder, templates: Templates) -> None:
        self._encoder = encoder
        self._templates = templates
        cuts = {name: cut(templates.environment, chat.source) for name, chat in templates.by_name.items()}
        self._cuts = {name: found for name, found in cuts.items() if found is not None and encoder.separable}
        self._parts: Kept[bytes, Part] = Kept(CACHE_CHARS_MAX, {})
        self._outlines: Kept[bytes, _Outline] = Kept(OUTLINE_CHARS_MAX, {})
        self._settings: dict[tuple[bytes, ...], _About] = {}
        self._numbers = count(1)
        self._asked = self._made = 0
        self._failures: Counter[str] = Counter()
        self._proven: set[str] = set()
        """Templates of which an outline was made."""

    def ids(self, fields: Fields, raw_calls: bool) -> bytes | None:
        """A chat's ids as 32-bit integers of this machine; None if it must be rendered whole. Raises TokenizeError."""
        name = self._templates.name(fields)
        if name not in self._cuts or flag(fields.continue_final_message) or flag(fields.add_special_tokens):
            return None
        if given(fields.chat_template) or given(fields.documents) or not (raws := elements(fields.messages)):
            return None
        about = self._about(name, fields, raw_calls)
        key = b"%b\0%d,%b" % (raws[0], len(raws), about.number)
        known = self._outlines.all((key,))
        outline = known[0] if known is not None else self._outline(key, about, fields, raws)
        if outline is None:
            return None
        keys = [raws[place] + more for place, more in outline.slots]
        parts = self._parts.all(keys) or self._render(about, fields, raws, keys, outline)
        if parts is None:
            return None
        found = join([*outline.before, *parts, *outline.after], self._encoder.seam)
        self._asked += 1
        if (known is None and self._made <= COMPARED_FIRST) or self._asked % COMPARED_EVERY == 0:
            return self._compared(about, fields, found)
        return found

    def _about(self, name: str, fields: Fields, raw_calls: bool) -> _About:
        """What there is beside the messages that a template sees."""
        kwargs, effort, generates = fields.chat_template_kwargs, fields.reasoning_effort, fields.add_generation_prompt
        seen = (name.encode(), bytes(fields.tools), bytes(kwargs), bytes(effort), bytes(generates), b"%d" % raw_calls)
        found = self._settings.get(seen)
        if found is None:
            if len(self._settings) >= SETTINGS_MAX:
                self._settings.clear()
            found = self._settings[seen] = _About(b"%d;" % next(self._numbers), name, raw_calls)
        return found

    def _outline(self, key: bytes, about: _About, fields: Fields, raws: list[bytes]) -> _Outline | None:
        """What a chat consists of, kept from now on; None if this cannot be told without looking at the messages."""
        known = self._outlines.get(key)
        if known is not None:
            return known
        name = about.template
        chat, template = self._templates.by_name[name], self._cuts[name]
        first = decoded_message(raws[0], chat.form, about.raw_calls)
        messages = [first, *map(_Unseen, range(1, len(raws)))]
        given_out: list[_Slot] = []

        def slot(message: Any, *seen: Any) -> _Slot:
            if type(message) is not _Unseen and message is not first:
                raise _Peeked
            made = _Slot()
            made.place = _place_of(message) if type(message) is _Unseen else 0
            made.seen = seen
            given_out.append(made)
            return made

        variables = {**self._templates.special, **settings(fields), "messages": messages, _SLOT: slot}
        try:
            context = template.outline.new_context(variables)
            pieces = list(template.outline.root_render_func(context))
        except _Peeked:
            pieces = []
        except Exception:  # the chat is refused, as rendering it whole will say; or it peeked in another way
            self._failures[name] += 1
            if self._failures[name] >= FAILURES_MAX and name not in self._proven:
                self._cuts.pop(name)
            return None
        slots = [each for each in pieces if type(each) is _Slot]
        where = [n for n, each in enumerate(pieces) if type(each) is _Slot]
        begin, end = (where[0], where[-1] + 1) if where else (len(pieces), len(pieces))
        each_once = sorted({0, *(each.place for each in slots)}) == list(range(len(raws))) and len(slots) <= len(raws)
        if not each_once or len(slots) < len(given_out) or any(pieces[begin:end]):
            self._cuts.pop(name)
            return None
        before, after = self._literal("".join(pieces[:begin])), self._literal("".join(pieces[end:]))
        if before is None or after is None:
            return None
        self._proven.add(name)
        self._made += 1
        keys = [(each.place, b"\0%b%b" % (about.number, repr(each.seen).encode())) for each in slots]
        made = _Outline(before, keys, {each.place: each.seen for each in slots}, after)
        self._outlines.keep(key, made)
        return made

    def _literal(self, text: str) -> list[Part] | None:
        """A part for text that is no message's; None if it is for a thread."""
        part = self._encoder.part(text)
        return None if part is None else [part]

    def _render(
        self, about: _About, fields: Fields, raws: list[bytes], keys: list[bytes], outline: _Outline
    ) -> list[Part] | None:
        """The parts, those that are new rendered and kept; None if that is not for here."""
        chat, template = self._templates.by_name[about.template], self._cuts[about.template]
        found, context = [], None
        try:
            for key, (place, _) in zip(keys, outline.slots, strict=True):
                part = self._parts.get(key)
                if part is None:
                    if context is None:
                        context = template.body.new_context({**self._templates.special, **settings(fields)})
                    message = decoded_message(raws[place], chat.form, about.raw_calls)
                    loop = dict(zip(template.reads, outline.seen[place], strict=True))
                    context.vars = {template.target: message, "loop": loop}  # and nothing that the one before has set
                    part = self._encoder.part("".join(template.body.root_render_func(context)))
                    if part is None:
                        return None
                    self._parts.keep(key, part)
                found.append(part)
        except Exception:  # whatever is the matter, rendering it whole says so
            return None
        return found

    def _compared(self, about: _About, fields: Fields, found: bytes | None) -> bytes | None:
        """Hold them against the prompt that is rendered whole."""
        name = about.template
        try:
            whole = self._encoder.begin(self._templates.render(fields, raw_calls=about.raw_calls), special=False)
        except TokenizeError:
            self._cuts.pop(name, None)
            raise
        if found is None or callable(whole) or array("I", whole).tobytes() == found:
            return found
        _log.warning("the chat template %r treats messages in another way than it seems to; it is rendered whole", name)
        self._encoder.given_up["messages"] += 1
        self._cuts.pop(name, None)
        return None


def cut(environment: jinja2.Environment, source: str) -> _Cut | None:
    """A template as outline and body; None if it is not known to be of that kind."""
    tree = environment.parse(source)
    everything = {node.name for node in tree.find_all(jinja2.nodes.Name)}
    loops = [loop for loop in tree.find_all(jinja2.nodes.For) if _mentions(loop.iter, _from_messages(tree))]
    everything |= {node.name for node in tree.find_all(jinja2.nodes.Filter)}
    if list(tree.find_all(_FOREIGN)) or everything & _UNKNOWABLE or not loops:
        return None
    loop = loops[0]
    inside = {id(node) for node in loop.find_all(jinja2.nodes.Node)}
    if any(id(other) not in inside for other in loops[1:]) or not _is_plain(loop):
        return None
    macros = [node for node in tree.body if isinstance(node, jinja2.nodes.Macro)]
    target = loop.target.name if isinstance(loop.target, jinja2.nodes.Name) else ""
    local = inside | {id(node) for macro in macros for node in macro.find_all(jinja2.nodes.Name)}
    reads = _reads(loop, macros, target, _assigned(tree, local))
    if reads is None:
        return None
    body = _template(environment, [*macros, *loop.body])
    arguments: list[jinja2.nodes.Expr] = [jinja2.nodes.Name(target, "load")]
    arguments += [jinja2.nodes.Getattr(jinja2.nodes.Name("loop", "load"), name, "load") for name in reads]
    call = jinja2.nodes.Call(jinja2.nodes.Name(_SLOT, "load"), arguments, [], None, None)
    loop.body = [jinja2.nodes.Output([call])]
    return _Cut(_template(environment, tree.body), body, target, reads)


def _template(environment: jinja2.Environment, body: list[jinja2.nodes.Node]) -> jinja2.Template:
    tree = jinja2.nodes.Template(body)
    tree.set_environment(environment).set_lineno(1)
    return jinja2.Template.from_code(environment, environment.compile(tree), dict(environment.globals))


def _mentions(node: jinja2.nodes.Node, names: set[str]) -> bool:
    return any(each.name in names for each in _names(node))


def _names(node: jinja2.nodes.Node) -> Iterator[jinja2.nodes.Name]:
    if isinstance(node, jinja2.nodes.Name):
        yield node
    yield from node.find_all(jinja2.nodes.Name)


def _from_messages(tree: jinja2.nodes.Template) -> set[str]:
    """Names that may stand for the conversation, or what is made of it."""
    found, before = {"messages"}, 0
    while len(found) > before:
        before = len(found)
        for node in tree.find_all((jinja2.nodes.Assign, jinja2.nodes.AssignBlock, jinja2.nodes.With, jinja2.nodes.For)):
            if _mentions(node, found):
                found |= _stored(node)
    return found


def _stored(node: jinja2.nodes.Node) -> set[str]:
    """Names that are set in a node."""
    names = {each.name for each in _names(node) if each.ctx != "load"}
    names |= {each.name for each in node.find_all(jinja2.nodes.NSRef)}
    return names | {each.name for each in node.find_all(jinja2.nodes.Macro)}


def _assigned(tree: jinja2.nodes.Template, local: set[int]) -> set[str]:
    """Names that the template sets, but for those in the nodes `local`."""
    names = {each.name for each in tree.find_all(jinja2.nodes.Name) if each.ctx != "load" and id(each) not in local}
    names |= {each.name for each in tree.find_all(jinja2.nodes.NSRef)}
    return names | {each.name for each in tree.find_all(jinja2.nodes.Macro) if each not in tree.body}


def _is_plain(loop: jinja2.nodes.For) -> bool:
    """Whether it goes through all, to its end, and leaves nothing behind."""
    leaves = [node for body in loop.body for node in (body, *body.find_all(jinja2.nodes.Node))]
    kinds = (jinja2.nodes.NSRef, jinja2.nodes.Break, jinja2.nodes.Continue, jinja2.nodes.Macro)
    whole = loop.test is None and not loop.else_ and not loop.recursive
    return whole and not any(isinstance(node, kinds) for node in leaves)


def _reads(
    loop: jinja2.nodes.For, macros: list[jinja2.nodes.Macro], target: str, assigned: set[str]
) -> tuple[str, ...] | None:
    """What the body reads of its loop; None if it reads what may be another for each message beside."""
    changing = assigned | {"messages"}
    for macro in macros:
        free = {each.name for each in _names(macro) if each.ctx == "load"} - _stored(macro)
        if free & (changing | {target, "loop"}):
            return None
    found: set[str] = set()
    for node in loop.body:
        if {each.name for each in _names(node) if each.ctx == "load"} & (changing - {target}):
            return None
        attributes = [each.attr for each in node.find_all(jinja2.nodes.Getattr) if _is_loop(each.node)]
        if len(attributes) != sum(map(_is_loop, _names(node))):
            return None  # it hands on the loop itself
        found |= set(attributes)
    return tuple(sorted(found)) if target and found <= set(_LOOP_KEPT) else None


def _is_loop(node: jinja2.nodes.Node) -> bool:
    return isinstance(node, jinja2.nodes.Name) and node.name == "loop"
