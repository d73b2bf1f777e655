"""Overrides from the command line, `--optimizer.learning-rate 3e-4`, and the listing of what can be set."""

import dataclasses
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator

import pydantic
import pydantic.dataclasses

from gptjax.config import ConfigError, explain, fields_of, invalid_value, is_config, nearest


def override(
    config: typing.Any,
    arguments: list[str],
    file: str = "the configuration",
    options: typing.Iterable[str] = (),
) -> typing.Any:
    """Returns the configuration with `--dotted.key value` or `--dotted.key=value` applied, all at once.

    Hyphens and underscores are the same. Booleans are `true` and `false`, and `--dotted.no-key` alone is
    `--dotted.key false`. The absent value is `none`; lists are `a,b` or JSON, mappings
    `name=value,name=value` or JSON. To set a key of a group that is none switches the group on, with the
    defaults of its other keys. Where a class has `presets`, name -> function of the configuration,
    `--dotted.preset name` applies one, before all other words.

    Args:
      config: a configclass.
      arguments: the words of the command line.
      file: the experiment file, named in errors.
      options: the command's own, such as "--name", which an unknown key may have been meant for.

    Raises:
      ConfigError: an unknown key, a key set twice, a value of the wrong type, or an impossible combination.
    """
    changes = {}
    config, pairs = _apply_presets(config, list(_pairs(config, arguments)), file)
    for key, text in pairs:
        path, node, annotation = _find(config, key, file, options)
        absent = _may_be_absent(annotation) and (text or "").lower() == "none"
        if is_config(node) and not absent:
            example = f"{key}.{next(iter(fields_of(node)))}"
            instead = ", or 'none' to leave it out" if _may_be_absent(annotation) else ""
            raise ConfigError(
                f"key '{key}' in {file} is a group: set one of its keys, such as '{example}'{instead}"
            )
        if text is None:
            raise ConfigError(f"key '{key}' has no value: write --{key} VALUE")
        for other in changes:
            common = min(len(path), len(other))
            if path[:common] == other[:common]:
                earlier = "" if other == path else f", first by '{'.'.join(other)}'"
                raise ConfigError(f"key '{'.'.join(path)}' in {file} is set twice{earlier}: set it once")
        changes[path] = None if absent else _read(text, annotation, ".".join(path), file)
    return _rebuild(config, changes, file)


PRESET = "preset"


def describe(config: typing.Any) -> str:
    """Every key of a configuration with its value, its type and the sentence of its `Attributes:` entry."""
    rows = list(_rows(config))
    width = max((len(row[0]) for row in rows), default=0)
    return "\n".join(f"  --{key:<{width}}  {about}" for key, about in rows)


def _rows(config: typing.Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    documented = _attributes(type(config))
    if presets := _presets(config):
        yield f"{prefix}{PRESET}", f"{'|'.join(presets)}   sets what one stands for, before the other keys"
    for name, annotation in fields_of(config).items():
        value = getattr(config, name)
        if is_config(value):
            yield from _rows(value, f"{prefix}{name}.")
            continue
        about = f"{_type_words(annotation)} = {_written(value)}"
        if name in documented:
            about += f"   {documented[name]}"
        yield f"{prefix}{name}".replace("_", "-"), about


def _attributes(cls: type) -> dict[str, str]:
    """The `name: sentence` and `name, name: sentence` entries of a docstring's `Attributes:` block."""
    _, _, block = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^(\w+(?:, \w+)*): (.*(?:\n +.*)*)", textwrap.dedent(block), re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _type_words(annotation: typing.Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_words(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return "|".join(_type_words(option) for option in arguments).replace("NoneType", "None")
    if origin is dict:
        return f"dict[{', '.join(_type_words(part) for part in arguments)}]"
    if origin is typing.Literal:
        return "|".join(str(choice) for choice in typing.get_args(annotation))
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return re.sub(r"\w+\.", "", str(annotation))


def _written(value: typing.Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list) and all(isinstance(item, int | float | str) for item in value):
        return ",".join(str(item) for item in value) or "[]"
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items()) or "{}"
    return str(value)


def _pairs(config: typing.Any, arguments: list[str]) -> Iterator[tuple[str, str | None]]:
    """Keys and their texts; a key without a text comes last."""
    words = iter(arguments)
    for word in words:
        key, equals, text = word.partition("=")
        if not key.startswith("--") or key == "--":
            raise ConfigError(f"unexpected argument '{word}': write --key value or --key=value")
        key = key.removeprefix("--")
        if not equals:
            denied = _denied(config, key)
            if denied:
                yield denied, "false"
                continue
            text = next(words, None)
            if text is None or re.match(r"--[a-zA-Z]", text):
                yield key, None
                return
        yield key, text


def _denied(config: typing.Any, key: str) -> str | None:
    """The key of the truth that `--no-KEY` sets to false; None where there is none, or a key of that name."""
    *groups, last = key.replace("-", "_").split(".")
    for name in groups:
        config = _child(config, name) if is_config(config) and name in fields_of(config) else None
    fields, truth = fields_of(config) if is_config(config) else {}, last.removeprefix("no_")
    if last in fields or truth == last or fields.get(truth) is not bool:
        return None
    return ".".join([*groups, truth])


def _presets(config: typing.Any) -> dict[str, typing.Callable]:
    return getattr(type(config), "presets", {})


