"""K replies to each of some prompts from the policies that are deployed.

Legend: B prompts at a time, K replies to each.
"""

from collections.abc import Callable, Iterator
from itertools import count, islice

import jax
import numpy as np

from gptjax.data.quality import DataError
from gptjax.generation.decode import left_pad
from gptjax.generation.sampling import SamplingConfig
from gptjax.stages.handover import TrainedModel
from gptjax.stages.ppo_data import Prompt
from gptjax.stages.ppo_evaluation import texts_of
from gptjax.stages.rollout import draw

MOST_ASKED = 8  # prompts for one that gets K replies of use, before the policy is said to repeat itself


def prompts_of_round(prompts: list[Prompt], number: int, rounds: int, seed: int) -> Iterator[Prompt]:
    """The prompts of round `number` (from 1), without end: every `rounds`-th of all in random order.

    So no two rounds share one, until all have been asked and the next pass over them begins.
    """
    rng = np.random.default_rng(seed)
    order = (prompts[i] for _ in count() for i in rng.permutation(len(prompts)))
    return islice(order, number - 1, None, rounds)


def shares(latest: str, earlier: list[str], prompts: int, fraction: float) -> dict[str, int]:
    """How many prompts each policy replies to: the earlier ones `fraction` of them, in equal parts."""
    theirs = round(fraction * prompts) if earlier else 0
    parts = {
        name: theirs // len(earlier) + (i < theirs % len(earlier)) for i, name in enumerate(reversed(earlier))
    }
    return {name: part for name, part in ({latest: prompts - theirs} | parts).items() if part}


def make_reply(model: TrainedModel, sampling: SamplingConfig) -> Callable[..., list[str]]:
    """`reply(prompts, keys)`: a text for each of some prompts, lists of ids, padded to `length`."""
    tokenizer = model.tokenizer
    ends = tokenizer.im_end_id, tokenizer.pad_id

    @jax.jit
    def program(params, tokens, mask, keys):
        return draw(model.definition, params, tokens, mask, keys, sampling, *ends)

    def reply(prompts: list[list[int]], keys: jax.Array, length: int) -> list[str]:
        tokens, mask = left_pad(prompts, tokenizer.pad_id, length)
        return texts_of(program(model.params, tokens, mask, keys), tokenizer)

    return reply


def draw_samples(
    model: TrainedModel, name: str, prompts: Iterator[tuple[int, Prompt]], wanted: int, key, config
) -> list[dict]:
    """Rows of `prompt`, `completions` (K different texts) and `source` (the policy's name).

    A prompt to which K replies are not K different texts that a row of the reward model has room for is left
    out, and another is asked in its place, so that every row costs a labeler the same.

    Args:
        model: the policy.
        name: what it is called.
        prompts: numbered, each with a number of its own.
        wanted: rows.
        key: the reply to a prompt depends on this key and its number alone.
        config: the `OnlineConfig`.

    Raises:
        DataError: too few of the prompts get K replies of use.
    """
    K, sampling = config.replies, config.ppo.sampling
    reply, rows, asked = make_reply(model, sampling), [], 0
    at_once = max(1, config.ppo.batch_size // K)
    keys_of = jax.jit(jax.vmap(lambda number: jax.random.split(jax.random.fold_in(key, number), K)))
    while len(rows) < wanted:
        if asked >= MOST_ASKED * wanted:
            raise DataError(
                f"{name} gave {K} different replies of use to {len(rows)} of {asked} prompts, but {wanted} "
                "are to be labelled: raise ppo.sampling.temperature, or lower replies"
            )
        numbers, part = zip(*islice(prompts, at_once), strict=True)
        keys = keys_of(np.array(numbers)).reshape(-1)
        ids = [ids for _, ids in part for _ in range(K)]
        texts = np.array(reply(ids, keys, config.ppo.prompt_length), object).reshape(at_once, K).tolist()
        asked += at_once
        for (messages, ids), completions in zip(part, texts, strict=True):
            room = config.reward.length - len(ids) - 1
            if different(completions) and all(len(model.tokenizer.encode(t)) <= room for t in completions):
                rows.append({"prompt": messages, "completions": completions, "source": name})
    left_out = asked - len(rows)
    print(f"{name}: {wanted} prompts with {K} replies, {left_out} of {asked} left out", flush=True)
    return rows[:wanted]


def different(texts: list[str]) -> bool:
    """Whether no text is empty and none occurs twice, whatever the space around it."""
    bare = {text.strip() for text in texts}
    return "" not in bare and len(bare) == len(texts)
