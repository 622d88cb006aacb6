"""What the families of the transformers library share: configuration to subject, weights, facts for planning."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models.base.subjects import RANDOM_WEIGHTS, subject_of
from repshift_cli.models.base.torchvision import mend
from repshift_cli.models.discovery.blocks import find_sites, prefix_tokens
from repshift_cli.models.inputs.clips import load_clips
from repshift_cli.models.inputs.images import IMAGENET_MEAN, IMAGENET_STD, batches, load_images, random_pixels
from repshift_cli.records import Case, Facts, Subject, UsageError

mend()
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


@dataclass(frozen=True)
class Recipe:
    """How to make one model: its class, its configuration, and where its weights lie (None: random).

    `prepare(module)` may mend a freshly built model (a tensor that is no buffer and stays behind on the CPU).
    A checkpoint may lack parameters whose names begin as one of `unused`: the model's output does not need them.
    `renamed` is the library's `key_mapping`: patterns of the checkpoint's names, and what stands in their place.
    `translated(name)` gives the model's name of a weight that a file in another library's layout may hold.
    `attention` is what transformers is to compute it by, None for a model that has none.
    """

    model: type
    config: Any
    checkpoint: str | None = None
    units: str = "img"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    prepare: Callable[[Any], None] | None = None
    unused: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    translated: Callable[[str], str] = str
    attention: str | None = "sdpa"


Maker = Callable[[str, int | None, int | None], Recipe]
"""(model name, image size or None, frames or None) -> Recipe."""


def family(recipe: Maker) -> tuple[Callable[..., Facts], Callable[[Case], Subject]]:
    """The two functions every family file offers, `facts` and `build`, from its recipe."""

    @lru_cache(maxsize=64)
    def facts(name: str, image_size: int | None = None, frames: int | None = None, weights: str | None = None) -> Facts:
        """Depth, tokens and the like of a model, from a copy without memory (meta device)."""
        made = recipe(name, image_size, frames)
        if weights is not None:
            weights_file(weights)
        if frames is not None and not hasattr(made.config, "num_frames"):
            raise UsageError(f"{name} takes images: --frames does not apply to it")
        return _facts(made, image_size, weights)

    def build(case: Case) -> Subject:
        """The model and its inputs on the case's device, in the case's dtype, with its blocks found."""
        made = recipe(case.model, case.image_size, case.frames)
        module, warnings = in_place(made, case)
        inputs, evaluation = _inputs(made, module, case)
        found = find_sites(module, inputs)
        prefix = prefix_tokens(module)
        warnings = (*warnings, *found.warnings)
        eager = partial(eager_attention, module)
        return subject_of(
            module, evaluation, found, made.units, logits, pooled, prefix=prefix, warnings=warnings, eager=eager
        )

    return facts, build


def _facts(made: Recipe, image_size: int | None, weights: str | None) -> Facts:
    config = made.config
    with torch.device("meta"):
        module = made.model(config)
    size, frames = image_size or config.image_size, getattr(config, "num_frames", 1)
    tubelet, patch = spans(config)
    if image_size is not None and size % patch:
        raise UsageError(f"image size {size} is no multiple of the patch size {patch}")
    if frames % tubelet:
        raise UsageError(f"{frames} frames are no multiple of the tubelet's {tubelet}")
    return Facts(
        depth=config.num_hidden_layers,
        tokens=(size // patch) ** 2 * (frames // tubelet),
        prefix=prefix_tokens(module),
        head_dim=config.hidden_size // config.num_attention_heads,
        image_size=size,
        frames=getattr(config, "num_frames", None),
        weights=weights or made.checkpoint or "random",
        eager=True,
    )


def spans(config: Any) -> tuple[int, Any]:
    """What one token spans: frames, and pixels of a side. A tubelet is a number of frames, or (frames, side, side)."""
    tubelet = getattr(config, "tubelet_size", 1)
    return (tubelet, config.patch_size) if isinstance(tubelet, int) else (tubelet[0], tubelet[1])


def in_place(made: Recipe, case: Case) -> tuple[nn.Module, tuple[str, ...]]:
    """The model in its place, and what must be said of its weights."""
    dtype = TORCH_DTYPES[case.dtype]
    warnings: tuple[str, ...] = ()
    torch.manual_seed(case.seed)
    if made.checkpoint is not None and case.weights == made.checkpoint:
        module, warnings = from_checkpoint(made)
    else:
        with torch.device(case.device):
            module = made.model(made.config)
        if case.weights == "random":
            warnings = (RANDOM_WEIGHTS,)
        else:
            load_weights(module, case.weights, made.translated)
    module = module.eval().to(device=case.device, dtype=dtype)
    if made.prepare is not None:
        made.prepare(module)
    return module, warnings


@contextmanager
def eager_attention(module: nn.Module) -> Iterator[None]:
    """Within it transformers' models inside `module` compute attention as they write it out; afterwards as before."""
    from transformers import PreTrainedModel

    models = [m for m in module.modules() if isinstance(m, PreTrainedModel)][:1]  # the outermost: it tells those inside
    before = [m.config._attn_implementation for m in models]
    try:
        for model in models:
            model.set_attn_implementation("eager")
        yield
    finally:
        for model, name in zip(models, before, strict=True):
            model.set_attn_implementation(name)