def _apply_presets(config: typing.Any, pairs: list, file: str) -> tuple[typing.Any, list]:
    """The configuration with the presets that are named, and the pairs that name none."""
    left, named = [], set()
    for key, text in pairs:
        *groups, last = key.replace("-", "_").split(".")
        node = config
        for name in groups:
            node = _child(node, name) if is_config(node) and name in fields_of(node) else None
        if last != PRESET or not (presets := _presets(node)):
            left.append((key, text))
            continue
        if text is None:
            raise ConfigError(f"key '{key}' has no value: write --{key} VALUE")
        if key in named:
            raise ConfigError(f"key '{key}' in {file} is set twice: set it once")
        if text not in presets:
            raise ConfigError(
                f"key '{key}' in {file} must be one of {', '.join(presets)}, but '{text}' was given: the "
                f"nearest is '{nearest(text, presets)}'"
            )
        named.add(key)
        try:
            changed = presets[text](node)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, f"{file}, --{key} {text}")) from error
        config = _rebuild(config, {tuple(groups): changed}, file) if groups else changed
    return config, left


def _find(
    config: typing.Any, key: str, file: str, options: typing.Iterable[str]
) -> tuple[tuple[str, ...], typing.Any, typing.Any]:
    """The path of a dotted key in the configuration, what lies there, and its annotation."""
    path, node, annotation = (), config, None
    for part in key.split("."):
        name = part.replace("-", "_")
        if is_config(node) and name in fields_of(node):
            annotation, node = fields_of(node)[name], _child(node, name)
        elif isinstance(node, dict) and {part, name} & set(node):
            name = part if part in node else name
            annotation, node = (typing.get_args(_bare(annotation)) or (str, typing.Any))[1], node[name]
        elif node is None and path:
            raise ConfigError(f"key '{key}' in {file} cannot be set: '{'.'.join(path)}' is none there")
        else:
            words = {option.removeprefix("--").replace("-", "_"): option for option in options}
            closest = nearest(key.replace("-", "_"), [*_keys(config), *words])
            kind = "option" if closest in words else "key"
            closest = words.get(closest, closest)
            raise ConfigError(f"unknown key '{key}' in {file}: the nearest valid {kind} is '{closest}'")
        path = (*path, name)
    return path, node, annotation


def _may_be_absent(annotation: typing.Any) -> bool:
    """Whether None is among the values of an annotation."""
    return type(None) in typing.get_args(annotation)


def _child(config: typing.Any, name: str) -> typing.Any:
    """The value of a field; a group that is none gets the defaults of its class."""
    value, kind = getattr(config, name), _bare(fields_of(config)[name])
    if value is not None or not (isinstance(kind, type) and pydantic.dataclasses.is_pydantic_dataclass(kind)):
        return value
    required = any(field.is_required() for field in kind.__pydantic_fields__.values())
    return None if required else kind()


def _keys(node: typing.Any, prefix: str = "") -> Iterator[str]:
    children = {name: _child(node, name) for name in fields_of(node)} if is_config(node) else node
    for name, child in children.items():
        if is_config(child):
            yield from _keys(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
            if isinstance(child, dict):
                yield from _keys(child, f"{prefix}{name}.")


def _bare(annotation: typing.Any) -> typing.Any:
    """The annotation without `Annotated` and without `None`."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _bare(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(annotation) if option is not type(None)]
        return _bare(options[0]) if len(options) == 1 else annotation
    return annotation


def _read(text: str, annotation: typing.Any, key: str, file: str) -> typing.Any:
    adapter = pydantic.TypeAdapter(annotation, config=pydantic.ConfigDict(allow_inf_nan=False))
    failures = []
    for value in _readings(text, key, file):
        try:
            return adapter.validate_python(value)
        except pydantic.ValidationError as error:
            failures += error.errors()
    # A value of the right type outside its bounds says more than one that could not be parsed.
    telling = min(failures, key=lambda failure: failure["type"].endswith(("_parsing", "_type")))
    raise ConfigError(invalid_value({**telling, "input": text}, key, f"in {file}", annotation))


def _readings(text: str, key: str, file: str) -> Iterator[typing.Any]:
    """What the text may mean, the likeliest first."""

    def mapping(pairs: list) -> dict:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"key '{key}.{twice}' in {file} is set twice, in '{text}': set it once")
        return dict(pairs)

    if text.lower() == "none":
        yield None
    yield text
    try:
        yield _truths_in_words(json.loads(text, object_pairs_hook=mapping))
    except json.JSONDecodeError:
        pass
    items = [item.strip() for item in text.split(",")] if text else []
    yield items
    if items and all("=" in item for item in items):
        yield mapping([item.split("=", 1) for item in items])


def _truths_in_words(value: typing.Any) -> typing.Any:
    """JSON with "true" for true, which a field for a truth reads as well, and a number does not as 1."""
    if isinstance(value, dict):
        return {name: _truths_in_words(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_truths_in_words(child) for child in value]
    return str(value).lower() if isinstance(value, bool) else value


def _rebuild(node: typing.Any, changes: dict[tuple, typing.Any], file: str, prefix: str = "") -> typing.Any:
    """Replaces all changed leaves of a node at once, so that fields that belong together change together."""
    groups: dict[str, dict] = {}
    for (head, *rest), value in changes.items():
        groups.setdefault(head, {})[tuple(rest)] = value
    replaced = {}
    for name, below in groups.items():
        child = node[name] if isinstance(node, dict) else _child(node, name)
        replaced[name] = below[()] if () in below else _rebuild(child, below, file, f"{prefix}{name}.")
    if isinstance(node, dict):
        return {**node, **replaced}
    try:
        return dataclasses.replace(node, **replaced)
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error, file, prefix.rstrip("."))) from error
