"""Reports as replicas send them."""

from __future__ import annotations

import msgspec

from smart_serve.messages import LoadReport


def report(replica: str = "a", pool: str = "fast", **changes: object) -> LoadReport:
    """Four sequences of 64 at 10 ms a token, 9 ms of it plain decoding's price; a place is free."""
    base = LoadReport(
        replica_id=replica,
        pool=pool,
        device_type="cpu",
        running=4,
        waiting=0,
        free_blocks=900,
        total_blocks=1000,
        tokens_per_s=400.0,
        step_ms=10.0,
        draft_ms=2.0,
        verify_ms=7.0,
        accepted_per_step=1.5,
        nodes_per_step=6.0,
        plan_epoch=0,
        batch=4.0,
        token_ms=10.0,
        plain_steps=((1, 9.0), (16, 9.6), (64, 24.0)),
        prompt_token_ms=0.1,
    )
    return msgspec.structs.replace(base, **changes)
