"""What implementations of RLHF do differently where the papers are silent, and presets that name them.

A preset turns a `PpoConfig` into one with the conventions of a paper or a library, as an experiment does:
`config = n_plus(PpoConfig(...))`, and `dataclasses.replace` takes single choices back. It sets what a formula
depends on (rewards, advantages, losses, Adam, passes over a rollout, temperature) and leaves alone what the
size of models and data decides: peak learning rates, batch sizes, lengths, prompts.
"""

from dataclasses import replace
from typing import Any, Literal

from gptjax.config import ConfigError, configclass
from gptjax.ranges import Natural, Positive


@configclass
class Conventions:
    """The choices that most runs leave alone; the default is what this package recommends.

    Attributes:
        score_at: where the score is paid: at the reply's last token, or "after_end", one slot later, which
            the critic then learns as well.
        whiten_over: what advantages (and rewards) are scaled over: the whole rollout, or each minibatch.
        variance: of the whitening, over n ("population") or n - 1 ("sample").
        kl_in: where leaving the reference costs `kl_coef`: in the "reward" of each token, or in the policy's
            "loss", by `kl_estimator` k2 or k3; see `losses.ppo.kl_loss`.
        aggregate: what a loss is a mean over: all tokens ("token_mean"), or the replies, of the mean over
            each one's tokens, their sum, or their sum by the number of slots; see
            `losses.masked.token_weights`.
        average_over: of "token_mean", the tokens of the "minibatch", or those of each "micro_batch" in turn,
            whose means are averaged; there the result depends on `accumulate`.
        value_coef: weight of the critic's loss; with an optimiser of its own it acts through epsilon and
            clipping alone.
        critic_from: what the critic starts from: the reward model, or the policy's trunk with a head of
            zeros.
        cut_at: text of a token, such as ".". With it replies run on to `max_new_tokens` and are learnt from
            in full, while the reward model reads them up to the first such token at or after slot
            `cut_after`; a reply without one counts as never ended. Without it the end-of-message token ends
            a reply.
    """

    score_at: Literal["last_token", "after_end"] = "last_token"
    whiten_over: Literal["rollout", "minibatch"] = "rollout"
    variance: Literal["population", "sample"] = "population"
    kl_in: Literal["reward", "loss"] = "reward"
    aggregate: Literal[
        "token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"
    ] = "token_mean"
    average_over: Literal["minibatch", "micro_batch"] = "minibatch"
    value_coef: Positive = 1.0
    critic_from: Literal["reward", "policy"] = "reward"
    cut_at: str = ""
    cut_after: Natural = 0

    def __post_init__(self):
        if self.cut_at and self.score_at == "after_end":
            raise ValueError("score_at 'after_end' needs replies that end: leave cut_at empty")
        if self.average_over == "micro_batch" and self.aggregate != "token_mean":
            raise ValueError(
                f"average_over 'micro_batch' belongs to aggregate 'token_mean': a mean over replies as of "
                f"'{self.aggregate}' does not depend on micro-batches"
            )
        if self.cut_after and not self.cut_at:
            raise ValueError(f"cut_after = {self.cut_after} needs cut_at, the text of the token to cut at")


def cut_ids(conventions: Conventions, tokenizer) -> tuple[int, ...]:
    """The ids of the tokens that read `cut_at`; none without it.

    Raises:
        ConfigError: no token of the tokenizer reads so.
    """
    if not conventions.cut_at:
        return ()
    wanted = conventions.cut_at.encode()
    ids = tuple(id for id in range(tokenizer.vocab_size) if tokenizer.token_bytes(id) == wanted)
    if not ids:
        raise ConfigError(
            f"conventions.cut_at = {conventions.cut_at!r} is not the text of one token of the policy's "
            "tokenizer: name one that is"
        )
    return ids


def oai2019(config, *, cut_at: str = ".", cut_after: int = 16):
    """Ziegler et al. 2019 as in the code of lm-human-preferences, its task on books.

    The summarisation tasks cut at a newline after slot 55 and have another `kl_coef`. There policy and critic
    share a trunk and an optimiser; here the critic has a copy of both.
    """
    conventions = Conventions(
        whiten_over="minibatch", value_coef=0.1, critic_from="policy", cut_at=cut_at, cut_after=cut_after
    )
    return _with(
        config,
        conventions,
        ADAM | {"kind": "adam_tf1", "epsilon": 1e-5},
        temperature=0.7,
        epochs=4,
        minibatches=1,
        whiten_rewards=True,
        missing_eos="replace",
        kl_coef=0.15,
        kl_target=6.0,
    )


