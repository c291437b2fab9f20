"""A Kubernetes API server for tests: small, and faithful where clients go wrong.

It has resource versions, pages, selectors that objects come under and leave, watches that resume, bookmarks, forgotten
history (410, as a status and as an event), time limits, refusals, and connections that break. It validates nothing,
runs nothing and has no other resources than it is asked to keep.
"""

from warmroute.testing.kubernetes.objects import deployment_of, endpoint_slice, pod
from warmroute.testing.kubernetes.server import FakeKubernetes
from warmroute.testing.kubernetes.store import Store

__all__ = ["FakeKubernetes", "Store", "deployment_of", "endpoint_slice", "pod"]
