"""How Serve picks the replica inside a pool: the router's preference first, then the shorter of two
queues."""

from __future__ import annotations

from ray.serve._private.common import RequestMetadata
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import RunningReplica


class PreferredReplicaRouter(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]  # untyped
    """A request whose session id is a replica's id goes there, unless that replica is gone or full.

    Lives in every process that holds a handle of the pool.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Groups of candidates, the preferred first."""
        others = await super().choose_replicas(candidate_replicas, pending_request)
        wanted = pending_request.metadata.session_id if pending_request is not None else ""
        preferred = [one for one in candidate_replicas if one.replica_id.unique_id == wanted]
        return [preferred, *others] if wanted and preferred else others

    def _get_pending_request_matching_metadata(
        self, request_metadata: RequestMetadata | None = None
    ) -> PendingRequest | None:
        # What was found for a request is for that request: by default it is for whoever waits
        # longest, which is right only where all replicas are alike.
        found: PendingRequest | None = self._get_pending_request_matching_internal_request_id(
            request_metadata
        )
        return found
