"""CNNs: grids cut by hooks against plain forwards written out here, the paper's MACs, planning and bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_reduction import D, pruning
from tiny import BATCH, case, one_thread, pixels, roughen  # noqa: F401
from torch import Tensor, nn
from typer.testing import CliRunner

from repshift_cli import prune, registry
from repshift_cli.benchmark import builder
from repshift_cli.cli import app
from repshift_cli.models import convnext, resnet
from repshift_cli.models.base.transformers import logits, pooled
from repshift_cli.models.discovery.blocks import NoSites
from repshift_cli.models.discovery.grids import find_stages
from repshift_cli.probes.macs import MacsProbe
from repshift_cli.profiling import break_even
from repshift_cli.records import Case, Site, Subject, UsageError, call, dropped_share, lines_left, tokens_along
from repshift_cli.records.profile import Breakdown, PartTime
from repshift_cli.reduction import lowest, oracle, random, repshift, stride
from repshift_cli.reduction.engine.grid import by_line, by_token, picked
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.plan import Backend, expand
from repshift_cli.sweep.profiles import load_profile

SCHEDULES = [(0.72, (1, 2)), (0.4, (1, 3))]
SIZES: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 40], "num_labels": 7}
Shape = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Plain:
    """A CNN, 3 images of 96 x 128, and its forward in parts: each stage gives (what x^ is compared with, x^)."""

    module: Any
    sites: Callable[[Any], tuple[Site, ...]]
    embed: Callable[[Tensor], Tensor]
    stages: Sequence[Callable[[Tensor], Shape]]
    finish: Callable[[Tensor], Tensor]
    pixels: Tensor

    def forward(self, cut: Callable[[int, Tensor, Tensor], Tensor] | None = None) -> Tensor:
        x = self.embed(self.pixels)
        for number, stage in enumerate(self.stages, start=1):
            origin, x = stage(x)
            x = x if cut is None else cut(number, origin, x)
        return self.finish(x)


def tiny_resnet(layer: str) -> Plain:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(layer_type=layer, embedding_size=16, depths=[2, 1, 2, 1], **SIZES)
    torch.manual_seed(0)
    images = pixels(BATCH, 3, 96, 128)
    module: Any = roughen(ResNetForImageClassification(config)).double()
    for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1
    with torch.no_grad():  # statistics of its own, so that numbers stay near one
        module.train()(images)
    module.eval()
    body = module.resnet

    def convolved(unit: Any, x: Tensor) -> Tensor:
        return unit.activation(unit.normalization(unit.convolution(x)))

    def stage(s: Any) -> Callable[[Tensor], Shape]:
        def through(x: Tensor) -> Shape:
            shortcuts = []
            for layer in s.layers:
                branch = x
                for unit in layer.layer:
                    branch = convolved(unit, branch)
                shortcuts.append(layer.shortcut(x))
                x = (branch + shortcuts[-1]).relu()
            return shortcuts[0], x

        return through

    return Plain(
        module,
        resnet.sites,
        embed=lambda x: body.embedder.pooler(convolved(body.embedder.embedder, x)),
        stages=[stage(s) for s in body.encoder.stages],
        finish=lambda x: module.classifier(x.mean((2, 3))),
        pixels=images,
    )


def tiny_convnext() -> Plain:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    module: Any = roughen(ConvNextForImageClassification(ConvNextConfig(depths=[2, 1, 1, 1], **SIZES))).double()
    body = module.convnext

    def block(b: Any, x: Tensor) -> Tensor:
        mixed = b.layernorm(b.dwconv(x).permute(0, 2, 3, 1))
        return x + (b.layer_scale_parameter * b.pwconv2(b.act(b.pwconv1(mixed)))).permute(0, 3, 1, 2)

    def stage(s: Any) -> Callable[[Tensor], Shape]:
        def through(x: Tensor) -> Shape:
            for step in s.downsampling_layer:
                x = step(x)
            origin = x
            for b in s.layers:
                x = block(b, x)
            return origin, x

        return through

    return Plain(
        module,
        convnext.sites,
        embed=lambda x: body.embeddings.layernorm(body.embeddings.patch_embeddings(x)),
        stages=[stage(s) for s in body.encoder.stages],
        finish=lambda x: module.classifier(body.layernorm(x.mean((2, 3)))),
        pixels=pixels(BATCH, 3, 96, 128),
    )


class Inverted(nn.Module):
    """An inverted residual of depthwise convolutions: a shortcut only where nothing changes the shape."""

    def __init__(self, given: int, channels: int, stride: int) -> None:
        super().__init__()
        self.expand, self.first = nn.Conv2d(given, 2 * given, 1), nn.BatchNorm2d(2 * given)
        self.depthwise = nn.Conv2d(2 * given, 2 * given, 3, stride, 1, groups=2 * given)
        self.project, self.last = nn.Conv2d(2 * given, channels, 1), nn.BatchNorm2d(channels)
        self.shortens = stride == 1 and given == channels

    def branch(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.project(self.depthwise(self.first(self.expand(x)).relu())))
        return found

    def forward(self, x: Tensor) -> Tensor:
        branch = self.last(self.project(self.depthwise(self.first(self.expand(x)).relu())))
        return x + branch if self.shortens else branch


class Features(nn.Module):
    """Blocks in one row, no module for a stage, as torchvision's MobileNets have them."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Inverted(16, 16, 1), Inverted(16, 24, 2), Inverted(24, 24, 1), Inverted(24, 24, 1)]
        blocks += [Inverted(24, 32, 2), Inverted(32, 32, 1), Inverted(32, 40, 1), Inverted(40, 40, 1)]
        self.features = nn.Sequential(nn.Conv2d(3, 16, 4, 4), *blocks)
        self.head = nn.Linear(40, 7)

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.features(pixel_values).mean((2, 3))))


