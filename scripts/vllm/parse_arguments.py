#!/usr/bin/env python3
"""What real vLLM makes of `vllm serve` arguments: the judge of every deployment that is written or patched.

    VLLM/bin/python parse_arguments.py < lists.json     a JSON list of argument lists in, a JSON list of answers out

Runs in vLLM's own environment. An answer is {"error": "..."} or {"values": {...}} with what the parser understood, its
KV events' configuration as the engine would see it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from typing import Any

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

SHOWN = ("model_tag", "served_model_name", "host", "port", "data_parallel_size", "enable_prompt_tokens_details")
MORE = ("enable_prefix_caching", "enable_lora", "max_loras", "max_model_len")


def understood(parser: FlexibleArgumentParser, arguments: list[str]) -> dict[str, Any]:
    """One answer."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = parser.parse_args(["serve", *arguments])
    except SystemExit:
        return {"error": said.getvalue().strip().splitlines()[-1]}
    values = {name: getattr(parsed, name) for name in SHOWN + MORE}
    events = parsed.kv_events_config
    values["kv_events_config"] = dataclasses.asdict(events) if dataclasses.is_dataclass(events) else events
    values["lora_modules"] = [f"{each.name}={each.path}" for each in parsed.lora_modules or ()]
    return {"values": values}


if __name__ == "__main__":
    vllm = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(vllm.add_subparsers(required=True))
    json.dump([understood(vllm, arguments) for arguments in json.load(sys.stdin)], sys.stdout, default=str)
