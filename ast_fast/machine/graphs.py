"""Work on a GPU that is captured once as a CUDA graph and then launched with a single call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from ast_fast.machine.device import is_out_of_memory

_T = TypeVar("_T")


class CaptureError(RuntimeError):
    """The work does something that a CUDA graph cannot hold, such as waiting for the host."""


class CudaGraph:
    """One CUDA graph of the current device, with its memory.

    A replay does the captured work again on the same tensors: it reads what they hold by then, and
    the random state of the device's generator by then. Python numbers stay as they were captured.
    """

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # One for all blocks: each stream keeps the memory that its work had.
        self._beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Run the block on a stream of its own, as work should be before it is captured."""
        here, beside = torch.cuda.current_stream(), self._beside
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            yield
        here.wait_stream(beside)

    def capture(self, run: Callable[[], _T]) -> _T:
        """Capture what `run` does, without doing it.

        Args:
            run: The work. It must have run before, so that all it compiles and looks up is there.
        Returns:
            What `run` returned: tensors that each replay fills.
        Raises:
            CaptureError: A graph cannot hold the work.
        """
        try:
            # After a failed capture, torch.cuda.graph alone leaves its own stream as the current.
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(self._graph):
                return run()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            first = error
            while isinstance(first.__context__, RuntimeError):  # what ended the capture
                first = first.__context__
            raise CaptureError((str(first).splitlines() or [""])[0]) from error

    def replay(self) -> None:
        """Do the captured work, on the current stream."""
        self._graph.replay()

    def free(self) -> None:
        """Give the graph's memory back; the tensors of the capture must not be used any more."""
        self._graph.reset()


class HostCopy:
    """A tensor's values on their way to the host: work that a GPU gets later does not delay them.

    Args:
        values: On any device; it may be overwritten once this is made.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True, copy=True)
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> list[float]:
        """Wait for the values and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()
