"""The report's account of where the wall time of each stage went, over all its starts."""

from collections.abc import Iterator, Sequence

from gptjax.evaluation.document import Block, Heading, Paragraph, Table
from gptjax.evaluation.results import Run
from gptjax.training.goodput import CAUSES


def where_time_went(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Block]:
    """Goodput and the causes of lost time, up to each stage's last checkpoint."""
    rows, lost = [], set()
    for name, run in zip(names, runs, strict=True):
        for stage, record in run.time.items():
            seconds = record["seconds"]
            lost |= {cause for cause in CAUSES if seconds[cause] > 0}
            label = f"{name} {stage}" if len(runs) > 1 else stage
            cells = [f"{seconds[cause]:,.1f}" for cause in CAUSES]
            rows.append([label, f"{100 * record['goodput']:.1f} %", str(run.starts[stage]), *cells])
    if not rows:
        return
    yield Heading("Where the time went")
    meanings = "; ".join(f"{cause}: {meaning}" for cause, meaning in CAUSES.items() if cause in lost)
    yield Paragraph(
        "Goodput is the time of the steps that were kept over the time since the first start. Seconds were "
        f"lost to {meanings}."
    )
    yield Table(("stage", "goodput", "starts", *CAUSES), rows, numeric=frozenset(range(1, 3 + len(CAUSES))))
