"""What earns a reply its reward without a critic: a reward model, or a checked answer.

Legend: B replies, G prompts, P prompt slots.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.data.chat import Messages, render_prompt
from gptjax.data.quality import BadRows, DataError
from gptjax.evaluation.answers import final_answer, is_right
from gptjax.generation.decode import left_pad
from gptjax.models.functional import Params
from gptjax.runs import write_jsonl_atomic
from gptjax.sharding.mesh import to_host
from gptjax.stages.dialogue_rows import read_line, read_source
from gptjax.stages.handover import TrainedModel
from gptjax.stages.keys import stage_key
from gptjax.stages.ppo_data import which_fit
from gptjax.stages.ppo_evaluation import texts_of
from gptjax.stages.rollout import draw, reward_scores


class Questions:
    """Prompts that fit, and what their dialogues answer.

    Attributes:
        ids: ChatML ids of each prompt.
        replies: the dialogue's own reply to each.
    """

    def __init__(self, dialogues: list[Messages], tokenizer, longest: int):
        """Raises DataError when no prompt fits."""
        encoded = [render_prompt(messages[:-1], tokenizer) for messages in dialogues]
        kept = which_fit(encoded, longest)
        self.ids = [encoded[i] for i in kept]
        self.replies = [dialogues[i][-1]["content"] for i in kept]


def read_questions(config, split: str, tokenizer) -> Questions:
    """The prompts of a source and split; with `reward = "answers"` every reply must end with an answer.

    Raises:
        DataError: as `read_source`; no prompt fits; a reply has no answer, naming file and line.
    """
    bad_rows = BadRows()
    located = read_source(config.prompts, split, bad_rows, config.seed)
    print(f"prompts: {config.prompts} ({split}): {read_line(bad_rows)}{len(located)} dialogues", flush=True)
    for number, (messages, origin) in enumerate(located if config.reward == "answers" else [], 1):
        if final_answer(messages[-1]["content"]) is None:
            file, line = origin or (config.prompts, number)
            raise DataError(
                f"{file}:{line}: the last reply does not end with an answer such as '#### 42', so no reply "
                "can be checked against it: mend or remove the row"
            )
    return Questions([messages for messages, _ in located], tokenizer, config.prompt_length)


def make_scorer(reward: TrainedModel | None, questions: Questions, tokenizer):
    """`scores(rollout, numbers)`: float32 `[B]`, of the reward model, or 1 for a right answer and 0 else.

    Args:
        reward: the model; None checks answers.
        questions: `numbers` `[B]` says which of them each reply is to.
        tokenizer: the policy's.
    """
    if reward is not None:
        program = jax.jit(lambda params, rollout: reward_scores(reward.definition, params, rollout))
        return lambda rollout, numbers: program(reward.params, rollout)

    def check(rollout, numbers):
        texts, ended = texts_of(rollout, tokenizer), to_host(rollout.ended)
        right = [
            end and is_right(text, questions.replies[number])
            for text, end, number in zip(texts, ended, to_host(numbers), strict=True)
        ]
        return jnp.asarray(right, jnp.float32)

    return check


def make_right_share(config, base: TrainedModel) -> Callable[[Params, Path], dict]:
    """`compare(params, folder)`: how many held-out questions reference and policy answer rightly.

    Both have the same seeds. It writes every reply to `samples.jsonl` and returns, for "reference" and
    "policy", `right` and `ended`. Made before training, so that what is missing is missed at once.

    Raises:
        DataError: see `read_questions`.
    """
    questions = read_questions(config, "heldout", base.tokenizer)
    count = min(config.eval_prompts, len(questions.ids))
    tokenizer, numbers = base.tokenizer, np.arange(count)
    tokens, mask = left_pad(questions.ids[:count], tokenizer.pad_id, config.prompt_length)
    keys = jax.random.split(stage_key(config.seed, "grouped evaluation"), count)
    ends = tokenizer.im_end_id, tokenizer.pad_id
    reply = jax.jit(lambda policy: draw(base.definition, policy, tokens, mask, keys, config.sampling, *ends))
    check = make_scorer(None, questions, tokenizer)

    def compare(params: Params, folder: Path) -> dict:
        figures, said = {}, {}
        for name, policy in (("reference", base.params), ("policy", params)):
            rollout = reply(policy)
            said[name] = texts_of(rollout, tokenizer)
            right, ended = check(rollout, numbers), to_host(rollout.ended)
            figures[name] = {"right": float(right.mean()), "ended": float(ended.mean())}
            print(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures[name].items()), flush=True)
        samples = [
            {"prompt": tokenizer.decode(questions.ids[i]), "data": questions.replies[i]}
            | {name: said[name][i] for name in said}
            for i in range(count)
        ]
        write_jsonl_atomic(folder / "samples.jsonl", samples)
        return figures

    return compare
