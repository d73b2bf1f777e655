"""Who may import whom, read from the sources."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "gptjax"
MODULES = {
    ".".join(["gptjax", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in SOURCE.glob("**/*.py")
}
ABOVE_SHARDING = {
    "models",
    "training",
    "stages",
    "data",
    "generation",
    "evaluation",
    "serving",
    "interop",
    "planning",
}
# A room may import no room that stands on it. Settings, errors and run folders are everyone's.
FORBIDDEN = {
    "losses": {
        "models",
        "sharding",
        "data",
        "training",
        "stages",
        "generation",
        "evaluation",
        "serving",
        "interop",
        "config",
    },
    "models": {"training", "stages", "data", "generation", "evaluation", "serving", "interop", "planning"},
    "data": {"models", "training", "stages", "generation", "evaluation", "serving", "interop", "planning"},
    "sharding": ABOVE_SHARDING,
    "training": {"models", "stages", "data", "generation", "evaluation", "serving", "interop", "planning"},
    "generation": {"training", "stages", "evaluation", "serving", "interop", "planning"},
    "stages": {"interop", "planning"},
    "planning": {"interop", "serving", "evaluation"},
    "launching": ABOVE_SHARDING | {"sharding", "config"},  # pydantic may not be there
    "config": {
        "models",
        "training",
        "stages",
        "data",
        "generation",
        "evaluation",
        "serving",
        "interop",
        "runs",
    },
}
# Heavy or optional packages, imported inside the functions that need them.
LAZY = {
    "matplotlib",
    "sklearn",
    "vaderSentiment",
    "yaml",
    "rensa",
    "sacrebleu",
    "tensorboardX",
    "prompt_toolkit",
    "torch",
    "tokenizers",
    "gguf",
    "safetensors",
    "transformers",
    "grain",
    "rich",
}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """The dotted names a file imports; `from a import b` counts as `a` and as `a.b`."""
    tree = ast.parse(path.read_text("utf-8"))
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(module: str) -> str:
    """The part of the house a gptjax module lies in."""
    return (module.split(".") + [""])[1]


def test_the_sources_are_found():
    assert {"gptjax.losses.ppo", "gptjax.cli", "gptjax.stages.pretrain"} <= set(MODULES)
    assert "gptjax.config" in imports(MODULES["gptjax.overrides"])
    assert set(FORBIDDEN) <= {room(module) for module in MODULES}


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_nothing_imports_a_room_that_stands_on_it(name):
    for module, path in MODULES.items():
        if room(module) == name:
            used = {room(i) for i in imports(path) if i.startswith("gptjax.")}
            assert not used & FORBIDDEN[name], f"{module} imports {used & FORBIDDEN[name]}"


def test_losses_import_jax_and_losses_alone():
    for module, path in MODULES.items():
        if room(module) == "losses":
            packages = {i.split(".")[0] for i in imports(path)} - sys.stdlib_module_names
            assert packages <= {"jax", "gptjax"}, f"{module} imports {packages}"
            rooms = {room(i) for i in imports(path) if i.startswith("gptjax.")}
            assert rooms <= {"losses"}, f"{module} imports {rooms}"


def test_nothing_imports_the_command_line():
    importers = [m for m, path in MODULES.items() if "gptjax.cli" in imports(path)]
    assert importers == []


def test_there_is_no_cycle():
    graph = {module: imports(path) & set(MODULES) - {module} for module, path in MODULES.items()}
    graph = {module: {i for i in used if i != "gptjax"} for module, used in graph.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_heavy_packages_are_imported_where_they_are_needed():
    for module, path in MODULES.items():
        eager = {i.split(".")[0] for i in imports(path, top_level_only=True)} & LAZY
        assert not eager, f"{module} imports {eager} before it is needed"
