"""ChatGLM's dialogues: a GLM of the mixture fine-tuned on English and Chinese small talk.

Paper: ChatGLM-6B (2023), whose form of a dialogue this is; its alignment was not published.
Expected: 3.61 nats per token of held-out English replies, 4.96 of Chinese ones (three seeds).
Time: 40 seconds on one core, after multitask.py.
Command: gptjax train experiments/glm/chat.py
"""

from gptjax.stages.infill_chat import InfillChatConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> InfillChatConfig:
    """The configuration of the run."""
    return InfillChatConfig(
        base="runs/glm/multitask",
        dialogues={"chatterbot": 0.5, "chatterbot-chinese": 0.5},
        length=96,
        batch_size=8,
        steps=300,
        optimizer=OptimizerConfig(
            kind="muon", learning_rate=2e-3, muon_learning_rate=0.01, weight_decay=0.05, warmup_steps=20
        ),
    )
