"""Random bodies of `/v1/messages` and `/v1/responses` that can be rewritten as chats, odd corners included."""

from __future__ import annotations

import json
from typing import Any

from prompts import Prompts

Json = dict[str, Any]

_ARGUMENTS: tuple[Json, ...] = (
    {},
    {"n": 1, "x": 1.0, "big": 12345678901234567890123, "tiny": 1e-7, "zero": -0.0, "yes": True, "no": None},
    {"b": {"z": 1, "a": [1, {"y": 2}]}, "a": "é\u2028<&"},
)
_SCHEMAS: tuple[Json, ...] = (
    {"type": "object", "properties": {"z": {"type": "number", "default": 0.50}}},
    {"properties": {}},
    {},
)


_THINKING: tuple[Json, ...] = (
    {"type": "adaptive"},
    {"type": "enabled", "budget_tokens": 1024},
    {"type": "disabled"},
)


class Bodies:
    """A seeded source of bodies."""

    def __init__(self, seed: int) -> None:
        self._prompts = Prompts(seed)
        self._random = self._prompts.random
        self._calls = 0

    def messages(self) -> Json:
        """One of `/v1/messages`."""
        turns: list[Json] = []
        system = self._maybe(0.4, "system", self._system)
        if not system and self._chance(0.3):
            turns.append({"role": "system", "content": self._choose([self._words(), [self._text(), self._text()]])})
        for _ in range(self._random.randint(1, 4)):
            turns += [self._user()] if self._chance(0.5) else self._exchange()
            turns += [{"role": "system", "content": self._words()}] if self._chance(0.2) else []
        return {
            "model": "tiny",
            "max_tokens": 2000,
            "messages": turns or [self._user()],
            **system,
            **self._maybe(0.4, "tools", lambda: [self._tool("input_schema"), self._tool("input_schema")]),
            **self._maybe(0.2, "output_config", lambda: self._choose([{"effort": "high"}, {"effort": None}, {}])),
            **self._maybe(0.3, "thinking", lambda: self._choose(_THINKING)),
            **self._template_arguments(),
        }

    def responses(self) -> Json:
        """One of `/v1/responses`."""
        items = [self._item() for _ in range(self._random.randint(1, 8))]
        return {
            "model": "tiny",
            "max_output_tokens": 2,
            "input": self._words() if self._chance(0.2) else items,
            **self._maybe(0.3, "instructions", self._words),
            **self._maybe(0.4, "tools", self._tools),
            **self._maybe(0.2, "reasoning", lambda: self._choose([{"effort": "high"}, {"effort": "none"}, {}])),
            **self._maybe(0.2, "store", lambda: False),
            **self._maybe(0.2, "truncation", lambda: "disabled"),
            **self._template_arguments(),
        }

    def _tools(self) -> list[Json]:
        others = [{"type": "web_search_preview"}, {"type": "code_interpreter", "container": {"type": "auto"}}]
        function = {"type": "function", **self._tool("parameters")}
        return self._choose([[function], [function, function], [function, self._choose(others)], others])

    def _item(self) -> Json:
        kinds = (self._easy, self._in_parts, self._answer, self._thought, self._call, self._output)
        return self._choose(kinds)()

    def _easy(self) -> Json:
        role = self._choose(["user", "assistant", "system", "developer"])
        return {"role": role, "content": self._words(), **self._maybe(0.5, "type", lambda: "message")}

    def _in_parts(self) -> Json:
        content = [self._part() for _ in range(self._random.randint(1, 3))]
        return {"role": "user", "content": content, **self._maybe(0.3, "status", lambda: "completed")}

    def _answer(self) -> Json:
        content = [self._part("output_text") for _ in range(self._random.randint(1, 2))]
        more = self._maybe(0.5, "status", lambda: self._choose(["completed", "incomplete"]))
        return {"type": "message", "role": "assistant", "content": content, **more}

    def _thought(self) -> Json:
        told = self._choose([{"content": [self._part("reasoning_text")]}, {"content": None}, {}])
        return {"type": "reasoning", "summary": self._choose([[], [self._part("summary_text")]]), **told}

    def _call(self) -> Json:
        self._calls += 1
        arguments = self._choose([json.dumps(self._choose(_ARGUMENTS)), "", "[]", "{bad"])
        more = self._maybe(0.3, "status", lambda: "completed")
        return {"type": "function_call", "call_id": f"c{self._calls}", "name": "f", "arguments": arguments, **more}

    def _output(self) -> Json:
        output = self._choose([self._words(), [self._part(), self._part()]])
        return {"type": "function_call_output", "call_id": f"c{self._calls}", "output": output}

    def _exchange(self) -> list[Json]:
        """What an assistant says and does, and what its calls bring."""
        blocks: list[Json] = []
        results: list[Json] = []
        if self._chance(0.4):
            blocks.append({"type": "thinking", "thinking": self._words(), "signature": "s"})
        if self._chance(0.1):
            blocks.append({"type": "redacted_thinking", "data": "s"})
        if self._chance(0.7):
            blocks.append(self._text())
        for _ in range(self._choose([0, 0, 1, 2])):
            self._calls += 1
            name = f"toolu_{self._calls}"
            blocks.append({"type": "tool_use", "id": name, "name": "f", "input": self._choose(_ARGUMENTS)})
            content = self._choose([{"content": self._words()}, {"content": [self._text(), self._text()]}, {}])
            results.append({"type": "tool_result", "tool_use_id": name, **content})
        if results and self._chance(0.5):
            results.append(self._text())
        said = {"role": "assistant", "content": blocks or self._words()}
        return [said, {"role": "user", "content": results}] if results else [said]

    def _user(self) -> Json:
        texts = [self._text() for _ in range(self._random.randint(1, 3))]
        return {"role": "user", "content": self._choose([self._words(), texts])}

    def _system(self) -> str | list[Json]:
        header = {"type": "text", "text": "x-anthropic-billing-header: cch=1;"}
        return self._choose([self._words(), [self._text(), self._text()], [header, self._text()]])

    def _tool(self, schema: str) -> Json:
        more = {**self._maybe(0.5, "description", self._words), **self._maybe(0.3, "strict", lambda: self._chance(0.5))}
        return {"name": self._choose(["f", "g"]), schema: self._choose(_SCHEMAS), **more}

    def _template_arguments(self) -> Json:
        return self._maybe(0.2, "chat_template_kwargs", lambda: self._choose([{"enable_thinking": False}, {}]))

    def _text(self) -> Json:
        return {"type": "text", "text": self._words(), **self._maybe(0.2, "cache_control", lambda: None)}

    def _part(self, kind: str = "input_text") -> Json:
        return {"type": kind, "text": self._words()}

    def _words(self) -> str:
        some = (self._prompts.text(3), self._prompts.unicode_text(3), "", " x\n", "<|im_end|> <b> & 'é'")
        return self._choose(some)

    def _choose(self, among: Any) -> Any:
        return self._random.choice(among)

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _maybe(self, share: float, name: str, value: Any) -> Json:
        return {name: value()} if self._chance(share) else {}
