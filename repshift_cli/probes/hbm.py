"""HBM traffic: modelled from the tensors that each operator reads and writes (cold cache)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repshift_cli.records import Measurement, Metric, Step

MODELLED = Metric("hbm_modelled", "HBM modelled", "B", "lower", "value", 30, "modelled")
READ = Metric("hbm_modelled_read", "HBM read, modelled", "B", "lower", "value", 110, "modelled")
WRITTEN = Metric("hbm_modelled_written", "HBM written, modelled", "B", "lower", "value", 111, "modelled")
MEASURED = Metric("hbm", "HBM measured", "B", "lower", "value", 31, "counter")

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_aten = torch.ops.aten
_MAKES_NOTHING = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}
_VIEWS_WITHOUT_ALIAS = {_aten._unsafe_view, _aten._reshape_alias, _aten.detach, _aten.lift_fresh}
_WRITES_ITS_FIRST = {_aten.copy_, _aten.fill_, _aten.zero_}
_READS_ROWS = {_aten.index_select, _aten.gather, _aten.embedding, _aten.index}


class HbmProbe:
    """The model; the counters of the hardware are null with the reason until a provider measures them."""

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """One forward under a dispatch mode, in a pass of its own."""
        watched = step.operators
        with watched.active(), TrafficModel() as traffic:
            watched.forward()
        return (
            MODELLED.of(traffic.read + traffic.written),
            READ.of(traffic.read),
            WRITTEN.of(traffic.written),
            MEASURED.missing("no hardware counter is read by this version; the modelled figure stands beside it"),
        )


class TrafficModel(TorchDispatchMode):
    """Sums the bytes of every operator's inputs (`read`) and outputs (`written`), as if no cache kept anything.

    Views move nothing; a tensor given twice is read once; an expanded tensor counts at the size it has in memory; a
    gather reads the rows it takes. So fused attention counts q, k, v and its outputs, and materialised attention adds
    four passes over the N x N matrix: scores written, read and written by softmax, read again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read = 0
        self.written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE.name):
            with self:  # torch's own composition; func.decompose() prefers Python ones, which copy where torch does not
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        out = func(*args, **kwargs)
        if not _is_view(func):
            self._count(func, args, kwargs, out)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        packet, results = func.overloadpacket, stored_bytes(_tensors(out))
        if packet in _MAKES_NOTHING:
            return
        only_written = {a.name for a in func._schema.arguments if a.is_out}
        read = [v for name, v in kwargs.items() if name not in only_written]
        given = _tensors((args[1:] if packet in _WRITES_ITS_FIRST else args, read))
        if packet in _READS_ROWS:
            self.read += results + stored_bytes(given[1:])
        else:
            self.read += stored_bytes(given)
        self.written += results


def _is_view(func: Any) -> bool:
    """Whether the operator only gives another view of its input's memory."""
    returns = func._schema.returns
    aliased = [r.alias_info is not None and not r.alias_info.is_write for r in returns]
    return func.overloadpacket in _VIEWS_WITHOUT_ALIAS or (bool(returns) and all(aliased))


def _tensors(values: Any) -> list[Tensor]:
    return [v for v in tree_leaves(values) if isinstance(v, Tensor)]


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that the tensors touch in memory: the same view once, expanded dimensions once, never above the storage."""
    storages: dict[int, tuple[int, set[Any]]] = {}
    total: dict[int, int] = {}
    for t in tensors:
        storage = t.untyped_storage()
        key = storage._cdata
        limit, views = storages.setdefault(key, (storage.nbytes(), set()))
        view = (t.storage_offset(), t.shape, t.stride())
        if view not in views:
            views.add(view)
            total[key] = min(limit, total.get(key, 0) + _distinct(t) * t.element_size())
    return sum(total.values())


def _distinct(t: Tensor) -> int:
    """Elements of a tensor with its expanded (stride 0) dimensions counted once."""
    count = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        count *= size if stride or size == 0 else 1
    return count
