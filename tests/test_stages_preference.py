"""The stage that learns from rankings without a reward model."""

import dataclasses
import functools
import json
from signal import SIGKILL

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stage_driver
import tiny

from gptjax.config import to_json
from gptjax.data.chat import render_prompt
from gptjax.data.preferences import (
    RankedReplies,
    completion_starts,
    encode_ranked,
    pack_ranked,
    swap_completions,
)
from gptjax.data.quality import DataError
from gptjax.losses.preference import dpo_loss, ipo_loss, kto_loss, kto_reference_point, orpo_loss
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.models.transformer import DecoderConfig
from gptjax.sharding.mesh import MeshConfig, make_mesh, place
from gptjax.stages import preference
from gptjax.stages.policy_figures import JudgingConfig
from gptjax.stages.preference import (
    Comparisons,
    PreferenceConfig,
    completion_log_probs,
    make_batches,
    make_preference_loss,
    ranked_loss,
    with_reference_point,
)
from gptjax.stages.reward import count_groups
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.metrics import read_metrics
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

# One compilation a function instead of one an operation.
dpo_loss, ipo_loss, kto_loss, orpo_loss = map(jax.jit, (dpo_loss, ipo_loss, kto_loss, orpo_loss))

LENGTH, K = 48, 3
LOSSES = ("dpo", "ipo", "kto", "orpo")
MODEL = DecoderConfig(vocab_size=1024, context_length=64, width=16, layers=1, heads=2, loop="unroll")
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, epsilon=1e-2, schedule="constant", weight_decay=0.0)
GROUPS = [
    RankedReplies([{"role": "user", "content": asked}], said, scores)
    for asked, said, scores in [
        ("Who is there?", ["I am", "nobody at all, my lord", "go"], [2.0, 1.0, 0.0]),
        ("Why?", ["because", "I know not why"], [0.0, 1.0]),
        ("Speak.", ["no", "what shall I say to you", "yes"], [1.0, 1.0, 3.0]),
        ("How do you do?", ["well", "ill", "so so"], [5.0, -1.0, 0.5]),
    ]
]


def config_of(loss, **changes):
    return PreferenceConfig(
        loss=loss, beta=0.3, length=LENGTH, batch_size=4, k_min=2, k_max=K, optimizer=OPTIMIZER, **changes
    )


@pytest.fixture(scope="module")
def arrays(tokenizer):
    return encode_ranked(GROUPS, tokenizer, LENGTH, K)


@pytest.fixture(scope="module")
def models():
    """Definition, a policy and a reference nearby."""
    definition = ModelDefinition(LanguageModel, dataclasses.replace(MODEL, init_std=0.2))
    policy = jax.jit(definition.initialise)(jax.random.key(0))
    rng = np.random.default_rng(1)
    reference = jax.tree.map(lambda x: x + rng.normal(0, 0.02, x.shape).astype(np.float32), policy)
    return definition, policy, reference


@pytest.fixture(scope="module")
def log_probs(models):
    return jax.jit(lambda params, batch: completion_log_probs(models[0], params, batch))


def expected_log_probs(definition, params, arrays, starts):
    """Each completion in a row of its own, which causal attention lets end in padding."""
    program = jax.jit(lambda ids: jax.nn.log_softmax(definition.apply(params, ids[None])[0]))
    found = np.zeros(arrays.lengths.shape, np.float32)
    for g, k in zip(*np.nonzero(arrays.lengths), strict=True):
        predicted, n = np.asarray(program(arrays.tokens[g, k])), arrays.lengths[g, k]
        places = np.arange(starts[g, k], n)
        found[g, k] = predicted[places - 1, arrays.tokens[g, k, places]].sum()
    return found


def test_a_completion_starts_after_its_prompt(arrays, tokenizer):
    starts = completion_starts(arrays, tokenizer)
    for g, group in enumerate(GROUPS):
        prompt = render_prompt(group.prompt, tokenizer)
        for k, text in enumerate(group.completions):
            said = arrays.tokens[g, k, starts[g, k] : arrays.lengths[g, k]].tolist()
            assert starts[g, k] == len(prompt)
            assert said == [*tokenizer.encode(text), tokenizer.im_end_id]
    assert starts[1, 2] == 0  # there is no third completion


