"""What alignment did: judged samples, divergence from the reference, the price paid in language modelling."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.data.chat import Messages
from gptjax.data.corpora import read_documents
from gptjax.data.quality import BadRows
from gptjax.evaluation.judge import distinct_n, lexicon_scores
from gptjax.evaluation.perplexity import first_bytes, heldout_rows, mean_loss
from gptjax.generation.decode import left_pad
from gptjax.losses.rewards import kl_estimate
from gptjax.models.functional import Params
from gptjax.runs import write_jsonl_atomic
from gptjax.sharding.mesh import to_host
from gptjax.stages.conventions import Conventions, cut_ids
from gptjax.stages.handover import TrainedModel
from gptjax.stages.keys import stage_key
from gptjax.stages.language_loss import make_sum_loss
from gptjax.stages.ppo_data import encode_prompts, read_prompts
from gptjax.stages.rollout import (
    Rollout,
    cut_replies,
    draw,
    exact_divergences,
    response_log_probs,
    reward_scores,
)

# Of a policy to the reference, in nats per reply: the estimates k1, k2, k3, and the exact one.
DIVERGENCES = ("kl", "kl_k2", "kl_k3", "kl_exact")


@dataclass(frozen=True)
class Evaluation:
    """What every policy is asked, always with the same keys.

    Attributes:
        prompts: ids of the held-out prompts.
        replies: `params -> (figures, columns)` of replies to them; the columns are what is known of every
            reply: "" its text, "_tokens" their number, "_JUDGE" a judge's score.
        elsewhere: `params -> figures` of what alignment does not train, cheap beside the replies.
    """

    prompts: list[list[int]]
    replies: Callable[[Params], tuple[dict[str, float], dict[str, list]]]
    elsewhere: Callable[[Params], dict[str, float]]

    def measure(self, params: Params) -> tuple[dict[str, float], dict[str, list]]:
        """All figures, and the columns of the replies."""
        figures, columns = self.replies(params)
        return figures | self.elsewhere(params), columns


def make_evaluation(
    config,
    base: TrainedModel,
    judges: Mapping[str, TrainedModel],
    text_length: int,
    conventions: Conventions,
) -> Evaluation:
    """How a policy of the reference's shape is measured on held-out prompts and text.

    The figures of its replies: `lexicon`, the mean score of every judge under the judge's name, `distinct_2`,
    `ended` (share of the replies) and DIVERGENCES; elsewhere `text_loss`, where there are corpora.

    Args:
        config: prompts, sampling, prompt_length, eval_prompts, corpora, eval_bytes and seed.
        base: the reference.
        judges: name -> reward model.
        text_length: tokens per row of held-out text.
        conventions: where replies are cut.
    """
    tokenizer, language = base.tokenizer, base.definition
    prompts = encode_prompts(heldout_prompts(config), tokenizer, config.prompt_length)
    prompts = prompts[: config.eval_prompts]
    tokens, mask = left_pad(prompts, tokenizer.pad_id, config.prompt_length)
    keys = jax.random.split(stage_key(config.seed, "ppo evaluation"), len(prompts))
    temperature = config.sampling.temperature
    cuts, pad = cut_ids(conventions, tokenizer), tokenizer.pad_id
    end = None if cuts else tokenizer.im_end_id

    @jax.jit
    def answer(policy, judging):
        rollout = draw(language, policy, tokens, mask, keys, config.sampling, end, pad)
        read = cut_replies(rollout, cuts, conventions.cut_after) if cuts else rollout
        scores = {name: reward_scores(judges[name].definition, judging[name], read) for name in judges}
        return rollout, read, scores

    @jax.jit
    def divergences(policy, reference, rollout: Rollout):
        ours, theirs = (response_log_probs(language, p, rollout, temperature)[0] for p in (policy, reference))
        log_ratio = (ours - theirs) * rollout.mask
        kinds = {f"kl_{kind}": kl_estimate(log_ratio, kind).sum(1).mean() for kind in ("k2", "k3")}
        # A few rows at a time: whole distributions of both models are held for each.
        exact = jax.lax.map(
            lambda row: exact_divergences(
                language, policy, reference, jax.tree.map(lambda x: x[None], row), temperature
            )[0],
            rollout,
            batch_size=8,
        )
        return {"kl": log_ratio.sum(1).mean()} | kinds | {"kl_exact": exact.mean()}

    judging = {name: judge.params for name, judge in judges.items()}

    def measure(params):
        rollout, read, scores = answer(params, judging)
        replies = texts_of(read, tokenizer)
        distances = dict.fromkeys(DIVERGENCES, 0.0)
        if params is not base.params:
            distances = {k: float(kl) for k, kl in divergences(params, base.params, rollout).items()}
        figures = {
            "lexicon": float(np.mean(lexicon_scores(replies))),
            **{name: float(score.mean()) for name, score in scores.items()},
            "distinct_2": distinct_n(replies),
            "ended": float(jnp.mean(read.ended)),
            **distances,
        }
        columns = {"": replies, "_tokens": to_host(read.mask).sum(1).astype(int).tolist()}
        columns |= {f"_{name}": to_host(score).tolist() for name, score in scores.items()}
        return figures, columns

    return Evaluation(prompts, measure, held_out_text_loss(config, base, text_length))


def compare_policies(evaluation: Evaluation, base: TrainedModel, params, folder: Path) -> dict:
    """Reference and policy on the same held-out prompts, with the same keys.

    Writes every reply, its tokens and its scores to `samples.jsonl`.

    Returns:
        the figures of "reference" and "policy", and the DIVERGENCES of the policy.
    """
    figures, distances = {}, {}
    samples = [{"prompt": base.tokenizer.decode(ids)} for ids in evaluation.prompts]
    for name, policy in (("reference", base.params), ("policy", params)):
        figures[name], columns = evaluation.measure(policy)
        distances = {kind: figures[name].pop(kind) for kind in DIVERGENCES}
        for i, row in enumerate(samples):
            row.update({name + kind: values[i] for kind, values in columns.items()})
    write_jsonl_atomic(folder / "samples.jsonl", samples)
    for name in ("reference", "policy"):
        print(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures[name].items()), flush=True)
    return figures | distances


def make_comparison(
    config, base: TrainedModel, reward: TrainedModel | None, text_length: int
) -> Callable[[Params, Path], dict]:
    """`compare(params, folder) -> figures`: `compare_policies` after the last step of a stage.

    Made before the first, so that what is missing is missed at once. Arguments as those of `make_evaluation`;
    without a reward model the figures have no "reward".
    """
    judges = {"reward": reward} if reward else {}
    evaluation = make_evaluation(config, base, judges, text_length, Conventions())
    return partial(compare_policies, evaluation, base)


def heldout_prompts(config) -> list[Messages]:
    """The held-out prompts in random order; those that occur before or in training come last."""
    new, known = new_and_known_prompts(config)
    print(
        f"prompts: {len(new)} held-out ones are new, {len(known)} occur elsewhere and come last", flush=True
    )
    return new + known


def new_and_known_prompts(config) -> tuple[list[Messages], list[Messages]]:
    """The held-out prompts in random order: the new ones, and those that occur before or in training."""
    messages = read_prompts(config.prompts, "heldout", config.seed)
    seen = {json.dumps(prompt) for prompt in read_prompts(config.prompts, "train", config.seed)}
    new, known = [], []
    for i in np.random.default_rng(config.seed).permutation(len(messages)):
        text = json.dumps(messages[i])
        (known if text in seen else new).append(messages[i])
        seen.add(text)
    return new, known


def texts_of(rollout: Rollout, tokenizer) -> list[str]:
    """The replies as text, without end-of-message tokens."""
    response, mask = to_host((rollout.response, rollout.mask))
    rows = zip(response, mask > 0, strict=True)
    return [tokenizer.decode(ids[kept & (ids != tokenizer.im_end_id)].tolist()) for ids, kept in rows]


def held_out_text_loss(config, base: TrainedModel, length: int):
    """`loss(params) -> {"text_loss": nats per token}` on the held-out text of `config.corpora`."""
    if not config.corpora:
        return lambda params: {}
    texts = []
    for name in config.corpora:
        bad_rows = BadRows()
        documents = read_documents(name, split="heldout", bad_rows=bad_rows)
        print(f"held-out text of {name}: {bad_rows.summary()}", flush=True)
        texts += first_bytes([d.text for d in documents], config.eval_bytes)
    rows = heldout_rows(texts, base.tokenizer, length)
    sum_loss = make_sum_loss(base.definition)
    return lambda params: {"text_loss": mean_loss(sum_loss, params, rows, 16)}
