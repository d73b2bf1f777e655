"""The base arm without label smoothing.

Paper: Vaswani et al. 2017, section 5.4 and table 3: smoothing costs perplexity and gains BLEU.
Expected: a perplexity of 24.5 and BLEU 12.1 (greedy) after averaging, 30.2 and 9.2 before (three seeds): the
    paper's sign does not show, smoothing costs no perplexity.
Time: that of experiments/transformer2017/translate.py.
Command: gptjax train experiments/transformer2017/no_smoothing.py
"""

from dataclasses import replace

from experiments.transformer2017.translate import config as base


def config():
    """The configuration of the run."""
    return replace(base(), label_smoothing=0.0)
