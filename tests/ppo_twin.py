"""PPO after the rollout, in plain numpy: conventions of papers and libraries, written from their formulas.

Rows are lists of tokens without padding. The models are bigrams: what follows a token, and what it is worth,
depends on that token alone, so that every gradient can be written down.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Choices:
    """What a convention decides; the names are not those of the package's configuration."""

    score_slot: int = 0  # slots after the last token
    ddof: int = 0
    whiten_rewards: bool = False
    per_minibatch: bool = False
    per_micro_batch: bool = False
    count: str = "tokens"  # what a loss is a mean of, or replies by their "mean", "sum" or "sum / slots"
    loss_kl: str = ""  # the estimator of a KL that is in the loss and not in the rewards
    cut: tuple[int, int] | None = None  # token and first slot
    missing: str = "subtract"
    penalty: float = 1.0
    kl_coef: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    temperature: float = 0.7
    value_coef: float = 1.0
    text_coef: float = 0.0
    rates: tuple[float, float] = (1.0, 0.999)  # of the first two steps, the policy's, relative to the peak
    value_rates: tuple[float, float] = (1.0, 0.999)
    tf1: bool = False
    epsilon: float = 1e-8
    b2: float = 0.999
    decay: float = 0.0
    clip_norm: float | None = None


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def whiten(rows, places, shift_mean, ddof):
    """Whitens the first `places[i]` entries of each row by their common statistics; 0 after them."""
    flat = np.concatenate([row[:n] for row, n in zip(rows, places, strict=True)])
    scale, back = 1 / np.sqrt(flat.var(ddof=ddof) + 1e-8), 0.0 if shift_mean else flat.mean()
    out = [np.zeros_like(row) for row in rows]
    for new, row, n in zip(out, rows, places, strict=True):
        new[:n] = (row[:n] - flat.mean()) * scale + back
    return out


def judge(c, replies, end, models):
    """Per reply: tokens learnt from, the token before each slot, log-probabilities, values, rewards."""
    rows = []
    for last_of_prompt, drawn in replies:
        n = len(drawn) if c.cut or end not in drawn else drawn.index(end) + 1
        before = [last_of_prompt, *drawn][: min(n + c.score_slot, len(drawn))]
        own, ref = (
            np.array([log_softmax(w[b] / c.temperature)[t] for b, t in zip(before, drawn[:n], strict=False)])
            for w in (models["old"], models["reference"])
        )
        token, first = c.cut or (end, 0)
        stops = [i for i, t in enumerate(drawn) if t == token and i >= first]
        score = models["reward"][drawn[stops[0]] if stops else drawn[-1]]
        if not stops:
            score = -c.penalty if c.missing == "replace" else score - c.penalty
        rewards = np.zeros(len(before))
        if not c.loss_kl:
            rewards[:n] = -c.kl_coef * (own - ref)
        rewards[-1] += score
        values = np.array([models["old_critic"][b] for b in before])
        row = {"n": n, "tokens": drawn, "before": before, "own": own, "ref": ref, "r": rewards, "v": values}
        rows.append(row)
    return rows


def credit(c, rows):
    """Advantages and returns of rows that are whitened together."""
    rewards = [row["r"] for row in rows]
    if c.whiten_rewards:
        rewards = whiten(rewards, [len(r) for r in rewards], False, c.ddof)
    advantages = []
    for row, r in zip(rows, rewards, strict=True):
        v, a, found = [*row["v"], 0.0], 0.0, np.zeros(len(r))
        for t in reversed(range(len(r))):
            a = r[t] + c.gamma * v[t + 1] - v[t] + c.gamma * c.lam * a
            found[t] = a
        advantages.append(found)
    returns = [a + row["v"] for a, row in zip(advantages, rows, strict=True)]
    return whiten(advantages, [row["n"] for row in rows], True, c.ddof), returns


def weights(c, counts, slots):
    """What each row's tokens count in a mean, the rows being micro-batches of one."""
    if c.count == "tokens" and not c.per_micro_batch:
        return [1 / sum(counts)] * len(counts)
    parts = {"tokens": counts, "mean": counts, "sum": [1] * len(counts), "sum / slots": [slots] * len(counts)}
    return [1 / (len(counts) * part) for part in parts[c.count]]


def gradients(c, rows, advantages, returns, w, u, text):
    """Both losses on a minibatch and their gradients, for the logits `w` and the values `u`."""
    policy, value, dw, du = 0.0, 0.0, np.zeros_like(w), np.zeros_like(u)
    slots = len(rows[0]["tokens"])
    for row, a, k in zip(rows, advantages, weights(c, [row["n"] for row in rows], slots), strict=True):
        for t in range(row["n"]):
            b, token = row["before"][t], row["tokens"][t]
            log_probs = log_softmax(w[b] / c.temperature)
            ratio = np.exp(log_probs[token] - row["own"][t])
            plain, clipped = -a[t] * ratio, -a[t] * np.clip(ratio, 0.8, 1.2)
            policy += k * max(plain, clipped)
            slope, apart = plain * (plain >= clipped), log_probs[token] - row["ref"][t]
            if c.loss_kl:
                slope += c.kl_coef * {"k2": apart, "k3": 1 - np.exp(-apart)}[c.loss_kl]
            dw[b] += k * slope * (np.eye(len(w))[token] - np.exp(log_probs)) / c.temperature
    for row, target, k in zip(rows, returns, weights(c, [len(row["v"]) for row in rows], slots), strict=True):
        for b, old, goal in zip(row["before"], row["v"], target, strict=True):
            near = np.clip(u[b], old - 0.2, old + 0.2)
            value += k * 0.5 * max((u[b] - goal) ** 2, (near - goal) ** 2)
            if (u[b] - goal) ** 2 >= (near - goal) ** 2:
                du[b] += k * c.value_coef * (u[b] - goal)
    for b, token in text if c.text_coef else ():
        log_probs = log_softmax(w[b])
        dw[b] += c.text_coef * (np.exp(log_probs) - np.eye(len(w))[token]) / len(text)
    return policy, value, dw, du


class Adam:
    """Adam in both forms of its epsilon."""

    def __init__(self, c):
        self.c, self.m, self.v, self.t = c, 0.0, 0.0, 0

    def direction(self, g):
        c, self.t = self.c, self.t + 1
        if c.clip_norm is not None:
            g = g * min(1.0, c.clip_norm / np.sqrt((g**2).sum()))
        self.m, self.v = 0.9 * self.m + 0.1 * g, c.b2 * self.v + (1 - c.b2) * g**2
        first, second = 1 - 0.9**self.t, 1 - c.b2**self.t
        if c.tf1:
            return np.sqrt(second) / first * self.m / (np.sqrt(self.v) + c.epsilon)
        return self.m / first / (np.sqrt(self.v / second) + c.epsilon)