def restore_frequencies(module: nn.Module) -> None:
    """Make rotary frequencies anew: they are fp32 in every dtype, and .to() has rounded them to the weights'."""
    device = next(module.parameters()).device
    owners: Any = [m for m in module.modules() if hasattr(getattr(m, "rotary_emb", None), "config")]
    for owner in owners:
        owner.rotary_emb = type(owner.rotary_emb)(owner.rotary_emb.config).to(device)


def from_checkpoint(made: Recipe) -> tuple[nn.Module, tuple[str, ...]]:
    """The model with its checkpoint's weights, safetensors only; UsageError with the reason where that fails.

    Weights that the checkpoint lacks are random then, which is said in a warning.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        module, found = made.model.from_pretrained(  # type: ignore[attr-defined]
            made.checkpoint,
            config=made.config,
            use_safetensors=True,
            attn_implementation=made.attention,
            output_loading_info=True,
            trust_remote_code=False,
            **({"key_mapping": made.renamed} if made.renamed else {}),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"cannot load {made.checkpoint}: {first_line(error)}") from error
    missing = sorted(key for key in found["missing_keys"] if not key.startswith(made.unused))
    named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return module, (f"the checkpoint lacks {named}: random weights there",) if missing else ()


def weights_file(place: str) -> Path:
    """The safetensors file of a path or folder; a pickle is refused, for loading one runs whatever code is in it."""
    path = Path(place)
    if path.is_dir():
        if (path / "model.safetensors").is_file():
            return path / "model.safetensors"
        found = sorted(f.name for f in path.iterdir() if f.suffix in _PICKLES)
        if found:
            raise UsageError(_pickle_refused(path / found[0]))
        raise UsageError(f"no model.safetensors in {place}")
    if path.suffix in _PICKLES:
        raise UsageError(_pickle_refused(path))
    if not path.is_file():
        raise UsageError(f"no such weights: {place}")
    return path


def check_index(index: Path) -> None:
    """UsageError for an index of weights that leads out of its folder, or that is none."""
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        strange = [name for name in files if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{index} is no index of weights: {first_line(error)}") from error
    if strange:
        raise UsageError(f"{index} leads to {strange[0]}; the files of a checkpoint stand beside its index")


def _pickle_refused(path: Path) -> str:
    return f"{path} is a pickle, and loading one can run any code; convert it to safetensors first"


def load_weights(module: nn.Module, place: str, translated: Callable[[str], str] = str) -> None:
    """Load a safetensors file into a model built from a configuration; every (`translated`) name and shape must fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = weights_file(place)
    try:
        module.load_state_dict({translated(name): value for name, value in load_file(file).items()}, strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise UsageError(f"{file} does not fit {type(module).__name__}: {first_line(error, 3)}") from error


def _inputs(made: Recipe, module: nn.Module, case: Case) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    """What is timed (one batch), and what fidelity is taken on (all images or clips given, in batches of its shape)."""
    config = made.config
    size, channels = case.image_size or config.image_size, getattr(config, "num_channels", 3)
    video = hasattr(config, "num_frames")
    if case.input == "random":
        shape = (case.batch, config.num_frames) if video else (case.batch,)
        groups = [random_pixels((*shape, channels, size, size), case.seed)]
    elif video:
        groups = batches(load_clips(case.input, config.num_frames, size, made.mean, made.std), case.batch)
    else:
        groups = batches(load_images(case.input, size, made.mean, made.std), case.batch)
    extra = {"interpolate_pos_encoding": True} if _interpolates(module, size, config) else {}
    dtype = TORCH_DTYPES[case.dtype]
    made_inputs = tuple({"pixel_values": g.to(case.device, dtype), **extra} for g in groups)
    return made_inputs[0], made_inputs


def _interpolates(module: nn.Module, size: int, config: Any) -> bool:
    """Whether the positions must be interpolated: another size than the checkpoint's, and the class can be told so."""
    return "interpolate_pos_encoding" in inspect.signature(module.forward).parameters and size != config.image_size


def logits(output: Any) -> Tensor | None:
    """(B, classes) of a classifier's output, else None."""
    return getattr(output, "logits", None)


def pooled(output: Any) -> Tensor:
    """(B, C): the model's own pooled output where it has one, else the mean over its tokens."""
    for name in ("logits", "image_embeds", "pooler_output"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    hidden = getattr(output, "last_hidden_state", output)
    hidden = hidden[0] if isinstance(hidden, (tuple, list)) else hidden
    if not isinstance(hidden, Tensor):
        raise UsageError(f"the model's output ({type(hidden).__name__}) holds no tensor to compare")
    return hidden.flatten(1, -2).mean(1) if hidden.ndim > 2 else hidden


def first_line(error: BaseException, most: int = 1) -> str:
    """The first line or lines of an error, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:most]) or type(error).__name__
