"""`generation_config.json`: the tokens that end a reply, and how replies are drawn by default."""

import math
from pathlib import Path

from gptjax.data.quality import DataError
from gptjax.interop.safetensors import read_json
from gptjax.stages.handover import AnyTokenizer

# Every one is looked for at every token; Llama 3's are three.
MOST_STOPS = 64
# Setting of the chat -> the kinds of numbers it may be, and whether one is in its range.
SAMPLING = {
    "temperature": ((int, float), lambda value: 0 < value < math.inf),
    "top_k": ((int,), lambda value: value >= 0),
    "top_p": ((int, float), lambda value: 0 < value <= 1),
}


def read_generation_config(folder: Path, ids: int) -> tuple[tuple[int, ...], dict[str, float]]:
    """What a Hugging Face folder says of its model's replies.

    Args:
        folder: its `generation_config.json` may be missing.
        ids: how many the model has.

    Returns:
        the tokens that end a reply, and setting -> default; without defaults where `do_sample` is false.

    Raises:
        DataError: a token that the model does not have, too many, or a setting out of its range.
    """
    path = folder / "generation_config.json"
    values = read_json(path) if path.is_file() else {}
    stops = values.get("eos_token_id")
    stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
    if len(stops) > MOST_STOPS:
        raise DataError(f"{path}: eos_token_id lists {len(stops)} tokens, more than {MOST_STOPS}")
    for id in stops:
        if type(id) is not int or not 0 <= id < ids:
            raise DataError(f"{path}: eos_token_id has {id!r}, but the model has the ids 0 to {ids - 1}")
    if values.get("do_sample") is False:
        return tuple(stops), {}
    found = {name: values[name] for name in SAMPLING if values.get(name) is not None}
    for name, value in found.items():
        kinds, fits = SAMPLING[name]
        if type(value) not in kinds or not fits(value):
            raise DataError(f"{path}: {name} is {value!r}, out of its range")
    return tuple(stops), found


def generation_config(tokenizer: AnyTokenizer, stops: list[int], sampling: dict[str, float]) -> dict:
    """The content of the file."""
    drawn = {"do_sample": True, **sampling} if sampling else {}
    ends = {"eos_token_id": sorted(stops)} if stops else {}
    return {**ends, "pad_token_id": tokenizer.pad_id, **drawn}
