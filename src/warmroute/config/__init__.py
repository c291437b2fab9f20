"""The configuration: one frozen typed tree, and how three sources become it.

The file's syntax is in `warmroute.config.document`, which is not imported here: whoever only needs the tree does not
pay for a YAML parser.
"""

from warmroute.config.loading import Loaded, load
from warmroute.config.sources import Origin, Source
from warmroute.config.tree import (
    AdminConfig,
    AdmissionConfig,
    BreakerConfig,
    Config,
    EngineConfig,
    EventsConfig,
    GatewayConfig,
    LogConfig,
    MembershipConfig,
    RoutingConfig,
    TlsConfig,
    TokenizerConfig,
)
from warmroute.config.values import JointConfigError

__all__ = [
    "AdminConfig",
    "AdmissionConfig",
    "BreakerConfig",
    "Config",
    "EngineConfig",
    "EventsConfig",
    "GatewayConfig",
    "JointConfigError",
    "Loaded",
    "LogConfig",
    "MembershipConfig",
    "Origin",
    "RoutingConfig",
    "Source",
    "TlsConfig",
    "TokenizerConfig",
    "load",
]
