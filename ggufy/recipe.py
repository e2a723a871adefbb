"""Recipes: what to train, on what, how, and which files to make of it.

The defaults live in the types below; a recipe file states only what differs. Every mistake of a file comes in one
message, each with its line, what was expected, and the nearest name where a name is wrong.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from ggufy import recipe_file
from ggufy.errors import RecipeError
from ggufy.recipe_file import Document, Key

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
MODULE_GROUPS = {"attention": ATTENTION, "mlp": MLP, "all": ATTENTION + MLP}

# Sections that may change in a run that is already trained: they say what is made of it, not what it is.
LATE_SECTIONS = frozenset({"description", "export", "hub", "tracking"})

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"true and false are no value for this, but it is {str(value).lower()}")
        return value


class Model(Section):
    """The base model, in 16 bits, and how it is loaded for training."""

    base: str = Field(min_length=1)
    """Hub repository or local folder with 16-bit safetensors, or builtin:tiny."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    max_length: Annotated[int, Field(ge=8)] = 2048
    """Longest conversation in tokens."""
    load_in: Literal["4bit", "8bit", "16bit"] = "16bit"
    """How the frozen base is held in memory while training: 4bit is QLoRA."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the GPU has it, else fp16 on a GPU, fp32 on a CPU."""


class Lora(Section):
    """The adapter."""

    r: Positive = 16
    """Rank."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """Scaling: alpha/r, or alpha/sqrt(r) with rslora."""
    dropout: Fraction = 0.0
    target_modules: Literal["attention", "mlp", "all"] | tuple[str, ...] = "all"
    """attention, mlp, all, or a list of module names."""
    rslora: bool = False
    dora: bool = False

    @field_validator("target_modules")
    @classmethod
    def _not_empty(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("needs at least one module")
        return value

    @property
    def modules(self) -> tuple[str, ...]:
        if isinstance(self.target_modules, str):
            return MODULE_GROUPS[self.target_modules]
        return self.target_modules


class Data(Section):
    """The conversations."""

    source: str = Field(min_length=1)
    """Hub data set, local .json or .jsonl file, or builtin:samples."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    split: str = "train"
    """Split of a Hub data set."""
    format: Literal["auto", "sharegpt", "messages"] = "auto"
    """auto: told from the columns."""
    train_size: Positive | None = None
    """The first N rows; all of them if not given."""
    eval_size: Annotated[int, Field(ge=0)] = 0
    """The N rows after those are held out."""
    train_on: Literal["responses", "all"] = "responses"
    """responses: only what the assistant says, and its end-of-turn, counts in the loss."""
    overflow: Literal["truncate", "drop", "refuse"] = "truncate"
    """What happens to a conversation longer than model.max_length."""
    on_bad_row: Literal["error", "skip"] = "error"
    """skip: leave unusable rows out, and say how many."""


class Train(Section):
    """The training itself."""

    backend: Literal["auto", "hf"] = "auto"
    """hf: transformers, peft and trl. Naming it also says that a slow machine is meant."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 3407
    max_steps: Positive | None = None
    """Optimizer steps; if not given, epochs counts."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Positive = 1
    """Conversations on the device at once."""
    gradient_accumulation: Positive = 4
    """Batches a step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Below 1 a share of the steps, else a number of steps."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = "adamw_8bit"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    gradient_checkpointing: bool = True
    save_steps: Positive = 50
    """A checkpoint every N steps, and one at the end."""
    keep_checkpoints: Positive = 2
    """How many verified checkpoints stay on the disk."""


class Eval(Section):
    """The loss on held-out conversations (data.eval_size)."""

    steps: Positive | None = None
    """Every N steps; if not given, at the end only."""
    batch_size: Positive = 1


class Export(Section):
    """The GGUF files."""

    quants: tuple[str, ...] = ("q4_k_m",)
    """llama.cpp's names: f16, q8_0, q4_k_m, ..."""


class Hub(Section):
    """The Hugging Face Hub."""

    offline: bool = False
    """Use only what is in the local cache."""


class Tracking(Section):
    """Where the figures of a run go, beside metrics.jsonl."""

    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    log_steps: Positive = 1
    """The loss is logged every N steps."""


