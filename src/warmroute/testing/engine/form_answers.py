"""Generated tokens -> answers in the forms of `/v1/messages` and `/v1/responses`, as vLLM writes them.

Text only: what is generated is never read as thoughts or calls. Usage is where a router looks for it.
"""

from __future__ import annotations

from typing import Any

from warmroute.core.forms import MESSAGES, RESPONSES
from warmroute.testing.engine.answers import Answer
from warmroute.testing.engine.process import Token

Json = dict[str, Any]


class MessagesAnswer(Answer):
    """As Anthropic's API has it: a stream of typed events, and what was cached counted apart."""

    done = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    def add(self, token: Token) -> Json:
        """Take the next token; the event that a stream sends for it."""
        delta = super().add(token)["choices"][0]["delta"]
        return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": delta["content"]}}

    def opening(self) -> list[Json]:
        """The events that a stream sends before any token."""
        message = self._message([]) | {"usage": {"input_tokens": self._usage()["prompt_tokens"], "output_tokens": 0}}
        block = {"type": "text", "text": ""}
        start = {"type": "content_block_start", "index": 0, "content_block": block}
        return [{"type": "message_start", "message": message}, start]

    def closing(self) -> list[Json]:
        """The events that a stream sends after all tokens."""
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": None}
        stop = {"type": "content_block_stop", "index": 0}
        return [stop, {"type": "message_delta", "delta": delta, "usage": self._counted()}]

    def whole(self) -> Json:
        """The answer to a request that does not stream."""
        content = [{"type": "text", "text": super().whole()["choices"][0]["message"]["content"]}]
        return self._message(content) | {"stop_reason": self._stop_reason(), "usage": self._counted()}

    def _message(self, content: list[Json]) -> Json:
        whole = super().whole()
        return {
            "id": whole["id"],
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": whole["model"],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _stop_reason(self) -> str:
        return "max_tokens" if super().whole()["choices"][0]["finish_reason"] == "length" else "end_turn"

    def _counted(self) -> Json:
        usage = self._usage()
        counted = {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
        if "prompt_tokens_details" in usage:
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            counted |= {"input_tokens": usage["prompt_tokens"] - cached, "cache_read_input_tokens": cached}
        return counted


class ResponsesAnswer(Answer):
    """As OpenAI's newer API has it: a stream of typed events, the last with the whole answer."""

    done = b""

    def add(self, token: Token) -> Json:
        """Take the next token; the event that a stream sends for it."""
        delta = super().add(token)["choices"][0]["delta"]["content"]
        return {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": delta}

    def opening(self) -> list[Json]:
        """The events that a stream sends before any token."""
        return [{"type": "response.created", "response": self._response("in_progress") | {"output": [], "usage": None}}]

    def closing(self) -> list[Json]:
        """The events that a stream sends after all tokens."""
        return [{"type": "response.completed", "response": self.whole()}]

    def whole(self) -> Json:
        """The answer to a request that does not stream."""
        cut = super().whole()["choices"][0]["finish_reason"] == "length"
        return self._response("incomplete" if cut else "completed")

    def _response(self, status: str) -> Json:
        whole, usage = super().whole(), self._usage()
        text = {"type": "output_text", "text": whole["choices"][0]["message"]["content"], "annotations": []}
        message = {"id": f"msg_{whole['id']}", "type": "message", "role": "assistant", "status": status}
        cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        return {
            "id": whole["id"].replace("chatcmpl-", "resp_"),
            "object": "response",
            "created_at": whole["created"],
            "model": whole["model"],
            "status": status,
            "output": [{**message, "content": [text]}],
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }


REWRITTEN: dict[str, type[Answer]] = {MESSAGES: MessagesAnswer, RESPONSES: ResponsesAnswer}
"""Whose answers have a form of their own, by path."""
