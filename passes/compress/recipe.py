"""What a search found, pinned: a file that says which layer becomes what, so that it need not be searched again.

A recipe is TOML: the digest of the layers that it was made for, and one line per layer that changes. It is replayed
with the same model, options of the passes before it, and calibration data::

    version = 1
    layers = "sha256:..."

    [options]
    "encoder.layer.0.ffn.MatMul" = "dynamic-int8"

Where channels were removed before, a table says how many of which group; the layers are then those that are left::

    [pruned]
    "encoder.layer.0.ffn.MatMul" = 128
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optc.ir.errors import UsageError
from optc.passes.compress.layers import Layer

VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """Which layer becomes what.

    Attributes:
        digest: Of the layers that it was made for, see :func:`layers_digest`.
        options: Labels of options by the layer's name.
        where: The file, for errors.
        pruned: How many units of which group went before, by the group's name.
    """

    digest: str
    options: Mapping[str, str]
    where: str | None = None
    pruned: Mapping[str, int] = field(default_factory=dict)

    def check(self, layers: Sequence[Layer]) -> None:
        """Raise UsageError if it was made for other layers."""
        unknown = sorted(set(self.options) - {layer.name for layer in layers})
        if unknown:
            raise UsageError(f"the model has no layer {unknown[0]!r}", where=self.where, hint=_AGAIN)
        if self.digest != layers_digest(layers):
            raise UsageError("the recipe was made for another model", where=self.where, hint=_AGAIN)

    def text(self) -> str:
        """The file's contents."""
        # JSON's strings are TOML's basic strings.
        lines = [
            f"{json.dumps(name, ensure_ascii=False)} = {json.dumps(label)}" for name, label in self.options.items()
        ]
        cuts = [f"{json.dumps(name, ensure_ascii=False)} = {count}" for name, count in self.pruned.items()]
        first = [f"version = {VERSION}", f'layers = "{self.digest}"']
        return "\n".join([*first, *(["", "[pruned]", *cuts] if cuts else []), "", "[options]", *lines, ""])


_AGAIN = "a recipe fits one model after the same passes; search again with --save-recipe"


def layers_digest(layers: Sequence[Layer]) -> str:
    """What tells layers from those of another model: their names, kinds and sizes."""
    text = json.dumps([(layer.name, layer.kind, layer.rows, layer.columns, layer.groups) for layer in layers])
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        UsageError: The file cannot be read, is no recipe, or is of a newer version.
    """
    where = str(path)
    try:
        return parse_recipe(Path(path).read_text("utf-8"), where)
    except OSError as error:
        raise UsageError(f"the recipe cannot be read: {error.strerror}", where=where) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"not a recipe: {error}", where=where) from error


def parse_recipe(text: str, where: str | None = None) -> Recipe:
    """A recipe from its text; errors as for :func:`read_recipe`, which tell ``where``."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not a recipe: {error}", where=where) from error
    options, digest, pruned = table.get("options"), table.get("layers"), table.get("pruned", {})
    if not isinstance(options, dict) or not isinstance(digest, str) or not isinstance(table.get("version"), int):
        raise UsageError("not a recipe: it lacks version, layers or options", where=where)
    if table["version"] > VERSION:
        raise UsageError(f"the recipe is of version {table['version']}", where=where, hint="update optc")
    if not all(isinstance(label, str) for label in options.values()):
        raise UsageError("not a recipe: an option is not a text", where=where)
    if not isinstance(pruned, dict) or not all(type(count) is int and count > 0 for count in pruned.values()):
        raise UsageError("not a recipe: what is pruned are numbers of units by group", where=where)
    return Recipe(digest, options, where, pruned)