class Recipe(Section):
    """One recipe, complete and checked."""

    name: str = Field(default="recipe", pattern=r"^[\w][\w.-]*$")
    description: str = ""
    model: Model
    lora: Lora = Lora()
    data: Data
    train: Train = Train()
    eval: Eval = Eval()
    export: Export = Export()
    hub: Hub = Hub()
    tracking: Tracking = Tracking()

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Keys in which `other` differs: {"train.seed": (mine, theirs)}."""
        mine, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        keys = [*mine, *(key for key in theirs if key not in mine)]
        return {k: (mine.get(k), theirs.get(k)) for k in keys if mine.get(k) != theirs.get(k) and k != "name"}


def folder() -> Path:
    """Where the recipes that come with ggufy are: in the package once installed, beside it in a checkout."""
    here = Path(__file__).parent
    packaged = here / "recipes"
    return packaged if packaged.is_dir() else here.parent / "recipes"


def names() -> list[str]:
    """The names of the recipes that come with ggufy."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def find(name: str | os.PathLike[str]) -> Path:
    """The file of a recipe, given by name or by path."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml") or len(given.parts) > 1:
        if not given.is_file():
            raise RecipeError(f"no recipe file {given.as_posix()}", "check the path, or see `ggufy recipes`")
        return given
    path = folder() / f"{name}.yaml"
    if not path.is_file():
        raise RecipeError(f"unknown recipe {str(name)!r}; {_nearest(str(name), names())}", "`ggufy recipes` lists them")
    return path


def load(name: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of that name or file, with `section.key=value` overrides on top."""
    path = find(name)
    document = _document(path, overrides)
    document.values.setdefault("name", path.stem)
    return _validate(document)


def place(name: str | os.PathLike[str], overrides: Iterable[str], key: Key) -> str:
    """Where a key of a recipe was written: `file.yaml:7`, or a --set."""
    return _document(find(name), overrides).place(key)


def from_values(values: Mapping[str, Any]) -> Recipe:
    """A recipe from ready values, such as those frozen in a run."""
    return _validate(Document(dict(values)))


def source(name: str | os.PathLike[str]) -> str:
    """The text of a recipe's file."""
    return find(name).read_text(encoding="utf-8")


def copy(name: str | os.PathLike[str], target: Path) -> None:
    """Copy a recipe's file, never over another one. A recipe that extends a built-in one still does."""
    if target.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{target.as_posix()}: a recipe file ends in .yaml", f"for example {target.as_posix()}.yaml")
    text = source(name)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{target.as_posix()} exists already", "choose another name, or remove it first") from None


