"""Functions that a user names as ``module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from optc.ir.errors import UsageError


def find_callable(named: str | Callable[..., Any], what: str) -> Callable[..., Any]:
    """The callable that ``module:function`` names; the module may lie in the current folder.

    Args:
        named: The text, or the callable itself.
        what: What it is for, as messages say it ("metric").

    Raises:
        UsageError: There is no such function.
    """
    if callable(named):
        return named
    module, _, function = named.partition(":")
    if not function:
        raise UsageError(f"{what} is written module:function, not {named!r}")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # it is the user's module, and may fail in any way
        raise UsageError(
            f"cannot import the {what} {named!r}: {type(error).__name__}: {error}", hint="is it in this folder?"
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UsageError(f"the {what} {named!r} is not a function")
    return found
