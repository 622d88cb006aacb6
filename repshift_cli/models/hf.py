"""Any ViT-like, CNN, BERT-like, Llama, Qwen2, Llava or Qwen2-VL checkpoint: `hf:FOLDER` or a hub id.

`hf:NAME:tower` is the vision tower of a Llava checkpoint, as a model of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from repshift_cli.models import clip, convnext, resnet, siglip
from repshift_cli.models.base import decoder, stages, text, vision_language
from repshift_cli.models.base.towers import TextTower, text_tower
from repshift_cli.models.base.transformers import Recipe, check_index, family, first_line, weights_file
from repshift_cli.models.discovery.blocks import NoSites
from repshift_cli.models.inputs.hub import PATIENCE, hub_answers
from repshift_cli.models.inputs.images import IMAGENET_MEAN, IMAGENET_STD
from repshift_cli.models.inputs.preprocessing import Preprocessing, of_processor
from repshift_cli.models.inputs.trust import check_code, check_size
from repshift_cli.models.videomae import place_positions
from repshift_cli.records import Case, Facts, Subject, UsageError

ALIASES: dict[str, object] = {}
DECODERS = ("llama", "qwen2")
_TOWERS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
_CNNS = {"convnext": convnext.stages_of, "resnet": resnet.stages_of}
_OTHER_CNNS = ("convnextv2", "efficientnet", "mobilenet_v2", "regnet")
"""Those whose stages are found."""
_KNOWN = {"clip": clip.IMAGES, "convnext": convnext.IMAGES, "resnet": resnet.IMAGES, "siglip": siglip.IMAGES}
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Where transformers keeps what images want: alone, beside the tokenizer's, for clips."""
ENCODERS = {
    "bert": "BertModel",
    "electra": "ElectraModel",
    "modernbert": "ModernBertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
}
"""The text encoders, by what their configurations call them."""
TOWER = ":tower"
"""What stands behind the name of a vision-language checkpoint whose vision tower alone is meant."""
LENGTH = 512
"""The most random tokens of a sequence where nothing else is said."""


def _recipe(name: str, image_size: int | None, frames: int | None) -> Recipe:
    import transformers

    place = _place(name)
    config = _tower(_config(place), place) if name.endswith(TOWER) else _config(place)
    model = getattr(transformers, _class_name(config, place), None)
    if model is None:
        raise UsageError(f"transformers {transformers.__version__} has no {_class_name(config, place)} for {place}")
    if hasattr(config, "text_config") and hasattr(config, "vision_config") and config.model_type not in _TOWERS:
        raise UsageError(
            f"{place} has towers of its own kind ({config.model_type}); of checkpoints of images and texts those of "
            "CLIP and SigLIP are taken, which show a clip frame by frame"
        )
    renamed = vision_language.TOWERS_KEYS if name.endswith(TOWER) else {}
    config = getattr(config, "vision_config", config)
    patch = () if isinstance(getattr(config, "tubelet_size", None), (list, tuple)) else ("patch_size",)
    for needed in ("image_size", "num_hidden_layers", *patch):
        if not isinstance(getattr(config, needed, None), int):
            raise UsageError(f"{place} is no plain vision transformer: its configuration has no whole {needed}")
    mean, std = _normalisation(place)
    if not hasattr(config, "num_frames"):
        return Recipe(model, config, checkpoint=place, mean=mean, std=std, renamed=renamed)
    if image_size not in (None, config.image_size):
        raise UsageError(f"{place} takes video of {config.image_size} pixels only; leave out --image-size {image_size}")
    config.num_frames = frames or config.num_frames
    return Recipe(model, config, place, "video", mean, std, prepare=place_positions)


def _place(name: str) -> str:
    """The folder or hub id."""
    return name.removeprefix("hf:").removesuffix(TOWER)


def _tower(config: Any, place: str) -> Any:
    """The configuration of a vision-language checkpoint's tower."""
    if config.model_type not in vision_language.KINDS:
        raise UsageError(f"{place} is no vision-language checkpoint; leave out {TOWER}")
    tower = config.vision_config
    if tower.model_type.removesuffix("_vision_model") not in _TOWERS:
        raise UsageError(
            f"the tower of {place} merges neighbours and packs all images into one row, so tokens cannot be dropped in "
            f"it; leave out {TOWER}, and its image tokens are dropped in the language model"
        )
    return tower