def tiny_inverted() -> Plain:
    module: Any = roughen(Features()).double()
    images = pixels(BATCH, 3, 96, 128)
    stem, *blocks = module.features

    def stage(strided: Any, *residual: Any) -> Callable[[Tensor], Shape]:
        def through(x: Tensor) -> Shape:
            x = origin = strided.branch(x) if strided is not None else x
            for block in residual:
                x = x + block.branch(x)
            return origin, x

        return through

    stages = [stage(None, blocks[0]), stage(*blocks[1:4]), stage(*blocks[4:6]), stage(*blocks[6:])]
    found = find_stages("tiny", module, (images[:1],))
    return Plain(module, found.sites, stem, stages, lambda x: module.head(x.mean((2, 3))), images)


FAMILIES: dict[str, Callable[[], Plain]] = {
    "basic": lambda: tiny_resnet("basic"),
    "bottleneck": lambda: tiny_resnet("bottleneck"),
    "convnext": tiny_convnext,
    "inverted": tiny_inverted,
}


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request: pytest.FixtureRequest) -> Plain:
    return FAMILIES[request.param]()


def subject(plain: Plain) -> Subject:
    inputs = {"pixel_values": plain.pixels}
    return Subject(
        plain.module, inputs, (inputs,), plain.sites(plain.module), 0, 24 * 32, "img", logits, pooled, grid=True
    )


def run(plain: Plain, method: Any, given: Case) -> Tensor:
    with pruning(subject(plain), method, given):
        return call(plain.module, {"pixel_values": plain.pixels}).logits


# --- the two ways, written out once more ------------------------------------------------------------------------------

Grid = list[list[float]]


def staying(lines: int, keep: float) -> int:
    """n lines lose round(n (1 - sqrt(keep)))."""
    return max(1, lines - round(lines * (1 - math.sqrt(keep))))


