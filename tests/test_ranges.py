"""Every number of the configurations has a range, and a value outside it is one sentence."""

import re
import typing
from pathlib import Path

import pytest
import tiny

from gptjax.config import ConfigError, configclass, fields_of, from_json, is_config, to_json
from gptjax.overrides import describe, override
from gptjax.ranges import Positive, SomeWeights

ROAD = tiny.config(Path("data"))
BELOW_ONE = (
    "pretrain.batch_size pretrain.steps pretrain.accumulate pretrain.save_every pretrain.length "
    "pretrain.loss_chunk pretrain.heldout_bytes pretrain.mesh.data pretrain.model.vocab_size "
    "pretrain.model.context_length pretrain.model.width pretrain.model.layers pretrain.model.heads "
    "pretrain.model.kv_heads pretrain.model.mlp_width finetune.length reward.groups reward.k_min "
    "reward.k_max reward.epochs ppo.iterations ppo.epochs ppo.minibatches ppo.prompt_length "
    "ppo.ptx_rows ppo.ptx_length ppo.sampling.max_new_tokens ppo.eval_prompts ppo.eval_bytes"
).split()
NEGATIVE = (
    "seed pretrain.eval_every pretrain.z_loss pretrain.optimizer.warmup_steps pretrain.optimizer.b1 "
    "pretrain.optimizer.warmup_from pretrain.optimizer.weight_decay pretrain.model.dropout "
    "pretrain.model.init_std finetune.rewordings reward.margin_scale reward.clear_gap ppo.kl_coef "
    "ppo.ptx_coef ppo.missing_eos_penalty ppo.gamma ppo.gae_lambda ppo.ema_decay ppo.sampling.top_k "
    "chat_sampling.temperature"
).split()
ZERO = (
    "pretrain.optimizer.learning_rate pretrain.optimizer.epsilon pretrain.optimizer.clip_norm ppo.clip "
    "ppo.value_clip ppo.kl_target ppo.kl_horizon chat_sampling.top_p pretrain.model.rotary_theta"
).split()
LARGE = {
    "seed": 2**32,
    "finetune.dropout": 1,
    "pretrain.optimizer.b2": 1,
    "pretrain.optimizer.final_fraction": 1.1,
    "ppo.gamma": 1.1,
    "ppo.ema_decay": 1,
    "chat_sampling.top_p": 1.1,
}
WRONG = [(key, 0) for key in [*BELOW_ONE, *ZERO]] + [(key, -1) for key in NEGATIVE] + [*LARGE.items()]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_value_outside_its_range_is_refused(key, value):
    with pytest.raises(
        ConfigError, match=rf"^key '{key}' in exp.py must be (greater|less) than .* was given$"
    ):
        override(ROAD, [f"--{key}={value}"], "exp.py")


def test_the_smallest_values_are_taken():
    for key in (
        "pretrain.eval_every",
        "ppo.kl_coef",
        "ppo.gamma",
        "ppo.ema_decay",
        "chat_sampling.temperature",
    ):
        override(ROAD, [f"--{key}=0", "--ppo.kl_target=none"])
    assert override(ROAD, [f"--seed={2**32 - 1}"]).seed == 2**32 - 1


def numbers(node, prefix="") -> dict[str, typing.Any]:
    """Key -> annotation of every field that holds a number or a mapping of numbers."""
    found = {}
    for name, annotation in fields_of(node).items():
        if is_config(getattr(node, name)):
            found |= numbers(getattr(node, name), f"{prefix}{name}.")
        elif any(word in str(annotation) for word in ("int", "float")) and "Literal" not in str(annotation):
            found[prefix + name] = annotation
    return found


def test_every_number_has_a_range():
    without = [
        key for key, annotation in numbers(ROAD).items() if not re.search("[gl][te]=", str(annotation))
    ]
    assert len(numbers(ROAD)) > 90 and without == []


@configclass
class Bounded:
    rate: Positive | None = None
    weights: SomeWeights


def test_ranges_show_as_plain_types_and_speak_in_overrides():
    bounded = Bounded(weights={"a": 1.0})
    assert describe(bounded).split("\n")[1].split("  ")[-1] == "dict[str, float] = a=1.0"
    assert "float|None = none" in describe(bounded)
    for text, sentence in {
        "--rate 0": "key 'rate' in exp.py must be greater than 0, but '0' was given",
        "--weights {}": "key 'weights' in exp.py must not be empty, but '{}' was given",
        "--weights a=-1": "key 'weights' in exp.py must be greater than 0, but 'a=-1' was given",
    }.items():
        with pytest.raises(ConfigError) as error:
            override(bounded, text.split(), "exp.py")
        assert str(error.value) == sentence
    assert from_json(to_json(bounded)) == bounded
