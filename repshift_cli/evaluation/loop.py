"""The loop: shard by shard every variant sees the same samples, and what it made of them is kept at once."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from repshift_cli.benchmark.failures import ContextLost, is_poison, reason_of
from repshift_cli.evaluation.decoding import Damaged, Decoder
from repshift_cli.evaluation.feeding import Feed
from repshift_cli.evaluation.samples import Sample
from repshift_cli.evaluation.shards import Shards
from repshift_cli.evaluation.tasks import Judge, NotFinite
from repshift_cli.records import Case, Step, one_line

EVALUATED, TRAINING = "eval", "train"
DEATHS = 2
"""A variant during which the process has ended so often is not begun again."""


@dataclass
class Contender:
    """A variant on its way. `outputs` hold what was kept of each shard (n, items, d), NaN for a damaged sample."""

    case: Case
    tokens: tuple[int, ...]
    step: Step | None = None
    failure: str | None = None
    outputs: list[np.ndarray] = field(default_factory=list)

    @property
    def whole(self) -> np.ndarray:
        """Of all samples so far, (N, items, d); a shard of which nothing could be read has no shape of its own."""
        shape = np.max([kept.shape[1:] for kept in self.outputs], axis=0)
        if all(kept.shape[1:] == tuple(shape) for kept in self.outputs):
            return np.concatenate(self.outputs)
        unread = [np.full((len(kept), *shape), np.nan, np.float32) for kept in self.outputs]
        return np.concatenate([k if k.shape == u.shape else u for k, u in zip(self.outputs, unread, strict=True)])


Told = Callable[[int, Sequence[Contender]], bool]
"""Is told after each shard how many samples are done; True ends the evaluation there."""


@dataclass
class Loop:
    """Runs samples through variants. `shard` is how many samples are decoded, run and kept together."""

    judge: Judge
    feed: Feed
    decoder: Decoder
    shards: Shards
    batch: int
    shard: int
    damaged: dict[str, dict[str, str]] = field(default_factory=lambda: {EVALUATED: {}, TRAINING: {}})
    """What could not be read, by name with the reason: of the samples evaluated, and of those learnt from."""
    _at: tuple[float, float] = (0.0, 0.0)
    """How many samples were done before the running variant of the shard, and for how many it stands."""
    moved: Callable[[float, bool], None] = lambda done, begins: None
    """Is told before each batch how many samples are done, of those of this shard the share of its variants, and
    whether a variant begins with it."""

    def run(
        self, contenders: Sequence[Contender], samples: Sequence[Sample], role: str = EVALUATED,
        told: Told = lambda done, contenders: False,
    ) -> int:  # fmt: skip
        """Fill the contenders' outputs; the number of samples done. What is on disk already is not run again."""
        pieces = [samples[i : i + self.shard] for i in range(0, len(samples), self.shard)]
        done = 0
        for number, piece in enumerate(pieces):
            self._shard(contenders, piece, role, number, pieces[number + 1 : number + 2])
            done += len(piece)
            if told(done, contenders):
                break
        return done

    def first_batch(self, samples: Sequence[Sample]) -> Any:
        """The model's inputs of the first batch that can be read, or None."""
        piece = samples[: self.shard]
        self.decoder.ask(-1, [item for sample in piece for item in self.judge.items(sample)])
        found = [item for item in self.decoder.take(-1) if not isinstance(item, Damaged)]
        items = [part for item in found for part in self.feed.parts(item)]
        rows = self.feed.batches(items, self.batch)
        return self.feed.inputs([items[row] for row in rows[0]]) if rows else None

    def _shard(
        self, contenders: Sequence[Contender], piece: Sequence[Sample], role: str, number: int, ahead: Sequence[Any]
    ) -> None:
        alive = [c for c in contenders if c.failure is None]
        known = {c.case: self.shards.load(c.case, role, number) for c in alive}
        damaged = self.shards.damage(role, number)
        if damaged is None or any(kept is None or len(kept) != len(piece) for kept in known.values()):
            items, damaged = self._decoded(piece, role, number, ahead)
        else:
            items = None
        self.damaged[role] |= damaged
        for place, contender in enumerate(alive):
            kept = known[contender.case]
            if kept is None or len(kept) != len(piece):
                assert items is not None
                self._at = number * self.shard + len(piece) * place / len(alive), len(piece) / len(alive)
                kept = self._evaluated(contender, piece, items, role, number)
                if kept is None:
                    continue
                self.shards.save(contender.case, role, number, kept)
            contender.outputs.append(kept)

    def _decoded(
        self, piece: Sequence[Sample], role: str, number: int, ahead: Sequence[Sequence[Sample]]
    ) -> tuple[list[list[Any]], dict[str, str]]:
        """The items of every sample, none of a damaged one; the next shard is asked for meanwhile."""
        asked = [list(self.judge.items(sample)) for sample in piece]
        self.decoder.ask(number, [item for items in asked for item in items])
        for following in ahead:
            self.decoder.ask(number + 1, [item for sample in following for item in self.judge.items(sample)])
        flat = iter(self.decoder.take(number))
        decoded = [[next(flat) for _ in items] for items in asked]
        damaged = {}
        for place, sample in enumerate(piece):
            if reasons := [value.reason for value in decoded[place] if isinstance(value, Damaged)]:
                damaged[sample.name], decoded[place] = reasons[0], []
            decoded[place] = [part for value in decoded[place] for part in self.feed.parts(value)]
        self.shards.save_damage(role, number, damaged)
        return decoded, damaged

    def _evaluated(
        self, contender: Contender, piece: Sequence[Sample], items: Sequence[Sequence[Any]], role: str, number: int
    ) -> np.ndarray | None:
        """What the judge keeps of a shard under a variant (n, items, d); None where the variant fails."""
        if len(deaths := self.shards.deaths(contender.case)) >= DEATHS:
            contender.failure = f"the process ended {len(deaths)} times while this variant was evaluated: {deaths[-1]}"
            return None
        self.shards.begin(contender.case)
        kept = None
        try:
            kept = self._rows(contender, piece, items, role, number)
        except NotFinite as error:
            contender.failure = f"{error}, first in samples {number * self.shard + 1} and on"
        except Exception as error:
            if is_poison(error):
                raise ContextLost(contender.case, reason_of(error)) from error
            contender.failure = f"{type(error).__name__}: {one_line(error)}"
        self.shards.end()
        return kept

    def _rows(
        self, contender: Contender, piece: Sequence[Sample], items: Sequence[Sequence[Any]], role: str, number: int
    ) -> np.ndarray:
        flat = [(place, item) for place, own in enumerate(items) for item in own]
        width = max(map(len, items), default=1) or 1
        found: dict[int, np.ndarray] = {}
        batches = self.feed.batches([item for _, item in flat], self.batch)
        for count, rows in enumerate(batches):
            self.moved(self._at[0] + self._at[1] * count / len(batches), count == 0)
            torch.manual_seed(zlib.crc32(f"{contender.case.seed} {number} {count}".encode()))
            samples = [piece[flat[row][0]] for row in rows]
            found |= zip(rows, self._batch(contender, [flat[row][1] for row in rows], samples, role), strict=True)
        depth = len(next(iter(found.values()))) if found else 1
        kept = np.full((len(piece), width, depth), np.nan, dtype=np.float32)
        position = 0
        for place, own in enumerate(items):
            for item in range(len(own)):
                kept[place, item] = found[position]
                position += 1
        return kept

    def _batch(self, contender: Contender, items: Sequence[Any], samples: Sequence[Sample], role: str) -> np.ndarray:
        """What the judge keeps of one full batch."""
        assert contender.step is not None
        with contender.step.active():
            output = contender.step.run(self.feed.inputs(items))
        kept = self.judge.features if role == TRAINING else self.judge.read
        return kept(contender.case, output, samples)
