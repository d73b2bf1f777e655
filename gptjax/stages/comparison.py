"""What fine-tuning changed: greedy replies to held-out dialogues, before and after."""

from collections.abc import Iterable
from pathlib import Path

from gptjax.data.chat import Messages, render_prompt
from gptjax.data.quality import BadRows
from gptjax.generation.engine import TextEngine
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import Params
from gptjax.runs import write_jsonl_atomic
from gptjax.stages.dialogue_rows import read_source
from gptjax.stages.handover import TrainedModel

LONGEST_PROMPT = 256  # all are padded to the longest
GREEDY = SamplingConfig(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=64)


def first_turns(sources: Iterable[str], count: int, seed: int, model: TrainedModel) -> list[Messages]:
    """The first turns of `count` held-out dialogues, each with its reply; long ones are passed over."""
    room = min(LONGEST_PROMPT, model.definition.config.context_length - GREEDY.max_new_tokens)
    found = []
    for source in sources:
        for messages, _ in read_source(source, "heldout", BadRows(), seed) if count else []:
            end = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
            if len(render_prompt(messages[:end], model.tokenizer)) <= room:
                found.append(messages[: end + 1])
    return found[:count]


def greedy_replies(model: TrainedModel, params: Params, turns: list[Messages]) -> list[str]:
    """What the model says, with these parameters in place of its own."""
    if not turns:
        return []
    stops = ((model.tokenizer.im_end_id,), (model.tokenizer.end_of_text_id,))
    engine = TextEngine(model.definition, params, model.tokenizer, stops)
    prompts = [render_prompt(messages[:-1], model.tokenizer) for messages in turns]
    return engine.complete(prompts, GREEDY, [0] * len(prompts))


def write_comparison(folder: Path, turns: list[Messages], before: list[str], after: list[str]) -> None:
    """Writes `samples.jsonl`: prompt, the reply of the data, and both of the model's."""
    rows = [
        {"prompt": messages[-2]["content"], "data": messages[-1]["content"], "before": old, "after": new}
        for messages, old, new in zip(turns, before, after, strict=True)
    ]
    write_jsonl_atomic(folder / "samples.jsonl", rows)
