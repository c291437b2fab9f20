"""Requests in any form whose prompt can be known -> what routing needs to know of them.

Chats and completions are read as they are. `/v1/messages` and `/v1/responses` are rewritten as the chat that vLLM makes
of them: one module for each. A request that cannot be rewritten for certain is opaque, with the reason.
"""

from __future__ import annotations

import msgspec

from warmroute.core import openai
from warmroute.core.forms import messages, responses
from warmroute.core.openai import RoutingRequest
from warmroute.errors import TokenizeError

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"

_CONVERTERS = {MESSAGES: messages.convert, RESPONSES: responses.convert}

PATHS = frozenset({"/v1/chat/completions", "/v1/completions", *_CONVERTERS})
"""Paths whose requests can be read."""


def parse(path: str, body: bytes) -> RoutingRequest | None:
    """Read a request to one of PATHS. Raises ClientError (400) for what no engine could take.

    None: it names no model, in a form of which engines say better what is wrong with it.
    """
    convert = _CONVERTERS.get(path)
    if convert is None:
        return openai.parse(path, body)
    request = openai.outline(path, body)
    if request is None:
        return None
    try:
        chat = convert(body)
        made = chat.body(request.model)
    except TokenizeError as error:
        return msgspec.structs.replace(request, opaque=error.reason)
    except (ValueError, RecursionError):  # the engine will refuse it, or reads it otherwise than we do
        return msgspec.structs.replace(request, opaque="form")
    return msgspec.structs.replace(
        request, body=made, shape=chat.shape, questions=tuple(chat.questions), raw_calls=path == RESPONSES
    )
