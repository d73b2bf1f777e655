"""What is measured while PPO goes on: reward, gold reward, distance, and the price paid elsewhere.

The alignment tax (Ouyang et al. 2022, table 14) and over-optimisation (Gao et al. 2022) are curves: both are
read off a run's own rows, under names that begin with `tracked/`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import jax
import numpy as np

from gptjax.config import configclass
from gptjax.data.chat import render_prompt
from gptjax.data.in_context import questions
from gptjax.evaluation.judge import chat_questions, on_topic
from gptjax.evaluation.zero_shot import (
    ZeroShotConfig,
    make_completion_scores,
    right_choices,
    right_greedily,
)
from gptjax.generation.decode import left_pad
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import Params
from gptjax.ranges import Count, Natural
from gptjax.stages.handover import TrainedModel, check_fit
from gptjax.stages.keys import stage_key
from gptjax.stages.ppo_evaluation import Evaluation, texts_of
from gptjax.stages.rollout import draw

Test = Callable[[Params], dict[str, float]]
ASKED = 100  # questions of a task


@configclass
class TrackingConfig:
    """What is measured along the way: the policy that would be kept, as at the end of the run.

    The loss on held-out text is measured where the run has `corpora`. Nothing that is tracked draws from a
    key of the training.

    Attributes:
        every: iterations between two measurements; the last follows the last iteration.
        replies: whether the held-out prompts are answered, which takes most of the time.
        gold: run folder of another reward model, which judges the same replies; "" for none.
        answer_tokens: longest answer to the bundled chat questions, which PPO never asks; 0 asks none.
        tasks: "majority", "addition": tasks of `data/in_context.py`, asked as `evaluation/zero_shot.py` does.
        shots: examples in the context of each of their questions.
    """

    every: Count = 12
    replies: bool = False
    gold: str = ""
    answer_tokens: Natural = 0
    tasks: tuple[Literal["majority", "addition"], ...] = ()
    shots: Natural = 0

    def __post_init__(self):
        if self.gold and not self.replies:
            raise ValueError("tracking.gold judges replies: set tracking.replies, or leave gold out")


def with_tests(evaluation: Evaluation, base: TrainedModel, config: TrackingConfig) -> Evaluation:
    """The evaluation with `on_topic`, the share of the chat questions answered on topic, and with the tasks.

    Raises:
        ConfigError: a question and its answer exceed the model's context.
    """
    tests = [make_chat_test(base, config.answer_tokens)]
    tests += [make_task_test(base, task, config.shots) for task in config.tasks]

    def elsewhere(params) -> dict[str, float]:
        return evaluation.elsewhere(params) | {k: v for test in tests for k, v in test(params).items()}

    return replace(evaluation, elsewhere=elsewhere)


def tracked(evaluation: Evaluation, params, config: TrackingConfig) -> dict[str, float]:
    """The figures of a policy as metrics, named `tracked/...`."""
    figures = evaluation.measure(params)[0] if config.replies else evaluation.elsewhere(params)
    return {f"tracked/{name}": value for name, value in figures.items()}


def make_chat_test(base: TrainedModel, answer_tokens: int) -> Test:
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


def make_task_test(base: TrainedModel, task: str, shots: int) -> Test:
    """`test(params) -> {task: share of right answers}`: the same ASKED questions every time.

    Raises:
        ConfigError: a question and its answer exceed the model's context.
    """
    asked, encode = questions(task, shots, ASKED, seed=0), base.tokenizer.encode
    # With the end of a text before it; what follows an answer is read at its last token.
    length = max(1 + len(encode(q.prompt)) + len(encode(c)) for q in asked for c in q.choices or (q.answer,))
    check_fit({"tracking.shots and the question": length}, {"": base})
    layout = ZeroShotConfig(models=("policy",), task=task, length=length)
    scores = make_completion_scores(base.definition)
    judge = right_choices if asked[0].choices else right_greedily
    return lambda params: {task: float(np.mean(judge(replace(base, params=params), scores, asked, layout)))}
