"""The quickstart's assistant fine-tuned on the best of 16 replies to each prompt.

Paper: rejection sampling as in Touvron et al. 2023 (Llama 2), section 3.2.3; the frontier as in Gao et al.
2022, section 2.
Expected: the reward of the best of n rises with sqrt(KL); fine-tuning keeps a part of it.
Time: 8,192 replies, then 150 steps of fine-tuning.
Command: gptjax train experiments/instructgpt/best_of_n.py
"""

from experiments.quickstart import TEXT, constant
from gptjax.generation.sampling import SamplingConfig
from gptjax.stages.best_of_n import BestOfNConfig
from gptjax.stages.finetune import FinetuneConfig


def config() -> BestOfNConfig:
    """The configuration of the run."""
    return BestOfNConfig(
        policy="runs/quickstart/finetune",
        reward="runs/quickstart/reward",
        sampling=SamplingConfig(max_new_tokens=32),
        prompt_length=32,
        n=16,
        asked=512,
        batch_size=8,
        corpora=TEXT,
        finetune=FinetuneConfig(
            dialogues={"best": 0.8, "chatterbot": 0.2},  # so that the chat is not forgotten
            rewordings=1,
            length=128,
            batch_size=8,
            steps=150,
            optimizer=constant(learning_rate=3e-4, warmup_steps=10),
        ),
    )
