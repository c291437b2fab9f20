"""Types of single fields on the wire, shared by the dialects: strict, so that a bool is no int and a float no token."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from msgspec import Meta

_UINT32_MAX = 2**32 - 1

Hashes: TypeAlias = tuple[int | bytes, ...]
Hash: TypeAlias = int | bytes
Tokens: TypeAlias = tuple[Annotated[int, Meta(ge=0, le=_UINT32_MAX)], ...]
BlockSize: TypeAlias = Annotated[int, Meta(ge=1, le=_UINT32_MAX)]
Group: TypeAlias = Annotated[int, Meta(ge=0, le=_UINT32_MAX)]
Window: TypeAlias = Annotated[int, Meta(ge=0, le=_UINT32_MAX)]
ExtraKeysList: TypeAlias = list[list[Any] | None]
"""Per block: null, or a list of names and of [identifier, offset] pairs."""
