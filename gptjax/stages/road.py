"""The whole road: pretrain, fine-tune, learn a reward, align with PPO, and judge what came of it."""

import dataclasses
import itertools
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np

from gptjax.config import configclass
from gptjax.data.chat import Messages, read_dialogues
from gptjax.errors import require
from gptjax.evaluation.judge import chat_questions, on_topic
from gptjax.generation.engine import TextEngine
from gptjax.generation.sampling import SamplingConfig
from gptjax.ranges import Seed
from gptjax.runs import mark_done, open_run, read_done, stage_done, write_json_atomic
from gptjax.serving.chat_model import ChatModel
from gptjax.sharding.mesh import make_mesh
from gptjax.stages import finetune, ppo, pretrain, reward
from gptjax.stages.beside import beside
from gptjax.stages.finetune import FinetuneConfig
from gptjax.stages.handover import load_model
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.ppo_evaluation import new_and_known_prompts
from gptjax.stages.pretrain import PretrainConfig
from gptjax.stages.reward import RewardConfig
from gptjax.stages.reward_data import read_groups
from gptjax.stages.road_checks import HANDED_OVER, check_settings, check_sources
from gptjax.training.metrics import read_metrics


@configclass
class RoadConfig:
    """The stages in sequence; each takes its base from the one before it.

    Attributes:
        seed: root of all randomness, handed to every stage.
        pretrain, finetune, reward, ppo: see their classes. PPO runs twice, with and without `ptx_coef`.
        chat_sampling: how chat replies are drawn when they are judged.
    """

    seed: Seed = 0
    pretrain: PretrainConfig
    finetune: FinetuneConfig
    reward: RewardConfig
    ppo: PpoConfig
    chat_sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_new_tokens=48)

    def __post_init__(self):
        check_settings(self)


def stage_configs(config: RoadConfig, folder: Path) -> dict[str, tuple]:
    """Folder name -> (stage module, configuration with seed and bases filled in)."""
    seeded = {"seed": config.seed}
    without_ptx = dataclasses.replace(config.ppo, ptx_coef=0.0)
    after = {"policy": str(folder / "finetune"), "reward": str(folder / "reward"), **seeded}
    return {
        "pretrain": (pretrain, dataclasses.replace(config.pretrain, **seeded)),
        "finetune": (
            finetune,
            dataclasses.replace(config.finetune, base=str(folder / "pretrain"), **seeded),
        ),
        "reward": (reward, dataclasses.replace(config.reward, base=str(folder / "finetune"), **seeded)),
        "ppo": (ppo, dataclasses.replace(config.ppo, **after)),
        "ppo_without_ptx": (ppo, dataclasses.replace(without_ptx, **after)),
    }


def run(config: RoadConfig, folder: Path) -> None:
    """Runs what is not done yet, then judges, reports and says what to try next.

    Raises:
        DataError: a source that a stage still to be run names is not there.
    """
    from gptjax.evaluation.report import result_table, write_report

    folder = open_run(folder, config)
    stages = stage_configs(config, folder)
    require("yaml", "chatterbot_corpus", "vaderSentiment", "matplotlib")
    check_sources(config, [name for name in stages if not stage_done(folder / name)])
    plain = "ppo_without_ptx"
    for number, (name, (stage, stage_config)) in enumerate(stages.items(), 1):
        print(f"\n[{number}/{len(stages)}] {name}", flush=True)
        # Where the road lies is no setting: its folder may be moved, or be written in another way.
        places = {} if name == "pretrain" else {"may_change": HANDED_OVER}
        company = nullcontext()
        if name == "ppo" and not (stage_done(folder / name) or stage_done(folder / plain)):
            company = beside(ppo.__name__, stages[plain][1], folder / plain, **places)
        with company:
            stage.run(stage_config, folder / name, **places)
    if not stage_done(folder):
        print("\njudging the result", flush=True)
        write_json_atomic(folder / "results.json", judge(config, folder))
        summaries = [read_done(folder / name) for name in stages]
        mark_done(folder, {key: sum(s[key] for s in summaries) for key in ("seconds", "tokens")})
    if jax.process_index():
        return  # the report is written once
    report = write_report([folder])
    print(f"\n{result_table(json.loads((folder / 'results.json').read_text('utf-8')))}")
    print(f"\nreport: {report}")
    program = sys.argv[0]
    print("next:")
    print(f"  {program} chat {folder}    talk to it")
    print(f"  {program} report {folder}    write the report again")
    print(f"  {program} train experiments/quickstart.py --help    every setting of this run")


