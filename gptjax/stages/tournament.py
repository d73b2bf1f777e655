"""Policies side by side: replies to the same held-out prompts, judged in pairs, as Elo ratings.

Legend: P policies, N prompts.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from gptjax.evaluation.document import text_table
from gptjax.evaluation.elo import Ratings, rate
from gptjax.evaluation.judge import lexicon_scores
from gptjax.runs import write_jsonl_atomic
from gptjax.stages.handover import TrainedModel, load_model
from gptjax.stages.keys import stage_key
from gptjax.stages.labels import score_replies
from gptjax.stages.ppo_data import encode_prompts
from gptjax.stages.ppo_evaluation import heldout_prompts
from gptjax.stages.samples import make_reply


def hold_tournament(
    config, policies: Mapping[str, str], gold: TrainedModel | None, folder: Path, mesh: jax.sharding.Mesh
) -> dict:
    """Elo ratings of the policies by two judges: the labeler's own scores without noise, and the lexicon.

    All reply to the same held-out prompts with the same keys. Writes the replies to `samples.jsonl`.

    Args:
        config: the `OnlineConfig`.
        policies: name -> run folder; the first has 0 points.
        gold: the labeler's reward model; None leaves that judge out.
        folder: the run folder.
        mesh: of the models.

    Returns:
        judge -> policy -> "elo", "low", "high", "win_rate" against the first policy, and "score", the mean;
        under "lead", judge -> policy -> other policy -> the Elo points by which it is ahead, "elo", "low" and
        "high".
    """
    asked = dataclasses.replace(config.ppo, seed=config.seed)
    replies: dict[str, list[str]] = {}
    for name, run in policies.items():
        model = load_model(run, mesh, "language")
        if not replies:
            prompts = encode_prompts(heldout_prompts(asked), model.tokenizer, asked.prompt_length)
            prompts = prompts[: asked.eval_prompts]
            keys = jax.random.split(stage_key(config.seed, "tournament"), len(prompts))
            shown = [model.tokenizer.decode(ids) for ids in prompts]
        replies[name] = make_reply(model, asked.sampling)(prompts, keys, asked.prompt_length)
    said = [dict(zip(replies, texts, strict=True)) for texts in zip(*replies.values(), strict=True)]
    write_jsonl_atomic(
        folder / "samples.jsonl", [{"prompt": p} | texts for p, texts in zip(shown, said, strict=True)]
    )
    scores = {"lexicon": {name: lexicon_scores(texts) for name, texts in replies.items()}}
    if gold is not None:
        scores_NxP = score_replies(gold, prompts, [list(texts.values()) for texts in said], config.reward)
        scores = {"gold": dict(zip(replies, scores_NxP.T, strict=True))} | scores
    figures, leads = {}, {}
    for judge, values in scores.items():
        ratings = rate(values, seed=config.seed)
        figures[judge] = policy_figures(ratings, values)
        leads[judge] = {
            name: {other: ratings.lead(name, other) for other in policies if other != name}
            for name in policies
        }
        print(f"\n{judge}, {len(prompts)} held-out prompts:\n{elo_table(figures[judge])}", flush=True)
    return figures | {"lead": leads}


def policy_figures(ratings: Ratings, scores: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Policy -> its Elo rating with its interval, its win rate against the first policy, its mean score."""
    first = ratings.names[0]
    return {
        name: ratings.lead(name, first)
        | {"win_rate": float(ratings.win_rates[i, 0]), "score": float(np.mean(scores[name]))}
        for i, name in enumerate(ratings.names)
    }


def elo_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """The ratings of one judge for the terminal."""
    rows = [
        [name, f"{f['elo']:+.0f}", f"{f['low']:+.0f} to {f['high']:+.0f}", f"{f['win_rate']:.3f}"]
        + [f"{f['score']:+.3f}"]
        for name, f in figures.items()
    ]
    header = ("policy", "Elo", "95 % interval", "beats the first", "mean score")
    return text_table(header, rows, numeric=frozenset(range(1, 5)))
