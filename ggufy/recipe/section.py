"""What all sections of a recipe share: the base class, and templates with braces in them."""

from __future__ import annotations

import re
import string
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_and_false_are_a_kind_of_their_own(cls, value: Any, info: ValidationInfo) -> Any:
        is_flag = cls.model_fields[str(info.field_name)].annotation is bool
        if isinstance(value, bool) and not is_flag:
            raise ValueError(f"expected a value other than true or false, not {str(value).lower()}")
        if is_flag and not isinstance(value, bool):
            # A text or a number that could be meant as one is more often a slip: in YAML "no" is no boolean, no is.
            raise ValueError(f"expected true or false, without quotes, not {value!r}")
        return value


def template_fields(template: str) -> list[str]:
    """The columns that a prompt template names. Raises ValueError where it is none."""
    fields = []
    for _, name, form, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if form or conversion or not name or set(name) & set(".["):
            raise ValueError(f"{{{name}}} is not the name of a column; to write a brace, double it: {{{{")
        fields.append(name)
    return fields


def rows_or_share(value: Any) -> int | str:
    """A number of rows as an int, or a share of them as it was written. Raises ValueError."""
    text = str(value).strip().removesuffix(".0")
    if text.isdecimal():
        return int(text)
    if not re.fullmatch(r"\d{1,2}(\.\d+)?%", text) or not float(text[:-1]):
        raise ValueError(f"expected a number of rows such as 500, or a share such as 10%, not {value!r}")
    return text
