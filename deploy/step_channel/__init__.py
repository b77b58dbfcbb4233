"""The step channel: one request and one answer per verification step between target and drafter.

A call through Serve costs milliseconds, a frame over an open socket tens of microseconds; so Serve
binds the two replicas and this carries the steps. It knows nothing of Ray.
"""
