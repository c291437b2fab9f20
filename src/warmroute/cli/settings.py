"""Commands that take the configuration: every leaf of the tree as a flag, and the three sources read.

Invariant: this module and no other reads the process's environment, the configuration file and the files of keys; what
is made of them is decided in `warmroute.config`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from warmroute.config import Loaded, load
from warmroute.config.leaves import ENGINES, LEAVES, SECTIONS, Leaf
from warmroute.config.ranges import check_key
from warmroute.config.sources import CONFIG_VARIABLE
from warmroute.config.tree import EngineConfig, MembershipConfig
from warmroute.errors import ConfigError

SHORT_FLAGS = {"gateway.host": "--host", "gateway.port": "--port", "gateway.processes": "--processes"}
"""Flags that are typed often, by their leaf."""


REREAD = "warmroute.reread"
"""Where a command finds how to read its sources again: the flags and the environment as they were, the files anew."""

Keyed = TypeVar("Keyed", EngineConfig, MembershipConfig)


class SettingsCommand(click.Command):
    """A command whose callback gets `loaded`, and whose flags are the tree's leaves."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = {_parameter(leaf): leaf for leaf in LEAVES.values()}
        self.params = [_config_option(), *map(_option, LEAVES.values()), *self.params]

    def invoke(self, ctx: click.Context) -> Any:
        """Read the three sources, and run the callback with what they give."""
        flags = {leaf.key: ctx.params.pop(name) for name, leaf in self.settings.items()}
        given = {key: value for key, value in flags.items() if value is not None and value != ()}
        reread = partial(read_sources, given, dict(os.environ), ctx.params.pop("config_file"))
        ctx.meta[REREAD] = reread
        ctx.params["loaded"] = reread()
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then the settings section by section."""
        by_section: dict[str, list[tuple[str, str]]] = {"": [], **{section: [] for section in SECTIONS}}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                leaf = self.settings.get(param.name or "")
                by_section[leaf.section if leaf else ""].append(record)
        for section, records in by_section.items():
            if not records:  # a section of sections
                continue
            with formatter.section(f"Settings of {section}" if section else "Options"):
                formatter.write_dl(records)


def read_sources(flags: dict[str, str | tuple[str, ...]], environ: dict[str, str], config_file: str | None) -> Loaded:
    """The configuration of this process. Raises ConfigError."""
    path = config_file if config_file is not None else environ.get(CONFIG_VARIABLE)
    if path is None:
        return _with_keys(load(flags=flags, environ=environ))
    from warmroute.config.document import parse_document  # noqa: PLC0415  no file, no YAML parser

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        source = "--config" if config_file is not None else CONFIG_VARIABLE
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(source, f"{path!r} cannot be read: {reason}", "Give the path of a YAML file.") from None
    return _with_keys(load(flags=flags, environ=environ, document=parse_document(text, path), file_name=path))


def _with_keys(loaded: Loaded) -> Loaded:
    """Read the files that hold keys."""
    config = loaded.config
    engines = tuple(_with_key(engine, f"engines[{number}]") for number, engine in enumerate(config.engines))
    config = replace(config, engines=engines, membership=_with_key(config.membership, "membership"))
    return replace(loaded, config=config)


def _with_key(section: Keyed, name: str) -> Keyed:
    path = section.api_key_file
    if path is None:
        return section
    setting = f"{name}.api_key_file"
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
        check_key(key)
    except OSError as error:
        raise ConfigError(setting, f"{path!r} cannot be read: {error.strerror}", "Give the key's file.") from None
    except ValueError:
        raise ConfigError(setting, f"{path!r} holds no key", "Write the key alone into it, on one line.") from None
    return replace(section, api_key=key)


def require_engines(loaded: Loaded) -> None:
    """Refuse a configuration that no request can be served with. Raises ConfigError."""
    discovery = loaded.config.discovery
    found = discovery.kubernetes.enabled or discovery.file.path or discovery.service.name
    if not loaded.config.engines and not found:
        raise ConfigError(
            ENGINES,
            "none are listed",
            f"Give `--engine URL` (once per engine), {LEAVES[ENGINES].variable}, or `engines:` in the file; or have "
            "them found (discovery.kubernetes.enabled, discovery.service.name, discovery.file.path).",
        )


def _config_option() -> click.Option:
    help_text = f"YAML file with settings; {CONFIG_VARIABLE} if not given."
    return click.Option(["config_file", "--config"], metavar="FILE", help=help_text)


def _parameter(leaf: Leaf) -> str:
    return leaf.key.replace(".", "__")


def _option(leaf: Leaf) -> click.Option:
    names = [_parameter(leaf), leaf.flag, *([SHORT_FLAGS[leaf.key]] if leaf.key in SHORT_FLAGS else [])]
    if leaf.key == ENGINES:
        return click.Option(names, multiple=True, metavar="URL", help="Base URL of an engine; once per engine.")
    shown = "null" if leaf.default is None else str(leaf.default).lower() if leaf.kind is bool else str(leaf.default)
    return click.Option(names, metavar=_metavar(leaf), help=f"{leaf.doc} [default: {shown}]")


def _metavar(leaf: Leaf) -> str:
    if leaf.choices:
        return "|".join(leaf.choices)
    return {bool: "true|false", int: "N", float: "X"}.get(leaf.kind, "TEXT")