def test_log_probabilities_are_those_of_each_completion_alone(models, arrays, tokenizer, log_probs):
    definition, policy, _ = models
    starts = completion_starts(arrays, tokenizer)
    expected = expected_log_probs(definition, policy, arrays, starts)
    assert np.ptp(expected[arrays.lengths > 0]) > 5
    index = np.array([2, 0, 3, 1])
    for parts in (1, 2):
        batch = pack_ranked(arrays, index, LENGTH, 12, parts) | {"starts": starts[index]}
        got = np.zeros((4, K))
        for part in range(parts):
            cut = {name: array[part::parts] for name, array in batch.items()}
            got[part::parts] = log_probs(policy, cut)
        np.testing.assert_allclose(got, expected[index], atol=2e-5)


def test_swapped_completions_follow_the_next_prompt(arrays, tokenizer):
    starts, index = completion_starts(arrays, tokenizer), np.array([[2, 1], [0, 3]])
    swapped = swap_completions(arrays, starts, index, tokenizer.pad_id)
    for row, (prompt, other) in enumerate([(2, 1), (1, 2), (0, 3), (3, 0)]):
        before = render_prompt(GROUPS[prompt].prompt, tokenizer)
        for k, text in enumerate(GROUPS[other].completions):
            ids = [*before, *tokenizer.encode(text), tokenizer.im_end_id]
            if len(ids) > LENGTH:
                assert swapped.lengths[row, k] == 0
            else:
                assert swapped.tokens[row, k, : swapped.lengths[row, k]].tolist() == ids


def pairs_of(scores, valid):
    return [(i, j) for i in range(K) for j in range(K) if valid[i] and valid[j] and scores[i] > scores[j]]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_prompt_weighs_the_same_and_every_pair_of_it(loss, arrays, tokenizer):
    rng = np.random.default_rng(0)
    policy, reference = (-rng.gamma(9.0, 1.0, arrays.lengths.shape).astype(np.float32) for _ in range(2))
    counts = arrays.lengths - completion_starts(arrays, tokenizer)
    batch = {"scores": arrays.scores, "valid": arrays.lengths > 0, "reference": reference, "counts": counts}
    batch["reference_point"] = np.full(4, 0.7, np.float32)
    expected = []
    for g in range(4):
        of_group = []
        for i, j in pairs_of(arrays.scores[g], arrays.lengths[g] > 0):
            p, r, n = ([jnp.asarray([x[g, k]]) for k in (i, j)] for x in (policy, reference, counts))
            of_group.append(
                {
                    "dpo": lambda p=p, r=r: dpo_loss(*p, *r, beta=0.3),
                    "ipo": lambda p=p, r=r, n=n: ipo_loss(
                        *p, *r, beta=0.3, chosen_tokens=n[0], rejected_tokens=n[1]
                    ),
                    "orpo": lambda p=p, n=n: orpo_loss(*p, *n, beta=0.3),
                    "kto": lambda p=p, r=r: kto_loss(
                        jnp.stack(p), jnp.stack(r), jnp.array([[True], [False]]), 0.7, beta=0.3
                    ),
                }[loss]()
            )
        expected.append(jax.tree.map(lambda *x: np.mean(x), *of_group))
    expected = jax.tree.map(lambda *x: np.mean(x), *expected)
    value, metrics = jax.jit(lambda b: ranked_loss(config_of(loss), jnp.asarray(policy), b, 4.0))(batch)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    for name, number in expected[1].items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-5, atol=1e-6, err_msg=name)


def one_step(models, arrays, tokenizer, config):
    """Parameters and metrics after one update on all groups."""
    definition, policy, reference = models
    program = jax.jit(lambda batch: completion_log_probs(definition, reference, batch))
    train = Comparisons(arrays, completion_starts(arrays, tokenizer), program, config)
    _, batch_at = make_batches(train, np.array([[2, 0, 3, 1]]), program, tokenizer.pad_id, config)
    mesh, optimizer = make_mesh(config.mesh), make_optimizer(OPTIMIZER, 10, definition.axes)
    step = make_train_step(
        make_preference_loss(definition, config), count_groups, optimizer, accumulate=config.accumulate
    )
    step = with_reference_point(definition, step) if config.loss == "kto" else step
    state = create_state(definition, optimizer, mesh, params=policy)
    state, metrics = compile_step(step, mesh)(state, place(batch_at(0), mesh), jax.random.key(0))
    return jax.device_get((state.params, metrics))


