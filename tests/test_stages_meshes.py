"""One update of every kind of stage, the program that its plan compiles, on data x fsdp x tensor."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import optax
import pytest
from ppo_case import CONFIG, OPTIMIZER

from gptjax.data.masking import MaskingConfig
from gptjax.models.encoder import EncoderConfig
from gptjax.models.encoder_decoder import EncoderDecoderConfig
from gptjax.models.glm import GLMConfig
from gptjax.models.lora import LoraConfig
from gptjax.models.transformer import DecoderConfig
from gptjax.planning.programs import ambient
from gptjax.planning.shapes import Shapes
from gptjax.planning.work import stages_of, work_of
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.best_of_n import BestOfNConfig
from gptjax.stages.classify import TASK_TOKENS, ClassifyConfig
from gptjax.stages.finetune import FinetuneConfig
from gptjax.stages.grouped import GroupedConfig
from gptjax.stages.infill import InfillConfig
from gptjax.stages.infill_chat import InfillChatConfig
from gptjax.stages.masked import MaskedConfig
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.preference import PreferenceConfig
from gptjax.stages.reward import RewardConfig
from gptjax.stages.translate import TranslateConfig

V, L, B = 24, 8, 8
SIZES = {"vocab_size": V, "context_length": 16, "width": 16, "layers": 2, "heads": 4, "mlp_width": 32}
LANGUAGE, ENCODER = DecoderConfig(**SIZES), EncoderConfig(**SIZES)
GLM = GLMConfig(**SIZES | {"vocab_size": V - 6})  # six ids mark blanks
BASES = {
    "language": ("language", LANGUAGE),
    "scalar": ("scalar", LANGUAGE),
    "gpt1": ("language", replace(LANGUAGE, norm_place="post", vocab_size=V - TASK_TOKENS)),
    "bert": ("masked", ENCODER),
    "glm": ("glm", replace(GLM, vocab_size=V)),
}
TEXT = {"length": L, "batch_size": B, "steps": 10, "optimizer": OPTIMIZER}
RANKED = {"k_min": 2, "k_max": 3, "length": L, "batch_size": B, "optimizer": OPTIMIZER}
DRAWN = {"sampling": CONFIG.sampling, "prompt_length": 6, "iterations": 4, "batch_size": B}
DRAWN |= {"minibatches": 2, "optimizer": OPTIMIZER}
FINETUNE = FinetuneConfig(base="language", dialogues={"chatterbot": 1.0}, dropout=0.1, **TEXT)
STAGES = {
    "finetune": FINETUNE,
    "finetune_lora": replace(FINETUNE, lora=LoraConfig(rank=2, targets=("all",))),
    "best_of_n": BestOfNConfig(
        policy="language", asked=8, finetune=replace(FINETUNE, dialogues={"best": 1.0})
    ),
    "reward": RewardConfig(base="language", **RANKED),
    **{
        kind: PreferenceConfig(base="language", loss=kind, **RANKED) for kind in ("dpo", "ipo", "kto", "orpo")
    },
    "ppo": PpoConfig(
        policy="language",
        reward="scalar",
        value_optimizer=OPTIMIZER,
        ptx_coef=0.5,
        ptx_rows=8,
        ptx_length=L,
        corpora={"text": 1.0},
        **DRAWN,
    ),
    "grouped": GroupedConfig(policy="language", reward="scalar", group_size=2, **DRAWN),
    "masked": MaskedConfig(
        model=ENCODER, corpora={"text": 1.0}, masking=MaskingConfig(max_predictions=4), **TEXT
    ),
    "classify_gpt1": ClassifyConfig(base="gpt1", form="similarity", lm_weight=0.5, **TEXT),
    "classify_bert": ClassifyConfig(base="bert", **TEXT),
    "infill": InfillConfig(
        model=replace(GLM, positions="rotary", deep_norm=True), corpora={"t": 1.0}, **TEXT
    ),
    "infill_chat": InfillChatConfig(base="glm", dialogues={"chatterbot": 1.0}, dropout=0.1, **TEXT),
    "translate": TranslateConfig(
        model=EncoderDecoderConfig(**SIZES, dropout=0.1),
        pairs="",
        source="a",
        target="b",
        lengths=(L,),
        batch_tokens=B * L,
        steps=10,
        optimizer=OPTIMIZER,
    ),
}
SMALLER = [
    MeshConfig(**sizes)
    for sizes in (
        {"data": 2},
        {"fsdp": 2, "tensor": 2},
        {"fsdp": 2},
        {"data": 2, "tensor": 2},
        {"tensor": 2},
        {"data": 2, "fsdp": 2},
        {"tensor": 4},
    )
]
EIGHT = MeshConfig(data=2, fsdp=2, tensor=2)
# Every stage on eight devices, and every second one on two or four: each smaller mesh once at least. Best of
# n trains with the program of fine-tuning.
PAIRS = [(name, EIGHT) for name in STAGES if name != "best_of_n"]
PAIRS += [(name, SMALLER[n % len(SMALLER)]) for n, name in enumerate(list(STAGES)[::2])]
# Indices that a batch holds besides tokens, and how many there are to choose from.
CHOICES = {"end_row": B, "end_column": L, "places": L, "labels": 2, "ends": L}
CHOICES |= {"token_types": 2, "segment_ids": 3, "source_mask": 2, "positions": 4}


def numbers(batch, rng):
    """A batch of these shapes: a mask is 0 or 1, an index within its range."""

    def one(path, leaf):
        name = str(getattr(path[-1], "key", getattr(path[-1], "name", "")))
        if leaf.dtype == bool or name.endswith("mask") and leaf.dtype != np.int32:
            return (rng.random(leaf.shape) < 0.8).astype(leaf.dtype)
        if leaf.dtype == np.int32:
            return rng.integers(0, CHOICES.get(name, V - 6), leaf.shape).astype(np.int32)
        drawn = rng.normal(size=leaf.shape).astype(np.float32)
        return np.abs(drawn) if name.endswith("weights") else drawn

    made = jax.tree_util.tree_map_with_path(one, batch)
    if "starts" in batch:  # each completion fills a row, after a prompt of one to four tokens
        rows, starts = np.arange(len(made["tokens"]), dtype=np.int32), made["starts"] % 4 + 1
        whole = {"segment_ids": rows[:, None] + 1, "positions": np.arange(L, dtype=np.int32)}
        made |= {name: np.broadcast_to(x, made["tokens"].shape) for name, x in whole.items()}
        made |= {"starts": starts, "counts": L - starts}
    return made


def arguments(program):
    """Numbers for what the program is called with, laid out as it says; the same on every mesh."""
    state, batch, _, *frozen = program.arguments
    rng = np.random.default_rng(0)
    # Wide, so that every formula has something to get wrong.
    weights = lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32)  # noqa: E731
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    started = replace(zeros, params=jax.tree.map(weights, state.params))
    given = [started, numbers(batch, rng), *(jax.tree.map(weights, tree) for tree in frozen)]
    put = lambda x, like: jax.device_put(x, like.sharding)  # noqa: E731
    state, batch, *frozen = jax.tree.map(put, given, [state, batch, *frozen])
    return state, batch, jax.random.key(1), *frozen


@cache
def updated(name, mesh_config):
    """What each update of the stage leaves on the mesh: (first parameters, state, metrics), on the host."""
    shapes = Shapes(known=BASES)
    (config,) = stages_of(STAGES[name], shapes, name).values()
    mesh, found = make_mesh(mesh_config), {}
    for program in work_of(replace(config, mesh=mesh_config), shapes, mesh).programs:
        if program.training is not None:
            given = arguments(program)
            with ambient(mesh):
                state, metrics = jax.jit(program.function)(*given)
            found[program.name] = jax.device_get((given[0].params, state, metrics))
    return found


def close(ours, theirs, largest=1.0):
    """Within 2e-6 of the largest element of all, or of each that is larger."""
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6 * largest, err_msg=where)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), PAIRS, ids=str)
def test_an_update_on_several_devices_is_that_of_one(name, mesh):
    """After one step Adam's first moment is a tenth of the clipped gradient.

    The parameters are compared as well, since the optimiser's large epsilon makes the step proportional to
    the gradient; with Adam's own the sign alone would count, and rounding be blown up to a whole step.
    """
    ours, theirs = updated(name, mesh), updated(name, MeshConfig())
    for program, (first, state, metrics) in theirs.items():
        _, ours_state, ours_metrics = ours[program]
        gradient = optax.tree.get(state.opt_state, "mu")
        largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(gradient))
        assert largest > 1e-4 and all(np.isfinite(x).all() for x in jax.tree.leaves(state))
        close(optax.tree.get(ours_state.opt_state, "mu"), gradient, largest)
        close(ours_state.params, state.params)
        close(ours_metrics, metrics)
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, first)
        assert max(jax.tree.leaves(moved)) > 1e-4
