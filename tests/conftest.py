"""What holds for all tests: no test judges time, and what CI runs can be run again."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("warmroute", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("warmroute")