def best(scores: Sequence[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def line_wise(scores: Grid, keep: float) -> list[list[tuple[int, int]]]:
    rows = best([math.fsum(row) / len(row) for row in scores], staying(len(scores), keep))
    turned = list(zip(*scores, strict=True))
    columns = best([math.fsum(column) / len(column) for column in turned], staying(len(turned), keep))
    return [[(r, c) for c in columns] for r in rows]


def token_wise(scores: Grid, keep: float) -> list[list[tuple[int, int]]]:
    short = [[(r, c) for c in best(row, staying(len(row), keep))] for r, row in enumerate(scores)]
    columns = []
    for column in zip(*short, strict=True):
        stay = best([scores[r][c] for r, c in column], staying(len(scores), keep))
        columns.append([column[i] for i in stay])
    return [list(row) for row in zip(*columns, strict=True)]


WAYS = {"line": line_wise, "token": token_wise}


def reference(plain: Plain, given: Case, sign: int = 1) -> Tensor:
    """The plain forward, every sample's grid cut by its own shifts behind the stages named."""

    def cut(number: int, origin: Tensor, out: Tensor) -> Tensor:
        if number not in given.layers:
            return out
        samples = []
        for before, after in zip(origin, out, strict=True):
            scores = [
                [
                    sign * D(after[:, r, c].tolist(), before[:, r, c].tolist(), given.option("distance") or "l2")
                    for c in range(w)
                ]
                for h, w in [after.shape[1:]]
                for r in range(h)
            ]
            places = WAYS[given.removal or "line"](scores, given.keep)
            samples.append(torch.stack([torch.stack([after[:, r, c] for r, c in row], 1) for row in places], 1))
        return torch.stack(samples)

    with torch.no_grad():
        return plain.forward(cut)


def shifted(**changes: Any) -> Case:
    given = {"pruning": "repshift", "attention": "none", "operation": "block", "distance": "l2", "removal": "line"}
    return case(**{**given, "keep": 0.72, "layers": (1, 2), **changes})


def test_plain_forward_is_the_model(plain: Plain) -> None:
    with torch.no_grad():
        own = call(plain.module, {"pixel_values": plain.pixels}).logits
        torch.testing.assert_close(own, plain.forward(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
@pytest.mark.parametrize("removal", ["line", "token"])
def test_every_family_is_cut_as_written(plain: Plain, keep: float, layers: tuple[int, ...], removal: str) -> None:
    given = shifted(keep=keep, layers=layers, removal=removal)
    expected = reference(plain, given)
    torch.testing.assert_close(run(plain, repshift, given), expected, rtol=0, atol=1e-10)
    other = reference(plain, replace(given, removal="token" if removal == "line" else "line"))
    with torch.no_grad():
        assert (expected - plain.forward()).abs().max() > 1e-3, "the cut must show in the output"
    assert (expected - other).abs().max() > 1e-3, "the two ways must differ"


@pytest.mark.parametrize("distance", ["l1", "cosine"])
@pytest.mark.parametrize("removal", ["line", "token"])
def test_other_distances(distance: str, removal: str) -> None:
    plain, given = FAMILIES["bottleneck"](), shifted(distance=distance, removal=removal)
    torch.testing.assert_close(run(plain, repshift, given), reference(plain, given), rtol=0, atol=1e-10)


@pytest.mark.parametrize("removal", ["line", "token"])
def test_lowest_keeps_the_other_end(removal: str) -> None:
    plain, given = FAMILIES["basic"](), shifted(pruning="lowest", removal=removal)
    torch.testing.assert_close(run(plain, lowest, given), reference(plain, given, sign=-1), rtol=0, atol=1e-10)


def test_where_the_shape_stays_the_origin_is_the_input_itself() -> None:
    """Stage 1 of a basic ResNet and of ConvNeXt; where it changes, the origin has the shape of the output."""
    for name in FAMILIES:
        plain = FAMILIES[name]()
        with torch.no_grad():
            x = plain.embed(plain.pixels)
            for number, stage in enumerate(plain.stages, start=1):
                origin, out = stage(x)
                assert origin.shape == out.shape
                assert torch.equal(origin, x) if number == 1 and name != "bottleneck" else origin.shape != x.shape[1:]
                x = out
    first = resnet.sites(FAMILIES["basic"]().module)[0]
    assert isinstance(first.origin, torch.nn.Identity)
    assert convnext.sites(FAMILIES["convnext"]().module)[0].origin is None


def test_every_sample_is_cut_as_if_alone(plain: Plain) -> None:
    given = shifted(removal="token")
    together = run(plain, repshift, given)
    for i in range(BATCH):
        alone = run(replace(plain, pixels=plain.pixels[i : i + 1]), repshift, given)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-10)


def test_keep_one_is_the_untouched_model_bit_for_bit(plain: Plain) -> None:
    untouched = run(plain, None, case())
    assert torch.equal(run(plain, repshift, shifted(keep=1.0)), untouched)
    assert not torch.equal(run(plain, repshift, shifted()), untouched)
    assert torch.equal(run(plain, None, case()), untouched)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.module.modules())


def test_one_line_stays(plain: Plain) -> None:
    shapes = []
    stage = subject(plain).sites[3].block
    given = shifted(keep=1e-6, layers=(4,))
    with pruning(subject(plain), repshift, given):
        handle = stage.register_forward_hook(lambda m, a, out: shapes.append(out.shape[2:]))
        call(plain.module, {"pixel_values": plain.pixels})
        handle.remove()
    assert shapes == [(1, 1)]


# --- stages that are found --------------------------------------------------------------------------------------------


def test_stages_are_found_by_what_blocks_compute() -> None:
    """Of a row of blocks; and of a ResNet and a ConvNeXt those that their families name, with the same x."""
    tiny = find_stages("tiny", Features().eval(), (pixels(1, 3, 96, 128).float(),))
    blocks = ["features.1", "features.4", "features.6", "features.8"]
    assert [(s.block, s.origin) for s in tiny.stages] == list(
        zip(blocks, [None, "features.2", None, None], strict=True)
    )
    for name in ("basic", "bottleneck", "convnext"):
        plain = FAMILIES[name]()
        found = find_stages(name, plain.module, {"pixel_values": plain.pixels[:1]})
        given = shifted(removal="token")
        expected = run(plain, repshift, given)
        assert torch.equal(run(replace(plain, sites=found.sites), repshift, given), expected)
        assert found.facts.along(0.72, (1, 2)) == (24 * 32, 20 * 27, 8 * (11 if name == "convnext" else 12))


class Overwriting(Inverted):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.branch(x)) if self.shortens else self.branch(x)


class Joined(Features):
    """What a later stage puts out meets what an earlier one did."""

    def forward(self, pixel_values: Tensor) -> Any:
        early = self.features[:5](pixel_values)
        late = nn.functional.interpolate(self.features[5:](early), scale_factor=2)
        return torch.cat([early, late], 1)


class Shared(Features):
    """One activation in two places, before a stage's first residual block and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, pixel_values: Tensor) -> Any:
        return self.act(self.features[3:](self.act(self.features[:3](pixel_values))))


def _overwriting() -> nn.Module:
    module = Features()
    module.features[3] = Overwriting(24, 24, 1)
    return module


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3))), "no convolutional block"),
        (_overwriting, "features.3 overwrites its input"),
        (Joined, "needs their grids whole"),
        (Shared, "act runs more than once"),
    ],
)
def test_what_cannot_be_cut_between_its_stages_is_refused(made: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(NoSites, match=words) as refusal:
        find_stages("mine", roughen(made()), (pixels(1, 3, 96, 128).float(),))
    assert refusal.value.looked


def test_a_module_of_yours_is_pruned_as_any_cnn() -> None:
    plain = tiny_inverted()
    expected = reference(plain, shifted())
    with torch.no_grad(), prune(plain.module, inputs=(plain.pixels[:1],), keep=0.72, layers=[1, 2], removal="line"):
        torch.testing.assert_close(plain.module(plain.pixels).logits, expected, rtol=0, atol=1e-10)


TIMM = {
    "tf_efficientnet_lite0": (5, 256, 196, 36),
    "mobilenetv2_050": (5, 256, 196, 36),
    "mobilenetv3_small_050": (3, 64, 49, 9),
    "regnety_002": (4, 256, 196, 36),
}
"""Of 64 pixels: stages, and the places after each cut at keep 0.72."""


@pytest.mark.parametrize("name", TIMM)
def test_cnns_of_timm_are_cut_between_their_stages(name: str) -> None:
    """MACs are those of the convolutions as they ran, counted here by hand; keep 1 is the model bit for bit."""
    pytest.importorskip("timm", reason="the extra 'timm' is not installed")
    given = shifted(model=f"timm:{name}", image_size=64, batch=2)
    facts = builder.facts_of(None, given.model, 64, None)
    assert (facts.depth, *tokens_along(facts, given.keep, given.layers)) == TIMM[name]
    step_builder = builder.StepBuilder("cpu")
    macs = {}
    for one in (replace(given, pruning="none", layers=(), removal=None), given, replace(given, keep=1.0)):
        step, seen = step_builder.prepare(one), list[int]()

        def count(m: Any, args: Any, output: Tensor, seen: list[int] = seen) -> None:
            kernel = m.weight[0].numel() if isinstance(m, nn.Conv2d) else m.in_features
            seen.append(output.numel() * kernel)

        computing = [m for m in step.subject.module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        handles = [m.register_forward_hook(count) for m in computing]
        with step.active():
            output = step.forward()
        for handle in handles:
            handle.remove()
        (probed,) = MacsProbe().measure(step)
        assert probed.samples[0] == pytest.approx(sum(seen) / 2, rel=1e-9)
        macs[one] = (probed.samples[0], output)
    (whole, untouched), (cut, shorter), (same, kept) = macs.values()
    assert cut < whole == same
    assert torch.equal(untouched, kept) and not torch.equal(untouched, shorter) and shorter.isfinite().all()


@pytest.mark.parametrize("removal", ["line", "token"])
def test_a_resnet_of_timm_is_that_of_its_family(removal: str) -> None:
    timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")
    torch.manual_seed(0)
    theirs = roughen(timm.create_model("resnet18"))
    own = resnet._stages("resnet18", 64)
    ours = own.recipe.model(own.recipe.config).eval()
    ours.load_state_dict({resnet.from_torchvision(k): v for k, v in theirs.state_dict().items()})
    images, given = pixels(2, 3, 64, 64).float(), shifted(removal=removal)
    found = find_stages("resnet18", theirs, (images[:1],)).sites(theirs)
    both = []
    for module, sites in ((ours, own.sites(ours)), (theirs, found)):
        subject = Subject(module, (images,), (), sites, 0, 256, "img", logits, pooled, grid=True)
        with torch.no_grad(), pruning(subject, repshift, given):
            output = module(images)
        both.append(getattr(output, "logits", output))
    torch.testing.assert_close(*both)


# --- methods without scores -------------------------------------------------------------------------------------------


def behind(plain: Plain, method: Any, given: Case) -> tuple[Tensor, Tensor]:
    """Stage 1's output before and after the cut."""
    site, seen = subject(plain).sites[0].block, []
    first = site.register_forward_hook(lambda m, a, out: seen.append(out))
    with pruning(subject(plain), method, given):
        last = site.register_forward_hook(lambda m, a, out: seen.append(out))
        call(plain.module, {"pixel_values": plain.pixels})
    first.remove()
    last.remove()
    return seen[0], seen[1]


def test_the_oracle_is_a_view_of_the_first_lines(plain: Plain) -> None:
    before, after = behind(plain, oracle, shifted(pruning="oracle", keep=0.25, layers=(1,)))
    assert torch.equal(after, before[:, :, :12, :16])
    assert after.data_ptr() == before.data_ptr()


def test_stride_takes_lines_evenly(plain: Plain) -> None:
    before, after = behind(plain, stride, shifted(pruning="stride", keep=0.25, layers=(1,)))
    assert torch.equal(after, before[:, :, ::2, ::2])


def test_random_takes_whole_lines_or_tokens_anew(plain: Plain) -> None:
    torch.manual_seed(3)
    for removal in ("line", "token"):
        given = shifted(pruning="random", removal=removal)
        (before, after), (_, again) = behind(plain, random, given), behind(plain, random, given)
        assert after.shape == (*before.shape[:2], staying(24, 0.72), staying(32, 0.72))
        assert after.shape == again.shape
        assert not torch.equal(after, again)


# --- the choice and the cut -------------------------------------------------------------------------------------------

SCORES = torch.tensor([[[9.0, 1.0, 5.0], [0.0, 2.0, 1.0], [7.0, 8.0, 3.0]]])


def test_lines_of_the_lowest_mean_go() -> None:
    assert by_line(SCORES, (2, 2)).tolist() == [[0, 1, 6, 7]]
    assert by_line(SCORES, (3, 1)).tolist() == [[0, 3, 6]]


def test_the_lowest_tokens_of_each_row_then_of_each_column_go() -> None:
    """Row by row 9 5 | 2 1 | 7 8 stay, then of the columns 9 2 7 and 5 1 8 the highest two."""
    assert by_token(SCORES, (2, 2)).tolist() == [[0, 2, 6, 7]]
    assert by_token(SCORES, (1, 3)).tolist() == [[0, 7, 2]]


def test_of_equal_ones_the_first_stay() -> None:
    flat = torch.zeros(2, 40, 40)
    expected = [[40 * r + c for r in range(30) for c in range(30)]] * 2
    assert by_line(flat, (30, 30)).tolist() == by_token(flat, (30, 30)).tolist() == expected


def test_what_is_no_number_stays() -> None:
    broken = SCORES.clone()
    broken[0, 1, 2] = math.nan
    assert 5 in by_line(broken, (1, 1)).tolist()[0]
    assert 5 in by_token(broken, (1, 1)).tolist()[0]


def test_the_cut_keeps_the_memory_format() -> None:
    grid = torch.randn(2, 5, 4, 6)
    places = by_line(torch.rand(2, 4, 6), (3, 4))
    plain = picked(grid, places, (3, 4))
    other = picked(grid.to(memory_format=torch.channels_last), places, (3, 4))
    assert plain.is_contiguous()
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, other)
    for sample, own, row in zip(grid, plain, places, strict=True):
        assert torch.equal(own.flatten(1), sample.flatten(1)[:, row])