@pytest.fixture(scope="module")
def update(models, arrays, tokenizer):
    """`loss -> one_step` of it, worked out once."""
    return functools.cache(lambda loss: one_step(models, arrays, tokenizer, config_of(loss)))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_an_update_does_not_depend_on_devices_or_micro_batches(loss, models, arrays, tokenizer, update):
    moves = jax.tree.map(lambda a, b: np.abs(a - b).max(), update(loss)[0], models[1])
    assert max(jax.tree.leaves(moves)) > 1e-5
    config = config_of(loss, accumulate=2, mesh=MeshConfig(data=2))
    got = one_step(models, arrays, tokenizer, config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), got, update(loss))


def test_the_reference_point_is_that_of_swapped_completions(models, arrays, tokenizer, update):
    definition, policy, reference = models
    starts = completion_starts(arrays, tokenizer)
    swapped = swap_completions(arrays, starts, np.array([[2, 0, 3, 1]]), tokenizer.pad_id)
    begins = np.where(swapped.lengths > 0, starts[[2, 0, 3, 1]].max(1)[:, None], 0)
    of_models = [expected_log_probs(definition, params, swapped, begins) for params in (policy, reference)]
    point = kto_reference_point(*map(jnp.asarray, of_models), swapped.lengths > 0)
    _, metrics = update("kto")
    assert point > 0 or metrics["kl"] == 0
    np.testing.assert_allclose(metrics["kl"], point, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"loss": "dpo", "label_smoothing": 0.5}, "label_smoothing = 0.5 must be below 0.5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "belongs to loss = dpo"),
        ({"loss": "kto", "batch_size": 1}, "kto needs a batch_size of at least 2"),
        ({"k_min": 4, "k_max": 3}, "k_min = 4 and k_max = 3"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        PreferenceConfig(**{"length": 8, "batch_size": 2} | wrong)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(folder of data, run folder of an untrained model)."""
    from gptjax.data.corpora import read_documents
    from gptjax.data.tokenizers import Tokenizer
    from gptjax.stages.handover import save_model

    folder = tmp_path_factory.mktemp("preference")
    data = tiny.write_data(folder / "data")
    tokenizer = Tokenizer.train((d.text for d in read_documents("pydoc")[:10]), vocab_size=384)
    definition = ModelDefinition(LanguageModel, tiny.MODEL)
    params = jax.jit(definition.initialise)(jax.random.key(0))
    save_model(folder / "base", "language", tiny.MODEL, params, tokenizer)
    return data, folder / "base"


def stage_config(base, loss="dpo"):
    data, folder = base
    return PreferenceConfig(
        base=str(folder),
        loss=loss,
        source=str(data / "preferences.jsonl"),
        length=128,
        batch_size=4,
        k_max=5,
        optimizer=tiny.ADAM,
        save_every=3,
    )


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(base, tmp_path):
    from test_stages_resume import assert_same_run

    config = to_json(stage_config(base, "kto"))
    for name, deaths in (("whole", [None]), ("killed", [("saving", 2, SIGKILL), None])):
        for die in deaths:
            process = stage_driver.start(config, tmp_path / name, tmp_path / "cache", die)
            process.join()
            log = (tmp_path / f"{name}.log").read_text("utf-8")
            assert process.exitcode == (-SIGKILL if die else 0), log[-3000:]
    assert "resumed at step" in log
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    first = read_metrics(tmp_path / "whole" / "metrics.jsonl")[0]
    assert {"loss", "kl", "rewards/accuracies", "rewards/margins", "logps/chosen"} <= set(first)
    figures = json.loads((tmp_path / "whole" / "done.json").read_text("utf-8"))["heldout"]
    assert 0 <= figures["accuracy"] <= 1 and figures["pairs"] > 10
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)  # the policy is still the reference


def test_text_to_be_judged_by_is_missed_before_anything_is_trained(base, tmp_path):
    pytest.importorskip("vaderSentiment", reason="vaderSentiment is not installed (gptjax[data])")
    judging = JudgingConfig(corpora={"mistyped": 1.0}, prompt_length=64, text_length=32)
    with pytest.raises(DataError, match="mistyped"):
        preference.run(dataclasses.replace(stage_config(base), judging=judging), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_finished_run_is_not_run_again(base, tmp_path, capsys):
    (tmp_path / "done.json").write_text("{}")
    preference.run(stage_config(base), tmp_path)
    assert "already done" in capsys.readouterr().out
