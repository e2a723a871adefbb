"""The sections of a recipe that say what is shared: `hub` (the Hugging Face Hub) and `space` (a Gradio Space)."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ggufy.recipe.section import Section, template_fields

# What may stand in braces in the names of a recipe's hub section.
PLACEHOLDERS = ("recipe", "run", "r", "n")


def check_placeholders(text: str) -> None:
    """Raises ValueError for a name that cannot be filled in."""
    try:
        wanted = [part[1:] for part in Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{text!r} cannot be filled in: {error}") from None
    for name, form, conversion in wanted:
        if name not in PLACEHOLDERS or form or conversion:
            known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            raise ValueError(f"{{{name}}} is nothing that can be filled in; there are {known}")


class Hub(Section):
    """The Hugging Face Hub. In names {recipe}, {run}, {r} (rank) and {n} (training conversations) are filled in."""

    offline: bool = False
    """Use only what is in the local cache."""
    repo: str | None = None
    """Where `ggufy push` sends a run, as user/name."""
    branch: str = Field(default="main", min_length=1)
    """Created if it does not exist, for example 3B_QLoRA_N{n}."""
    private: bool = False
    """A new repository is created as private."""
    what: tuple[Literal["adapter", "gguf", "merged"], ...] = Field(default=("adapter", "gguf"), min_length=1)
    """Which of adapter, gguf and merged are sent."""
    tag: str | None = None
    """Tag to set on the commit."""
    message: str | None = None
    """The commit's message."""
    language: tuple[Annotated[str, Field(pattern=r"^([a-z]{2,3}|multilingual|code)$")], ...] = ()
    """Languages of the data, for the card: en, de, ...; if not given, what the data sets' own cards on the Hub say."""
    examples: tuple[str, ...] = ()
    """Questions that a Space offers."""
    checkpoints: Literal["every_save", "end", "off"] = "off"
    """Checkpoints go to the branch `checkpoints` in the background: each that is saved, the last one, or none."""

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, value: Any) -> Any:
        return "off" if value is False else value

    @field_validator("repo", "branch", "tag", "message")
    @classmethod
    def _known_placeholders(cls, value: str | None) -> str | None:
        check_placeholders(value or "")
        return value


class TaskInput(Section):
    """One field of a task's form."""

    name: str = Field(pattern=r"^[A-Za-z]\w*$")
    """Name by which the task's prompt refers to it."""
    label: str = ""
    """Label above the field; its name if not given."""
    choices: tuple[str, ...] = ()
    """A list to choose from, instead of a text."""
    lines: Annotated[int, Field(ge=1, le=50)] = 1
    """Height of a text field, in lines."""


class Task(Section):
    """A form that makes one prompt, instead of a chat."""

    title: str = Field(min_length=1)
    inputs: tuple[TaskInput, ...]
    """Its fields, each a list item with name, label, and choices or lines."""
    prompt: str = Field(min_length=1)
    """What the model is asked, as in training, with the fields in braces: "[{task}] {text}"."""
    output: Literal["text", "markdown", "cards"] = "markdown"
    """How the answer is shown; cards: parts between empty lines, each a card whose first line is its front."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 512
    """Longest answer, in tokens."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.6
    examples: tuple[dict[str, str], ...] = ()
    """Fields filled in, to choose from: {topic: Photosynthesis}."""

    @field_validator("prompt")
    @classmethod
    def _prompt_is_a_template(cls, value: str) -> str:
        template_fields(value)
        return value

    @model_validator(mode="after")
    def _fields_fit(self) -> Task:
        if not self.inputs:
            raise ValueError("needs at least one input")
        names = [one.name for one in self.inputs]
        if double := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two inputs have the name {double}")
        wanted = template_fields(self.prompt)
        for name in wanted:
            if name not in names:
                raise ValueError(f"the prompt names {{{name}}}, and the inputs are {', '.join(names)}")
        if unused := next((name for name in names if name not in wanted), None):
            raise ValueError(f"the prompt does not name the input {{{unused}}}")
        choices = {one.name: one.choices for one in self.inputs if one.choices}
        for example in self.examples:
            if example.keys() != set(names):
                raise ValueError(f"an example fills in {', '.join(example)}, and the inputs are {', '.join(names)}")
            for name, known in choices.items():
                if example[name] not in known:
                    raise ValueError(f"an example has {example[name]!r} for {name}, which is none of its choices")
        return self


class Space(Section):
    """What a Gradio Space (`ggufy space`) shows."""

    system: str = ""
    """Its system prompt, which a visitor may change."""
    task: Task | None = None
    """A form: title, inputs, prompt, output, max_tokens, temperature, examples."""
