"""Which format rows are in, told from their columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ggufy.data.rows.beside import SYSTEM, TOOLS
from ggufy.data.rows.formats import FORMATS
from ggufy.data.rows.texts import names_of
from ggufy.errors import DataError
from ggufy.recipe.schema import Part


def detect(columns: Iterable[str], part: Part, where: str) -> str:
    """The name of the format of rows with these columns: the one the recipe names, or the first that fits."""
    columns = list(columns)
    names = {str(ours): theirs for ours, theirs in part.columns.items()}
    for ours, theirs in names.items():
        if theirs not in columns and ours not in ("role", "content"):
            raise DataError(
                f"{where}: data.columns names {theirs!r}, which is not a column; "
                f"the columns are {names_of(columns) or 'none'}",
                "the usual name comes first, as in {instruction: question}",
            )
    if found := matching(columns, names, part.format):
        if found[0] == "text" and part.prompt:
            raise DataError(f"{where}: data.prompt does not apply to plain text", "leave it out, or set data.format")
        return found[0]
    there = f"the columns are {names_of(sorted(columns)) or 'none'}"
    if part.format != "auto":
        form = FORMATS[part.format]
        lacking = [names.get(column, column) for column in form.columns if names.get(column, column) not in columns]
        raise DataError(
            f"{where}: not in the format {part.format}, which needs {' and '.join(map(repr, lacking))}: {there}",
            f"map other names with data.columns, or set data.format: auto; a row of {part.format} is {form.looks_like}",
        )
    if {"chosen", "rejected"} <= set(columns):
        raise DataError(
            f"{where}: these are preferences (chosen and rejected), which supervised training does not learn from",
            "to learn the chosen answers: data.columns: {completion: chosen}",
        )
    known = "; ".join(f"{name}: {form.looks_like}" for name, form in FORMATS.items())
    raise DataError(
        f"{where}: unknown format: {there}",
        f"map other names with data.columns, as {{prompt: question, completion: answer}}; known formats are {known}",
    )


def matching(columns: Iterable[str], names: Mapping[str, str], form: str) -> tuple[str, dict[str, str]] | None:
    """The first format whose columns are there, and what they are called."""
    there = set(columns)
    wanted = FORMATS if form == "auto" else (form,)
    for name in wanted:
        if all(names.get(column, column) in there for column in FORMATS[name].columns):
            return name, named(name, there, names)
    plain = _plain(there)
    fitting: list[tuple[str, dict[str, str]]] = []
    for name in wanted:
        for others in ({column: column for column in FORMATS[name].columns}, *FORMATS[name].other_names):
            # A column that the recipe names itself is not looked for under another name.
            if all(column in names or other in plain for column, other in others.items()):
                found = {column: plain[other] for column, other in others.items() if column not in names}
                fitting.append((name, {**named(name, there, names), **found, **names}))
    # The one that reads the most columns, and of equals the first.
    return max(fitting, key=lambda one: len(one[1]), default=None)


def named(form: str, columns: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """With the names of what a row in this format may have beside what it must have, as the names in capitals."""
    plain = _plain(columns)
    may = (*FORMATS[form].may, *SYSTEM, *TOOLS)
    return {**{column: plain[column] for column in may if column in plain}, **names}


def _plain(columns: Iterable[str]) -> dict[str, str]:
    """Columns by their names without capitals; one that has none comes before one that has."""
    return {column.lower(): column for column in sorted(map(str, columns))}
