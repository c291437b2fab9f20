"""Chat templates, rendered as the engines render them.

The template language's sandbox, whitespace rules and extra functions are conventions of the model hubs. A template is a
program that came with a model: whatever it raises is the request's refusal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from warmroute.core.conversation import ContentFormat, Variables, variables
from warmroute.core.openai import Fields, flag, read_fields
from warmroute.errors import ConfigError, TokenizeError

_CONTINUE_MARK = "WARMROUTE_CONTINUES_HERE "
_DICT_ATTRIBUTES = frozenset(dir(dict))
_LOOP_ATTRIBUTES = frozenset(name for name in dir(jinja2.runtime.LoopContext) if not name.startswith("_"))
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what the model said, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - as the library declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The engines' sandbox: what templates ask for most is found at once, not by two exceptions or four checks."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox has it: a dict's own attribute, else its item, else undefined."""
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is jinja2.runtime.LoopContext and attribute in _LOOP_ATTRIBUTES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


class Chat(NamedTuple):
    """One chat template."""

    template: jinja2.Template
    form: ContentFormat
    source: str


class Templates:
    """A model's chat templates: the default one, and perhaps one for requests with tools."""

    def __init__(self, folder: Path, now: Callable[[], datetime]) -> None:
        config = _read_json(folder / "tokenizer_config.json")
        self.special: Variables = _special_tokens({**_read_json(folder / "special_tokens_map.json"), **config})
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        self.environment = environment
        self.by_name: dict[str, Chat] = {}
        for name, source in _sources(folder, config).items():
            try:
                template = environment.from_string(source)
                template.globals = dict(template.globals)  # else a chain of maps, walked for every prompt
                self.by_name[name] = Chat(template, content_format(environment.parse(source)), source)
            except jinja2.TemplateSyntaxError as error:
                raise ConfigError(
                    "tokenizer.path", f"the chat template {name!r} in {folder} is not valid ({error})", "Repair it"
                ) from error

    def name(self, fields: Fields) -> str:
        """Which template a chat is rendered by."""
        with_tools = bytes(fields.tools) not in (b"", b"null") and "tool_use" in self.by_name
        return "tool_use" if with_tools else "default"

    def attempt(self, body: bytes) -> str | None:
        """A chat's prompt; None if the template refuses it."""
        try:
            return self.render(read_fields(body))
        except TokenizeError as error:
            if error.reason == "refused":
                return None
            raise

    def render(self, fields: Fields, *, raw_calls: bool = False) -> str:
        """A chat's prompt; `raw_calls` as `core.conversation` has it. Raises TokenizeError."""
        found = self.by_name.get(self.name(fields))
        if found is None:
            raise TokenizeError("unsupported", "the tokenizer's folder has no chat template")
        seen = {**self.special, **variables(fields, found.form, raw_calls=raw_calls)}
        continues = flag(fields.continue_final_message)
        if continues and seen["add_generation_prompt"]:
            raise TokenizeError("refused", "continue_final_message and add_generation_prompt exclude each other")
        if continues:
            _mark_end(seen["messages"][-1])
        try:
            text = found.template.render(seen)
        except Exception as error:  # a template is a program: it may raise anything
            raise TokenizeError("refused", f"the chat template raised {error!r}") from error
        return _cut_at_mark(text) if continues else text


def content_format(template: jinja2.nodes.Template) -> ContentFormat:
    """Whether a template loops over a message's content, and so wants it as parts: the engines' own criterion."""
    loops = list(template.find_all(jinja2.nodes.For))
    assignments = list(template.find_all(jinja2.nodes.Assign))
    messages = {"messages"}
    for _ in assignments:  # each round follows one more link of a chain of assignments
        messages |= {_target(node) for node in assignments if _names(node.node, messages)}
    each = {_target(loop) for loop in loops if _names(loop.iter, messages)}
    in_macros = [
        (_content_parameters(macro, template, each), list(macro.find_all(jinja2.nodes.For)))
        for macro in template.find_all(jinja2.nodes.Macro)
    ]
    inside = {id(loop) for _, inner in in_macros for loop in inner}
    over_content = {"content"}, [loop for loop in loops if id(loop) not in inside]
    if any(_is_content(loop.iter, each) for loop in loops):
        return "parts"
    return (
        "parts"
        if any(_names(loop.iter, names) for names, some in (over_content, *in_macros) for loop in some)
        else "string"
    )


def _content_parameters(macro: jinja2.nodes.Macro, template: jinja2.nodes.Template, messages: set[str]) -> set[str]:
    """Names of a macro's parameters that are given a message's content somewhere."""
    names = [str(parameter.name) for parameter in macro.args]
    found = set()
    for call in template.find_all(jinja2.nodes.Call):
        if _names(call.node, {macro.name}):
            found |= {name for name, value in zip(names, call.args, strict=False) if _is_content(value, messages)}
            found |= {pair.key for pair in call.kwargs if _is_content(pair.value, messages)}
    return found & set(names)


def _target(node: Any) -> str:
    return node.target.name if isinstance(node.target, jinja2.nodes.Name) else ""


def _bare(node: Any) -> Any:
    """An expression without filters, tests and slices around it."""
    while isinstance(node, jinja2.nodes.Filter | jinja2.nodes.Test) or (
        isinstance(node, jinja2.nodes.Getitem) and isinstance(node.arg, jinja2.nodes.Slice)
    ):
        node = node.node
    return node


def _names(node: Any, names: Iterable[str]) -> bool:
    node = _bare(node)
    return isinstance(node, jinja2.nodes.Name) and node.name in names


def _is_content(node: Any, messages: Iterable[str]) -> bool:
    node = _bare(node)
    if isinstance(node, jinja2.nodes.Getitem):
        key = node.arg.value if isinstance(node.arg, jinja2.nodes.Const) else None
    else:
        key = node.attr if isinstance(node, jinja2.nodes.Getattr) else None
    return key == "content" and _names(node.node, messages)


def _mark_end(message: dict[str, Any]) -> None:
    if isinstance(message["content"], str):
        message["content"] += _CONTINUE_MARK
    elif message["content"]:
        message["content"][-1]["text"] += _CONTINUE_MARK
    else:
        raise TokenizeError("refused", "continue_final_message: the last message has no text")


def _cut_at_mark(text: str) -> str:
    """The text up to the mark; a template that trims the content has trimmed its end there, too."""
    at = text.rfind(_CONTINUE_MARK.rstrip())
    if at < 0:
        raise TokenizeError("refused", "continue_final_message: the template drops the last message's end")
    return text[:at] if text.startswith(_CONTINUE_MARK, at) else text[:at].rstrip()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The template language's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)


def _sources(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates by name; a file of its own comes before the configuration's."""
    configured = config.get("chat_template")
    if isinstance(configured, list):
        sources = {entry["name"]: entry["template"] for entry in configured}
    else:
        sources = {"default": configured} if isinstance(configured, str) else {}
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        sources[file.stem] = file.read_text(encoding="utf-8")
    own = folder / "chat_template.jinja"
    return sources | ({"default": own.read_text(encoding="utf-8")} if own.is_file() else {})


def _special_tokens(config: dict[str, Any]) -> dict[str, Any]:
    """Named special tokens, as templates see them: their text."""
    texts = {name: _token_text(config[name]) for name in _SPECIAL_NAMES if config.get(name) is not None}
    more = config.get("additional_special_tokens")
    return texts | ({"additional_special_tokens": [_token_text(token) for token in more]} if more else {})


def _token_text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError("tokenizer.path", f"{path} is not JSON ({error})", "Repair it") from error
    return found if isinstance(found, dict) else {}
