"""Whether what a template writes after an answer ends it: what is said where it does not."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ggufy.data.checks.said import short
from ggufy.errors import ModelError


def goes_on(where: str, rest: str) -> ModelError:
    """Of a template that goes on after the end of an answer, though nothing follows."""
    return ModelError(
        f"{where}: the chat template writes {short(rest)} after the end of an answer, also where none is asked for",
        "write the generation prompt only {% if add_generation_prompt %}",
    )


def missing(
    where: str, rest: str, ids: Collection[int], special: Mapping[str, int], stopping: Collection[int]
) -> ModelError:
    """Of an answer that no token of `stopping` ends: `rest` is what the template writes after it, `ids` are its."""
    names, known = {number: text for text, number in special.items()}, _known(special, stopping)
    # After a call there may be others, such as one that closes its arguments.
    last = next((number for number in reversed(list(ids)) if number in names), None)
    if last is None:
        wrote = repr(rest.strip()) if rest.strip() else "nothing"
        return ModelError(
            f"{where}: the chat template writes {wrote} after an answer, so no answer would ever end; the model stops "
            f"at {known}",
            "write the eos_token there, or take the template of the model's own Instruct version",
        )
    return ModelError(
        f"{where}: the chat template ends an answer with {names[last]} ({last}), which does not stop the model: that "
        f"is {known}",
        f"name {last} in eos_token_id of generation_config.json, if the model knows it as an end",
    )


def nowhere(where: str, turn: int, between: str, special: Mapping[str, int], stopping: Collection[int]) -> ModelError:
    """Of an answer with no token of `stopping` `between` it and what the next turn says."""
    return ModelError(
        f"{where}: the chat template writes {short(between)} between the answer of turn {turn} and what turn "
        f"{turn + 1} says, and nothing there stops the model: that is {_known(special, stopping)}",
        "write the eos_token after every answer, or take the template of the model's own Instruct version",
    )


def _known(special: Mapping[str, int], stopping: Collection[int]) -> str:
    names = {number: text for text, number in special.items()}
    return ", ".join(f"{names.get(number, 'token')} ({number})" for number in stopping) or "none is named"


def without(text: str, marks: Collection[str]) -> str:
    """A text without these tokens."""
    for mark in marks:
        text = text.replace(mark, "")
    return text
