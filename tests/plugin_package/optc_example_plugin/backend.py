"""Backends: what writes artifacts and opens them."""

from dataclasses import dataclass
from pathlib import Path

from optc.backends.base import Artifact, Probe
from optc.ir.errors import BackendError


@dataclass(frozen=True)
class ListingBackend:
    """Writes the operators of a model, one per line."""

    name: str = "listing"

    def probe(self) -> Probe:
        return Probe(True, "needs nothing")

    def claims(self, op, target=None) -> bool:
        return True

    def emit(self, model, target, out: Path) -> Artifact:
        out.write_text("".join(f"{node.op_type}\n" for node in model.graph), "utf-8")
        return Artifact(self.name, out, (out,), notes=(f"listed for {target.name}",))

    def open(self, path: Path, **options):
        raise BackendError("a listing cannot be run", where=str(path))
