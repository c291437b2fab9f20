"""Token ids in process: the model's own tokenizer and chat template, without a round trip.

A chat is rendered as the engines render it (the template language's sandbox, whitespace rules and extra functions are
conventions of the model hubs), then tokenized. Text between two special tokens is tokenized by itself, whatever stands
around it: so the ids of each such segment are kept, and of a conversation that grows only its end is tokenized.

Whether all that equals what the engine does is not believed but compared, by `service.tokens`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import tokenizers

from warmroute.core.conversation import ContentFormat, variables
from warmroute.core.forms.questions import Prompts, answered, asked, settled
from warmroute.core.kept import Kept
from warmroute.core.openai import Fields, RoutingRequest, flag, read_fields
from warmroute.core.words import Words
from warmroute.errors import ConfigError, TokenizeError
from warmroute.service.ports import Rest
from warmroute.types import Endpoint, TokenIds

_log = logging.getLogger(__name__)

INLINE_CHARS_MAX = 6000
"""Longer text is tokenized in a thread: this much takes about a millisecond, which the event loop can spare."""

CACHE_CHARS_MAX = 64 * 1024 * 1024
"""Text whose ids are kept; beyond it the least recently used goes. Together some 150 MB at worst."""

_CONTINUE_MARK = "WARMROUTE_CONTINUES_HERE "
_DICT_ATTRIBUTES = frozenset(dir(dict))
_LOOP_ATTRIBUTES = frozenset(name for name in dir(jinja2.runtime.LoopContext) if not name.startswith("_"))
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class LocalTokenizer:
    """The port `Tokenizer`, from a folder with `tokenizer.json` and the chat template.

    Raises ConfigError if the folder cannot be used.
    """

    def __init__(self, path: str, now: Callable[[], datetime] = lambda: datetime.now().astimezone()) -> None:
        folder = Path(path)
        self._encoder = _Encoder(folder / "tokenizer.json")
        self._templates = _Templates(folder, now)
        self._answers: dict[str, Prompts] = {}

    async def tokens(self, request: RoutingRequest, endpoint: Endpoint) -> TokenIds:  # noqa: ARG002 - the port's
        """Token ids of the request's prompt. Raises TokenizeError."""
        begun = self.begin(request)
        return await begun() if callable(begun) else begun

    def begin(self, request: RoutingRequest) -> TokenIds | Rest:
        """The same, or what brings it if so much of the prompt is new that it is for a thread. Raises TokenizeError."""
        return self._encoder.begin(*self._text(request))

    def _text(self, request: RoutingRequest) -> tuple[str, bool]:
        """The prompt, and whether it is to have the tokens that the tokenizer puts around every text."""
        if request.questions:
            request = settled(request, {name: self._answer(name) for name in request.questions})
        fields = read_fields(request.body)
        if request.chat:
            return self._templates.render(fields, raw_calls=request.raw_calls), flag(fields.add_special_tokens)
        if request.prompt is None:
            raise TokenizeError("prompt_form", "the prompt is neither text nor token ids")
        return request.prompt, flag(fields.add_special_tokens, default=True)

    def _answer(self, question: str) -> Prompts:
        """What the template makes of a question's chats."""
        if question not in self._answers:
            prompts = [self._templates.attempt(each.body) for each in asked(question, "")]
            self._answers[question] = answered(prompts)
        return self._answers[question]

    def close(self) -> None:
        """Release the threads."""
        self._encoder.close()


