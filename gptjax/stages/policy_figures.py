"""How a policy that was aligned without a reward model is judged: as PPO's is, when it is asked for."""

import jax
from pydantic import Field

from gptjax.config import configclass
from gptjax.errors import require
from gptjax.generation.sampling import SamplingConfig, check_whole
from gptjax.ranges import Count, Seed, Weights
from gptjax.stages.handover import TrainedModel, check_fit, load_model
from gptjax.stages.ppo_evaluation import make_comparison


@configclass
class JudgingConfig:
    """Reference and policy on held-out prompts.

    Attributes:
        reward: run folder of a reward model that scores the replies; "" leaves the score out.
        prompts, sampling, prompt_length, eval_prompts, eval_bytes: as in PPO.
        corpora: source -> weight, as in pretraining: its held-out text is measured; the weights are not used.
        text_length: tokens per row of that text.
        seed: of the replies.
    """

    reward: str = ""
    prompts: str = "ratings"
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=32)
    prompt_length: Count = 48
    eval_prompts: Count = 256
    eval_bytes: Count = 40_000
    corpora: Weights = Field(default_factory=dict)
    text_length: Count = 128
    seed: Seed = 0

    def __post_init__(self):
        check_whole(self.sampling, "judging, whose divergences are of whole distributions")


def make_judge(config: JudgingConfig | None, base: TrainedModel, mesh: jax.sharding.Mesh):
    """`judge(params, folder) -> figures` of `make_comparison`, which writes replies to `samples.jsonl`.

    Made before training, so that what is missing is missed at once. Without a configuration there are none.

    Raises:
        ConfigError: the reward model is absent or reads other tokens, or the replies exceed a context.
        MissingPackage: the lexicon is not installed.
    """
    if config is None:
        return lambda params, folder: {}
    require("vaderSentiment")
    reward = load_model(config.reward, mesh, "scalar") if config.reward else None
    longest = config.prompt_length + config.sampling.max_new_tokens
    lengths = {"judging.prompt_length + judging.sampling.max_new_tokens": longest}
    lengths |= {"judging.text_length": config.text_length} if config.corpora else {}
    check_fit(lengths, {"base": base} | ({config.reward: reward} if reward else {}))
    return make_comparison(config, base, reward, config.text_length)
