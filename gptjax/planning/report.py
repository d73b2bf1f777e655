"""A plan in words for the terminal, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict

from gptjax.planning.plan import StagePlan
from gptjax.planning.topology import GIB, Topology
from gptjax.sharding.mesh import MESH_AXES


def plan_json(plans: dict[str, StagePlan], topology: Topology, price: float | None = None) -> dict:
    """Everything as JSON values: sizes in bytes, times in seconds, `cost` in dollars."""
    return {
        "topology": topology.name,
        "devices": topology.devices,
        "fits": all(plan.fits for plan in plans.values()),
        "stages": {name: _stage_json(plan, topology, price) for name, plan in plans.items()},
    }


def _stage_json(plan: StagePlan, topology: Topology, price: float | None) -> dict:
    work, times = plan.work, plan.times
    found = {
        "mesh": {axis: getattr(work.mesh, axis) for axis in MESH_AXES},
        "parameters": work.parameters,
        "tokens_per_step": work.tokens,
        "steps": work.steps,
        "tokens": work.total,
        "flops_per_token": plan.model.model / work.tokens,
        "attention_share": plan.model.attention / plan.model.model,
        "flops_per_token_again": (plan.done.model - plan.idle - plan.model.model) / work.tokens,
        "flops_per_token_idle": plan.idle / work.tokens,
        "flops_per_token_optimiser": plan.done.optimiser / work.tokens,
        "pipeline": {"stages": work.mesh.stage, "microbatches": work.flowing, "bubble": work.bubble},
        "memory": plan.memory,
        "activations": plan.activations,
        "estimated": plan.estimated,
        "compiled": plan.compiled and [_program_json(plan, facts) for facts in plan.compiled],
        "peak": plan.peak if plan.peak != float("inf") else None,
        "limit": plan.limit,
        "fits": plan.fits,
        "collectives": plan.collectives and [asdict(one) for one in plan.collectives],
        "advice": [{"change": change, "estimated": size} for change, size in plan.advice],
        "assumed": work.assumed,
    }
    if times is not None:
        found["seconds_per_step"] = {"least": times.least, "most": times.most}
        found["parts"] = {"compute": times.compute, "memory": times.memory, "links": times.links}
        found["utilisation"] = {name: times.utilisation(s) for name, s in found["seconds_per_step"].items()}
        if work.steps:
            hours = {name: s * work.steps / 3600 for name, s in found["seconds_per_step"].items()}
            found["hours"] = hours
            if price is not None:
                found["cost"] = {name: h * topology.devices * price for name, h in hours.items()}
    return found


def _program_json(plan: StagePlan, facts: dict) -> dict:
    needs = plan.program_bytes(facts)
    return facts | {"needs": None if needs == float("inf") else needs}


def plan_text(plans: dict[str, StagePlan], topology: Topology, price: float | None = None) -> str:
    """The plan as lines for the terminal."""
    found = plan_json(plans, topology, price)
    lines = []
    for name, stage in found["stages"].items():
        mesh = " x ".join(f"{axis} {size}" for axis, size in stage["mesh"].items())
        lines += ["", f"{name} on {topology.name} ({topology.devices} devices: {mesh})"]
        lines += [f"  {label:<19} {text}" for label, text in _rows(stage, price)]
    return "\n".join(lines[1:])


def _rows(stage: dict, price: float | None):
    """(label, text) of every line of a stage."""
    counts = ", ".join(f"{name} {count:,}" for name, count in stage["parameters"].items())
    yield "parameters", counts.removeprefix("model ")
    whole = stage["flops_per_token"]
    more = {"computed again": "again", "in the bubble": "idle", "of the optimiser": "optimiser"}
    shares = {what: stage[f"flops_per_token_{name}"] / whole for what, name in more.items()}
    text = "".join(f"; {share:.0%} more {what}" for what, share in shares.items() if share > 0.005)
    yield "FLOPs per token", f"{whole:.3g}, {stage['attention_share']:.1%} of them attention{text}"
    total = f" x {stage['steps']:,} steps = {stage['tokens']:,}" if stage["steps"] else ""
    yield "tokens", f"{stage['tokens_per_step']:,} a step{total}"
    if stage["mesh"]["stage"] > 1:
        flow = "{stages} stages, {microbatches} micro-batches, bubble {bubble:.1%}"
        yield "pipeline", flow.format(**stage["pipeline"])
    kinds = ", ".join(f"{kind} {_gib(size)}" for kind, size in stage["memory"].items())
    yield "estimate a device", f"{_gib(stage['estimated'])} GiB: {kinds}"
    yield (
        "activations",
        ", ".join(f"{_gib(size)} GiB with remat {policy}" for policy, size in stage["activations"].items()),
    )
    for facts in stage["compiled"] or ():
        yield f"compiled {facts['name']}", _compiled_line(facts)
    yield from _exchanged(stage["collectives"] or ())
    if "seconds_per_step" in stage:
        yield from _times(stage, price)
    if stage["collectives"] is None and max(stage["mesh"].values()) > 1:
        yield "not counted", "what devices exchange, which only a compiled program says"
    for sentence in stage["assumed"]:
        yield "assumed", sentence
    yield "verdict", _verdict(stage)
    for change in stage["advice"]:
        yield "instead", f"{change['change']}: {_gib(change['estimated'])} GiB by the estimate"


def _compiled_line(facts: dict) -> str:
    if "error" in facts:
        return f"refused after {facts['seconds']:.0f} s: {facts['error']}"
    parts = f"arguments {_gib(facts['arguments'])}, temporary {_gib(facts['temporary'])}"
    loops = f"; {facts['unknown_loops']} loops of unknown length" if facts["unknown_loops"] else ""
    return f"{_gib(facts['needs'])} GiB ({parts}) in {facts['seconds']:.0f} s{loops}"


def _exchanged(collectives: Sequence[dict], most: int = 8):
    for one in collectives[:most]:
        over = " x ".join(one["axes"]) or "all devices"
        amount = (
            f"{_gib(one['bytes'])} GiB a device in {one['calls']:,} calls, {one['places']} in the program"
        )
        yield "collectives", f"{one['kind']} over {over} ({one['devices']}): {amount}"
    if rest := collectives[most:]:
        yield "collectives", f"{len(rest)} kinds more: {_gib(sum(one['bytes'] for one in rest))} GiB a device"


def _times(stage: dict, price: float | None):
    parts, seconds = stage["parts"], stage["seconds_per_step"]
    links = "".join(f", links {name} {one:.3g} s" for name, one in parts["links"].items())
    yield "roofline", f"arithmetic {parts['compute']:.3g} s, memory {parts['memory']:.3g} s{links}"
    used = stage["utilisation"]
    yield (
        "a step",
        f"{seconds['least']:.3g} s if all overlaps (MFU {used['least']:.0%}), "
        f"{seconds['most']:.3g} s if nothing does (MFU {used['most']:.0%})",
    )
    if "hours" in stage:
        cost = ", ${least:,.0f} to ${most:,.0f}".format(**stage["cost"]) if "cost" in stage else ""
        yield "the run", "{least:,.3g} to {most:,.3g} hours".format(**stage["hours"]) + cost


def _verdict(stage: dict) -> str:
    how = "compiled" if stage["compiled"] else "estimated"
    needs = "more than there is" if stage["peak"] is None else f"{_gib(stage['peak'])} GiB a device, {how}"
    if stage["limit"] is None:
        return f"needs {needs}; nothing says how much there is"
    return f"{'fits' if stage['fits'] else 'does not fit'}: needs {needs}, of {_gib(stage['limit'])} usable"


def _gib(size: float) -> str:
    return f"{size / GIB:,.3g}" if size < 1000 * GIB else f"{size / GIB:,.0f}"
