"""Operations of a token by formula, against every matrix product that JAX traces in the stage's own step."""

import jax
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from gptjax.data.masking import MaskingConfig
from gptjax.models.classifier import Classifier, ClassifierConfig
from gptjax.models.encoder import EncoderConfig
from gptjax.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from gptjax.models.flops import (
    classifier_flops_per_token,
    masked_flops_per_token,
    translation_flops_per_token,
    weights_of,
)
from gptjax.models.functional import ModelDefinition, matmul_flops_per_token
from gptjax.models.heads import LanguageModel, MaskedLanguageModel
from gptjax.models.lora import LoraConfig, LoraDefinition
from gptjax.models.transformer import DecoderConfig
from gptjax.planning.operations import count
from gptjax.planning.programs import abstract_mesh, ambient
from gptjax.planning.shapes import Shapes
from gptjax.planning.work import work_of
from gptjax.stages.classify import ClassifyConfig
from gptjax.stages.finetune import FinetuneConfig
from gptjax.stages.masked import MaskedConfig
from gptjax.stages.translate import TranslateConfig

# Sizes that differ, so that no axis is taken for another.
SIZES = {"vocab_size": 96, "context_length": 24, "width": 32, "layers": 3, "heads": 4, "mlp_width": 80}
BERT, GPT = EncoderConfig(**SIZES), DecoderConfig(**SIZES, positions="rotary", bias=False)
TRAINED = {"length": 24, "batch_size": 8, "steps": 10}
BASES = Shapes(known={"bert": ("masked", BERT), "gpt": ("language", GPT)})


def counted(config) -> float:
    """Operations of the gradient of an update over its tokens, what nothing reads left out."""
    work = work_of(config, BASES)
    (program,) = work.programs
    training, (state, *given) = program.training, program.arguments

    def gradient(params, batch, key, *base):
        return jax.grad(training.loss, has_aux=True)(params, batch, training.count(batch), key, *base)

    with ambient(abstract_mesh(work.mesh)):
        whole = jax.make_jaxpr(gradient)(state.params, *given).jaxpr
    read, _ = dce_jaxpr(whole, [True] * len(whole.outvars))
    return count(read).total / work.tokens


def test_pre_training_of_a_bert():
    masking = MaskingConfig(max_predictions=5)
    config = MaskedConfig(model=BERT, corpora={"pydoc": 1.0}, masking=masking, **TRAINED)
    formula = masked_flops_per_token(ModelDefinition(MaskedLanguageModel, BERT), 24, 5)
    block = 4 * 32 * 32 + 2 * 32 * 80
    heads = 5 * (32 * 32 + 96 * 32) + 32 * 32 + 32 * 2
    assert formula == 6 * 3 * block + 6 * heads / 24 + 12 * 3 * 24 * 32
    assert formula == pytest.approx(counted(config), rel=1e-12)


def extracted(trunk, base: str, lm_weight: float) -> tuple[float, float]:
    """By the formula and as traced."""
    if trunk is GPT:  # with the embeddings of the three tokens of a task
        trunk = DecoderConfig(**SIZES | {"vocab_size": 99}, positions="rotary", bias=False)
    definition = ModelDefinition(Classifier, ClassifierConfig(trunk=trunk, classes=2))
    config = ClassifyConfig(base=base, lm_weight=lm_weight, dropout=0.0, **TRAINED)
    return classifier_flops_per_token(definition, 24, bool(lm_weight)), counted(config)


def norms(definition) -> int:
    """Parameters of a decoder without biases that are in no product, which its formula counts as well."""
    parts = definition.abstract["decoder"]
    return definition.parameter_count - weights_of(parts) - parts["embedding"].size


@pytest.mark.parametrize("lm_weight", [0.0, 0.5])
def test_a_classifier(lm_weight):
    if not lm_weight:
        formula, traced = extracted(BERT, "bert", 0.0)
        assert formula == pytest.approx(traced, rel=1e-12)
    formula, traced = extracted(GPT, "gpt", lm_weight)
    in_norms = norms(ModelDefinition(LanguageModel, GPT))
    assert formula - 6 * in_norms == pytest.approx(traced, rel=1e-12)


def test_a_translator():
    model = EncoderDecoderConfig(**SIZES)
    config = TranslateConfig(
        model=model, pairs="", source="en", target="de", lengths=(24,), batch_tokens=192, steps=10
    )
    formula = translation_flops_per_token(ModelDefinition(EncoderDecoder, model), 24)
    block = 4 * 32 * 32 + 2 * 32 * 80
    assert formula == 6 * (3 * (2 * block + 4 * 32 * 32) + 96 * 32) + 36 * 3 * 24 * 32
    assert formula == pytest.approx(counted(config), rel=1e-12)


def test_adapters_of_a_frozen_model():
    """Two operations less for every weight of the base, which gets no gradient, and six for the adapters'."""
    lora = LoraConfig(rank=2)
    config = FinetuneConfig(base="gpt", dialogues={"chatterbot": 1.0}, lora=lora, **TRAINED)
    definition = ModelDefinition(LanguageModel, GPT)
    adapters = LoraDefinition(definition, lora).parameter_count
    assert adapters == 3 * 2 * 2 * (32 + 32)
    formula = matmul_flops_per_token(definition, 24, adapters=adapters)
    assert formula - 4 * norms(definition) == pytest.approx(counted(config), rel=1e-12)
    assert formula == matmul_flops_per_token(definition, 24) - 2 * definition.parameter_count + 6 * adapters
