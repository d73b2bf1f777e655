"""Typed, frozen configurations: Python experiment files, overrides from the command line, JSON round trip."""

import dataclasses
import difflib
import importlib
import importlib.util
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pydantic.dataclasses

from gptjax.errors import USAGE, UserError


class ConfigError(UserError):
    """A setting that cannot be used; the message names the key, the file and the remedy."""

    exit_code = USAGE


_SETTINGS = pydantic.ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False, strict=True)
_classes: dict[str, type] = {}


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def configclass(cls: type) -> type:
    """Turns a class into a frozen, keyword-only dataclass that checks types and refuses unknown keys.

    Types are strict: `steps="7"` and `steps=7.0` are refused, an integer for a float is not.
    A `__post_init__` that raises `ValueError("sentence")` states an impossible combination of fields.
    """
    configured = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_SETTINGS)(cls)
    _classes[configured.__name__] = configured
    return configured


def is_config(value: object) -> bool:
    """Says whether the value is an instance of a configclass."""
    return dataclasses.is_dataclass(value) and pydantic.dataclasses.is_pydantic_dataclass(type(value))


def load_experiment(path: str | Path, function: str = "config") -> typing.Any:
    """Imports an experiment file and returns what its `config()`, or another function, returns.

    The folder that holds `experiments/` is put on the import path, so that an ablation can write
    `from experiments.quickstart import config as base`.

    Raises:
      ConfigError: no such file or function, an exception inside it, or a result that is not a configclass.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no experiment file {path}{_nearest_file(path, function)}")
    module = _import_file(path)
    if not callable(getattr(module, function, None)):
        what = "the configuration" if function == "config" else "a SweepConfig, or name the file of a sweep"
        raise ConfigError(f"{path} has no function {function}(): add one that returns {what}")
    with _sentences_for(path):
        config = getattr(module, function)()
    if not is_config(config):
        returned = type(config).__name__
        raise ConfigError(f"{function}() in {path} must return a configclass, but returned {returned}")
    return config


def experiment_docstring(path: str | Path) -> str:
    """The docstring of an experiment file that has been loaded or can be."""
    return (_import_file(Path(path)).__doc__ or "").strip()


def run_name(path: str | Path) -> str:
    """What a run of an experiment file is called: its path below `experiments/`, such as "bert/pretrain"."""
    path, root = Path(path).absolute(), _root_of(Path(path))
    named = path.relative_to(root / "experiments") if root else Path(path.name)
    return str(named.with_suffix(""))


def to_json(config: typing.Any) -> dict:
    """The configuration as JSON values; "type" holds `module:ClassName`."""
    return {"type": f"{type(config).__module__}:{type(config).__qualname__}", **_plain(config)}


def from_json(values: dict) -> typing.Any:
    """Builds the configuration that `to_json` described.

    Raises:
      ConfigError: the type is missing or is not a configclass, or a value does not fit.
    """
    if "type" not in values:
        raise ConfigError("the configuration has no 'type' entry: it was not written by gptjax")
    with _sentences_for(Path("config.json")):
        return _revive(values)


def difference(old: typing.Any, new: typing.Any) -> list[str]:
    """Sentences such as "pretrain.steps was 100, is 200" for every key in which two configurations differ.

    Both may be configurations or the dicts of `to_json`. The order of a mapping counts where `new` is a
    configuration: sources have their numbers, and with them their draws, by it.
    """
    old = old if isinstance(old, dict) else to_json(old)
    sentences = []
    if is_config(new):
        sentences = [f"{key} was in another order" for key in _reordered(old, new)]
        new = to_json(new)
    old, new = flatten(old), flatten(new)
    absent = object()
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key, absent), new.get(key, absent)
        if before != after:
            before, after = ("absent" if side is absent else repr(side) for side in (before, after))
            sentences.append(f"{key} was {before}, is {after}")
    return sentences


def _reordered(old: dict, new: typing.Any, prefix: str = "") -> Iterator[str]:
    """The keys of the mappings of a configuration that have the same entries as before in another order."""
    for name in fields_of(new):
        before, after = old.get(name), getattr(new, name)
        if not isinstance(before, dict):
            continue
        if is_config(after):
            yield from _reordered(before, after, f"{prefix}{name}.")
        elif isinstance(after, dict) and before.keys() == after.keys() and list(before) != list(after):
            yield f"{prefix}{name}"


def flatten(values: dict, prefix: str = "") -> dict[str, typing.Any]:
    """Nested dicts as one dict of dotted keys; an empty dict is a value."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def fields_of(config: typing.Any) -> dict[str, typing.Any]:
    """Field name -> annotation, resolved, with constraints such as `Field(gt=0)` inside `Annotated`."""
    fields = type(config).__pydantic_fields__
    return {name: info.rebuild_annotation() for name, info in fields.items()}