def judge(config: RoadConfig, folder: Path) -> dict:
    """Everything the report shows: figures against their bars, samples, transcripts, curves of trade-offs."""
    done = {name: read_done(folder / name)["heldout"] for name in stage_configs(config, folder)}
    models = {name: load_chat(config, folder / name) for name in ("pretrain", "finetune", "ppo")}
    transcripts = chat_test(models["ppo"], config.chat_sampling)
    return {
        "figures": [
            *pretraining_figures(done["pretrain"]),
            *reward_figures(done["reward"]),
            *ppo_figures(done["ppo"], done["ppo_without_ptx"]),
            chat_figure(transcripts),
        ],
        "samples": side_by_side(config, models),
        "transcripts": transcripts,
        "reliability": done["reward"]["reliability"],
        "reward_vs_kl": reward_against_kl(folder / "ppo" / "metrics.jsonl"),
    }


def figure(name: str, value: float, bar: str, met: bool | None, detail: str = "") -> dict:
    """One row of the result table; `met` None is reported without a bar."""
    return {"name": name, "value": value, "bar": bar, "met": met, "detail": detail}


def pretraining_figures(heldout: dict) -> list[dict]:
    """Bits per byte beside the compressors'; the short documentation text is reported without a bar."""
    rows = []
    for source, f in heldout.items():
        bar, met = "", None
        compressors = {name: f[name] for name in ("xz", "bz2") if name in f}
        if source in ("shakespeare", "ratings") and compressors:
            best = min(compressors.values())
            bar, met = f"< {best:.3f}", f["bits_per_byte"] < best
        detail = ", ".join(f"{name} {bits:.3f}" for name, bits in compressors.items())
        rows.append(figure(f"pretrain: bits per byte, {source}", f["bits_per_byte"], bar, met, detail))
    return rows


def reward_figures(heldout: dict) -> list[dict]:
    """Accuracy on clear held-out pairs and calibration."""
    accuracy, ece = heldout["accuracy_clear"], heldout["ece"]
    detail = f"longer wins {heldout['longer_wins_clear']:.3f}"
    if "bag_of_words_clear" in heldout:
        detail += f", linear bag of words {heldout['bag_of_words_clear']:.3f}"
    detail += f"; all pairs {heldout['accuracy']:.3f}"
    return [
        figure("reward: accuracy, clear held-out pairs", accuracy, ">= 0.76", accuracy >= 0.76, detail),
        figure(
            "reward: calibration error (ECE)", ece, "<= 0.08", ece <= 0.08, f"{heldout['ece_raw']:.3f} raw"
        ),
    ]


def ppo_figures(with_ptx: dict, without: dict) -> list[dict]:
    """What PPO won and what it cost, with and without the pretraining gradient."""
    rows = []
    for name, f in (("PPO-ptx", with_ptx), ("PPO", without)):
        before, after = f["reference"], f["policy"]
        gain = after["lexicon"] - before["lexicon"]
        variety = after["distinct_2"] / max(before["distinct_2"], 1e-9)
        shown = f"{before['lexicon']:+.3f} -> {after['lexicon']:+.3f}, KL {f['kl']:.1f} nats per reply"
        rows.append(figure(f"{name}: gain in lexicon score", gain, ">= 0.30", gain >= 0.30, shown))
        shown = f"distinct-2 {before['distinct_2']:.3f} -> {after['distinct_2']:.3f}"
        rows.append(figure(f"{name}: share of variety kept", variety, ">= 0.50", variety >= 0.5, shown))
        if "text_loss" in after:
            loss = after["text_loss"] / before["text_loss"] - 1
            shown = f"{before['text_loss']:.3f} -> {after['text_loss']:.3f} nats per token"
            bar, met = ("<= 0.05", loss <= 0.05) if name == "PPO-ptx" else ("", None)
            rows.append(figure(f"{name}: rise of held-out text loss", loss, bar, met, shown))
    return rows


