"""Low-rank adapters against numpy, their gradients, their memory, and their layout on a mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import lineage
import numpy as np
import pytest
from kinds import KINDS, MAPS, PROGRAMS

from gptjax.config import ConfigError, from_json, to_json
from gptjax.models.families import gpt2, llama
from gptjax.models.functional import ModelDefinition, leaf_at, linear_maps
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.models.lora import (
    LoraConfig,
    LoraDefinition,
    adapter_axes,
    attach,
    initialise,
    merge,
    target_maps,
    unmerge,
)
from gptjax.models.quantization import QuantizationConfig, QuantizedMatrix, dequantize, quantize
from gptjax.sharding.mesh import MeshConfig, make_mesh, place
from gptjax.sharding.rules import parameter_shardings
from gptjax.stages.adapters import make_adapted_step
from gptjax.stages.language_loss import count_tokens, make_language_loss
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import TrainState

TINY = {"vocab_size": 40, "context_length": 12, "width": 16, "layers": 2, "heads": 4}
MODELS = {
    "gpt2": ModelDefinition(LanguageModel, gpt2("124M", **TINY)),
    "llama": ModelDefinition(LanguageModel, llama("7B", **TINY, kv_heads=2, mlp_width=24)),
    "scalar": ModelDefinition(ScalarModel, gpt2("124M", **TINY)),
}
EVERY = LoraConfig(rank=2, alpha=6.0, targets=("all",))


# One layer without a scan: what is compiled here is compiled for eight devices as well.
SMALL = ModelDefinition(
    LanguageModel, llama("7B", **TINY | {"layers": 1}, kv_heads=2, mlp_width=24, loop="unroll")
)
merge_jit = jax.jit(merge, static_argnums=2)


def draw(abstract, seed=0, std=0.4):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, std, x.shape), jnp.float32), abstract)


def with_leaf(tree, path, value):
    """The tree with another leaf at a path."""
    name, *rest = path
    return tree | {name: with_leaf(tree[name], rest, value) if rest else value}


def named(paths):
    return sorted(".".join(path[2:-1]) for path in paths)


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    definition = MODELS[request.param]
    return definition, draw(definition.abstract)


@pytest.fixture(scope="module", params=[*MODELS, *KINDS])
def any_model(request):
    """(definition, parameters, adapters of all layers), the last two drawn."""
    definition = MODELS[request.param] if request.param in MODELS else KINDS[request.param][0]
    adapters = draw(LoraDefinition(definition, EVERY).abstract, seed=1)
    return definition, draw(definition.abstract), adapters


def test_linear_maps_are_the_kernels_of_the_blocks(model):
    definition, params = model
    maps = linear_maps(params)
    assert sorted(maps) == sorted(linear_maps(definition.axes)) == sorted(linear_maps(definition.abstract))
    mlp = (
        ["mlp.down", "mlp.gate", "mlp.up"]
        if definition.config.activation == "swiglu"
        else ["mlp.down", "mlp.up"]
    )
    attention = ["attention.key", "attention.output", "attention.query", "attention.value"]
    assert named(maps) == attention + mlp


def test_targets_are_names_or_runs_of_names():
    params = MODELS["llama"].abstract

    def chosen(*targets):
        return named(target_maps(params, LoraConfig(targets=targets)))

    assert named(target_maps(params, LoraConfig())) == ["attention.query", "attention.value"]
    assert chosen("mlp") == ["mlp.down", "mlp.gate", "mlp.up"]
    assert chosen("mlp.up", "decoder.blocks.attention.key") == ["attention.key", "mlp.up"]
    assert chosen("all") == chosen("attention", "mlp") == named(linear_maps(params))


@pytest.mark.parametrize("name", KINDS)
def test_all_are_the_maps_of_the_layers_and_those_of_heads_can_be_named(name):
    abstract, (in_layers, in_heads) = KINDS[name][0].abstract, MAPS[name]
    heads = sorted(path[0] for path in linear_maps(abstract) if len(path) == 2)
    assert len(target_maps(abstract, EVERY)) == in_layers and len(heads) == in_heads
    chosen = target_maps(abstract, LoraConfig(targets=("all", *heads)))
    assert chosen == linear_maps(abstract)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"targets": ("querry",)},
            "'querry' names no linear map of the model: use 'all' or names among .*query",
        ),
        # A part of a name is no name, and what is no linear map cannot be adapted.
        ({"targets": ("quer",)}, "'quer' names no linear map"),
        ({"targets": ("query", "embedding")}, "'embedding' names no linear map"),
        ({"rank": 17}, "rank = 17 is larger than the map .*query of 16 inputs and 16 outputs has: lower it"),
    ],
)
def test_what_cannot_be_adapted_is_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        LoraDefinition(MODELS["gpt2"], LoraConfig(**changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank": 0}, "rank\n.*greater than or equal to 1"),
        ({"alpha": 0.0}, "greater than 0"),
        ({"targets": ()}, "at least 1"),
    ],
)
def test_impossible_settings_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        LoraConfig(**changes)


def test_a_configuration_survives_json():
    assert from_json(to_json(EVERY)) == EVERY


def test_fresh_adapters_change_nothing_and_have_the_published_spread():
    definition = ModelDefinition(LanguageModel, gpt2("124M", **TINY | {"width": 128}))
    adapters = initialise(jax.random.key(0), definition.abstract, LoraConfig(rank=16))
    query = adapters["decoder"]["blocks"]["attention"]["query"]["kernel"]
    assert (query["a"].shape, query["b"].shape) == ((2, 128, 16), (2, 16, 128))
    assert not np.asarray(query["b"]).any()
    # U(-1/sqrt(I), 1/sqrt(I)): 4,096 draws come within 1 % of the bound; the deviation errs by 1 %.
    assert 0.99 < np.abs(query["a"]).max() * 128**0.5 <= 1
    np.testing.assert_allclose(np.std(query["a"]) * 128**0.5, 1 / 3**0.5, rtol=0.05)
    params = draw(definition.abstract)
    jax.tree.map(np.testing.assert_array_equal, merge(params, adapters, LoraConfig(rank=16)), params)


def test_a_map_s_draw_depends_on_the_key_and_its_path_alone():
    params = MODELS["gpt2"].abstract
    few, many = (initialise(jax.random.key(0), params, LoraConfig(targets=t)) for t in (("query",), ("all",)))
    attention = many["decoder"]["blocks"]["attention"]
    a = few["decoder"]["blocks"]["attention"]["query"]["kernel"]["a"]
    np.testing.assert_array_equal(a, attention["query"]["kernel"]["a"])
    assert np.abs(a - attention["value"]["kernel"]["a"]).max() > 0.1
    other = initialise(jax.random.key(1), params, LoraConfig(targets=("query",)))
    assert np.abs(a - other["decoder"]["blocks"]["attention"]["query"]["kernel"]["a"]).max() > 0.1


def test_merge_is_the_equation_and_touches_the_targets_alone(any_model):
    _, params, adapters = any_model
    merged, targets = merge(params, adapters, EVERY), target_maps(params, EVERY)
    for path in targets:
        W, W2, ab = (leaf_at(tree, path) for tree in (params, merged, adapters))
        for layer in range(len(W)):
            B, A = np.asarray(ab["b"][layer], np.float64).T, np.asarray(ab["a"][layer], np.float64).T
            # The paper's W is [outputs, inputs].
            expected = np.asarray(W[layer], np.float64).T + 6 / 2 * B @ A
            np.testing.assert_allclose(np.asarray(W2[layer]).T, expected, rtol=1e-5, atol=1e-6)
    changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), params, merged)
    assert sum(jax.tree.leaves(changed)) == len(targets)


def test_unmerge_gives_the_base_back(any_model):
    _, params, adapters = any_model
    merged = merge(params, adapters, EVERY)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), merged, params)
    assert max(jax.tree.leaves(moved)) > 0.5
    back = unmerge(merged, adapters, EVERY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), back, params)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_merged_model_of_every_kind_computes_something_else(name):
    """Every map of the layers is one that the logits depend on; fresh adapters change nothing."""
    definition, call = KINDS[name]
    params, adapters = lineage.random_params(definition), LoraDefinition(definition, EVERY)
    program = jax.jit(lambda params, adapters: call(definition, merge(params, adapters, EVERY)))
    ours = partial(program, params)
    fresh, drawn = adapters.initialise(jax.random.key(0)), draw(adapters.abstract, seed=1)
    plain = ours(jax.tree.map(jnp.zeros_like, fresh))
    np.testing.assert_array_equal(ours(fresh), plain)
    for path in linear_maps(fresh):
        moved = ours(with_leaf(fresh, path, leaf_at(drawn, path)))
        assert np.abs(moved - plain).max() > 1e-3, path


def test_merged_logits_are_those_of_the_two_paths():
    """`y = x W + (alpha / r) (x A) B`, computed beside the merged map."""
    definition = MODELS["gpt2"]
    params, adapters = draw(definition.abstract), draw(LoraDefinition(definition, EVERY).abstract, seed=1)
    up, ab = (tree["decoder"]["blocks"]["mlp"]["up"]["kernel"] for tree in (params, adapters))
    x = np.random.default_rng(2).normal(size=(5, 16)).astype(np.float32)
    merged = merge_jit(params, adapters, EVERY)["decoder"]["blocks"]["mlp"]["up"]["kernel"][0]
    two_paths = x @ up[0] + 3 * (x @ ab["a"][0]) @ ab["b"][0]
    np.testing.assert_allclose(x @ merged, two_paths, rtol=1e-4, atol=1e-5)


def test_attached_adapters_give_what_merged_ones_give():
    """Quantised or not; adapters that are 0 change no bit."""
    definition = MODELS["gpt2"]
    params = draw(definition.abstract)
    adapters = draw(LoraDefinition(definition, EVERY).abstract, seed=1, std=0.2)
    tokens = batch()["tokens"][:2]
    read = jax.jit(lambda p, ab, change: definition.apply(change(p, ab, EVERY), tokens), static_argnums=2)
    plain = jax.jit(definition.apply)(params, tokens)
    for base in (params, quantize(params, QuantizationConfig(bits=8))):
        merged, attached = (read(base, adapters, change) for change in (merge, attach))
        assert np.abs(merged - plain).max() > 0.1
        np.testing.assert_allclose(attached, merged, rtol=1e-4, atol=1e-4)
    off = jax.tree_util.tree_map_with_path(lambda path, x: x * (path[-1].key == "a"), adapters)
    np.testing.assert_array_equal(read(params, off, attach), plain)


@pytest.mark.slow
def test_attached_adapters_are_never_added_up():
    """Merged, a gradient holds the maps twice besides its arguments: their sums and their gradients."""
    wide = gpt2("124M", vocab_size=16, context_length=4, width=256, layers=6, heads=2)
    definition, lora = ModelDefinition(LanguageModel, wide), LoraConfig(rank=2, targets=("all",))
    maps = sum(leaf_at(definition.abstract, path).size * 4 for path in linear_maps(definition.abstract))
    tokens, adapters = np.zeros((1, 4), np.int32), LoraDefinition(definition, lora).abstract

    def temporaries(change):
        loss = lambda ab, p: definition.apply(change(p, ab, lora), tokens).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(adapters, definition.abstract).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(merge) > 2 * maps
    assert temporaries(attach) < maps / 2


def test_adapters_of_another_model_are_refused():
    adapters = draw(LoraDefinition(MODELS["llama"], EVERY).abstract)
    with pytest.raises(
        ConfigError, match=r"key changes a map of shape \(2, 16, 8\), but the model's is \(2, 16, 16\)"
    ):
        merge(draw(MODELS["gpt2"].abstract), adapters, EVERY)
    with pytest.raises(ConfigError, match=r"but the model's is \(2, 16, 16\)"):
        small = quantize(draw(MODELS["gpt2"].abstract), QuantizationConfig(bits=4))
        attach(small, adapters, EVERY)
    del adapters["decoder"]["blocks"]["attention"]
    adapters["decoder"]["blocks"]["mlp"] = {"gate": adapters["decoder"]["blocks"]["mlp"]["gate"]}
    with pytest.raises(ConfigError, match="the adapters have decoder.blocks.mlp.gate, which the model lacks"):
        merge(draw(MODELS["gpt2"].abstract), adapters, EVERY)


def test_a_quantised_base_is_adapted_by_its_values():
    definition, lora = MODELS["llama"], LoraConfig(rank=2, targets=("query",))
    small = quantize(draw(definition.abstract), QuantizationConfig(bits=4))
    adapters = draw(LoraDefinition(definition, lora).abstract, seed=1)
    merged = merge_jit(small, adapters, lora)
    expected = merge_jit(dequantize(small), adapters, lora)["decoder"]["blocks"]["attention"]["query"]
    attention = merged["decoder"]["blocks"]["attention"]
    np.testing.assert_allclose(attention["query"]["kernel"], expected["kernel"], rtol=1e-6)
    assert isinstance(attention["value"]["kernel"], QuantizedMatrix)


def test_axes_are_those_of_the_map_around_the_rank(any_model):
    definition, _, _ = any_model
    adapters = LoraDefinition(definition, EVERY)
    assert adapters.axes == adapter_axes(definition.axes, EVERY)
    downs = [path for path in target_maps(definition.axes, EVERY) if path[-2] == "down"]
    assert downs
    for path in downs:
        down = leaf_at(adapters.axes, path)
        assert down == {"a": ("layers", "mlp", "rank"), "b": ("layers", "rank", "embed")}
    names = jax.tree.leaves(adapters.axes, is_leaf=lambda x: isinstance(x, tuple))
    ranks = [len(leaf.shape) for leaf in jax.tree.leaves(adapters.abstract)]
    assert [len(axes) for axes in names] == ranks


def batch():
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 40, (8, 12)).astype(np.int32) for name in ("tokens", "targets")}
    return rows | {"loss_mask": (rng.random((8, 12)) < 0.6).astype(np.float32)}


def adapted(mesh_config):
    """(state, compiled step, base) of adapters on a mesh."""
    mesh, adapters = make_mesh(mesh_config), LoraDefinition(SMALL, EVERY)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 100, adapters.axes)
    shardings = parameter_shardings(mesh, SMALL.abstract, SMALL.axes)
    base = jax.tree.map(jax.device_put, draw(SMALL.abstract), shardings)
    step = make_adapted_step(make_language_loss(SMALL), count_tokens, EVERY, optimizer, accumulate=2)
    state = create_state(adapters, optimizer, mesh, key=jax.random.key(0))
    return state, compile_step(step, mesh, base), base


def place_batch(mesh_config):
    return place(batch(), make_mesh(mesh_config))


@pytest.fixture(scope="module")
def two_steps():
    """Adapters before and after two steps on one device, the base before and after, the metrics."""
    state, run, base = adapted(MeshConfig())
    fresh, before, rows = jax.device_get(state.params), jax.device_get(base), place_batch(MeshConfig())
    for _ in range(2):
        state, metrics = run(state, rows, jax.random.key(0))
    return fresh, jax.device_get(state), before, jax.device_get(base), jax.device_get(metrics)


def test_a_frozen_base_costs_no_optimiser_memory():
    """Adam's two moments of 230 times fewer numbers; the train state of GPT-2 holds nothing of the base."""
    definition = ModelDefinition(LanguageModel, gpt2("124M"))
    adapters = LoraDefinition(definition, LoraConfig(rank=8))
    # 12 layers, queries and values, A and B: 8 numbers for each of 768 inputs and 768 outputs.
    assert adapters.parameter_count == 12 * 2 * 8 * (768 + 768) == 294_912

    def state_bytes(model):
        optimizer = make_optimizer(OptimizerConfig(), 100, model.axes)
        state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), model.abstract)
        return nbytes(state.opt_state), nbytes(state)

    moments, whole = state_bytes(adapters)
    counters = 2 * 4  # of Adam and of the schedule
    assert moments == 2 * 4 * 294_912 + counters
    assert whole == 3 * 4 * 294_912 + counters + 2 * 4
    assert state_bytes(definition)[0] == 2 * 4 * 124_439_808 + counters


