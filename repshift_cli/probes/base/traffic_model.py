"""The byte model: what every operator would read and write if no cache kept anything, by operator and by block.

Fused attention moves q, k, v and its outputs; materialised attention adds four passes over the N x N matrix (scores
written, read and written by softmax, read again). A measurement can lie below: dirty lines stay in the L2 cache.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repshift_cli.kernels import launches
from repshift_cli.kernels.scan import PLAIN, plain_scan, scan_in_use
from repshift_cli.kernels.sdpa import Answer, AttentionCall, watched_by
from repshift_cli.records import Site

OUTSIDE = "outside the blocks"
FORMULA = "attention (formula)"
"""What attention that shows no operator (a package's own kernel launch) is called."""

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_aten = torch.ops.aten
_MAKES_NOTHING = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}
_VIEWS_WITHOUT_ALIAS = {_aten._unsafe_view, _aten._reshape_alias, _aten.detach, _aten.lift_fresh}
_WRITES_ITS_FIRST = {_aten.copy_, _aten.fill_, _aten.zero_}
_READS_ROWS = {_aten.index_select, _aten.gather, _aten.embedding, _aten.index}
_ATTENTION = re.compile(r"attention|attn|fmha|softmax")


class TrafficModel(TorchDispatchMode):
    """Sums the bytes of every operator's inputs (`read`) and outputs (`written`), as if no cache kept anything.

    Views move nothing; a tensor given twice is read once; an expanded tensor counts at the size it has in memory; a
    gather reads the rows it takes. `operators` has [read, written] by operator, `blocks` by `place`, which the caller
    sets (see `watching`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.place = OUTSIDE
        self.operators: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.blocks: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    @property
    def read(self) -> int:
        """Bytes that all operators read."""
        return sum(read for read, _ in self.operators.values())

    @property
    def written(self) -> int:
        """Bytes that all operators write."""
        return sum(written for _, written in self.operators.values())

    def add(self, operator: str, read: int, written: int) -> None:
        """Count the bytes of one call."""
        for sums in (self.operators[operator], self.blocks[self.place]):
            sums[0] += read
            sums[1] += written

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE.name):
            with self:  # torch's own composition; func.decompose() prefers Python ones, which copy where torch does not
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        if func.overloadpacket == torch.ops.repshift.selective_scan and scan_in_use(args[0]) == PLAIN:
            with self:  # it is no fused kernel then, and every step of it moves its tensors
                return plain_scan(*args, **kwargs)
        out = func(*args, **kwargs)
        if not _is_view(func) and func.overloadpacket not in _MAKES_NOTHING:
            self._count(func, args, kwargs, out)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        packet, written = func.overloadpacket, stored_bytes(_tensors(out))
        only_written = {argument.name for argument in func._schema.arguments if argument.is_out}
        kwargs = {name: value for name, value in kwargs.items() if name not in only_written}
        given = _tensors((args[1:] if packet in _WRITES_ITS_FIRST else args, kwargs))
        read = written + stored_bytes(given[1:]) if packet in _READS_ROWS else stored_bytes(given)
        self.add(str(packet), read, written)


@contextmanager
def watching(model: TrafficModel, sites: Sequence[Site]) -> Iterator[None]:
    """Within it the model knows which block it is in, and what shows no operator is added: attention by its formula,
    Triton's kernels by what they say of themselves.

    To be entered after pruning has put its hooks: what cutting a block's tokens costs then counts for that block.
    """

    def entering(number: int) -> Any:
        return lambda *_: setattr(model, "place", str(number))

    def leaving(*_: Any) -> None:
        model.place = OUTSIDE

    with ExitStack() as stack:
        for number, site in enumerate(sites, start=1):
            before = site.block.register_forward_pre_hook(entering(number), prepend=True)
            after = site.block.register_forward_hook(leaving)
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(_unseen_attention(model))
        stack.enter_context(launches.listening(model.add))
        yield


@contextmanager
def _unseen_attention(model: TrafficModel) -> Iterator[None]:
    """Adds the compulsory bytes of attention calls in which no attention operator showed (flash-attn 4)."""

    def adding(call: AttentionCall, answer: Answer) -> Tensor:
        before = _attention_bytes(model)
        out = answer(call)
        if _attention_bytes(model) == before:
            model.add(FORMULA, *attention_bytes(call.query, call.key, call.value))
        return out

    with watched_by(adding, answered=True):
        yield


def _attention_bytes(model: TrafficModel) -> int:
    return sum(sum(moved) for name, moved in model.operators.items() if _ATTENTION.search(name))


def attention_bytes(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int]:
    """What fused attention must move: q, k and v read, the output written, each once.

    Shapes (B, H, Nq, d), (B, Hkv, Nk, d), (B, Hkv, Nk, dv); with d = dv and e bytes per element the sum is
    e (2 B H Nq d + 2 B Hkv Nk d).
    """
    b, heads, queries, _ = query.shape
    read = stored_bytes((query, key, value))
    return read, b * heads * queries * value.shape[-1] * query.element_size()


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
