"""The HTTP edge starts fast: it loads neither torch nor transformers nor Ray."""

import subprocess
import sys

EDGE = """
import sys
import smart_serve.frontend.prompt, smart_serve.frontend.detokenizer
import smart_serve.openai.validate, smart_serve.openai.respond
heavy = {"torch", "transformers", "ray"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_edge_imports_nothing_heavy() -> None:
    subprocess.run([sys.executable, "-c", EDGE], check=True, timeout=60)
