"""The two stages of GLM: the first step against a naive recomputation, resuming, what they leave behind."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from documentation import PAGES, table

from gptjax.config import ConfigError
from gptjax.data.infilling import RESERVED, BlankIds
from gptjax.data.mixture import Mixture
from gptjax.data.quality import DataError
from gptjax.data.tokenizers import Tokenizer
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.families import chatglm
from gptjax.models.functional import ModelDefinition
from gptjax.models.glm import GLM
from gptjax.runs import read_done
from gptjax.serving.chat_model import load_chat_model
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import infill, infill_chat
from gptjax.stages.handover import load_model
from gptjax.stages.infill import InfillConfig, make_blanks, text_rows
from gptjax.stages.infill_chat import InfillChatConfig
from gptjax.stages.keys import stage_key
from gptjax.training.metrics import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """(folder, configuration of pretraining, of fine-tuning), both run for two steps."""
    root = tmp_path_factory.mktemp("infill")
    data = tiny.write_data(root / "data")
    shape = {"vocab_size": 384, "context_length": 128, "width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
    pretrain = InfillConfig(
        model=chatglm(**shape, loop="unroll"),
        corpora={str(data / "text.jsonl"): 1.0},
        length=48,
        batch_size=8,
        steps=2,
        optimizer=tiny.ADAM,
        save_every=1,
        eval_every=1,
        heldout_rows=12,
    )
    dialogues = InfillChatConfig(
        base=str(root / "infill"),
        dialogues={str(data / "dialogues.jsonl"): 1.0},
        length=96,
        batch_size=4,
        steps=2,
        optimizer=tiny.ADAM,
        samples=2,
        sampling=SamplingConfig(temperature=0.0, max_new_tokens=5),
    )
    infill.run(pretrain, root / "infill")
    infill_chat.run(dialogues, root / "chat")
    return root, pretrain, dialogues


def first_step(folder):
    row = read_metrics(folder / "metrics.jsonl")[0]
    return {name: row[name] for name in ("loss", "accuracy", "gradient_norm")}


def test_the_first_step_is_the_mean_cross_entropy_of_part_b(work):
    root, config, _ = work
    tokenizer = Tokenizer.load(root / "infill" / "tokenizer.model")
    model = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size + RESERVED)
    definition = ModelDefinition(GLM, model)
    params = jax.jit(definition.initialise)(jax.random.fold_in(stage_key(config.seed, "infill"), 0))
    blanks, source = make_blanks(config, tokenizer), next(iter(config.corpora))
    documents = {source: infill.read_documents(source, split="train")}
    rows = text_rows(documents, tokenizer, blanks.text_length)
    texts = Mixture(rows, config.corpora, config.batch_size, config.seed).batch_at(0)
    batch = blanks.batch(texts, range(config.batch_size), config.seed)
    weights = batch["loss_mask"] / batch["loss_mask"].sum()

    def loss(params):
        inputs = {name: batch[name] for name in ("positions", "segment_ids")}
        log_probs = jax.nn.log_softmax(definition.apply(params, jnp.asarray(batch["tokens"]), **inputs))
        right = jnp.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
        return -(weights * right).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    norm = sum(float((np.asarray(x, np.float64) ** 2).sum()) for x in jax.tree.leaves(gradient)) ** 0.5
    metrics = first_step(root / "infill")
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)


def test_what_pretraining_leaves_behind(work):
    root, config, _ = work
    (found,) = read_done(root / "infill")["heldout"].values()
    assert found["blanks"]["tokens"] == found["from_left"]["tokens"] > 0
    assert found["blanks"]["blanks"] == found["from_left"]["blanks"] > 12
    for figures in found.values():
        assert 0 <= figures["exact"] <= figures["accuracy"] <= 1 and figures["loss"] < np.log(390) + 0.5
    logged = read_metrics(root / "infill" / "metrics.jsonl")
    assert all(f"heldout/{source}" in row for row in logged for source in config.corpora)
    model = load_model(root / "infill", make_mesh(MeshConfig()), "glm")
    assert model.definition.config.vocab_size == model.tokenizer.vocab_size + RESERVED
    with pytest.raises(ConfigError, match="holds a glm model where a language model is needed"):
        load_model(root / "infill", make_mesh(MeshConfig()), "language")


def test_a_resumed_run_is_the_same_run(work, tmp_path):
    """One step, then the second in a new start: the same parameters to the bit."""
    root, config, _ = work
    calls = []

    def stop_after_one(*args):
        calls.append(args)
        if len(calls) == 1:
            return save(*args)
        raise KeyboardInterrupt

    checkpoints = infill.run_loop.__globals__["Checkpoints"]
    save = checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            infill.run(config, tmp_path / "again")
    infill.run(config, tmp_path / "again")
    models = [load_model(folder, make_mesh(MeshConfig())) for folder in (root / "infill", tmp_path / "again")]
    assert models[0].digest == models[1].digest


def test_fine_tuning_counts_replies_and_writes_some(work):
    root, _, config = work
    (found,) = read_done(root / "chat")["dialogues"].values()
    assert found["train"]["blanks"] > found["heldout"]["blanks"] > 0
    samples = [json.loads(line) for line in (root / "chat" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [sample["split"] for sample in samples] == ["train", "train", "heldout", "heldout"]
    dialogues = [json.loads(line) for line in open(next(iter(config.dialogues)), encoding="utf-8")]
    known = {tuple(message["content"] for message in row["messages"]) for row in dialogues}
    assert all((sample["prompt"], sample["expected"]) in known for sample in samples)
    model = load_model(root / "chat", make_mesh(MeshConfig()), "glm")
    assert BlankIds.after(model.tokenizer.vocab_size).end == model.definition.config.vocab_size - 1


def test_the_assistant_answers_in_the_chat_as_in_its_samples(work):
    root, _, config = work
    chat = load_chat_model(root / "chat")
    settings = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 5, "seed": 0}
    for line in (root / "chat" / "samples.jsonl").read_text("utf-8").splitlines():
        sample = json.loads(line)
        question = [{"role": "user", "content": sample["prompt"]}]
        assert "".join(chat.stream(question, **settings)) == sample["reply"]
        assert chat.prompt_length(question) == len(chat._tokenizer.encode(sample["prompt"])) + 1
    with pytest.raises(ConfigError, match="takes .* tokens, but the model has a context length of 128"):
        "".join(chat.stream([{"role": "user", "content": "snow " * 200}], **settings))
    with pytest.raises(DataError, match="no place for a system message"):
        "".join(chat.stream([{"role": "system", "content": "Sing."}, *question], **settings))


def test_the_page_has_the_keys_and_figures_of_the_code(work):
    root, pretrain, dialogues = work
    page = "docs/infilling.md"
    for config, heading in ((pretrain, "Configuration"), (dialogues, "Dialogues")):
        declared = type(config).__pydantic_fields__
        for key, default, _ in table(page, heading):
            group, *rest = key.split(".")
            if declared[group].is_required():
                assert default == "required", key
                continue
            value = declared[group].get_default(call_default_factory=True)
            for name in rest:
                value = getattr(value, name)
            assert default == (str(value).lower() if value != "" else "none given"), key
    (found,) = read_done(root / "infill")["heldout"].values()
    shown = {name for row in table(page, "Figures") for name in row[0].split(", ")}
    assert shown == set(found["blanks"]) and all(f"`{name}`" in PAGES[page] for name in found)


def test_settings_that_do_not_fit_are_refused(work, tmp_path):
    root, pretrain, dialogues = work
    with pytest.raises(ConfigError, match=r"length \+ sampling.max_new_tokens = 133 is longer than"):
        infill_chat.run(dataclasses.replace(dialogues, length=128), tmp_path / "long")
    with pytest.raises(DataError, match="none of the .* replies of .* fits into 9 tokens .*: raise length"):
        infill_chat.run(dataclasses.replace(dialogues, length=9), tmp_path / "short")
    for change, sentence in (
        ({"length": 200}, "length = 200 is longer than model.context_length = 128"),
        ({"length": 7}, "length = 7 leaves no room for a text and its blanks"),
        ({"objectives": {"words": 1.0}}, "objectives"),
        ({"objectives": {}}, "objectives"),
        ({"blank_rate": 0.0}, "blank_rate"),
    ):
        with pytest.raises(ValueError, match=sentence):
            dataclasses.replace(pretrain, **change)
