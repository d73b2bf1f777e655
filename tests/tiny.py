"""A road small enough to run in tests: real text, a model of two narrow layers, a few steps of each stage."""

import json
from pathlib import Path

from gptjax.data.corpora import read_documents
from gptjax.data.ratings import demonstrations, load_ratings, ranked_replies
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.transformer import DecoderConfig
from gptjax.stages.finetune import FinetuneConfig
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.pretrain import PretrainConfig
from gptjax.stages.reward import RewardConfig
from gptjax.stages.road import RoadConfig
from gptjax.training.optimizers import OptimizerConfig

MODEL = DecoderConfig(vocab_size=384, context_length=256, width=16, layers=1, heads=2, loop="unroll")
ADAM = OptimizerConfig(learning_rate=1e-3)


def write_data(folder: Path) -> Path:
    """Writes `text.jsonl`, `dialogues.jsonl` and `preferences.jsonl`: small parts of the bundled data."""
    folder.mkdir(parents=True, exist_ok=True)
    ratings = [rated for rated in load_ratings() if len(rated.text) < 60][:400]
    groups = ranked_replies(ratings, groups=40, seed=0, k_max=5)
    rows = {
        "text": [{"text": document.text[:3000]} for document in read_documents("shakespeare")],
        "dialogues": [{"messages": messages} for messages in demonstrations(ratings, seed=0)],
        "preferences": [
            {"prompt": g.prompt, "completions": g.completions, "ranking": [-s for s in g.scores]}
            for g in groups
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


def write_pairs(folder: Path) -> Path:
    """Writes `pairs.jsonl`: short rated texts and the same in capitals, which stand for a translation."""
    texts = sorted({rated.text.strip().lower() for rated in load_ratings() if len(rated.text) < 36})[:400]
    rows = [{"lower": text, "upper": text.upper()} for text in texts if text != text.upper()]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder / "pairs.jsonl"


def config(data: Path) -> RoadConfig:
    """The road over the files of `write_data`."""
    text, dialogues = {str(data / "text.jsonl"): 1.0}, str(data / "dialogues.jsonl")
    return RoadConfig(
        pretrain=PretrainConfig(
            model=MODEL,
            corpora=text,
            length=32,
            batch_size=8,
            steps=12,
            optimizer=ADAM,
            heldout_bytes=2000,
            save_every=3,
            eval_every=5,
        ),
        finetune=FinetuneConfig(
            dialogues={dialogues: 1.0},
            length=240,
            batch_size=4,
            steps=12,
            dropout=0.1,
            optimizer=ADAM,
            save_every=3,
        ),
        reward=RewardConfig(
            source=str(data / "preferences.jsonl"),
            length=128,
            batch_size=4,
            k_max=5,
            epochs=2,
            optimizer=ADAM,
            save_every=4,
        ),
        ppo=PpoConfig(
            prompts=dialogues,
            sampling=SamplingConfig(max_new_tokens=6),
            prompt_length=64,
            iterations=6,
            batch_size=8,
            minibatches=2,
            kl_target=1.0,
            kl_horizon=100.0,
            ptx_coef=1.0,
            ptx_rows=4,
            ptx_length=32,
            corpora=text,
            optimizer=ADAM,
            value_optimizer=ADAM,
            save_every=2,
            eval_prompts=4,
            eval_bytes=1000,
        ),
    )