def chat_figure(transcripts: list[dict]) -> dict:
    """How many reworded questions were answered on topic."""
    count, bar = sum(t["on_topic"] for t in transcripts), 0.6 * len(transcripts)
    detail = f"of {len(transcripts)} reworded questions"
    return figure("chat: answers on topic", count, f">= {bar:.0f}", count >= bar, detail)


def load_chat(config: RoadConfig, folder: Path) -> ChatModel:
    """The model a stage left, behind the chat interface."""
    model = load_model(folder, make_mesh(config.ppo.mesh))
    stop = ((model.tokenizer.im_end_id,), (model.tokenizer.end_of_text_id,))
    engine = TextEngine(model.definition, model.params, model.tokenizer, stop)
    return ChatModel(engine, model.chat)


def chat_test(model: ChatModel, sampling: SamplingConfig) -> list[dict]:
    """Answers to bundled questions that reword questions of the training dialogues."""
    questions = chat_questions()
    dialogues = [[{"role": "user", "content": q["question"]}] for q in questions]
    replies = model.replies(dialogues, sampling, list(range(len(dialogues))))
    return [
        {
            "question": q["question"],
            "reply": reply,
            "keywords": q["keywords"],
            "on_topic": on_topic(reply, q["keywords"]),
        }
        for q, reply in zip(questions, replies, strict=True)
    ]


def side_by_side(config: RoadConfig, models: dict[str, ChatModel]) -> list[dict]:
    """The same held-out prompts after pretraining, fine-tuning and PPO, drawn with the same seeds."""
    prompts: list[Messages] = []
    for found, count in zip(unseen_prompts(config), (4, 3), strict=True):
        fitting = (m for m in found if models["ppo"].prompt_length(m) <= config.ppo.prompt_length)
        prompts += itertools.islice(fitting, count)
    if not prompts:
        return []
    seeds = list(range(len(prompts)))
    replies = {name: model.replies(prompts, config.ppo.sampling, seeds) for name, model in models.items()}
    return [
        {"prompt": messages[-1]["content"]} | {name: replies[name][i].strip() for name in replies}
        for i, messages in enumerate(prompts)
    ]


def unseen_prompts(config: RoadConfig) -> tuple[list[Messages], list[Messages]]:
    """What training never asks, in random order: first questions of the bundled dialogues; PPO's prompts."""
    heldout, train = (read_dialogues("chatterbot", split=split) for split in ("heldout", "train"))
    known = {message["content"] for messages in train for message in messages}
    asked = sorted({messages[0]["content"] for messages in heldout} - known)
    order = np.random.default_rng(config.seed).permutation(len(asked))
    questions: list[Messages] = [[{"role": "user", "content": asked[i]}] for i in order]
    ranked, _ = read_groups(dataclasses.replace(config.reward, seed=config.seed))
    compared = {json.dumps(group.prompt) for group in ranked}
    new, _ = new_and_known_prompts(dataclasses.replace(config.ppo, seed=config.seed))
    return questions, [messages for messages in new if json.dumps(messages) not in compared]


def reward_against_kl(metrics: Path) -> list[dict]:
    """KL to the reference and mean score of every PPO iteration."""
    rows = read_metrics(metrics)
    return [
        {"kl": r["objective/kl"], "score": r["objective/raw_scores"]} for r in rows if "objective/kl" in r
    ]
