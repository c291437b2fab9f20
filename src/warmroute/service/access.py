"""Who may ask for what, decided on a request's head: before its body is read, and before anything else sees it.

Invariant: behind a guard with keys, every request but a health probe comes from a known key; its credentials are taken
out, so that no engine sees them; and `x-warmroute-key` names that key and cannot be forged.
"""

from __future__ import annotations

import re
from collections import Counter
from urllib.parse import unquote_to_bytes

from warmroute.core.keys import Keys
from warmroute.errors import ClientError
from warmroute.service.ports import RequestHead

KEY_HEADER = b"x-warmroute-key"
"""Names the key that a request came with, to ourselves and to the engine."""

_CREDENTIALS = (b"authorization", b"x-api-key", KEY_HEADER)
_PROBES = frozenset({b"/health", b"/ready"})
"""Answered to everybody: load balancers have no keys, and learn nothing else."""

_INFERENCE = frozenset(
    {
        *(b"/health", b"/ready", b"/ping", b"/version", b"/tokenize", b"/detokenize", b"/generate", b"/invocations"),
        *(b"/pooling", b"/classify", b"/score", b"/rerank", b"/v2/rerank", b"/v2/embed", b"/inference/v1/generate"),
    }
)
_PLAIN = re.compile(rb"[A-Za-z0-9_.~@:+,=/ -]+")
_ADMINISTRATION = frozenset({b"/v1/load_lora_adapter", b"/v1/unload_lora_adapter"})


class Access:
    """The port `Guard`. `keys` None: no key is asked for. `inference_only`: operators have a listener of their own."""

    def __init__(self, keys: Keys | None, *, inference_only: bool = False) -> None:
        self.keys = keys
        """Replaced when the file changes."""
        self.refused: Counter[str] = Counter()
        """Why -> requests."""
        self._inference_only = inference_only

    def admit(self, head: RequestHead) -> RequestHead:
        """The request as it goes on. Raises ClientError if it does not."""
        path = head.target.partition(b"?")[0]
        if self._inference_only and not _is_inference(path):
            raise self._refuse("path", 404, "This path is not served here: operators have a listener of their own.")
        if self.keys is None or (path in _PROBES and head.method in (b"GET", b"HEAD")):
            return head
        secret = _secret(head)
        if secret is None:
            message = "You did not provide an API key. Send it in the header `Authorization: Bearer KEY`."
            raise self._refuse("no_key", 401, message, "missing_api_key")
        key = self.keys.find(secret)
        if key is None:
            raise self._refuse("wrong_key", 401, "Incorrect API key provided.", "invalid_api_key")
        return head.replaced(_CREDENTIALS, KEY_HEADER, key.name.encode())

    def _refuse(self, reason: str, status: int, message: str, code: str | None = None) -> ClientError:
        self.refused[reason] += 1
        return ClientError(status, message, code=code)


def _secret(head: RequestHead) -> bytes | None:
    """What the client offers: a bearer token, or the header that Anthropic's clients send."""
    scheme, _, token = (head.header(b"authorization") or b"").partition(b" ")
    if scheme.lower() == b"bearer" and token.strip():
        return token.strip()
    return head.header(b"x-api-key") or None


def _is_inference(path: bytes) -> bool:
    """Whether a path asks an engine to compute, as the engine will read it: percent signs decoded, once.

    What an engine could read in another way than we do, is not.
    """
    path = unquote_to_bytes(path).rstrip(b"/")
    if not _PLAIN.fullmatch(path) or b"//" in path or b"/." in path:
        return False
    return path in _INFERENCE or (path.startswith(b"/v1/") and path not in _ADMINISTRATION)
