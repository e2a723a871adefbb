"""Read YAML with line numbers: the values of a recipe file, and the line of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ggufy.errors import RecipeError

Key = tuple[str | int, ...]

_HINT = "start from a copy of one: `ggufy recipes copy tiny mine.yaml`"


@dataclass
class Document:
    """The values of a file and, for every key path in it, where it stands: `file.yaml:7` or `--set train.seed=x`."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)

    def place(self, key: Key) -> str:
        """Where a key, or the nearest thing around it, was written."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.places:
                return self.places[key[:end]]
        return self.places.get((), "recipe")

    def under(self, base: Document) -> Document:
        """This document on top of `base`: sections are merged key by key, everything else is replaced."""
        merged = Document(dict(base.values), dict(base.places))
        for name, value in self.values.items():
            below = merged.values.get(name)
            if isinstance(below, dict) and isinstance(value, dict):
                merged.values[name] = {**below, **value}
            else:
                merged.values[name] = value
        merged.places.update(self.places)
        return merged


def read(path: Path, shown_as: str | None = None) -> Document:
    """Read one recipe file. Raises RecipeError where it is not a YAML mapping, or names a key twice."""
    name = shown_as or path.as_posix()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}: not UTF-8 text (byte {error.start})", "save the recipe as UTF-8") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}{_yaml_place(error)}: not valid YAML: {_yaml_problem(error)}", _HINT) from None
    document = Document(places={(): name})
    if root is None:
        return document
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(
            f"{name}:{root.start_mark.line + 1}: a recipe is a mapping of sections, such as `train:`", _HINT
        )
    try:
        _walk(root, (), name, document, ())
        document.values = yaml.constructor.SafeConstructor().construct_document(root)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}{_yaml_place(error)}: {_yaml_problem(error)}", _HINT) from None
    return document


def _walk(node: yaml.Node, key: Key, name: str, document: Document, around: tuple[yaml.Node, ...]) -> None:
    if any(node is outer for outer in around):
        raise RecipeError(f"{document.place(key)}: {'.'.join(map(str, key))} contains itself", "write the value out")
    around = (*around, node)
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                place = f"{name}:{key_node.start_mark.line + 1}"
                raise RecipeError(f"{place}: a key is a word, not {key_node.value or 'a list or mapping'}", _HINT)
            inner = (*key, str(key_node.value))
            place = f"{name}:{key_node.start_mark.line + 1}"
            if inner in document.places:
                raise RecipeError(
                    f"{place}: {'.'.join(map(str, inner))} is given twice (first at {document.places[inner]})",
                    "keep one of the two",
                )
            document.places[inner] = place
            _walk(value_node, inner, name, document, around)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            inner_item: Key = (*key, index)
            document.places[inner_item] = f"{name}:{item.start_mark.line + 1}"
            _walk(item, inner_item, name, document, around)


def assignment(text: str) -> Document:
    """The document of one `--set section.key=value`."""
    place = f"--set {text}"
    name, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in name.split("."))
    if not equals or not all(keys):
        raise RecipeError(f"{place}: expected section.key=value", "for example --set train.learning_rate=5e-5")
    if keys[0] in ("extends", "name"):
        raise RecipeError(f"{place}: {keys[0]} cannot be set", "use --recipe FILE or --run NAME instead")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{place}: the value is not valid YAML: {_yaml_problem(error)}", "quote it, as in 'a: b'"
        ) from None
    for part in reversed(keys):
        parsed = {part: parsed}
    return Document(parsed, {keys[:end]: place for end in range(1, len(keys) + 1)})


def _yaml_place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


def _yaml_problem(error: yaml.YAMLError) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())
