"""The tokenizer in process, where the configuration wants one."""

from __future__ import annotations

from warmroute.config.tree import TokenizerConfig
from warmroute.service.ports import Tokenizer


def local_tokenizer(config: TokenizerConfig) -> Tokenizer | None:
    """None: the engines make the token ids, or nobody. Raises ConfigError if its files cannot be used."""
    if config.path is None or config.mode in ("off", "remote"):
        return None
    from warmroute.edge.tokenizer_local import LocalTokenizer  # noqa: PLC0415 - costs memory that others need not pay

    return LocalTokenizer(config.path)
