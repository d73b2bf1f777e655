"""What PPO did: judged samples, divergence from the reference, and the price paid in language modelling."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.data.corpora import read_documents
from gptjax.evaluation.judge import distinct_n, lexicon_scores
from gptjax.evaluation.perplexity import first_bytes, heldout_rows, mean_loss
from gptjax.generation.decode import left_pad, request_keys
from gptjax.stages.handover import TrainedModel
from gptjax.stages.language_loss import make_sum_loss
from gptjax.stages.ppo_data import encode_prompts, read_prompts
from gptjax.stages.rollout import Rollout, draw, response_log_probs, reward_scores


def evaluate_policies(config, base: TrainedModel, reward: TrainedModel, params, folder: Path) -> dict:
    """Reference and policy on the same held-out prompts, with the same seeds.

    Writes every reply to `samples.jsonl`.

    Returns:
        for "reference" and "policy": lexicon score, reward, distinct-2 and loss on held-out text; and the
        KL of the policy to the reference in nats per reply.
    """
    tokenizer, language = base.tokenizer, base.definition
    messages = read_prompts(config.prompts, "heldout", config.seed)
    order = np.random.default_rng(config.seed).permutation(len(messages))
    prompts = encode_prompts([messages[i] for i in order], tokenizer, config.prompt_length)
    prompts = prompts[: config.eval_prompts]
    tokens, mask = left_pad(prompts, tokenizer.pad_id, config.prompt_length)
    keys = request_keys(np.arange(len(prompts)))
    temperature = config.sampling.temperature

    @jax.jit
    def judge(policy):
        end, pad = tokenizer.im_end_id, tokenizer.pad_id
        rollout = draw(language, policy, tokens, mask, keys, config.sampling, end, pad)
        return rollout, reward_scores(reward.definition, reward.params, rollout)

    @jax.jit
    def divergence(rollout: Rollout):
        ours, theirs = (
            response_log_probs(language, p, rollout, temperature)[0] for p in (params, base.params)
        )
        return ((ours - theirs) * rollout.mask).sum(1)

    text_loss = held_out_text_loss(config, base)
    figures, replies = {}, {}
    for name, policy in (("reference", base.params), ("policy", params)):
        rollout, scores = judge(policy)
        replies[name] = texts_of(rollout, tokenizer)
        figures[name] = {
            "lexicon": float(np.mean(lexicon_scores(replies[name]))),
            "reward": float(jnp.mean(scores)),
            "distinct_2": distinct_n(replies[name]),
            "ended": float(jnp.mean(rollout.ended)),
        } | text_loss(policy)
    figures["kl"] = float(jnp.mean(divergence(rollout)))
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as out:
        for i, ids in enumerate(prompts):
            row = {"prompt": tokenizer.decode(ids)} | {name: replies[name][i] for name in replies}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    for name in ("reference", "policy"):
        print(f"ppo: {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures[name].items()), flush=True)
    return figures


def texts_of(rollout: Rollout, tokenizer) -> list[str]:
    """The replies as text, without their end-of-message token."""
    lengths = np.asarray(rollout.mask).sum(1).astype(int) - np.asarray(rollout.ended)
    return [
        tokenizer.decode(ids[:n].tolist())
        for ids, n in zip(np.asarray(rollout.response), lengths, strict=True)
    ]


def held_out_text_loss(config, base: TrainedModel):
    """`loss(params) -> {"text_loss": nats per token}` on the held-out text of `config.corpora`."""
    if not config.corpora:
        return lambda params: {}
    texts = [
        text
        for name in config.corpora
        for text in first_bytes([d.text for d in read_documents(name, split="heldout")], config.eval_bytes)
    ]
    rows = heldout_rows(texts, base.tokenizer, config.ptx_length)
    sum_loss = make_sum_loss(base.definition)
    return lambda params: {"text_loss": mean_loss(sum_loss, params, rows, 16)}
