"""The objectives of BERT and GPT-1 against stored numbers of transformers.

They are written by `UPDATE_GOLDEN=1 pytest tests/parity/test_objectives_transformers.py`.
"""

import lineage
import objectives
from golden import check_golden


def check_slopes(name, gradient):
    check_golden(f"{name}_objective_gradients", lineage.slopes(gradient), size=None)


def test_bert():
    found, gradient = objectives.figures(objectives.bert_case())
    stored = {name: found[name] for name in ("total", "masked_loss", "next_sentence_loss")}
    check_golden("bert_objective", stored)
    check_slopes("bert", gradient)


def test_gpt1():
    found, gradient = objectives.figures(objectives.gpt1_case())
    stored = {"total": found["total"], "choice_loss": found["loss"], "language_loss": found["language_loss"]}
    check_golden("gpt1_objective", stored)
    check_slopes("gpt1", gradient)
