"""How much memory pictures cost, in a process of its own."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CODE = r"""
import re, struct, sys
from pathlib import Path
from PIL import Image
from smart_serve.errors import ClientError
from smart_serve.limits import Limits
from vision.image import check_image, decode_image

def peak_kib():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

Image.init()
while head := sys.stdin.buffer.read(4):
    data = sys.stdin.buffer.read(*struct.unpack("<I", head))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (man 5 proc)
    before = peak_kib()
    try:
        outcome = "x".join(map(str, decode_image(check_image(data, Limits())).size))
    except ClientError as error:
        outcome = error.code
    print(peak_kib() - before, outcome)
"""


def grown_mb(pictures: Sequence[bytes]) -> list[tuple[float, str]]:
    """Of each: what checking and decoding it adds to the peak, and what came of it, a size in
    pixels or the code of the refusal. Any other error fails."""
    sent = b"".join(struct.pack("<I", len(data)) + data for data in pictures)
    run = subprocess.run([sys.executable, "-c", _CODE], input=sent, capture_output=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr.decode()
    found = re.findall(r"^(\d+) (\S+)$", run.stdout.decode(), re.MULTILINE)
    assert len(found) == len(pictures)
    return [(int(kib) / 1024, outcome) for kib, outcome in found]
