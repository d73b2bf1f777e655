"""One PPO iteration against a twin in numpy that knows no padding, no masks and no rollout arrays."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import check_golden
from ppo_case import B, CONFIG, END, PAD, make_case, text_batch

from gptjax.generation.decode import decode
from gptjax.sharding.mesh import MeshConfig, make_mesh, place
from gptjax.stages.ppo import PpoState, make_iteration, make_optimizers
from gptjax.stages.sharded import create_state

TEMPERATURE = CONFIG.sampling.temperature
CONFIG = dataclasses.replace(CONFIG, ema_decay=0.75, kl_target=2.0, kl_horizon=64.0)
KEY, START = jax.random.key(11), 1  # not iteration 0: there policy and reference must be the same


@pytest.fixture(scope="module")
def case():
    return make_case()


@pytest.fixture(scope="module")
def iteration(case):
    """State before, state after and metrics, on the host."""
    mesh = make_mesh(MeshConfig())
    optimizers = make_optimizers(CONFIG, case.language, case.scalar)
    policy = create_state(case.language, optimizers[0], mesh, params=case.policy)
    before = PpoState(
        step=jnp.int32(START),
        policy=policy,
        critic=create_state(case.scalar, optimizers[1], mesh, params=case.critic),
        ema=jax.tree.map(jnp.copy, policy.params),
        kl_coef=jnp.float32(CONFIG.kl_coef),
    )
    tokenizer = SimpleNamespace(im_end_id=END, pad_id=PAD)
    models = (case.language, case.scalar, case.reference, case.reward)
    program = make_iteration(CONFIG, tokenizer, *models, text_batch, mesh)
    kept = jax.device_get(before)
    after, metrics = program(before, place(case.prompts, mesh), KEY)
    return kept, jax.device_get(after), {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def replies(case):
    """Prompt and reply of each request as lists of ids, and whether the reply ended by itself."""
    keys = jax.random.split(jax.random.fold_in(KEY, START), B)

    @jax.jit
    def draw(params):
        prompts = (case.prompts["tokens"], case.prompts["mask"])
        arguments = {"sampling": CONFIG.sampling, "stop_sequences": ((END,),), "pad_id": PAD}
        return decode(case.language, params, *prompts, keys, **arguments)

    out = jax.device_get(draw(case.policy))
    rows = zip(case.prompts["tokens"], case.prompts["mask"], out.tokens, out.mask, strict=True)
    texts = [(p[m].tolist(), t[: int(k.sum())].tolist()) for p, m, t, k in rows]
    assert any(reply[-1] == END for _, reply in texts) and any(reply[-1] != END for _, reply in texts)
    return texts


def run_models(case, replies):
    """Logits of policy and reference, scalars of critic and reward model, rows unpadded on the left."""
    tokens = np.zeros((B, max(len(p) + len(r) for p, r in replies)), np.int32)
    for row, (prompt, reply) in zip(tokens, replies, strict=True):
        row[: len(prompt) + len(reply)] = prompt + reply
    language, scalar = jax.jit(case.language.apply), jax.jit(case.scalar.apply)
    outputs = [language(case.policy, tokens), language(case.reference, tokens)]
    outputs += [scalar(case.critic, tokens), scalar(case.reward, tokens)]
    return tokens, [np.asarray(x, np.float64) for x in outputs]


def log_softmax(logits):
    logits = logits / TEMPERATURE
    return logits - np.log(np.exp(logits - logits.max())).sum() - logits.max() if False else (
        logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    )
