"""The options of a compile, checked before any work begins."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optc.ir.errors import UsageError
from optc.ir.sizes import Size, read_size

Verify = Literal["off", "final", "each"]

#: A user's task metric: outputs by name and labels by name, both one array per sample set -> a number, higher better.
Metric = Callable[[Mapping[str, Any], Mapping[str, Any]], float]


@dataclass(frozen=True)
class Options:
    """What a compile is asked to do.

    Attributes:
        level: Optimization level, 0 to 3.
        target: Name of the target, or several with commas between them; see ``optc targets``.
        backend: Name of the backend that emits the artifact; None chooses by the target and the output's ending, and
            "auto" has every runtime for CPUs that is installed try, and keeps the fastest.
        output: Where to write it; None keeps the result in memory.
        passes: Pipeline text that replaces the level's.
        skip: Names of passes to leave out.
        verify: "off", "final" (the result against the original) or "each" (after every pass as well).
        calib: Calibration inputs: a file, a folder, ``module:function``, arrays by input name, or anything that gives
            dicts of arrays (see :mod:`optc.sources`).
        calib_cache: The folder in which statistics over calibration data are kept; "off" for none, None for one in the
            user's cache.
        metric: The user's task metric, a callable or ``module:function``.
        max_drop: How far the metric may fall: a number, or a text like "0.5%" (of the original's value).
        max_error: Relative L2 error of the outputs that lossy passes may cause.
        objective: What lossy passes are to make small: "latency" (the default) or "size".
        policy: Which layers may become what: text such as "attention=int8;ffn=int4;last=none", or a .toml file.
        recipe: A file that pins what every layer becomes; it takes the place of a search.
        save_recipe: Where to write what was decided, to be given as ``recipe`` another time.
        shapes: Sizes of symbolic dims, by dim name: one size, or a range as a pair or text (``(1, 8)``, "1..8").
            Inputs are drawn at the size, or within the range; artifacts that are compiled take the range and no more.
        backend_options: Options of the backend by name; see docs/backends.md.
        seed: Seed of everything that is drawn.
        measure: Time the result against the original.
        dump_dir: Folder to write the graph to after every pass that changed it.
        stop_after: Make only this many applications of rewrites, in the order in which a compile makes them; None for
            all. It replays the beginning of a compile, for finding a faulty rewrite.
        reproducer: Where to write a file with which a failure can be replayed, if a pass has to be rolled back, the
            result is wrong or anything raises; None for nowhere.
        strict: Let the error of a pass end the compile instead of going on without the pass (for pass authors).
    """

    level: int = 2
    target: str = "cpu"
    backend: str | None = None
    output: Path | None = None
    passes: str | None = None
    skip: tuple[str, ...] = ()
    verify: Verify = "final"
    calib: Any = None
    calib_cache: str | os.PathLike[str] | None = None
    metric: str | Metric | None = None
    max_drop: str | float | None = None
    max_error: float = 0.03
    objective: str | None = None
    policy: str | None = None
    recipe: Path | None = None
    save_recipe: Path | None = None
    shapes: Mapping[str, Size] = field(default_factory=dict)
    backend_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    measure: bool = False
    dump_dir: Path | None = None
    stop_after: int | None = None
    reproducer: Path | None = None
    strict: bool = False

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Options from keyword arguments.

        Raises:
            UsageError: An option is unknown or its value makes no sense.
        """
        unknown = sorted(set(given) - set(cls.__dataclass_fields__))
        if unknown:
            raise UsageError(f"unknown option {unknown[0]!r}", hint=f"there are: {', '.join(cls.__dataclass_fields__)}")
        values = {name: value for name, value in given.items() if value is not None}
        for name in ("output", "dump_dir", "reproducer", "recipe", "save_recipe"):
            if name in values:
                if not isinstance(values[name], str | os.PathLike):
                    raise UsageError(f"option {name!r} is a path, not {values[name]!r}")
                values[name] = Path(values[name])
        if isinstance(values.get("skip"), str):
            values["skip"] = tuple(part.strip() for part in values["skip"].split(",") if part.strip())
        skip = values.get("skip", ())
        if not isinstance(skip, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in skip):
            raise UsageError(f"option 'skip' cannot be {skip!r}")
        values["skip"] = tuple(skip)
        if isinstance(values.get("shapes"), Mapping):
            values["shapes"] = {name: _size(name, size) for name, size in values["shapes"].items()}
        options = cls(**values)
        options.check()
        return options

    def check(self) -> None:
        """Raise UsageError for values that make no sense."""
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
                raise UsageError(f"option {name!r} cannot be {value!r}")
        if self.verify not in ("off", "final", "each"):
            raise UsageError(f"verify is off, final or each, not {self.verify!r}")
        if not 0 < self.max_error < 1:
            raise UsageError(f"max_error is a share between 0 and 1, not {self.max_error!r}")
        if self.stop_after is not None and self.stop_after < 0:
            raise UsageError(f"stop_after is a number of applications, not {self.stop_after!r}")
        if (self.metric is None) != (self.max_drop is None):
            raise UsageError(
                "metric and max_drop belong together", hint="give both, as in --metric m:f --max-drop 0.5%"
            )
        _ = self.allowed_drop(0.0)
        if self.metric is not None and self.calib is None:
            raise UsageError("a metric needs data to be measured on", hint="give labelled data with --calib data.npz")

    def of_passes(self) -> dict[str, str]:
        """What passes have options of the same name for."""
        given = {name: getattr(self, name) for name in ("objective", "policy", "recipe")}
        return {name: str(value) for name, value in given.items() if value is not None}

    def allowed_drop(self, reference: float) -> float:
        """How far the metric may fall from the original's value.

        Raises:
            UsageError: ``max_drop`` is neither a number nor a percentage, or is negative.
        """
        text = str(self.max_drop if self.max_drop is not None else 0).strip()
        try:
            share = text.endswith("%")
            amount = float(text.removesuffix("%"))
        except ValueError:
            amount = -1.0
        if not 0 <= amount < float("inf"):
            raise UsageError(f"max_drop is a number or a percentage, not {self.max_drop!r}", hint="as in 0.5%")
        return abs(reference) * amount / 100 if share else amount


def _size(name: str, given: Any) -> Size:
    try:
        return read_size(given)
    except ValueError as error:
        raise UsageError(f"dim {name!r} cannot be {given!r}: {error}", hint="as in 8 or (1, 8)") from error


#: What the values of options must be, beyond what :meth:`Options.check` says of them.
_KINDS: dict[str, type] = {
    "level": numbers.Integral,
    "target": str,
    "backend": str,
    "passes": str,
    "max_error": numbers.Real,
    "objective": str,
    "policy": str,
    "shapes": Mapping,
    "backend_options": Mapping,
    "seed": numbers.Integral,
    "measure": bool,
    "stop_after": numbers.Integral,
    "strict": bool,
}
