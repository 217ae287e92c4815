"""From groups to generated kernels: sources of hooks, and what a launch has to pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optc.backends.triton.groups import Group
from optc.backends.triton.hooks import HEADER, Argument, Arguments, Hook
from optc.ir.dims import Dim


@dataclass(frozen=True)
class Generated:
    """A kernel with its hooks, as text, and the values that one launch of it passes.

    Attributes:
        kernel: Name of the kernel.
        source: The module that defines the hooks.
        hooks: Name of the hook's parameter -> name of the function in ``source``.
        arguments: The members of ``args``.
        sizes: The kernel's sizes.
        constants: Constants that lowering decided.
        nodes: The graph's nodes that it stands for.
    """

    kernel: str
    source: str
    hooks: Mapping[str, str]
    arguments: tuple[Argument, ...]
    sizes: Mapping[str, Dim]
    constants: Mapping[str, Any]
    nodes: tuple[str, ...] = field(compare=False, default=())

    @property
    def types(self) -> tuple[str, ...]:
        """The types of ``args``."""
        return tuple(a.memory if a.buffer is None else f"*{a.memory}" for a in self.arguments)

    @property
    def literals(self) -> dict[str, int | None]:
        """Sizes that are the same in every run; None for the others."""
        return {name: size if isinstance(size, int) else None for name, size in self.sizes.items()}

    def key(self) -> str:
        """A digest; launches of equal digests run the same code."""
        parts = [self.kernel, self.source, self.types, sorted(self.literals.items()), sorted(self.constants.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def generate(group: Group, parameters: Mapping[str, tuple[str, ...]]) -> Generated:
    """Write the hooks of a group.

    Args:
        group: The group.
        parameters: For every hook of its kernel the indices that it is called with.
    """
    arguments = Arguments()
    extents = {**group.space, **group.reduced}
    functions, hooks = [], {}
    for name, variables in parameters.items():
        hook = Hook(name.lower(), variables, extents, arguments, value=name not in group.results and name != "BODY")
        if name == group.early_hook:
            for store in group.early:
                hook.store(store)
        if name in group.results:
            hook.returns(group.results[name])
        else:
            for store in group.stores:
                if store.hook in (None, name):
                    hook.store(store)
        functions.append(hook.source())
        hooks[name] = name.lower()
    sizes = ", ".join(f"{name} = {size}" for name, size in group.sizes.items() if isinstance(size, int))
    header = HEADER.format(kernel=group.kernel, about=f"Sizes: {sizes or 'all at run time'}.")
    return Generated(
        kernel=group.kernel,
        source="\n\n".join([header, *functions]),
        hooks=hooks,
        arguments=tuple(arguments.members),
        sizes=dict(group.sizes),
        constants=dict(group.constants),
        nodes=tuple(dict.fromkeys(group.nodes)),
    )
