"""A vLLM without a model and without a GPU: its HTTP surface, its prefix cache and its event stream, honestly.

For trying Warmroute, for load tests and for reproducing faults; `warmroute engine` runs one from the command line. Held
against recordings of a real vLLM in the tests.
"""

from warmroute.testing.engine.options import EngineOptions, Faults
from warmroute.testing.engine.process import Time
from warmroute.testing.engine.simulated import SimulatedEngine

__all__ = ["EngineOptions", "Faults", "SimulatedEngine", "Time"]