@pytest.mark.parametrize("name", KINDS)
def test_a_frozen_base_of_any_kind_costs_no_optimiser_memory(name):
    """Adam keeps two numbers for each of A and B; all maps have 16 or F inputs, 16 or F outputs."""
    definition = KINDS[name][0]
    adapters = LoraDefinition(definition, EVERY)
    maps = [leaf_at(definition.abstract, path).shape for path in target_maps(definition.abstract, EVERY)]
    count = sum(layers * 2 * (inputs + outputs) for layers, inputs, outputs in maps)
    optimizer = make_optimizer(OptimizerConfig(), 100, adapters.axes)
    state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), adapters.abstract)
    assert (nbytes(state.params), nbytes(state.opt_state)) == (4 * count, 8 * count + 8)
    assert count < definition.parameter_count


def test_the_base_is_an_argument_of_the_program_and_no_constant_in_it(monkeypatch):
    programs = []

    def jit(step, **_):
        return lambda *arguments: programs.append((step, arguments))

    state, _, base = adapted(MeshConfig())
    optimizer = make_optimizer(OptimizerConfig(), 100, LoraDefinition(SMALL, EVERY).axes)
    monkeypatch.setattr("gptjax.stages.sharded.jax.jit", jit)
    mesh = make_mesh(MeshConfig())
    adapted_step = make_adapted_step(make_language_loss(SMALL), count_tokens, EVERY, optimizer)
    compile_step(adapted_step, mesh, base)(state, batch(), jax.random.key(0))
    ((step, arguments),) = programs
    assert arguments[3] is base
    program = jax.make_jaxpr(step)(*arguments)
    assert nbytes(program.consts) < 1000 < nbytes(base)
    assert len(program.jaxpr.invars) == len(jax.tree.leaves(arguments))