def n_plus(config):
    """Huang et al. 2024 (arXiv 2403.17031), "The N+ implementation details", code of its `ppo.py`.

    Its models of 1B, 2.8B and 6.9B average over micro-batches of 16, 4 and 1 replies: set `accumulate`.
    """
    return _with(
        config,
        Conventions(score_at="after_end", average_over="micro_batch", value_coef=0.1),
        ADAM | {"epsilon": 1e-5, "weight_decay": 0.01},
        temperature=0.7,
        epochs=4,
        minibatches=1,
        missing_eos="replace",
        kl_coef=0.05,
    )


def trl_1_12(config):
    """TRL 1.12.0, the last release with `PPOTrainer`, at its defaults.

    A stop token and a penalty are options there, without defaults; here a reply that never ends loses 1, as
    in TRL's example.
    """
    conventions = Conventions(
        score_at="after_end", variance="sample", average_over="micro_batch", value_coef=0.1
    )
    return _with(
        config,
        conventions,
        ADAM | {"epsilon": 1e-8},
        temperature=0.7,
        epochs=4,
        minibatches=1,
        missing_eos="subtract",
        kl_coef=0.05,
    )


def instructgpt(config):
    """Ouyang et al. 2022, appendix C.4; needs `corpora`, for it is PPO-ptx.

    Not published, and so as by default here: the trace (0.95), whitening, Adam's epsilon, what a loss is a
    mean over, and what a missing end costs (nothing here).
    """
    adam = {"kind": "adamw", "b1": 0.9, "b2": 0.95, "schedule": "constant"}
    ten_iterations = 10 * 8
    return _with(
        config,
        Conventions(),
        adam | {"warmup_steps": ten_iterations, "warmup_from": 0.1},
        value=adam | {"warmup_steps": 0},
        temperature=1.0,
        epochs=1,
        minibatches=8,
        missing_eos_penalty=0.0,
        kl_coef=0.02,
        ptx_coef=27.8,
        ema_decay=0.992,
    )


def anthropic_hh(config):
    """Bai et al. 2022 (arXiv 2204.05862), section 4.1; a rollout is learnt from once.

    Not published, and so as by default here: the trace, whitening, Adam, the critic's start, what a loss is a
    mean over, and what a missing end costs (nothing here). Its robustness study learns from a rollout twice,
    its online runs four times: set `epochs`.
    """
    return _with(config, Conventions(), {}, temperature=1.0, epochs=1, missing_eos_penalty=0.0, kl_coef=0.001)


PRESETS = {
    "oai2019": oai2019,
    "n_plus": n_plus,
    "instructgpt": instructgpt,
    "anthropic_hh": anthropic_hh,
    "trl_1_12": trl_1_12,
}
# What the presets agree on, unless they say otherwise.
SHARED = {
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "clip": 0.2,
    "value_clip": 0.2,
    "kl_estimator": "k1",
    "kl_target": None,
    "kl_limit": None,
    "whiten_rewards": False,
    "missing_eos": "subtract",
    "missing_eos_penalty": 1.0,
    "ptx_coef": 0.0,
    "ema_decay": 0.0,
}
# Of the three whose code is public; none of them limits the gradient's norm.
ADAM = {
    "kind": "adamw",
    "b1": 0.9,
    "b2": 0.999,
    "weight_decay": 0.0,
    "clip_norm": None,
    "schedule": "linear",
    "warmup_steps": 0,
    "final_fraction": 0.0,
    "decay_steps": None,
}


def _with(config, conventions, adam: dict, *, temperature: float, value: dict | None = None, **changes: Any):
    return replace(
        config,
        conventions=conventions,
        sampling=replace(config.sampling, temperature=temperature),
        optimizer=replace(config.optimizer, **adam),
        value_optimizer=replace(config.value_optimizer, **(adam if value is None else value)),
        **SHARED | changes,
    )
