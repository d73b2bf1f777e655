"""LLaMA's three changes to GPT-2's block, one at a time and together, three seeds.

Command: gptjax sweep experiments/llama/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig


def sweep() -> SweepConfig:
    """Every run of README.md."""
    return SweepConfig(
        arms={
            "gpt2/large": "experiments/gpt2/large.py",
            **{
                f"llama/{arm}": f"experiments/llama/{arm}.py"
                for arm in ("rotary", "swiglu", "rmsnorm", "llama")
            },
        },
    )