# --- how many lines ---------------------------------------------------------------------------------------------------


def test_lines_lost_are_those_of_the_paper_and_a_share_elsewhere() -> None:
    share = dropped_share(0.72)
    assert [n - lines_left(n, *share) for n in (56, 24, 64, 112)] == [8, 4, 10, 17]
    assert lines_left(7, *dropped_share(0.25)) == 4, "a half goes to the lines that stay"
    assert lines_left(5, *dropped_share(0.0001)) == 1


def test_lines_left_have_no_binary_dust() -> None:
    for lines in range(1, 130):
        for percent in range(1, 101):
            exact = lines * Decimal(percent).sqrt() / 10
            rounded = int((exact + Decimal("0.5")) // 1)
            assert lines_left(lines, *dropped_share(percent / 100)) == max(1, rounded), (lines, percent)


@pytest.mark.parametrize(
    ("family", "name", "size"),
    [(resnet, "resnet50", 224), (resnet, "resnet18", 97), (convnext, "convnext_t", 224), (convnext, "convnext_t", 150)],
)
@pytest.mark.parametrize(("keep", "layers"), [(0.72, (1, 2)), (0.5, (2, 3, 4))])
def test_planned_tokens_are_those_that_come_out(
    family: Any, name: str, size: int, keep: float, layers: tuple[int, ...]
) -> None:
    """Without memory, on the meta device: odd grids too."""
    made = family._stages(name, size)
    with torch.device("meta"):
        module, images = made.recipe.model(made.recipe.config).eval(), torch.empty(1, 3, size, size)
    sites, seen = made.sites(module), []
    own = Subject(module, (images,), (), sites, 0, 0, "img", logits, pooled, grid=True)
    sites[0].block.register_forward_pre_hook(lambda m, a: seen.append(a[0][0, 0].numel()))
    with pruning(own, repshift, shifted(keep=keep, layers=layers)):
        for layer in layers:
            sites[layer - 1].block.register_forward_hook(lambda m, a, out: seen.append(out[0, 0].numel()))
        module(images)
    assert family.facts(name, size).along(keep, layers) == tuple(seen)


# --- the paper's MACs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "exact", "printed"), [("resnet34", (3.66, 2.46), (3.7, 2.5)), ("resnet50", (4.09, 2.70), (4.1, 2.7))]
)
def test_macs_of_the_paper(name: str, exact: tuple[float, float], printed: tuple[float, float]) -> None:
    """Table 6: 8 + 8 lines after stage 1 and 4 + 4 after stage 2, as the shipped profile has it."""
    profile = load_profile("paper-resnet")
    (layers,) = profile["layers"]
    plain = case(model=name, attention="none", batch=1, image_size=224)
    cut = replace(plain, pruning="repshift", keep=profile["keep"], layers=tuple(layers), removal="line")
    cut = cut.with_options(operation="block")
    step_builder = builder.StepBuilder("cpu")
    counted = []
    for given in (plain, cut, replace(cut, removal="token")):
        (macs,) = MacsProbe().measure(step_builder.prepare(given))
        counted.append(macs.samples[0] / 1e9)
    assert counted[1] == counted[2]
    assert tuple(round(n, 2) for n in counted[:2]) == exact
    assert tuple(round(n, 1) for n in counted[:2]) == printed
    assert tokens_along(builder.facts_of(None, name, None, None), cut.keep, cut.layers) == (3136, 2304, 400)


