"""torch's CUDA graphs and streams played on a CPU: a capture runs the forward, and says that it is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import transformers.masking_utils
import transformers.utils.import_utils as transformers_utils


class Graphs:
    """What happened, in order: `free`, `capture`, `replay`; `capturing` while the forward is captured.

    To be made when the model is built: transformers asks other things of CUDA meanwhile. `invalidated`: a capture that
    broke cannot be ended, as where the forward waited for the device.
    """

    def __init__(self, patch: pytest.MonkeyPatch, invalidated: bool = True) -> None:
        self._invalidated = invalidated
        self.log: list[str] = []
        self.capturing = False
        patch.setattr(torch.cuda, "CUDAGraph", type("CUDAGraph", (), {"replay": lambda _: self.log.append("replay")}))
        patch.setattr(torch.cuda, "Stream", FakeStream)
        patch.setattr(torch.cuda, "current_stream", FakeStream)
        patch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        patch.setattr(torch.cuda, "graph", self.capture)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: self.log.append("free"), raising=False)
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        patch.setattr(transformers_utils, "is_cuda_stream_capturing", lambda: self.capturing)

    @contextmanager
    def capture(self, graph: Any) -> Iterator[None]:
        self.log.append("capture")
        self.capturing = True
        try:
            yield
        except Exception:
            if self._invalidated:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from None
            raise
        self.capturing = False


class FakeStream:
    """A stream that everything waits for already."""

    def wait_stream(self, other: Any) -> None: ...


def is_tracing() -> bool:
    """What transformers' mask builder is told where no mask was given."""
    told: bool = transformers.masking_utils.is_tracing(None)
    return told
