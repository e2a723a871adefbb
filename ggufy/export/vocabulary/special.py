"""Which tokens begin and end a text: their numbers, and whether llama.cpp puts them there by itself.

The rules are those of llama.cpp's converter (`gguf-py/gguf/vocab.py`), which reads them from the post-processor of
tokenizer.json and from tokenizer_config.json; what the tokens are called is taken as transformers has it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ggufy.errors import ExportError
from ggufy.model import config_files
from ggufy.model.template import named_specials
from ggufy.model.tokenizer.folder import KINDS, FolderTokenizer

# What llama.cpp takes where a SentencePiece vocabulary does not say which.
_UNSAID = {"bos": 1, "eos": 2}


@dataclass
class Specials:
    """Special tokens by kind (`bos`, `eos`, ...), in the order in which the converter writes them."""

    ids: dict[str, int] = field(default_factory=dict)
    added: dict[str, bool] = field(default_factory=dict)
    """Whether the tokenizer puts one around a text."""

    def write(self, writer: Any) -> None:
        for kind, number in self.ids.items():
            if add := getattr(writer, f"add_{kind}_token_id", None):
                add(number)
        for kind, flag in self.added.items():
            if add := getattr(writer, f"add_add_{kind}_token", None):
                add(flag)


def of(tokenizer: FolderTokenizer, rows: int | None = None) -> Specials:
    """The special tokens of a folder; with `rows` without numbers that are no token's."""
    named: dict[str, str | None] = {kind: tokenizer.special.get(f"{kind}_token") for kind in KINDS}
    named["bos"] = named["bos"] or named["cls"]
    named["eos"] = named["eos"] or named["sep"]
    found = Specials()
    if tokenizer.made:
        _from_files(tokenizer, named, found)
    else:
        _from_tokenizer(tokenizer, named, found)
    for kind, number in list(found.ids.items()):
        if number < 0:
            raise ExportError(
                f"{tokenizer.folder.as_posix()}: {kind}_token_id is {number}, which is no token's",
                "correct config.json",
            )
        if rows is not None and number >= rows:
            del found.ids[kind]
    return found


def _from_tokenizer(tokenizer: FolderTokenizer, named: dict[str, str | None], found: Specials) -> None:
    """As tokenizer.json has them, and config.json those that are left."""
    try:
        _post_processor(tokenizer.spec.get("post_processor") or {}, named, _flagged(tokenizer), found.added)
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ExportError(
            f"{tokenizer.path.as_posix()}: its post_processor cannot be read: {error!r}", "copy the folder again"
        ) from None
    first: dict[str, int] = {}
    for entry in tokenizer.spec.get("added_tokens") or []:
        first.setdefault(entry["content"], entry["id"])
    for kind, name in named.items():
        flag = tokenizer.config.get(f"add_{kind}_token")
        if isinstance(flag, bool):
            found.added.setdefault(kind, flag)
        if name is not None:
            number = first[name] if name in first else _number(tokenizer, name)
            if number is not None:
                found.ids[kind] = number
    _from_config(tokenizer, list(named), found.ids)


def _from_files(tokenizer: FolderTokenizer, named: dict[str, str | None], found: Specials) -> None:
    """Of a folder without a tokenizer.json of its own: what config.json says, as the converter takes it.

    But where the tokenizer begins or ends texts with another, that one, or answers would not end.
    """
    given: dict[str, int] = {}
    unsaid = _UNSAID if (tokenizer.spec.get("model") or {}).get("byte_fallback") else {}
    _from_config(tokenizer, list(named), given)
    for kind, name in named.items():
        flag = tokenizer.config.get(f"add_{kind}_token")
        if isinstance(flag, bool):
            found.added[kind] = flag
        own = _number(tokenizer, name) if name and kind in ("bos", "eos") else None
        if own is not None and own != given.get(kind, unsaid.get(kind)):
            given[kind] = own
        if kind in given:
            found.ids[kind] = given[kind]


def _number(tokenizer: FolderTokenizer, name: str) -> int | None:
    return next((number for number, text in tokenizer.names.items() if text == name), None)


def _from_config(tokenizer: FolderTokenizer, kinds: list[str], ids: dict[str, int]) -> None:
    """What config.json says of those that have no name."""
    model = config_files.read(tokenizer.folder / "config.json")
    inner = model.get("text_config") or {}
    for kind in kinds:
        number = model.get(f"{kind}_token_id", inner.get(f"{kind}_token_id"))
        if isinstance(number, int) and not isinstance(number, bool):
            ids.setdefault(kind, number)


def _flagged(tokenizer: FolderTokenizer) -> set[str]:
    """The kinds whose token is written with its flags: to the converter such a one is none that a template has."""
    written = named_specials(tokenizer.folder, tokenizer.config)
    found = {kind for kind in KINDS if isinstance(written.get(f"{kind}_token"), dict)}
    instead = {
        kind for kind, other in (("bos", "cls"), ("eos", "sep")) if f"{kind}_token" not in written if other in found
    }
    return found | instead


def _post_processor(
    post: dict[str, Any], named: dict[str, str | None], flagged: set[str], added: dict[str, bool]
) -> None:
    """Read what is put around texts; a token without a name gets one."""
    for step in post.get("processors", [post] if post else []):
        kind = step.get("type")
        if kind == "ByteLevel":
            added.setdefault("bos", False)
            added.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            added.update(bos=True, eos=True, sep=True)
            named["cls"] = named["cls"] or step.get("cls", [named["bos"]])[0]
            named["sep"] = named["sep"] or step.get("sep", [named["eos"]])[0]
        elif kind == "TemplateProcessing":
            _template(step, named, flagged, added)


def _template(step: dict[str, Any], named: dict[str, str | None], flagged: set[str], added: dict[str, bool]) -> None:
    def is_one(token: str | None, *kinds: str) -> bool:
        return token is not None and any(named[kind] == token and kind not in flagged for kind in kinds)

    single = [_special(piece) for piece in step.get("single") or []]
    first, last = (single[0], single[-1]) if len(single) > 1 else (None, None)
    if first:
        if not is_one(first, "bos", "cls"):
            named["bos"] = named["bos"] or first
            named["cls"] = named["cls"] or first
        added["bos"] = is_one(first, "bos", "cls")
    if last:
        if not is_one(last, "eos"):
            # What it was ends a turn.
            if free := next((kind for kind in ("eot", "eom") if kind not in named), None):
                named[free] = named["eos"]
            named["eos"] = last
            flagged.discard("eos")
        added["eos"] = True
    pair = [_special(piece) for piece in step.get("pair") or []]
    pair = pair[1:] if first and pair and pair[0] == first else pair
    pair = pair[:-1] if last and pair and pair[-1] == last else pair
    # A, what is between, B.
    if len(pair) > 2 and pair[0] is None and pair[-1] is None:
        between = pair[1:-1]
        sep = is_one(between[0], "sep", "eos") and not last
        sep = sep or (len(between) == 2 and is_one(between[1], "sep", "eos"))
        added["sep"] = sep
        if sep:
            named["sep"] = named["sep"] or named["eos"]


def _special(piece: dict[str, Any]) -> str | None:
    """The special token of a template's piece; None where the text goes."""
    token = piece.get("SpecialToken")
    return str(token["id"]) if token else None