# --- planning and bad input -------------------------------------------------------------------------------------------

METHODS = {name: registry.options_of(registry.find("reduction", name)) for name in ("repshift", "oracle")}


def planned(**options: Any) -> Any:
    axes = Axes.from_options({"model": "resnet18", **options})
    names = ("vanilla", "flash", "none")
    return expand(
        axes,
        "cpu",
        partial(builder.facts_of, None),
        {name: Backend(None) for name in names},
        METHODS,
    )


def test_variants_without_attention_and_both_removals() -> None:
    found = planned(removal="line,token", keep="0.72", layers="1,2")
    assert [(p.case.variant, p.case.removal, p.case.option("operation"), p.tokens) for p in found] == [
        ("none", None, None, (3136,)),
        ("none+repshift", "line", "block", (3136, 2304, 400)),
        ("none+repshift", "token", "block", (3136, 2304, 400)),
    ]


@pytest.mark.parametrize("operation", ["mlp", "attention"])
def test_a_stage_has_no_other_operation(operation: str) -> None:
    (refused,) = [p.refused for p in planned(operation=operation) if p.case.options]
    assert "lets the shift of block be scored" in refused


def test_a_grid_that_cannot_be_halved_is_refused_cell_by_cell() -> None:
    cells = [p for p in planned(model="convnext_t", keep="0.0001,0.72", layers="1") if p.case.layers]
    assert [p.refused is None for p in cells] == [False, True]
    assert "--keep" in (cells[0].refused or "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": "4"}, "larger --image-size"),
        ({"model": "convnext_t", "image_size": "31"}, "larger --image-size"),
        ({"frames": "8"}, "--frames does not apply"),
        ({"protect": "first:1"}, "--protect does not apply to resnet18"),
        ({"layers": "5"}, "beyond the depth"),
        ({"model": "vit_t", "removal": "token"}, "--removal applies to grids"),
    ],
)
def test_bad_input_is_refused_in_words(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        planned(**options)


def test_a_method_that_wants_more_than_a_grid_has_is_refused() -> None:
    plain, method = FAMILIES["basic"](), SimpleNamespace(needs=lambda c: ("resid_pre", "mlp_out"), score=len)
    with pytest.raises(UsageError, match="cannot cut the grid"), pruning(subject(plain), method, shifted()):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.module.modules())


