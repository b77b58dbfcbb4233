"""The package's example runs as it is written, and nothing heavy is needed for it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import doctest, sys
import smart_serve.speculation as package
if {changed!r}:
    package.__doc__ = package.__doc__.replace("(2, True, 0)", "(3, True, 0)")
result = doctest.testmod(package)
assert result.attempted > 15, result
heavy = {{"torch", "ray", "transformers"}} & set(sys.modules)
sys.exit(f"failed {{result.failed}}, loaded {{sorted(heavy)}}" if result.failed or heavy else 0)
"""


def run(*, changed: bool) -> subprocess.CompletedProcess[str]:
    code = CODE.format(changed=changed)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_example_runs_with_numpy_alone() -> None:
    done = run(changed=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_example_that_does_not_hold_is_noticed() -> None:
    """The control."""
    assert run(changed=True).returncode != 0