def test_a_step_moves_the_adapters_and_leaves_the_base(two_steps):
    fresh, state, before, base, metrics = two_steps
    jax.tree.map(np.testing.assert_array_equal, base, before)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, fresh)
    assert min(jax.tree.leaves(moved)) > 1e-4
    assert np.isfinite(metrics["loss"])
    count = LoraDefinition(SMALL, EVERY).parameter_count
    assert (nbytes(state.params), nbytes(state.opt_state)) == (4 * count, 8 * count + 8)


def test_the_gradient_of_the_adapters_is_the_chain_rule():
    """`dA = s dW B^T` and `dB = s A^T dW`, dW the gradient of the whole map."""
    definition = SMALL
    params, adapters = draw(definition.abstract), draw(LoraDefinition(definition, EVERY).abstract, 1, 0.1)
    rows = batch()

    def loss(params):
        log_probs = jax.nn.log_softmax(definition.apply(params, rows["tokens"]))
        return -jnp.take_along_axis(log_probs, rows["targets"][..., None], -1).mean()

    whole = jax.jit(jax.grad(loss))(merge_jit(params, adapters, EVERY))
    ours = jax.jit(jax.grad(lambda ab: loss(attach(params, ab, EVERY))))(adapters)
    for name in ("query", "output"):
        dW, ab, got = (t["decoder"]["blocks"]["attention"][name]["kernel"] for t in (whole, adapters, ours))
        np.testing.assert_allclose(got["a"], 3 * np.einsum("nio,nro->nir", dW, ab["b"]), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got["b"], 3 * np.einsum("nio,nir->nro", dW, ab["a"]), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_one_device_equals_eight(two_steps):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    state, run, _ = adapted(mesh)
    for _ in range(2):
        state, metrics = run(state, place_batch(mesh), jax.random.key(0))
    up = state.params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert up["a"].addressable_shards[0].data.shape == (1, 8, 2)
    assert up["b"].addressable_shards[0].data.shape == (1, 2, 12)
    expected = two_steps[1].params, two_steps[4]["loss"]
    # Adam divides by the root of a gradient's square: where it is near 0, rounding shows.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # noqa: E731
    jax.tree.map(close, jax.device_get((state.params, metrics["loss"])), expected)


def test_every_adapter_is_a_matrix_to_the_optimisers():
    """Weight decay reaches A and B, and Muon takes both."""
    axes = {"a": ("layers", "embed", "rank"), "b": ("layers", "rank", "mlp")}
    assert LoraDefinition(MODELS["gpt2"], EVERY).axes["decoder"]["blocks"]["mlp"]["up"]["kernel"] == axes
    params = {"a": jnp.ones((2, 4, 2)), "b": jnp.ones((2, 2, 6))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    settings = {"learning_rate": 0.1, "muon_learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.2}
    for kind in ("adamw", "muon"):
        optimizer = make_optimizer(OptimizerConfig(kind=kind, **settings), 10, axes)
        updates = jax.jit(lambda p, g, o=optimizer: o.update(g, o.init(p), p)[0])(params, zeros)
        jax.tree.map(lambda u: np.testing.assert_allclose(u, -0.02, rtol=1e-5), updates)