def show(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included, each key with its meaning."""
    import yaml

    lines: list[str] = []
    for key in Recipe.model_fields:
        value = getattr(recipe, key)
        if not isinstance(value, Section):
            lines.append(yaml.safe_dump({key: value}, allow_unicode=True, width=1000).rstrip())
            continue
        lines += ["", f"{key}:  # {(type(value).__doc__ or '').strip()}"]
        for inner, field in type(value).model_fields.items():
            plain = value.model_dump(mode="json")[inner]
            text = yaml.safe_dump(plain, default_flow_style=True, width=1000, allow_unicode=True)
            text = text.removesuffix("...\n").rstrip()
            lines.append(f"  {inner}: {text}" + (f"  # {field.description}" if field.description else ""))
    return "\n".join(lines) + "\n"


def _document(path: Path, overrides: Iterable[str]) -> Document:
    document = _with_parents(path, ())
    for text in overrides:
        document = recipe_file.assignment(text).under(document)
    return document


def _with_parents(path: Path, children: tuple[Path, ...]) -> Document:
    builtin = path.parent == folder()
    document = recipe_file.read(path, None if not builtin else f"{path.stem} (built in)")
    parent = document.values.pop("extends", None)
    if parent is None:
        return document
    where = document.places[("extends",)]
    if not isinstance(parent, str):
        raise RecipeError(f"{where}: extends names one recipe or file, not {parent!r}", "for example extends: 3b_qlora")
    beside = path.parent / parent
    parent_path = beside if Path(parent).suffix in (".yaml", ".yml") and beside.is_file() else None
    if parent_path is None:
        try:
            parent_path = find(parent)
        except RecipeError as error:
            raise RecipeError(f"{where}: extends: {error.message}", error.hint) from None
    if parent_path.resolve() in (p.resolve() for p in (*children, path)):
        raise RecipeError(
            f"{where}: extends goes round in a circle back to {parent}", "remove one of the extends lines"
        )
    inherited = _with_parents(parent_path, (*children, path))
    inherited.values.pop("name", None)
    return document.under(inherited)


def _validate(document: Document) -> Recipe:
    seen: dict[Key, str] = _fits_together(document)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(document.values)
    except ValidationError as error:
        for problem in error.errors():
            # A union reports once for each of its members, under a longer location; the key is what the user wrote.
            location = _written_key(problem["loc"])
            text = _explain(dict(problem), location, document)
            if location in seen and text not in seen[location]:
                before, _, rest = seen[location].rpartition(", not ")
                seen[location] = f"{before} or {text.partition(': expected ')[2].rpartition(', not ')[0]}, not {rest}"
            seen.setdefault(location, text)
    if recipe is not None and not seen:
        return recipe
    mistakes = [seen[key] for key in sorted(seen, key=lambda key: _line(document.place(key)))]
    hint = "`ggufy recipes show tiny` lists every key with its meaning"
    if len(mistakes) == 1:
        raise RecipeError(mistakes[0], hint)
    listed = "\n".join(f"  {mistake}" for mistake in mistakes)
    raise RecipeError(f"{len(mistakes)} mistakes in the recipe:\n{listed}", hint)


def _fits_together(document: Document) -> dict[Key, str]:
    """Mistakes that lie between two keys, by the key to point at."""

    def value(section: str, key: str) -> Any:
        keys = document.values.get(section)
        return keys.get(key) if isinstance(keys, dict) else None

    found: dict[Key, str] = {}
    if value("data", "eval_size") and value("data", "train_size") is None:
        key: Key = ("data", "eval_size")
        found[key] = (
            f"{document.place(key)}: data.eval_size: takes the rows after the training rows: set data.train_size"
        )
    if value("eval", "steps") and not value("data", "eval_size"):
        key = ("eval", "steps")
        found[key] = f"{document.place(key)}: eval.steps: needs held-out rows: set data.eval_size"
    return found


def _line(place: str) -> int:
    number = place.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


def _written_key(location: Sequence[str | int]) -> Key:
    key: list[str | int] = []
    kind: Any = Recipe
    for part in location:
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else None
        if fields is None and not isinstance(part, int):
            break
        key.append(part)
        kind = fields[part].annotation if fields is not None and part in fields else None
        if fields is not None and part not in fields:
            break
    return tuple(key)


def _explain(problem: dict[str, Any], key: Key, document: Document) -> str:
    where, dotted = document.place(key), ".".join(map(str, key))
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{where}: {dotted}: unknown key; {_did_you_mean(key)}"
    if kind == "missing":
        return f"{where}: {dotted}: missing, and it has no default"
    if kind == "value_error":
        return f"{where}: {dotted + ': ' if dotted else ''}{problem['ctx']['error']}"
    expected = problem["msg"].removeprefix("Input should be ")
    expected = expected.removeprefix("a valid ").replace(", unable to parse string as an integer", "")
    expected = expected.replace(", unable to parse string as a number", "")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        expected = "a section with keys"
    if kind == "string_pattern_mismatch":
        expected = "letters, digits, '.', '_' and '-'"
    if kind == "finite_number":
        expected = "a finite number"
    if kind == "tuple_type":
        expected = "a list such as [q_proj, v_proj]" if key[-1] == "target_modules" else "a list"
    text = f"{where}: {dotted}: expected {expected}, not {given!r}"
    if kind == "literal_error" and isinstance(given, str):
        choices = [choice.strip(" '") for choice in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        if close := difflib.get_close_matches(given, choices, 1):
            text += f"; did you mean {close[0]}?"
    return text


def _did_you_mean(key: Key) -> str:
    sections = {n: f.annotation for n, f in Recipe.model_fields.items() if _is_section(f.annotation)}
    wrong = str(key[-1])
    if len(key) > 1 and key[0] in sections:
        own: list[str] = list(sections[str(key[0])].model_fields)  # type: ignore[union-attr]
        if close := difflib.get_close_matches(wrong, own, 1):
            return f"did you mean {close[0]}?"
        prefix = f"the keys of {key[0]} are {', '.join(own)}"
    else:
        if close := difflib.get_close_matches(wrong, [*Recipe.model_fields, "extends"], 1):
            return f"did you mean {close[0]}?"
        prefix = f"the sections are {', '.join(sections)}"
    elsewhere = [f"{s}.{k}" for s, t in sections.items() for k in t.model_fields]  # type: ignore[union-attr]
    by_key = {dotted.partition(".")[2]: dotted for dotted in elsewhere}
    if close := difflib.get_close_matches(wrong, list(by_key), 1, 0.75):
        return f"did you mean {by_key[close[0]]}?"
    return prefix


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _nearest(wrong: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(wrong, known, 3, 0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"the known ones are {', '.join(known)}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
