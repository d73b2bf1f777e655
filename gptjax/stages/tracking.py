"""What is measured while PPO goes on: reward, gold reward, distance, and the price paid elsewhere.

The alignment tax (Ouyang et al. 2022, table 14) and over-optimisation (Gao et al. 2022) are curves: both are
read off a run's own rows, under names that begin with `tracked/`.
"""

from dataclasses import replace

import jax
import numpy as np

from gptjax.config import configclass
from gptjax.data.chat import render_prompt
from gptjax.evaluation.judge import chat_questions, on_topic
from gptjax.generation.decode import left_pad
from gptjax.generation.sampling import SamplingConfig
from gptjax.ranges import Count, Natural
from gptjax.stages.handover import TrainedModel, check_fit
from gptjax.stages.keys import stage_key
from gptjax.stages.ppo_evaluation import Evaluation, texts_of
from gptjax.stages.rollout import draw


@configclass
class TrackingConfig:
    """What is measured along the way: the policy that would be kept, as at the end of the run.

    Attributes:
        every: iterations between two measurements; the last follows the last iteration.
        gold: run folder of another reward model, which judges the same replies; "" for none.
        answer_tokens: longest answer to the bundled chat questions, which PPO never asks; 0 asks none.
    """

    every: Count = 5
    gold: str = ""
    answer_tokens: Natural = 0


def with_chat_test(evaluation: Evaluation, base: TrainedModel, config: TrackingConfig) -> Evaluation:
    """The evaluation with `on_topic`, the share of the chat questions answered on topic, where any are asked.

    Raises:
        ConfigError: question and answer exceed the model's context.
    """
    test = make_chat_test(base, config.answer_tokens)

    def measure(params) -> tuple[dict[str, float], list[str]]:
        figures, replies = evaluation.measure(params)
        return figures | test(params), replies

    return replace(evaluation, measure=measure)


def tracked(evaluation: Evaluation, params) -> dict[str, float]:
    """The figures of a policy as metrics, named `tracked/...`."""
    figures, _ = evaluation.measure(params)
    return {f"tracked/{name}": value for name, value in figures.items()}


def make_chat_test(base: TrainedModel, answer_tokens: int):
    """`test(params) -> {"on_topic": share}`: greedy answers to questions that reword those of fine-tuning.

    With `answer_tokens` 0 it gives nothing.

    Raises:
        ConfigError: question and answer exceed the model's context.
    """
    if not answer_tokens:
        return lambda params: {}
    questions, tokenizer = chat_questions(), base.tokenizer
    ids = [render_prompt([{"role": "user", "content": q["question"]}], tokenizer) for q in questions]
    longest = max(map(len, ids))
    check_fit({"tracking.answer_tokens and the question": longest + answer_tokens}, {"": base})
    tokens, mask = left_pad(ids, tokenizer.pad_id, longest)
    keys = jax.random.split(stage_key(0, "chat test"), len(ids))  # greedy answers draw nothing
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=answer_tokens)
    ends = tokenizer.im_end_id, tokenizer.pad_id
    answer = jax.jit(lambda params: draw(base.definition, params, tokens, mask, keys, sampling, *ends))

    def test(params) -> dict[str, float]:
        said = zip(texts_of(answer(params), tokenizer), questions, strict=True)
        return {"on_topic": float(np.mean([on_topic(reply, q["keywords"]) for reply, q in said]))}

    return test
