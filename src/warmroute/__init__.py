"""Warmroute routes every LLM request to the engine whose KV cache is already warm for it.

As a library: build a `Router` over a `make_index()`, feed the index with decoded event batches, and `pick`.
"""

from __future__ import annotations

__version__ = "0.1.0"
