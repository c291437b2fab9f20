"""A seeded world on virtual time: engines that publish, a network that does them harm, and the production event plane.

The stream machine, ingest, following and the index are the ones that serve requests; only what lies beyond the port
`EventSource` is a model. `world` runs one plan, `judge` says what must hold, `campaign` runs many seeds and shrinks one
that fails.
"""

from __future__ import annotations

from warmroute.testing.simulation.campaign import Failure, examine, shrink
from warmroute.testing.simulation.judge import Violation
from warmroute.testing.simulation.plan import Plan
from warmroute.testing.simulation.world import Outcome, run

__all__ = ["Failure", "Outcome", "Plan", "Violation", "examine", "run", "shrink"]
