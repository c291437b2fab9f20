"""Draw the stream's states from its table, as a Mermaid diagram; `draw.py PAGE` puts it into PAGE between its marks."""

from __future__ import annotations

import sys
from pathlib import Path

from warmroute.core.stream_states import TRANSITIONS

BEGIN, END = "<!-- states: scripts/sim/draw.py docs/events.md -->\n", "<!-- end of states -->\n"


def drawing() -> str:
    moves = [
        f"    {state} --> {target}: {cause}"
        for state, causes in TRANSITIONS.items()
        for cause, target in causes.items()
    ]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> connecting", *moves, "```", ""])


def with_drawing(page: str) -> str:
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + drawing() + END + tail


if __name__ == "__main__":
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.write_text(with_drawing(path.read_text()))
    else:
        print(drawing())