def invalid_value(error: dict, key: str, place: str, annotation: typing.Any) -> str:
    """One sentence for one entry of pydantic's `ValidationError.errors()`."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    given = error["input"]
    if error["type"].startswith(("greater_than", "less_than", "multiple_of", "finite_number")):
        wanted = error["msg"].removeprefix("Input should ")
    elif error["type"] == "too_short":
        wanted = "not be empty"
    elif annotation:
        wanted = f"be {_in_words(annotation)}"
    else:
        wanted = error["msg"].removeprefix("Input should ").split(", unable to parse")[0]
    return f"key '{key}' {place} must {wanted}, but {given!r} was given"


def nearest(key: str, candidates: typing.Iterable[str]) -> str | None:
    """The candidate most like the key, by the whole name or by its last part."""

    def likeness(candidate: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        last = difflib.SequenceMatcher(None, key.split(".")[-1], candidate.split(".")[-1]).ratio()
        return max(whole, 0.95 * last), whole

    return max(candidates, key=likeness, default=None)


def _in_words(annotation: typing.Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _in_words(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_in_words(option) for option in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    plain = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "none"}
    if annotation in plain:
        return plain[annotation]
    kind = origin or annotation
    if kind in (tuple, list):
        return "a list such as a,b or [a, b]"
    if kind is dict:
        return "a mapping such as name=value,name=value"
    return f"a {getattr(kind, '__name__', kind)}"


def _nearest_file(path: Path, function: str) -> str:
    root, here = _root_of(path) or Path.cwd(), Path.cwd()
    others = {"external_data.py", *(["sweep.py"] if function == "config" else [])}
    files = [file for file in root.glob("experiments/**/*.py") if file.name not in others]
    close = nearest(
        str(path), [str(file.relative_to(here) if file.is_relative_to(here) else file) for file in files]
    )
    return f": the nearest is {close}" if close else ""


def _root_of(path: Path) -> Path | None:
    """The folder that holds the `experiments` folder above the file."""
    for folder in path.absolute().parents:
        if folder.name == "experiments":
            return folder.parent
    return None


def _import_file(path: Path) -> types.ModuleType:
    root = _root_of(path)
    # An experiment outside `experiments/` may be called json.py or jax.py and must not stand in for it.
    name = f"_gptjax_experiment_{re.sub(r'[^a-zA-Z0-9_]', '_', path.stem)}"
    if root is not None:
        name = ".".join(path.absolute().relative_to(root).with_suffix("").parts)
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
    elif (Path.cwd() / "experiments").is_dir() and str(Path.cwd()) not in sys.path:
        # So that it may start from one of them; last, so that nothing of the folder hides a library.
        sys.path.append(str(Path.cwd()))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ConfigError(f"{path} is not a Python file: an experiment is a .py file with config()")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _sentences_for(path):
        spec.loader.exec_module(module)
    return module


class _sentences_for:
    """Turns whatever an experiment file raises into a ConfigError that names the file and the line."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or not isinstance(error, Exception) or isinstance(error, UserError):
            return
        here = self.path.absolute()
        frames = [f.lineno for f in traceback.extract_tb(trace) if Path(f.filename) == here]
        if isinstance(error, SyntaxError) and Path(error.filename or "") == here:
            frames = [error.lineno]
        place = f"{self.path}, line {frames[-1]}" if frames else str(self.path)
        if isinstance(error, pydantic.ValidationError):
            raise ConfigError(explain(error, place)) from error
        raise ConfigError(f"{place}: {type(error).__name__}: {error}") from error


def explain(error: pydantic.ValidationError, place: str, prefix: str = "") -> str:
    """The first failure of a validation as one sentence that names the key, the place and the remedy."""
    first = error.errors()[0]
    cls = _classes.get(error.title)
    location = [str(part) for part in first["loc"]]
    key = ".".join([*([prefix] if prefix else []), *location]) or error.title
    where = f"in {place}" if prefix else f"of {error.title} in {place}"
    if first["type"] == "value_error":
        return f"{place}: {key}: {first['ctx']['error']}"
    valid = list(cls.__pydantic_fields__) if cls else []
    if first["type"] == "unexpected_keyword_argument":
        closest = nearest(location[-1], valid)
        return f"unknown key '{key}' {where}" + (f": the nearest valid key is '{closest}'" if closest else "")
    if first["type"] == "missing":
        return f"key '{key}' {where} is missing: give it a value"
    known = cls is not None and len(location) == 1 and location[0] in valid
    annotation = cls.__pydantic_fields__[location[0]].annotation if known else None
    return invalid_value(first, key, where, annotation)


def _plain(value: typing.Any) -> typing.Any:
    if is_config(value):
        plain = {}
        for name, annotation in fields_of(value).items():
            child = getattr(value, name)
            # A field declared as a union or a parent class needs the class named to be read back.
            plain[name] = _plain(child) if annotation is type(child) else _named(child)
        return plain
    if isinstance(value, dict):
        return {str(key): _named(child) for key, child in value.items()}
    if isinstance(value, tuple | list):
        return [_named(child) for child in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise ConfigError(
        f"a configuration cannot hold {value!r}: use numbers, strings, lists, dicts and configclasses"
    )


def _named(value: typing.Any) -> typing.Any:
    return to_json(value) if is_config(value) else _plain(value)


def _revive(value: typing.Any) -> typing.Any:
    if isinstance(value, list):
        return [_revive(child) for child in value]
    if not isinstance(value, dict):
        return value
    values = {key: _revive(child) for key, child in value.items() if key != "type"}
    if not re.fullmatch(r"[\w.]+:[\w.]+", str(value.get("type", ""))):
        return {**values, **({"type": value["type"]} if "type" in value else {})}
    module, name = value["type"].split(":")
    cls = getattr(importlib.import_module(module), name, None)
    if not (isinstance(cls, type) and pydantic.dataclasses.is_pydantic_dataclass(cls)):
        raise ConfigError(f"'{value['type']}' is not a configclass of this version of gptjax")
    # Lax, because a list is all that JSON has for a tuple, and a dict for a configclass.
    return pydantic.TypeAdapter(cls).validate_python(values, strict=False)
