"""Measured costs on disk, so that a replica measures once for each device and not at every start.

A file holds one `CostTable` or `Curve` under the fingerprint of all that it depends on. Tables that
come with the package stand in where a model of this shape was measured on such a device before, be
it with other versions or another size of the KV cache; what they say is checked by a few steps.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from smart_serve.speculation.cost import CostTable, Curve

_LOG = logging.getLogger(__name__)
FOLDER_VARIABLE = "SMART_SERVE_COSTS"
"""Environment variable that names another folder than the user's cache."""
SHIPPED = Path(__file__).parent / "measured"

CostsT = TypeVar("CostsT", CostTable, Curve)


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that a measurement depends on."""

    part: Literal["target", "drafter"]
    model: str
    """Digest of the model's shape: costs do not depend on weights."""
    dtype: str
    device: str
    """Name of the accelerator or processor."""
    threads: int
    """Of the host's arithmetic; 0 where it does none."""
    stairs: tuple[int, ...]
    """Graph buckets: numbers of rows to which passes are padded."""
    grid: str
    """Digest of where it was measured: batches, contexts, rows."""
    torch: str
    engine: str
    """Digest of the code that a pass runs through."""

    @property
    def file_name(self) -> str:
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()
        return f"{self.part}-{digest[:24]}.json"

    def is_alike(self, other: Fingerprint) -> bool:
        """Same device, model and graph buckets; versions and grid may differ."""
        others = {"torch": self.torch, "engine": self.engine, "grid": self.grid}
        return msgspec.structs.replace(other, **others) == self


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in a file."""

    measured_on: datetime.date
    fingerprint: Fingerprint
    costs: msgspec.Raw


@dataclass(frozen=True, slots=True)
class CostStore:
    """Two folders: one to read and write, and the tables that came with the package."""

    folder: Path
    shipped: Path = SHIPPED
    renews: bool = False
    """Measure, whatever there is, and keep the new figures."""

    @staticmethod
    def of_user(*, renews: bool = False) -> CostStore:
        """In `$SMART_SERVE_COSTS`, else in the user's cache folder (XDG base directories)."""
        if FOLDER_VARIABLE in os.environ:
            return CostStore(Path(os.environ[FOLDER_VARIABLE]), renews=renews)
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return CostStore(Path(cache) / "smart-serve" / "costs", renews=renews)

    def get(
        self,
        fingerprint: Fingerprint,
        kind: type[CostsT],
        measure: Callable[[], CostsT],
        still_holds: Callable[[CostsT], bool],
    ) -> CostsT:
        """The stored costs if they `still_holds`, or those measured now, which are kept."""
        found = None if self.renews else self.load(fingerprint, kind)
        if found is not None and not still_holds(found):
            _LOG.warning("the stored costs of the %s do not hold: measured again", fingerprint.part)
            found = None
        if found is None:
            found = measure()
            self.save(fingerprint, found)
        return found

    def load(self, fingerprint: Fingerprint, kind: type[CostsT]) -> CostsT | None:
        """What is stored, or None. A file that is broken counts for nothing, with a warning."""
        for path in self._candidates(fingerprint):
            try:
                file = msgspec.json.decode(path.read_bytes(), type=_File)
                if fingerprint.is_alike(file.fingerprint):
                    return msgspec.json.decode(file.costs, type=kind)
            except (OSError, msgspec.MsgspecError) as error:
                _LOG.warning("the costs in %s cannot be used: %s", path, error)
        return None

    def save(self, fingerprint: Fingerprint, costs: CostTable | Curve) -> None:
        """Keep `costs`. Where nothing can be written it warns: the next start measures again."""
        today = datetime.datetime.now(datetime.UTC).date()
        file = _File(today, fingerprint, msgspec.Raw(msgspec.json.encode(costs)))
        data = msgspec.json.format(msgspec.json.encode(file), indent=1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / fingerprint.file_name, data)
        except OSError as error:
            _LOG.warning("measured costs cannot be kept in %s: %s", self.folder, error.strerror)

    def _candidates(self, fingerprint: Fingerprint) -> Iterator[Path]:
        path = self.folder / fingerprint.file_name
        if path.is_file():
            yield path
        yield from sorted(self.shipped.glob(f"{fingerprint.part}-*.json"))


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: several replicas may start at once."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