class _Encoder:
    """Text -> ids, segment by segment, with those of known segments kept."""

    def __init__(self, path: Path) -> None:
        try:
            described = json.loads(path.read_bytes())
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise ConfigError(
                "tokenizer.path", f"{path} cannot be loaded ({error})", "Name a folder with the model's tokenizer.json"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = _segment_bounds(described)
        added = (token["content"] for token in described.get("added_tokens") or ())
        ids: dict[str, Any] = {content: self._tokenizer.token_to_id(content) for content in added}
        self._bounds = {content: array("I", [token]).tobytes() for content, token in ids.items()}
        self._words = Words.of(described, self._word_ids)
        self._kept = Kept(CACHE_CHARS_MAX)
        self._surrounds = self._encode_all(["a"], special=True) != self._encode_all(["a"], special=False)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenize")

    def begin(self, text: str, special: bool) -> TokenIds | Rest:
        """Ids of a text, or what brings them if more than `INLINE_CHARS_MAX` of it are new.

        `special`: with those that the tokenizer puts around every text.
        """
        special = special and self._surrounds
        if special or self._special is None:
            if len(text) <= INLINE_CHARS_MAX:
                return array("I", self._encode_all([text], special)[0])
            return partial(self._encode_later, text, special)
        pieces = self._special.split(text)  # segments, with the special tokens between them
        segments = self._kept.all(pieces[::2])
        if segments is not None:
            return self._join(pieces, segments)
        known, missing = self._kept.look(pieces[::2])
        if sum(map(len, missing)) > INLINE_CHARS_MAX:
            return partial(self._keep_later, pieces, known, missing)
        return self._keep(pieces, known, {piece: self._encode(piece) for piece in missing})

    async def _encode_later(self, text: str, special: bool) -> TokenIds:
        return array("I", (await self._in_thread([text], special))[0])

    async def _keep_later(self, pieces: list[str], known: dict[str, bytes], missing: list[str]) -> TokenIds:
        fresh = await self._in_thread(missing, special=False)
        return self._keep(pieces, known, dict(zip(missing, fresh, strict=True)))

    def _keep(self, pieces: list[str], known: dict[str, bytes], fresh: dict[str, bytes]) -> TokenIds:
        for piece, ids in fresh.items():
            self._kept.keep(piece, ids)
        known |= fresh
        return self._join(pieces, [known[piece] for piece in pieces[::2]])

    def _join(self, pieces: list[str], segments: list[bytes]) -> TokenIds:
        parts = [b""] * len(pieces)
        parts[::2] = segments
        parts[1::2] = [self._bounds[special] for special in pieces[1::2]]
        ids = array("I")
        ids.frombytes(b"".join(parts))
        return ids

    async def _in_thread(self, texts: list[str], special: bool) -> list[bytes]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._encode_all, texts, special)

    def _encode(self, text: str) -> bytes:
        """A segment's ids, by its words if they are known."""
        ids = None if self._words is None else self._words.ids(text)
        if self._words is not None and self._words.mistaken:
            _log.warning("the tokenizer cuts words in another way than its file says; all is left to it from now on")
            self._words = None
        return self._encode_all([text], special=False)[0] if ids is None else ids

    def _encode_all(self, texts: list[str], special: bool) -> list[bytes]:
        encode = self._tokenizer.encode_batch_fast  # leaves out the offsets
        try:
            return [array("I", encode([text], add_special_tokens=special)[0].ids).tobytes() for text in texts]
        except Exception as error:  # the library raises bare Exceptions, and refuses lone surrogates
            raise TokenizeError("unsupported", f"the tokenizer failed: {error}") from error

    def _word_ids(self, text: str) -> tuple[list[int], list[int | None]]:
        found = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        return found.ids, found.word_ids

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _segment_bounds(described: dict[str, Any]) -> re.Pattern[str] | None:
    """A pattern for the tokens that cut a text into independent segments; None if this tokenizer has no such rule."""
    added = described.get("added_tokens") or []
    looks_around = any(token[key] for token in added for key in ("lstrip", "rstrip", "single_word", "normalized"))
    if not added or looks_around or '"prepend_scheme": "first"' in json.dumps(described.get("pre_tokenizer")):
        return None
    longest_first = sorted((token["content"] for token in added), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what the model said, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - as the library declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The engines' sandbox: what templates ask for most is found at once, not by two exceptions or four checks."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox has it: a dict's own attribute, else its item, else undefined."""
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is jinja2.runtime.LoopContext and attribute in _LOOP_ATTRIBUTES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


class _Templates:
    """A model's chat templates: the default one, and perhaps one for requests with tools."""

    def __init__(self, folder: Path, now: Callable[[], datetime]) -> None:
        config = _read_json(folder / "tokenizer_config.json")
        self._special = _special_tokens({**_read_json(folder / "special_tokens_map.json"), **config})
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        self._by_name: dict[str, tuple[jinja2.Template, ContentFormat]] = {}
        for name, source in _sources(folder, config).items():
            try:
                template = environment.from_string(source)
                template.globals = dict(template.globals)  # else a chain of maps, walked for every prompt
                self._by_name[name] = template, content_format(environment.parse(source))
            except jinja2.TemplateSyntaxError as error:
                raise ConfigError(
                    "tokenizer.path", f"the chat template {name!r} in {folder} is not valid ({error})", "Repair it"
                ) from error

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
        with_tools = bytes(fields.tools) not in (b"", b"null") and "tool_use" in self._by_name
        found = self._by_name.get("tool_use" if with_tools else "default")
        if found is None:
            raise TokenizeError("unsupported", "the tokenizer's folder has no chat template")
        template, form = found
        seen = {**self._special, **variables(fields, form, raw_calls=raw_calls)}
        continues = flag(fields.continue_final_message)
        if continues and seen["add_generation_prompt"]:
            raise TokenizeError("refused", "continue_final_message and add_generation_prompt exclude each other")
        if continues:
            _mark_end(seen["messages"][-1])
        try:
            text = template.render(seen)
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
