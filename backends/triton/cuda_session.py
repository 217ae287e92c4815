"""A plan for one set of sizes on a GPU: where its memory lies, its launches, and the graph that replays them.

A CUDA graph hands all launches to the GPU at once. Its nodes are made one by one instead of by capturing a stream, so
that each is known by its handle: when inputs or outputs move, only the nodes that use them are told.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optc.backends import cuda
from optc.backends.triton.memory import ALIGNMENT, needed, place
from optc.backends.triton.plan import Plan, number
from optc.ir.dims import evaluate, parse


@dataclass(frozen=True)
class Space:
    """One piece of GPU memory for some sizes: temporaries, then inputs, then outputs.

    Attributes:
        offsets: Where each of these buffers begins.
        temporaries: Bytes of the first part.
        inputs: Bytes of the second.
        outputs: Bytes of the third.
    """

    offsets: Mapping[int, int]
    temporaries: int
    inputs: int
    outputs: int

    @property
    def size(self) -> int:
        """Bytes of it all."""
        return self.temporaries + self.inputs + self.outputs

    def __str__(self) -> str:
        return f"{self.temporaries} bytes of temporaries, {self.inputs} of inputs, {self.outputs} of outputs"


def space(plan: Plan, bindings: Mapping[str, int]) -> Space:
    """What a plan needs for some sizes, or for all that it is made for."""
    layout = place(plan, bindings)
    offsets, sizes = dict(layout.offsets), {"input": 0, "output": 0}
    end = begin = -(-layout.size // ALIGNMENT) * ALIGNMENT
    for role in sizes:
        for buffer, spec in enumerate(plan.buffers):
            if spec.role == role:
                offsets[buffer] = end
                end += -(-needed(plan, spec, bindings) // ALIGNMENT) * ALIGNMENT
        sizes[role], begin = end - begin, end
    return Space(offsets, end - sum(sizes.values()), sizes["input"], sizes["output"])


@dataclass(frozen=True)
class Launch:
    """A launch whose arguments are settled, but for the addresses of inputs and outputs.

    Attributes:
        function: The driver's handle.
        grid: Blocks along each axis.
        threads: Threads of a block.
        shared: Bytes of dynamic shared memory.
        arguments: What it passes; a buffer's address by its number, everything else as it is.
        kinds: Their types.
    """

    function: Any
    grid: tuple[int, int, int]
    threads: int
    shared: int
    arguments: tuple[tuple[bool, int], ...]
    kinds: tuple[Any, ...]

    def uses(self, buffers: set[int]) -> bool:
        """Whether it is passed one of these buffers."""
        return any(is_buffer and value in buffers for is_buffer, value in self.arguments)

    def parameters(self, addresses: Mapping[int, int]) -> tuple[tuple[int, ...], tuple[Any, ...]]:
        """The arguments as cuda-bindings takes them."""
        return tuple(addresses[value] if is_buffer else value for is_buffer, value in self.arguments), self.kinds

    def node(self, addresses: Mapping[int, int]) -> Any:
        """The same as a node of a graph."""
        made = cuda.driver().CUDA_KERNEL_NODE_PARAMS()
        made.func = self.function
        made.gridDimX, made.gridDimY, made.gridDimZ = self.grid
        made.blockDimX, made.blockDimY, made.blockDimZ = self.threads, 1, 1
        made.sharedMemBytes = self.shared
        made.kernelParams = self.parameters(addresses)
        return made


def launches(plan: Plan, arch: str, functions: Mapping[str, Any], bindings: Mapping[str, int]) -> Iterator[Launch]:
    """What a plan launches for some sizes; nothing where an axis of the grid is 0.

    Args:
        plan: The plan.
        arch: Whose variants of the kernels.
        functions: The driver's handles of the kernels.
        bindings: Values of the symbolic dims.
    """
    for launch in plan.launches:
        entry = plan.kernels[launch.kernel]
        variant = entry.variants[arch]
        sizes = {name: number(value, bindings) for name, value in launch.sizes.items()}
        arguments = [
            (True, a.buffer) if a.buffer is not None else (False, number(a.value or "0", bindings)) for a in launch.args
        ]
        arguments += [(False, sizes[name]) for name in entry.passed]
        arguments += [(False, 0), (False, 0)]  # the scratch areas that Triton's kernels take and these do not use
        known = {name: value for name, value in {**variant.constants, **sizes}.items() if isinstance(value, int)}
        x, y, z = (evaluate(parse(text), known) for text in (*entry.grid, "1", "1")[:3])
        if not x * y * z:
            continue
        kinds = tuple(ctypes.c_void_p if size == 8 else ctypes.c_int32 for size in variant.parameters)
        yield Launch(
            functions[launch.kernel], (x, y, z), 32 * variant.num_warps, variant.shared, tuple(arguments), kinds
        )


class Session:
    """Runs one set of sizes.

    Args:
        device: The GPU.
        made: The launches.
        addresses: Where all buffers are.
    """

    def __init__(self, device: cuda.Device, made: Sequence[Launch], addresses: Mapping[int, int]) -> None:
        self._device, self._launches, self._addresses = device, tuple(made), dict(addresses)
        self._graph: cuda.Handle | None = None
        self._source: cuda.Handle | None = None
        self._nodes: tuple[Any, ...] = ()

    def copy(self) -> Session:
        """The same launches, to be pointed at other addresses."""
        return Session(self._device, self._launches, self._addresses)

    @property
    def recorded(self) -> bool:
        """Whether it runs as a graph."""
        return self._graph is not None

    def point(self, addresses: Mapping[int, int]) -> None:
        """Let inputs and outputs be at these addresses from now on. What is under way is not touched."""
        moved = {buffer for buffer, address in addresses.items() if self._addresses[buffer] != address}
        if not moved:
            return
        self._addresses.update(addresses)
        if self._graph is None:
            return
        api = cuda.driver()
        try:
            for launch, node in zip(self._launches, self._nodes, strict=True):
                if launch.uses(moved):
                    params = launch.node(self._addresses)
                    cuda.call(
                        api.cuGraphExecKernelNodeSetParams, self._graph.value, node, params, doing="change a graph"
                    )
        except BaseException:
            self.close()  # half of it is changed
            raise

    def run(self, stream: int) -> None:
        """Give all launches to a stream."""
        api = cuda.driver()
        if self._graph is not None:
            cuda.call(api.cuGraphLaunch, self._graph.value, stream, doing="launch a graph")
            return
        for launch in self._launches:
            cuda.call(
                api.cuLaunchKernel, launch.function, *launch.grid, launch.threads, 1, 1, launch.shared, stream,
                launch.parameters(self._addresses), 0, doing="launch",
            )  # fmt: skip

    def record(self) -> None:
        """Make a graph of the launches; with nothing to launch there is none."""
        if self._graph is not None or not self._launches:
            return
        api = cuda.driver()
        graph = cuda.Handle(self._device, cuda.call(api.cuGraphCreate, 0, doing="make a graph"), "cuGraphDestroy")
        try:
            nodes: list[Any] = []
            for launch in self._launches:
                before, params = nodes[-1:], launch.node(self._addresses)
                nodes.append(
                    cuda.call(
                        api.cuGraphAddKernelNode, graph.value, before, len(before), params, doing="record a launch"
                    )
                )
            made = cuda.call(api.cuGraphInstantiate, graph.value, 0, doing="make a graph")
        except BaseException:
            graph.close()
            raise
        self._graph = cuda.Handle(self._device, made, "cuGraphExecDestroy")
        # The nodes belong to the graph that they were made in, which stays for as long as they are asked for.
        self._nodes, self._source = tuple(nodes), graph

    def close(self) -> None:
        """Give the graph back; what is run afterwards is launched one by one."""
        for handle in (self._graph, self._source):
            if handle is not None:
                handle.close()
        self._graph, self._source, self._nodes = None, None, ()


def words(bindings: Mapping[str, int]) -> str:
    """Sizes for a message."""
    return ", ".join(f"{name}={size}" for name, size in bindings.items()) or "the model's sizes"


def disjoint(pieces: Sequence[tuple[str, int, int]]) -> tuple[str, str] | None:
    """Two pieces of memory that overlap, of (name, address, bytes); None if none do."""
    ordered = sorted((piece for piece in pieces if piece[2]), key=lambda piece: piece[1])
    end, last = -math.inf, ""
    for name, address, size in ordered:
        if address < end:
            return last, name
        end, last = address + size, name
    return None
