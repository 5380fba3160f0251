"""Memory, streams, events and graphs of the GPU, freed when nobody holds them any more."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.cuda import call, library
from runtime.errors import RunError

Array = NDArray[np.generic]


def _release(name: str, handle: Any) -> None:
    """Give something back; at exit the driver may be gone already."""
    with contextlib.suppress(RunError):
        call(name, handle)


class Buffer:
    """Device memory for a tensor.

    Attributes:
        pointer: its address on the device.
        size: its bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.pointer = int(call("cudaMalloc", max(size, 1)))
        self.free = weakref.finalize(self, _release, "cudaFree", self.pointer)

    def fill(self, values: Array, stream: Stream) -> None:
        """Copy from the host; returns when the copy is queued, ``values`` have to stay until it is done."""
        kind = library().cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", self.pointer, values.ctypes.data, values.nbytes, kind, stream.handle)

    def read(self, into: Array, stream: Stream) -> None:
        """Copy to the host; ``into`` holds the values when the stream has been waited for."""
        kind = library().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", into.ctypes.data, self.pointer, into.nbytes, kind, stream.handle)


class Stream:
    """A queue of work on the device."""

    def __init__(self) -> None:
        self.handle = call("cudaStreamCreate")
        self.free = weakref.finalize(self, _release, "cudaStreamDestroy", self.handle)

    def wait(self) -> None:
        """Wait until everything queued is done.

        Raises:
            CudaError: something queued failed.
        """
        call("cudaStreamSynchronize", self.handle)


class Event:
    """A moment on the device's clock."""

    def __init__(self) -> None:
        self.handle = call("cudaEventCreate")
        self.free = weakref.finalize(self, _release, "cudaEventDestroy", self.handle)

    def record(self, stream: Stream) -> None:
        """Note the moment when what is queued so far is done."""
        call("cudaEventRecord", self.handle, stream.handle)

    def since(self, earlier: Event) -> float:
        """Seconds since another event; both have to be past."""
        return float(call("cudaEventElapsedTime", earlier.handle, self.handle)) / 1e3


class Recording:
    """Work recorded once, launched as one."""

    def __init__(self, work: Callable[[], None], stream: Stream) -> None:
        mode = library().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            work()
        finally:
            graph = call("cudaStreamEndCapture", stream.handle)
        try:
            self.handle = call("cudaGraphInstantiate", graph, 0)
        finally:
            _release("cudaGraphDestroy", graph)
        self.free = weakref.finalize(self, _release, "cudaGraphExecDestroy", self.handle)

    def launch(self, stream: Stream) -> None:
        """Queue the recorded work."""
        call("cudaGraphLaunch", self.handle, stream.handle)
