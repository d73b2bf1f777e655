"""What alignment did: judged samples, divergence from the reference, the price paid in language modelling."""

import json
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


def evaluate_policies(
    config,
    base: TrainedModel,
    reward: TrainedModel | None,
    params,
    folder: Path,
    text_length: int,
    conventions: Conventions,
) -> dict:
    """Reference and policy on the same held-out prompts, with the same seeds.

    Writes every reply, its tokens and its reward to `samples.jsonl`.

    Args:
        config: prompts, sampling, prompt_length, eval_prompts, corpora, eval_bytes and seed.
        base: the reference.
        reward: scores the replies; None leaves the reward out.
        params: the policy's.
        folder: the run folder.
        text_length: tokens per row of held-out text.
        conventions: where replies are cut.

    Returns:
        for "reference" and "policy": lexicon score, reward, distinct-2 and loss on held-out text; and the
        KL of the policy to the reference in nats per reply, as k1 ("kl"), k2, k3 and exactly.
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
    def judge(policy):
        rollout = draw(language, policy, tokens, mask, keys, config.sampling, end, pad)
        read = cut_replies(rollout, cuts, conventions.cut_after) if cuts else rollout
        scores = {"reward": reward_scores(reward.definition, reward.params, read)} if reward else {}
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

    text_loss = held_out_text_loss(config, base, text_length)
    figures, samples = {}, [{"prompt": tokenizer.decode(ids)} for ids in prompts]
    for name, policy in (("reference", base.params), ("policy", params)):
        rollout, read, scores = judge(policy)
        replies = texts_of(read, tokenizer)
        figures[name] = {
            "lexicon": float(np.mean(lexicon_scores(replies))),
            **{name: float(score.mean()) for name, score in scores.items()},
            "distinct_2": distinct_n(replies),
            "ended": float(jnp.mean(read.ended)),
        } | text_loss(policy)
        columns = {"": replies, "_tokens": np.asarray(read.mask).sum(1).astype(int).tolist()}
        columns |= {f"_{kind}": np.asarray(score).tolist() for kind, score in scores.items()}
        for i, row in enumerate(samples):
            row.update({name + kind: values[i] for kind, values in columns.items()})
    figures |= {name: float(kl) for name, kl in divergences(params, base.params, rollout).items()}
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in samples)
    for name in ("reference", "policy"):
        print(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures[name].items()), flush=True)
    return figures


def heldout_prompts(config) -> list[Messages]:
    """The held-out prompts in random order; those that occur before or in training come last."""
    messages = read_prompts(config.prompts, "heldout", config.seed)
    seen = {json.dumps(prompt) for prompt in read_prompts(config.prompts, "train", config.seed)}
    new, known = [], []
    for i in np.random.default_rng(config.seed).permutation(len(messages)):
        text = json.dumps(messages[i])
        (known if text in seen else new).append(messages[i])
        seen.add(text)
    print(
        f"prompts: {len(new)} held-out ones are new, {len(known)} occur elsewhere and come last", flush=True
    )
    return new + known


def texts_of(rollout: Rollout, tokenizer) -> list[str]:
    """The replies as text, without end-of-message tokens."""
    rows = zip(np.asarray(rollout.response), np.asarray(rollout.mask) > 0, strict=True)
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
