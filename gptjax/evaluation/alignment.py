"""The report's part on alignment by reward: what moved, what was checked, the best and the worst replies."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

from gptjax.evaluation import charts
from gptjax.evaluation.document import Block, Heading, Paragraph, Picture, Table
from gptjax.evaluation.results import Run

# Metric -> what it is; a stage shows those that it logs.
WATCHED = {
    "objective/scores": "reward, mean over replies",
    "objective/rlhf_reward": "reward less the price of the KL",
    "objective/kl": "KL to the reference, k1, nats per reply",
    "objective/kl_k2": "KL, k2",
    "objective/kl_k3": "KL, k3",
    "objective/kl_exact": "KL, exact, on the self-check's replies",
    "policy/clipfrac_avg": "clip fraction of the policy",
    "val/clipfrac_avg": "clip fraction of the critic",
    "critic/vf_explained_var": "explained variance of the critic",
    "policy/entropy_avg": "entropy, nats per token",
    "val/response_length": "length, tokens",
    "val/eos_rate": "share of replies that end",
    "val/sampler_gap": "sampler against teacher forcing, largest gap",
}
# Figure of reference and policy -> what it is; one that is not here goes by its name.
HELD_OUT = {
    "reward": "reward",
    "gold": "reward of the gold model",
    "right": "share of right answers",
    "lexicon": "lexicon score",
    "distinct_2": "distinct-2",
    "ended": "share of replies that end",
    "text_loss": "loss on held-out text, nats per token",
    "on_topic": "chat questions answered on topic",
}
# The same of the policy alone: its distance from the reference.
DISTANCES = {
    "kl": "KL to the reference, k1, nats per reply",
    "kl_k2": "KL, k2",
    "kl_k3": "KL, k3",
    "kl_exact": "KL, exact, over the whole vocabulary",
}
BEYOND = "val/beyond_limit"
SHOWN = 4  # best replies, and worst


def alignment(run: Run) -> Iterator[Block]:
    """The sections of every stage of the run that was aligned by a reward."""
    for stage, rows in run.metrics.items():
        if any("objective/scores" in row for row in rows):
            yield from _what_moved(stage, rows)
            yield from _held_out(stage, run.done.get(stage, {}).get("heldout", {}))
            yield from _self_check(stage, rows)
        if stage in run.replies:
            yield from _replies(stage, run.replies[stage])


def _what_moved(stage: str, rows: Sequence[Mapping]) -> Iterator[Block]:
    table = []
    for metric, about in WATCHED.items():
        values = [row[metric] for row in rows if metric in row]
        if values:
            table.append([about, *(f"{v:.4g}" for v in (values[0], values[-1], min(values), max(values)))])
    yield Heading(f"What moved: {stage}")
    header = ("", "first iteration", "last", "least", "most")
    yield Table(header, table, numeric=frozenset({1, 2, 3, 4}))
    if any(BEYOND in row for row in rows):
        beyond = sum(row.get(BEYOND, 0.0) == 1 for row in rows)
        yield Paragraph(
            f"{beyond} of {len(rows)} rollouts were farther from the reference than kl_limit: nothing was "
            "learnt from them."
        )


def _held_out(stage: str, figures: Mapping) -> Iterator[Block]:
    reference, policy = figures.get("reference", {}), figures.get("policy", {})
    table = [
        [HELD_OUT.get(name, name), *(f"{model[name]:.4g}" for model in (reference, policy))]
        for name in policy
    ]
    table += [[about, "0", f"{figures[name]:.4g}"] for name, about in DISTANCES.items() if name in figures]
    if table:
        yield Heading(f"On held-out prompts: {stage}")
        yield Table(("", "reference", "policy"), table, numeric=frozenset({1, 2}))


def _self_check(stage: str, rows: Sequence[Mapping]) -> Iterator[Block]:
    checked = [row for row in rows if "self_check/sampler_gap" in row]
    names = list(dict.fromkeys(name for row in checked for name in row if name.startswith("self_check/")))
    if checked:
        yield Heading(f"Self-check: {stage}")
        yield Paragraph("Every identity held in these iterations. The gaps, in nats and of ratios:")
        header = ["iteration", *(name.removeprefix("self_check/").replace("_", " ") for name in names)]
        table = [
            [str(row["step"]), *(f"{row[name]:.2g}" if name in row else "" for name in names)]
            for row in checked
        ]
        yield Table(header, table, numeric=frozenset(range(len(header))))
    elif any("self_check/off" in row for row in rows):
        yield Heading(f"Self-check: {stage}")
        yield Paragraph("The self-check was off: no identity was checked.")


def _replies(stage: str, rows: Sequence[Mapping]) -> Iterator[Block]:
    points = {
        model: [(row[f"{model}_tokens"], row[f"{model}_reward"]) for row in rows]
        for model in ("reference", "policy")
    }
    yield Heading(f"Score against length: {stage}")
    yield Picture(
        f"score_against_length_{stage}",
        charts.score_against_length(points),
        "the reward model's score of each reply to a held-out prompt against its length",
    )
    yield Paragraph("; ".join(f"correlation, {model}: {_correlation(points[model])}" for model in points))
    ranked = sorted(rows, key=lambda row: row["policy_reward"], reverse=True)
    shown = min(SHOWN, len(ranked) // 2)
    for title, part in (("Best replies", ranked[:shown]), ("Worst replies", ranked[::-1][:shown])):
        if part:
            yield Heading(f"{title}: {stage}")
            cells = [
                [f"{row['policy_reward']:.3f}", str(row["policy_tokens"]), row["prompt"], row["policy"]]
                for row in part
            ]
            yield Table(("score", "tokens", "prompt", "reply"), cells, numeric=frozenset({0, 1}))


def _correlation(pairs: Sequence[tuple[float, float]]) -> str:
    lengths, scores = zip(*pairs, strict=True)
    if len(set(lengths)) < 2 or len(set(scores)) < 2:
        return "none, all are alike"
    return f"{statistics.correlation(lengths, scores):.2f}"
