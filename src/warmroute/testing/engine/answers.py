"""Generated tokens -> answers in OpenAI's form, as vLLM writes them.

One Answer per request; it sees every token once, in order, whether the client streams or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from warmroute.testing.engine.process import Generation, Token
from warmroute.testing.engine.requests import Body
from warmroute.testing.engine.tokenizer import TextStream

DONE = b"data: [DONE]\n\n"


def server_sent(chunk: dict[str, Any]) -> bytes:
    """One server-sent event; one with a type is named by it."""
    name = f"event: {chunk['type']}\n".encode() if "type" in chunk else b""
    return name + b"data: " + msgspec.json.encode(chunk) + b"\n\n"


@dataclass(slots=True)
class _Choice:
    text: TextStream = field(default_factory=TextStream)
    parts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)


class Answer:
    """What has been generated for one request."""

    done = DONE
    """What a stream ends with."""

    def __init__(
        self, body: Body, generation: Generation, *, chat: bool, request_id: str, now: float, details: bool = True
    ) -> None:
        self._details = details
        self._body = body
        self._generation = generation
        self._chat = chat
        kind = "chat.completion" if chat else "text_completion"
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}", "object": kind, "created": int(now)}
        self._choices = [_Choice() for _ in range(len(generation.prompts) * generation.copies)]
        self._cached_tokens = 0
        self._lies = False
        self._finish = "length" if body.max_tokens or body.max_completion_tokens or not chat else "stop"

    def misreport(self) -> None:
        """Claim that nothing was cached, whatever was."""
        self._lies = True

    def named(self, model: str) -> Answer:
        """The same, saying that `model` answered."""
        self._head["model"] = model
        return self

    def add(self, token: Token) -> dict[str, Any]:
        """Take the next token; the chunk that a stream sends for it."""
        choice = self._choices[token.sequence]
        text = choice.text.push(token.id)
        choice.parts.append(text)
        choice.token_ids.append(token.id)
        if token.sequence == len(self._choices) - 1:  # vLLM reports the last prompt's last answer
            self._cached_tokens = token.cached_tokens
        ids = {"token_ids": [token.id]} if self._body.return_token_ids else {}
        finish = self._finish if token.last else None
        content = {"delta": {"content": text}} if self._chat else {"text": text}
        shown = {"index": token.sequence, **content, "logprobs": None, "finish_reason": finish, **ids}
        if not self._chat and self._body.return_token_ids and len(choice.token_ids) == 1:
            shown["prompt_token_ids"] = self._prompt_of(token.sequence)
        if token.last:
            shown["stop_reason"] = None
        return self._chunk([shown])

    def opening(self) -> list[dict[str, Any]]:
        """The chunks that a stream sends before any token."""
        if not self._chat:
            return []
        delta = {"role": "assistant", "content": ""}
        chunks = [
            self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
            for index in range(len(self._choices))
        ]
        if self._body.return_token_ids:
            chunks[0]["prompt_token_ids"] = self._prompt_of(0)
        return chunks

    def closing(self) -> list[dict[str, Any]]:
        """The chunks that a stream sends after all tokens."""
        return [self._chunk([]) | {"usage": self._usage()}] if self._body.include_usage else []

    def whole(self) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        answer = {**self._head, "choices": [self._choice(number) for number in range(len(self._choices))]}
        if self._chat and self._body.return_token_ids:
            answer["prompt_token_ids"] = self._prompt_of(0)
        return {**answer, "usage": self._usage(), "kv_transfer_params": None}

    def _choice(self, number: int) -> dict[str, Any]:
        choice = self._choices[number]
        text = "".join(choice.parts)
        content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        shown: dict[str, Any] = {
            "index": number,
            **content,
            "logprobs": None,
            "finish_reason": self._finish,
            "stop_reason": None,
        }
        if self._body.return_token_ids:
            shown["token_ids"] = choice.token_ids
            if not self._chat:
                shown["prompt_token_ids"] = self._prompt_of(number)
        return shown

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices}

    def _prompt_of(self, number: int) -> list[int]:
        return list(self._generation.prompts[number // self._generation.copies])

    def _usage(self) -> dict[str, Any]:
        prompt = sum(map(len, self._generation.prompts))
        completion = sum(len(choice.token_ids) for choice in self._choices)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
        }
        if self._details:
            usage["prompt_tokens_details"] = {"cached_tokens": 0 if self._lies else self._cached_tokens}
        return usage
