"""The tiny base with another model's chat template, and its spare tokens named as that template writes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

VENDORED = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates"
NAMES = (
    "<|im_start|>",
    "<|im_end|>",
    "</s>",
    "<|begin|>",
    "<|end|>",
    "<|think|>",
    "<|content|>",
    "<think>",
    "</think>",
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def base_of(base: Path, folder: Path, template: str, end: str, plain: Collection[str] = ()) -> Path:
    """A copy of `base` in `folder`, whose answers end with `end`; `plain` are added without the flag `special`.

    Without a template it has none.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    ids: dict[str, int] = {}

    def rename(spec: Any) -> None:
        spare = (token for token in spec["added_tokens"] if "reserved" in token["content"])
        for name, token in zip(NAMES, spare, strict=False):
            token |= {"content": name, "special": name not in plain}
        ids.update({token["content"]: token["id"] for token in spec["added_tokens"]})

    _edit(folder / "tokenizer.json", rename)
    _edit(folder / "tokenizer_config.json", lambda config: config.update(eos_token=end, chat_template=None))
    for name in ("generation_config.json", "config.json"):
        _edit(folder / name, lambda config: config.update(eos_token_id=ids[end]))
    if template:
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder


def _edit(path: Path, change: Any) -> None:
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")
