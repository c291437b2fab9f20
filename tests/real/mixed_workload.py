"""Requests like users send them, one at a time: what comes next depends on what was answered before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from openai_client import CHAT, COMPLETIONS, Answer, Client, Json
from prompts import TOOLS, Prompts

TALK_TURNS_MAX = 6


@dataclass(frozen=True, slots=True)
class Step:
    """One request and what came of it."""

    kind: str
    path: str
    body: Json
    answer: Answer

    @property
    def exact(self) -> bool:
        """Whether the engine reported what the gateway predicted."""
        return self.answer.predicted == self.answer.reported

    def __str__(self) -> str:
        seen = self.answer
        return (
            f"{self.kind}: predicted {seen.predicted}, {seen.worker} reported {seen.reported} of {seen.prompt_tokens}"
        )


class Mixed:
    """Seeded: shared system prompts, conversations that grow, documents, token ids, block multiples, tools."""

    def __init__(self, seed: int, block_size: int) -> None:
        self._prompts = Prompts(seed)
        self._random = self._prompts.random
        self._block_size = block_size
        self._systems = [self._prompts.text(self._random.randrange(30, 110)) for _ in range(4)]
        self._talks = [self._new_talk() for _ in range(5)]
        self._documents = [self._prompts.text(self._random.randrange(40, 200)) for _ in range(3)]
        self._ids = [self._prompts.token_ids(block_size * 9) for _ in range(3)]

    async def run(self, client: Client, count: int) -> AsyncIterator[Step]:
        """Send so many requests, one after the other."""
        makers = [self._question, self._talk, self._talk, self._document, self._block_edge, self._tools, self._odd]
        for _ in range(count):
            maker = self._random.choice(makers)
            body = maker()
            path = CHAT if "messages" in body else COMPLETIONS
            body |= {"max_tokens": self._random.choice((1, 2, 8, 16, 40)), "stream": self._random.random() < 0.3}
            answer = await client.ask(path, body)
            assert answer.status == 200, answer
            if maker == self._talk:
                said = {"role": "assistant", "content": answer.text}
                body["messages"] += [said, {"role": "user", "content": self._prompts.text(8)}]
            yield Step(maker.__name__.strip("_"), path, body, answer)

    def _new_talk(self) -> list[Json]:
        return self._prompts.chat(self._random.choice(self._systems), self._random.randrange(5, 30))

    def _question(self) -> Json:
        return {"messages": self._new_talk()}

    def _talk(self) -> Json:
        place = self._random.randrange(len(self._talks))
        if len(self._talks[place]) > 2 * TALK_TURNS_MAX:
            self._talks[place] = self._new_talk()
        return {"messages": self._talks[place]}

    def _document(self) -> Json:
        return {"prompt": f"{self._random.choice(self._documents)}\n\n{self._prompts.text(6)}"}

    def _block_edge(self) -> Json:
        ids = self._random.choice(self._ids)
        cut = self._block_size * self._random.randrange(1, 9) + self._random.choice((-1, 0, 0, 1))
        return {"prompt": ids[:cut]}

    def _tools(self) -> Json:
        messages = [*self._prompts.chat(self._systems[0], 6), *self._prompts.tool_turn()]
        return {"messages": [*messages, {"role": "user", "content": "Go on."}], "tools": TOOLS}

    def _odd(self) -> Json:
        """Short prompts, odd characters, lists of parts."""
        parts = [{"type": "text", "text": self._prompts.unicode_text(30)}, {"type": "text", "text": "and?"}]
        return self._random.choice(
            (
                {"prompt": self._prompts.token_ids(self._random.randrange(1, 12))},
                {"prompt": self._prompts.unicode_text(60)},
                {"messages": [{"role": "system", "content": self._systems[1]}, {"role": "user", "content": parts}]},
            )
        )
