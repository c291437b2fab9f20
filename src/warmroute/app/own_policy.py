"""A policy of the user's own, by the name that the configuration gives it.

Whatever is wrong with it is said once, at the start, in words of the setting: a gateway does not start with another
policy than it was told.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from warmroute.config.ranges import POLICIES
from warmroute.core.policies import Policy
from warmroute.errors import ConfigError

_REMEDY = "docs/policies.md shows a policy of ten lines."


def load_policy(spec: str) -> Policy | None:
    """An object of the class that `MODULE:CLASS` or `FILE.py:CLASS` names; None if `spec` is built in.

    Modules are looked for where Python looks, and in the working folder. Raises ConfigError with the reason if it
    cannot be had.
    """
    if spec in POLICIES:
        return None
    home, _, name = spec.rpartition(":")
    if not home:
        problem = f"{spec!r} is no policy"
        raise ConfigError(
            "routing.policy", problem, f"Give one of {', '.join(POLICIES)}, MODULE:CLASS or FILE.py:CLASS."
        )
    try:
        module = _file(Path(home)) if home.endswith(".py") else _module(home)
        policy = getattr(module, name)()
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise ConfigError(
            "routing.policy", f"{spec!r} cannot be loaded: {type(error).__name__}: {error}", _REMEDY
        ) from error
    if not (isinstance(getattr(policy, "name", None), str) and callable(getattr(policy, "costs", None))):
        raise ConfigError("routing.policy", f"{spec!r} has no `name` or no method `costs(candidates)`", _REMEDY)
    return policy  # type: ignore[no-any-return]


def _file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"warmroute_policy_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)