# --- bench and profile ------------------------------------------------------------------------------------------------

SHORT = ["--model", "resnet18", "--image-size", "32", "--batch", "2", "--keep", "0.5", "--layers", "1,2"]


@pytest.mark.slow
def test_bench_has_all_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    more = ["--variant", "flash,flash+repshift,flash+oracle", "--removal", "line,token", "--rounds", "1"]
    result = CliRunner().invoke(app, ["bench", *SHORT, *more, "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "attention ran on" not in result.output
    records = json.loads(out.read_text())["records"]
    assert [(r["case"]["attention"], r["case"]["pruning"], r["case"]["removal"]) for r in records] == [
        ("none", "none", None),
        *(("none", method, removal) for method in ("repshift", "oracle") for removal in ("line", "token")),
    ]
    for record in records:
        assert (record["status"], record["tokens"]) == ("ok", [64, 36, 4] if record["case"]["layers"] else [64])
        found = {m["metric"] for m in record["measurements"] if m["samples"]}
        assert {"latency", "macs", "fidelity_kl", "hbm_modelled"} <= found, found
    macs = [next(m["samples"][0] for m in r["measurements"] if m["metric"] == "macs") for r in records]
    assert macs[0] > macs[1] == macs[2] == macs[3]


def test_profile_names_convolutions_and_no_token_counts(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    more = ["--variant", "flash,flash+repshift", "--steps", "1", "--by", "layer", "--summary", str(out)]
    result = CliRunner().invoke(app, ["profile", *SHORT, *more])
    assert result.exit_code == 0, result.output
    assert "tokens" not in result.output.replace("tokens_", "")
    for b in json.loads(out.read_text())["breakdowns"]:
        parts = {(p["part"], p["layer"]) for p in b["parts"]}
        assert {("convolution", n) for n in (1, 2, 3, 4)} <= parts
        assert not {"attention", "projection", "mlp"} & {name for name, _ in parts}


def test_no_break_even_keep_for_stages() -> None:
    plain = Breakdown("none", case(attention="none"), parts=(PartTime("convolution", 2, 9.0),), tokens=(64,))
    parts = (PartTime("cut", 1, 0.1), PartTime("convolution", 1, 1.0), PartTime("convolution", 2, 1.0))
    own = Breakdown("none+repshift", shifted(keep=0.5, layers=(1,)), parts=parts, tokens=(64, 36))
    assert break_even.break_even_keep(own, plain) is None
    assert break_even.tokens_in(own, 2) is None
    as_tokens = replace(own, parts=tuple(replace(p, part=p.part.replace("convolution", "mlp")) for p in parts))
    assert break_even.break_even_keep(as_tokens, plain) is not None


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("removal", ["line", "token"])
def test_a_gpu_cuts_as_written(removal: str) -> None:
    plain, given = FAMILIES["bottleneck"](), shifted(removal=removal)
    expected = reference(plain, given)
    plain.module.cuda()
    found = run(replace(plain, pixels=plain.pixels.cuda()), repshift, given)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-8)


@pytest.mark.gpu
@pytest.mark.parametrize("removal", ["line", "token"])
def test_a_cuda_graph_replays_the_cut(removal: str) -> None:
    step_builder = builder.StepBuilder("cuda")
    given = shifted(model="resnet18", image_size=64, device="cuda", dtype="bf16", removal=removal)
    outputs = []
    for execution in ("eager", "graph"):
        step = step_builder.prepare(replace(given, execution=execution))
        with step.active():
            outputs.append(step.forward().logits.float().clone())
    torch.testing.assert_close(*outputs)
