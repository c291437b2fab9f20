"""Freeing what cleared and dropped workers held, some at a time: a million blocks at once would hold up the loop.

Invariant: nobody's answer depends on when this runs; the index has forgotten it all before.
"""

from __future__ import annotations

import asyncio

from warmroute.core.index.contract import PrefixIndex

SWEEP_BLOCKS = 500
"""At once: less than a tenth of a millisecond's work, unless tables shrink meanwhile."""
SWEEP_PAUSE_S = 0.002
"""Between two sweeps while there is more: whoever waits for the loop comes in between."""
SWEEP_IDLE_S = 0.5
"""Between two looks while there is nothing."""


async def sweep_forever(index: PrefixIndex) -> None:
    """Sweep `index` until cancelled."""
    pause_s = SWEEP_IDLE_S
    while True:
        await asyncio.sleep(pause_s)
        pause_s = SWEEP_PAUSE_S if index.sweep(SWEEP_BLOCKS) else SWEEP_IDLE_S