def _config(place: str) -> Any:
    from transformers import AutoConfig

    index = Path(place) / "model.safetensors.index.json"
    if index.is_file():
        check_index(index)
    elif Path(place).is_dir():
        weights_file(place)
    local = Path(place).is_dir() or not hub_answers()
    try:
        check_code(place, local)
        config = AutoConfig.from_pretrained(place, local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if local and not Path(place).is_dir():
            raise UsageError(
                f"no checkpoint {place!r}: there is no such folder, nothing of it in the cache, and the hub does not "
                f"answer within {PATIENCE} s; copy the checkpoint here and name its folder, hf:FOLDER"
            ) from error
        raise UsageError(f"no checkpoint {place!r} (neither a folder nor a hub id): {first_line(error)}") from error
    check_size(place, config)
    return config


def _class_name(config: Any, place: str) -> str:
    if (kind := config.model_type.removesuffix("_vision_model")) in _TOWERS:
        return _TOWERS[kind]
    if not config.architectures:
        raise UsageError(f"the configuration of {place} names no architecture")
    return str(config.architectures[0])


def _processor(place: str) -> dict[str, Any]:
    """What the checkpoint's own processor file says of images or clips; nothing where it has none."""
    from transformers.utils import cached_file

    for name in PROCESSORS:
        try:
            file = cached_file(place, name)
        except OSError:
            continue
        told = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        return next((told[part] for part in ("image_processor", "video_processor") if part in told), told)
    return {}


def preprocessing(name: str) -> Preprocessing | None:
    """What the checkpoint's image processor does, else what its architecture is known for; None where neither says."""
    place = _place(name)
    config, stored = _config(place), _processor(place)
    size = getattr(getattr(config, "vision_config", config), "image_size", stages.SIZE)
    if isinstance(size, int) and not stored and config.model_type in _KNOWN:
        return _KNOWN[config.model_type].at(size)
    return of_processor(stored, size) if stored and isinstance(size, int) else None


def class_names(name: str) -> dict[int, str] | None:
    """The names in the checkpoint's configuration, unless they are LABEL_0 and so on, which say nothing."""
    told = dict(getattr(_config(_place(name)), "id2label", None) or {})
    return None if all(label == f"LABEL_{place}" for place, label in told.items()) else told


def _normalisation(place: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation from the checkpoint's own preprocessor file, else ImageNet's."""
    stored, known = _processor(place), _KNOWN.get(_config(place).model_type)
    if not stored and known:
        return known.mean, known.std
    return tuple(stored.get("image_mean", IMAGENET_MEAN)), tuple(stored.get("image_std", IMAGENET_STD))


def _encoder(name: str) -> text.Encoder:
    import transformers

    place = _place(name)
    config = _config(place)
    model = getattr(transformers, ENCODERS[config.model_type])
    positions = config.max_position_embeddings
    if "roberta" in config.model_type:
        positions -= config.pad_token_id + 1  # it counts positions from behind the padding's
    recipe = text.transformers_recipe(model, config, place)
    return text.Encoder(recipe, LENGTH, positions, window=getattr(config, "sliding_window", None))


def _prompted(name: str) -> decoder.Decoder:
    place = _place(name)
    return decoder.Decoder(_config(place), checkpoint=place)


def _seeing(name: str, image_size: int | None) -> vision_language.Seeing:
    import transformers

    place = _place(name)
    config = _config(place)
    model = getattr(transformers, _class_name(config, place))
    return vision_language.KINDS[config.model_type](model, config, place, image_size, *_normalisation(place))


def _staged(name: str, size: int) -> stages.Stages:
    place = _place(name)
    config = _config(place)
    return _CNNS[config.model_type](config, place)


def _convolutional(name: str) -> Recipe:
    import transformers

    place = _place(name)
    config = _config(place)
    mean, std = _normalisation(place)
    return Recipe(getattr(transformers, _class_name(config, place)), config, place, mean=mean, std=std, attention=None)


_IMAGES, _TEXT, _CAUSAL = family(_recipe), text.family(_encoder), decoder.family(_prompted)
_SEEING, _GRIDS, _FOUND = vision_language.family(_seeing), stages.family(_staged), stages.found_family(_convolutional)


def _kind(name: str) -> str:
    """What the configuration calls the model; of a tower the tower's own."""
    if name.endswith(TOWER):
        return str(_tower(_config(_place(name)), _place(name)).model_type)
    return str(_config(_place(name)).model_type)


def _pictured(kind: str) -> tuple[Any, Any]:
    """The family of a model that takes images or clips."""
    if kind in _OTHER_CNNS:
        return _FOUND
    return _SEEING if kind in vision_language.KINDS else _GRIDS if kind in _CNNS else _IMAGES


def facts(
    name: str,
    image_size: int | None = None,
    frames: int | None = None,
    weights: str | None = None,
    length: int | None = None,
    data: str | None = None,
) -> Facts:
    """What planning must know, by the family that the checkpoint's configuration names."""
    kind = _kind(name)
    if kind in ENCODERS:
        return _TEXT[0](name, image_size, frames, weights, length, data)
    if kind in DECODERS:
        return _CAUSAL[0](name, image_size, frames, weights, length)
    if length is not None:
        raise UsageError(f"{name} takes no sequence of tokens: --tokens does not apply to it")
    return _pictured(kind)[0](name, image_size, frames, weights)


def build(case: Case) -> Subject:
    """The checkpoint's model and its inputs."""
    kind = _kind(case.model)
    if kind in ENCODERS:
        return _TEXT[1](case)
    if kind in DECODERS:
        return _CAUSAL[1](case)
    try:
        return _pictured(kind)[1](case)
    except NoSites as error:
        if not error.adapter:
            raise
        keys = ", ".join(f'{key} = "{path}"' for key, path in error.adapter.items())
        way = f"from a function of your own it can be pruned, by the adapter {keys}"
        raise NoSites(f"{error}; {way}", error.looked, error.adapter) from error


def towers(case: Case) -> TextTower | None:
    """The text tower beside the vision tower that `build` makes, or None for a checkpoint of one kind of input."""
    place = _place(case.model)
    config = _config(place)
    return text_tower(config, place, case) if config.model_type in _TOWERS else None
