"""Token ids in process: the model's own tokenizer and chat template, without a round trip.

A chat is rendered as the engines render it, then tokenized. Text between two special tokens is tokenized by itself,
whatever stands around it: so the ids of each such segment are kept, and of a conversation that grows only its end is
tokenized. Where the template is a loop over the messages that treats each by itself, the ids of each message are kept
too, and only the new ones are rendered (`turns.py`).

Whether all that equals what the engine does is not believed but compared, by `service.tokens`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from warmroute.core.forms.questions import Prompts, answered, asked, settled
from warmroute.core.openai import RoutingRequest, flag, read_fields
from warmroute.edge.tokenizer_local.encoder import Encoder
from warmroute.edge.tokenizer_local.templates import Templates, content_format
from warmroute.edge.tokenizer_local.turns import Turns
from warmroute.errors import TokenizeError
from warmroute.service.ports import Rest
from warmroute.types import Endpoint, TokenIds

__all__ = ["LocalTokenizer", "content_format"]


class LocalTokenizer:
    """The port `Tokenizer`, from a folder with `tokenizer.json` and the chat template.

    Raises ConfigError if the folder cannot be used.
    """

    def __init__(self, path: str, now: Callable[[], datetime] = lambda: datetime.now().astimezone()) -> None:
        folder = Path(path)
        self._encoder = Encoder(folder / "tokenizer.json")
        self._templates = Templates(folder, now)
        self.given_up = self._encoder.given_up
        self._turns = Turns(self._encoder, self._templates)
        self._answers: dict[str, Prompts] = {}

    async def tokens(self, request: RoutingRequest, endpoint: Endpoint) -> TokenIds:  # noqa: ARG002 - the port's
        """Token ids of the request's prompt. Raises TokenizeError."""
        begun = self.begin(request)
        return await begun() if callable(begun) else begun

    def begin(self, request: RoutingRequest) -> TokenIds | Rest:
        """The same, or what brings it if so much of the prompt is new that it is for a thread. Raises TokenizeError."""
        if request.questions:
            request = settled(request, {name: self._answer(name) for name in request.questions})
        fields = read_fields(request.body) if request.fields is None else request.fields
        if not request.chat:
            if request.prompt is None:
                raise TokenizeError("prompt_form", "the prompt is neither text nor token ids")
            return self._encoder.begin(request.prompt, flag(fields.add_special_tokens, default=True))
        known = self._turns.ids(fields, request.raw_calls)
        if known is None:
            text = self._templates.render(fields, raw_calls=request.raw_calls)
            return self._encoder.begin(text, flag(fields.add_special_tokens))
        ids = array("I")
        ids.frombytes(known)
        return ids

    def _answer(self, question: str) -> Prompts:
        """What the template makes of a question's chats."""
        if question not in self._answers:
            prompts = [self._templates.attempt(each.body) for each in asked(question, "")]
            self._answers[question] = answered(prompts)
        return self._answers[question]

    def close(self) -> None:
        """Release the threads."""
        self._encoder.close()
