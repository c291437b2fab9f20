from warmroute.config.tree import EventsConfig as EventsConfig
from warmroute.config.tree import RoutingConfig as RoutingConfig
from warmroute.core.decision import Decision as Decision
from warmroute.core.decision import PickRequest as PickRequest
from warmroute.core.decision import Reason as Reason
from warmroute.core.index import PrefixIndex as PrefixIndex
from warmroute.core.index import make_index as make_index
from warmroute.core.policies import Candidates as Candidates
from warmroute.core.policies import Policy as Policy
from warmroute.core.router import Router as Router
from warmroute.core.wire import decode_batch as decode_batch
from warmroute.core.wire import decode_pub as decode_pub
from warmroute.errors import NoWorkerError as NoWorkerError
from warmroute.errors import WarmrouteError as WarmrouteError
from warmroute.errors import WireError as WireError
from warmroute.service.ingest import Ingest as Ingest
from warmroute.service.ingest import WorkerStream as WorkerStream
from warmroute.service.ports import EventAddress as EventAddress
from warmroute.service.ports import EventSource as EventSource
from warmroute.types import (
    Endpoint as Endpoint,
)
from warmroute.types import (
    Fleet as Fleet,
)
from warmroute.types import (
    ModelInfo as ModelInfo,
)
from warmroute.types import (
    Trust as Trust,
)
from warmroute.types import (
    TrustState as TrustState,
)
from warmroute.types import (
    Worker as Worker,
)
from warmroute.types import (
    WorkerId as WorkerId,
)

__version__: str
