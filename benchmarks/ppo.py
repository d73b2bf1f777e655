"""Seconds of one PPO iteration of gptjax and of TRL 1.12.0, the last release with PPO, and of its phases.

Policy, reference, critic and reward model are four networks of one shape. Prompts of 64 tokens, replies of
64, batch 16, four epochs of one minibatch, the conventions of TRL; the phases are the rollout, the scoring
(log-probabilities, values, rewards, advantages) and the updates of policy and critic. Each precision is set
beside TRL's own: bfloat16 is TRL's mixed precision, the one it has unless it is told otherwise.

    python benchmarks/ppo.py
"""

import os
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import numpy as np
from gpt2_weights import Shape, gptjax_config, gptjax_params, random_weights, transformers_config
from harness import Burst, Worker, interleave, start
from results import bar, check_agreement, command_line, installed, is_quiet, parse, publish, ratio, summarise

# Model "a" of the training benchmark.
MODEL_A = Shape(layers=6, width=384, heads=6, vocab_size=8192, positions=256)
TINY = Shape(layers=2, width=64, heads=2, vocab_size=512, positions=64)
PROMPT, REPLY, BATCH, EPOCHS, TEMPERATURE = 64, 64, 16, 4, 0.7
PEER, PEER_VERSION = "trl", "1.12.0"
SPEED_BAR = 1.3
PHASES = ("rollout", "scoring", "updates")
AGREEMENT = {"float32": 1e-4, "bfloat16": 2e-2}


def prompts(shape: Shape, batch: int, length: int) -> np.ndarray:
    """Random prompts int32 `[batch, length]` without the ids 0 and 1, which pad and end."""
    return np.random.default_rng(1).integers(2, shape.vocab_size, (batch, length), np.int32)


def phases(times: dict[str, float]) -> dict[str, float]:
    """Seconds of each phase from the moments at which the iteration began and each phase ended."""
    moments = [times[name] for name in ("begun", *PHASES)]
    return dict(zip(PHASES, np.diff(moments).tolist(), strict=True))


def build_gptjax(shape: Shape, batch: int, prompt: int, reply: int, dtype: str):
    """gptjax's iteration, warm: (work, facts)."""
    import jax
    import jax.numpy as jnp

    from gptjax.generation.sampling import SamplingConfig
    from gptjax.models.functional import ModelDefinition
    from gptjax.models.heads import LanguageModel, ScalarModel
    from gptjax.sharding.mesh import MeshConfig, make_mesh
    from gptjax.stages import ppo_iteration
    from gptjax.stages.conventions import trl_1_12
    from gptjax.stages.ppo import PpoConfig
    from gptjax.stages.sharded import create_state

    jax.config.update("jax_enable_compilation_cache", False)  # its first iteration is to be compiled
    times = {}

    make_experience = ppo_iteration.make_experience

    def timed_experience(*given):
        experience = make_experience(*given)

        def timed(policy, critic, reference, reward, rollout, kl_coef):
            jax.block_until_ready(rollout)
            times["rollout"] = time.perf_counter()
            found = jax.block_until_ready(experience(policy, critic, reference, reward, rollout, kl_coef))
            times["scoring"] = time.perf_counter()
            return found

        return timed

    ppo_iteration.make_experience = timed_experience
    model = gptjax_config(shape, compute_dtype=dtype, loop="unroll")
    language, scalar = ModelDefinition(LanguageModel, model), ModelDefinition(ScalarModel, model)
    params = jax.tree.map(jnp.asarray, gptjax_params(random_weights(shape), shape.layers))
    head = jax.jit(scalar.initialise)(jax.random.key(0))
    judge = head | {"decoder": params["decoder"]}
    config = trl_1_12(
        PpoConfig(
            sampling=SamplingConfig(temperature=TEMPERATURE, max_new_tokens=reply),
            prompt_length=prompt,
            iterations=1000,
            batch_size=batch,
            ema_decay=0.0,
            corpora={},
        )
    )
    assert (config.epochs, config.minibatches, config.sampling.temperature) == (EPOCHS, 1, TEMPERATURE)
    mesh = make_mesh(MeshConfig())
    tokenizer = SimpleNamespace(im_end_id=None, pad_id=0)  # replies run on to their last slot
    iteration = ppo_iteration.make_iteration(config, tokenizer, language, scalar, params, judge, None, mesh)
    optimizers = ppo_iteration.make_optimizers(config, language, scalar)
    state = ppo_iteration.PpoState(
        step=jnp.zeros((), jnp.int32),
        policy=create_state(language, optimizers[0], mesh, params=params),
        critic=create_state(scalar, optimizers[1], mesh, params=judge),
        ema=jax.tree.map(jnp.copy, params),
        kl_coef=jnp.float32(config.kl_coef),
    )
    tokens = prompts(shape, batch, prompt)
    rows, key = {"tokens": tokens, "mask": np.ones_like(tokens, bool)}, jax.random.key(0)

    def work():
        nonlocal state
        times["begun"] = time.perf_counter()
        state, _ = jax.block_until_ready(iteration(state, rows, key))
        times["updates"] = time.perf_counter()
        return 1, phases(times)

    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    logits = jax.jit(language.apply)(params, tokens[:1])[0, -1]
    return work, {
        "compile_seconds": seconds[0] - seconds[2],
        "logits": np.asarray(logits)[:64].tolist(),
        "device": jax.devices()[0].device_kind,
    }


