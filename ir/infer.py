"""The inference functions of all operators, in one table.

Adding an operator is adding a row; :class:`optc.ir.facts.Facts` also takes another table. Operators without a row are
inferred by the ``onnx`` package (:mod:`optc.ir.infer_schema`), and operators that it does not know are taken to be what
the file declares.
"""

from __future__ import annotations

from optc.ir.infer_base import Table
from optc.ir.infer_contrib import CONTRIB
from optc.ir.infer_control import CONTROL
from optc.ir.infer_elementwise import ELEMENTWISE
from optc.ir.infer_movement import MOVEMENT
from optc.ir.infer_nn import NN
from optc.ir.infer_shaping import SHAPING

INFERENCES: Table = {**ELEMENTWISE, **SHAPING, **MOVEMENT, **NN, **CONTROL, **CONTRIB}
"""``(domain, op type)`` to inference function; the domain of the standard operators is ``""``."""
