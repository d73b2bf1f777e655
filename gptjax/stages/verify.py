"""Every stored bit of a run checked: checkpoints, configuration, tokenizer, position in the data, model."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax

from gptjax.config import ConfigError, from_json
from gptjax.errors import UserError
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import TOKENIZERS, load_model, load_tokenizer, parameter_digest
from gptjax.training.checkpoint import Checkpoints
from gptjax.training.events import SETTINGS_CHANGED, read_events
from gptjax.training.integrity import DamagedCheckpoint, file_hash
from gptjax.training.metrics import read_metrics

Finding = tuple[bool, str]


def verify(folder: Path) -> bool:
    """Checks a stage's run folder, or every stage of a road; says whether all is as it was written.

    Prints one line a check. The folder is only read, and may belong to a run under way.
    """
    stages = [path.parent for path in sorted(folder.glob("**/config.json")) if "model" not in path.parts]
    right = True
    for stage in stages:
        for fine, sentence in verify_stage(stage):
            right &= fine
            print(f"{'ok' if fine else 'WRONG'}  {stage}: {sentence}", flush=True)
    print(f"{folder}: {'all is as it was written' if right else 'not everything is as it was written'}")
    return right


def verify_stage(folder: Path) -> Iterator[Finding]:
    """The findings about one folder with a `config.json`, in the order in which they are made."""
    try:
        config = from_json(json.loads((folder / "config.json").read_text("utf-8")))
        yield True, f"config.json is a {type(config).__name__}"
    except (ConfigError, ValueError) as error:
        config = None
        yield False, f"config.json cannot be read: {error}"
    yield from _metrics(folder)
    if (folder / "checkpoints").exists():
        yield from _checkpoints(folder, config)
    if (folder / "model" / "model.json").exists():
        yield from _model(folder)


def _metrics(folder: Path) -> Iterator[Finding]:
    file = folder / "metrics.jsonl"
    if not file.exists():
        return
    try:
        steps = [row["step"] for row in read_metrics(file)]
    except (ValueError, KeyError) as error:
        yield False, f"metrics.jsonl cannot be read: {error}"
        return
    whole = steps == list(range(1, len(steps) + 1))
    yield (
        whole,
        f"metrics.jsonl {'has' if whole else 'does not have'} one line for every step to {len(steps)}",
    )


def _checkpoints(folder: Path, config) -> Iterator[Finding]:
    tokenizer, place = _tokenizer_hash(folder, config)
    # A start may accept that paths or the mesh differ; it has noted which configuration it accepted.
    noted = ("start", SETTINGS_CHANGED)
    accepted = [event["config"] for event in read_events(folder) if event["event"] in noted]
    if accepted:
        same = accepted[-1] == file_hash(folder / "config.json")
        yield same, f"config.json {'is' if same else 'is not'} that of the last start"
    checkpoints = Checkpoints(folder / "checkpoints", {}, tidy=False)
    for step in checkpoints.steps():
        try:
            facts, position = checkpoints.inspect(step)
        except DamagedCheckpoint as error:
            yield False, str(error)
            continue
        yield True, f"checkpoint {step}: {len(facts['files'])} files and {len(facts['leaves'])} arrays"
        if accepted:
            known = facts["config"] in accepted
            yield (
                known,
                f"checkpoint {step}: its configuration {'is' if known else 'is not'} one of the starts'",
            )
        same = facts["step"] == position == step
        yield same, f"checkpoint {step}: goes on after step {position} of the data"
        stored = facts["identity"].get("tokenizer")
        if stored and tokenizer:
            fits = "is that" if stored == tokenizer else "is not that"
            yield stored == tokenizer, f"checkpoint {step}: its tokenizer {stored[:16]}... {fits} of {place}"
        elif stored:
            yield True, f"checkpoint {step}: its tokenizer is not here, so its hash was not compared"
    checkpoints.close()


def _tokenizer_hash(folder: Path, config) -> tuple[str, Path]:
    """(hash, where it lies) of the tokenizer of a stage: its own, its model's or its base's; "" without."""
    bases = [getattr(config, name, "") for name in ("base", "policy")]
    for place in (folder, folder / "model", *(Path(base) / "model" for base in bases if base)):
        if any((place / kind.file_name).exists() for kind in TOKENIZERS):
            try:
                return load_tokenizer(place).hash, place
            except UserError:
                return "unreadable", place
    return "", folder


def _model(folder: Path) -> Iterator[Finding]:
    try:
        model = load_model(folder, make_mesh(MeshConfig()))
        same = parameter_digest(model.params) == model.digest
    except UserError as error:
        yield False, f"model: {error}"
    except Exception as error:  # whatever a library says of a file that it cannot make sense of
        yield False, f"model: its parameters cannot be read: {str(error).splitlines()[0][:300]}"
    else:
        count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        words = "are those" if same else "have other bits than those"
        yield same, f"model: {count:,} parameters {words} that were handed over"