def build_trl(shape: Shape, batch: int, prompt: int, reply: int, dtype: str):
    """An iteration of `PPOTrainer.train`, warm: (work, facts)."""
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import (
        GPT2ForSequenceClassification,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    config = transformers_config(shape, bos_token_id=1, eos_token_id=1, pad_token_id=0, num_labels=1)
    weights = {f"transformer.{name}": torch.tensor(w) for name, w in random_weights(shape).items()}

    def network(kind):
        model = kind(config)
        loaded = model.load_state_dict(weights, strict=False)
        assert not loaded.unexpected_keys and len(loaded.missing_keys) == 1, loaded
        return model.eval()

    vocabulary = {f"<{i}>": i for i in range(shape.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<2>")),
        pad_token="<0>",
        eos_token="<1>",
        padding_side="left",
    )
    times = {}

    def timed(name, moment):
        function = getattr(ppo_trainer, name)

        def wrapped(*given, **named):
            if moment == "rollout":
                times["begun"] = time.perf_counter()
            found = function(*given, **named)
            times[moment] = time.perf_counter()
            return found

        setattr(ppo_trainer, name, wrapped)

    class Ends(TrainerCallback):
        def on_step_end(self, *_, **__):
            times["updates"] = time.perf_counter()

    timed("batch_generation", "rollout")
    timed("masked_whiten", "scoring")  # of the advantages: the last that precedes the updates
    tokens = prompts(shape, batch, prompt)
    data = Dataset.from_dict({"input_ids": tokens.tolist()})
    policy = network(GPT2LMHeadModel)
    with torch.inference_mode():
        logits = policy(torch.tensor(tokens[:1], dtype=torch.long)).logits[0, -1, :64].tolist()
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir="unused",
            use_cpu=not torch.cuda.is_available(),
            bf16=dtype == "bfloat16",
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            num_sample_generations=0,
            total_episodes=batch,
            per_device_train_batch_size=batch,
            num_mini_batches=1,
            num_ppo_epochs=EPOCHS,
            response_length=reply,
            temperature=TEMPERATURE,
            missing_eos_penalty=None,
            lr_scheduler_type="constant",
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=network(GPT2LMHeadModel),
        reward_model=network(GPT2ForSequenceClassification),
        value_model=network(GPT2ForSequenceClassification),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[Ends()],
    )

    def work():
        trainer.train()
        return 1, phases(times)

    work()
    return work, {
        "compile_seconds": 0.0,
        "logits": logits,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def start_workers(options: Namespace) -> list[Worker]:
    """The processes of all implementations, warm."""
    size = (TINY, 4, 8, 8) if options.quick else (MODEL_A, BATCH, PROMPT, REPLY)
    builds = {}
    peer_is_there = installed(PEER, PEER_VERSION) and installed("torch")
    for dtype in options.compute_dtype:
        if peer_is_there:
            builds[f"{PEER} {dtype}"] = partial(build_trl, *size, dtype)
        builds[f"gptjax {dtype}"] = partial(build_gptjax, *size, dtype)
    return start(builds, options.threads)


def row(name: str, bursts: list[Burst], facts: dict, quiet: bool) -> dict:
    """One implementation's line of the table, its ratios to TRL in the same precision."""
    figures = summarise(bursts)
    peer_name = f"{PEER} {name.split()[-1]}"
    one, peer = figures[name], figures.get(peer_name)
    columns = {
        "implementation": name,
        "s/iteration": one.seconds_per_unit,
        "fastest": one.fastest,
        "slowest": one.slowest,
        "CPU s/iteration": one.cpu_seconds_per_unit,
        f"speed / {PEER}": ratio(peer, one, quiet) if peer else None,
    }
    medians = {who: median_phases(bursts, who) for who in figures}
    for phase in PHASES:
        columns[f"{phase} s"] = medians[name][phase]
        columns[f"{phase}: speed / {PEER}"] = (
            medians[peer_name][phase] / medians[name][phase] if peer else None
        )
    return columns | {
        "compile s": facts[name]["compile_seconds"],
        "peak MiB": one.peak_mib,
        "kept": f"{one.kept} of {one.kept + one.dropped}",
    }


def median_phases(bursts: list[Burst], name: str) -> dict[str, float]:
    """Median wall seconds of each phase over the kept bursts, over all if none was kept."""
    own = [burst for burst in bursts if burst.name == name]
    own = [burst for burst in own if burst.kept] or own
    return {phase: float(np.median([burst.phases[phase] for burst in own])) for phase in PHASES}


def options() -> ArgumentParser:
    """The command line."""
    parser = command_line(__doc__.splitlines()[0], bursts=5, limit=400)
    parser.add_argument("--compute-dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    return parser


def main() -> None:
    """Runs the benchmark."""
    chosen = parse(options())
    workers = start_workers(chosen)
    facts = {worker.name: worker.facts for worker in workers}
    check_agreement(facts, "logits", AGREEMENT)
    bursts = interleave([worker.burst for worker in workers], chosen.bursts, chosen.limit)
    for worker in workers:
        worker.close()
    quiet = is_quiet(summarise(bursts).values())
    rows = [row(name, bursts, facts, quiet) for name in facts]
    speeds = {one["implementation"]: one[f"speed / {PEER}"] for one in rows}
    bars = [
        bar(f"speed / {PEER}, gptjax {dtype}", speeds[f"gptjax {dtype}"], SPEED_BAR, at_least=True)
        for dtype in chosen.compute_dtype
    ]
    shape = asdict(TINY if chosen.quick else MODEL_A)
    publish("ppo", chosen, bursts, rows, bars, facts=facts, shape=shape)


if __name__ == "__main__":
    main()
