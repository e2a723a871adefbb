"""Read a PEFT adapter, and check that its changes fit a base.

Where a base ties its output matrix to its embedding and the adapter changes one of them, or both apart, the model in
training was no longer tied, and so neither is what is exported. (peft's merge adds the LoRA of either to both, and
warns of it: its own forward pass does not.)
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from ggufy.errors import ExportError
from ggufy.export.adapter import names, token_rows
from ggufy.export.adapter.config import AdapterConfig
from ggufy.export.adapter.lora_delta import DAMAGED, PARTS, LoraDelta, deltas_of
from ggufy.export.adapter.token_rows import TOKENS, TokenRows
from ggufy.export.rows import check_readable, float32
from ggufy.model import architecture, config_files, text_part
from ggufy.model.safetensors import Checkpoint

log = logging.getLogger("ggufy")

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_OTHER_BASE = "name the base this adapter was trained on with --base"


class Adapter:
    """The adapter in a folder. `deltas` by the name of the base tensor; `whole` replaces tensors of the base.

    `copies` are those of `whole` that were trained as copies (modules_to_save); the others were loaded into the base.
    `kept_tied` where peft kept the copies of embedding and output matrix the same (ensure_weight_tying).
    """

    def __init__(
        self,
        deltas: Mapping[str, LoraDelta | TokenRows],
        whole: dict[str, str],
        weights: Checkpoint | None,
        where: str,
        config: AdapterConfig | None,
        prefix: str = "",
    ) -> None:
        self.deltas, self.whole, self.weights, self.where, self.config = dict(deltas), whole, weights, where, config
        # Without an effect, so that any other number will do.
        self.alpha = (config.lora_alpha if config else 0) or 1.0
        saved = config.saved if config else ()
        self.copies = {name for name in whole if saved and name.rpartition(".")[0].endswith(saved)}
        self.brought = frozenset(whole)
        self.prefix = prefix
        """What peft has before the names of the language model, where that is a part of the base."""
        self.kept_tied, self.untied = bool(config and config.ensure_weight_tying), False

    @classmethod
    def none(cls) -> Adapter:
        return cls({}, {}, None, "no adapter", None)

    @classmethod
    def of(cls, base: Path, folder: Path | None) -> Adapter:
        """The adapter in a folder, or none, on a base folder: how peft merges it is up to the layers there."""
        if not folder:
            return cls.none()
        config = config_files.read(base / "config.json")
        return cls.open(folder, conv1d=architecture.has_conv1d(config), part=text_part.is_part(config))

    @classmethod
    def open(cls, folder: Path, *, conv1d: bool = False, part: bool = False) -> Adapter:
        """Read a PEFT adapter folder. Raises ExportError for what cannot be merged exactly.

        `conv1d` says that the base has its matrices the other way round, as GPT-2 has. For peft that decides, and not
        what the configuration says (fan_in_fan_out). `part` says that the language model is a part of the base: the
        adapter is what it changes there, by the names that a language model alone has.
        """
        where = folder.as_posix()
        config = AdapterConfig.read(folder / "adapter_config.json")
        if config.fan_in_fan_out != conv1d:
            log.info(
                "%s: fan_in_fan_out is %s, which does not fit the base's layers; as in peft it is not used",
                where,
                str(config.fan_in_fan_out).lower(),
            ) if config.fan_in_fan_out else None
            config = config.model_copy(update={"fan_in_fan_out": conv1d})
        weights = names.open_weights(_file(folder))
        found: dict[str, dict[str, Any]] = {}
        tokens: dict[str, Any] = {}
        whole: dict[str, str] = {}
        others = [name for name in weights.tensors if part and text_part.is_other(names.module_of(name))]
        for name in (name for name in weights.tensors if name not in others):
            short = names.module_of(name)
            suffix = next((s for s in PARTS if short.endswith(s)), None)
            if suffix:
                found.setdefault(short.removesuffix(suffix), {})[PARTS[suffix]] = float32(weights, name)
            elif short.endswith(TOKENS):
                tokens[short.removesuffix(TOKENS)] = float32(weights, name)
            elif "lora_" in short or "trainable_tokens" in short:
                raise ExportError(
                    f"{where}: {name} is a kind of adapter weight that ggufy does not merge", "merge it with peft"
                )
            else:
                check_readable(weights, name)
                short = short.replace(".modules_to_save", "").replace(".token_adapter", "")
                whole[short.replace(".base_layer.", ".")] = name
        prefix = text_part.prefix_of([*found, *tokens, *whole]) if part else ""

        def alone(module: str) -> str:
            return text_part.short(module) if part else module

        rows = {f"{alone(module)}.weight": delta for module, delta in token_rows.of(tokens, config, where)}
        if not found and not whole and not rows:
            raise ExportError(f"{where}: the adapter is empty", "train it first")
        deltas = {
            f"{alone(module)}.{kind}": delta
            for module, parts in found.items()
            for kind, delta in deltas_of(module, parts, config, where)
        }
        if both := deltas.keys() & rows.keys():
            raise ExportError(f"{where}: {min(both)} has single trained tokens beside a lora_A", DAMAGED)
        whole = {alone(module): name for module, name in whole.items()}
        if others and any(float32(weights, name).any() for name in others if "lora_A" not in name):
            log.info("%s: what it changes of the part that reads images is left out: a GGUF has the text model", where)
        return cls({**deltas, **rows}, whole, weights, where, config, prefix)

    def named_as(self, base: Checkpoint) -> Adapter:
        """With the base's names, where it was trained on the model without its output matrix: those lack "model."."""

        def whole(name: str) -> str:
            return f"model.{name}" if name not in base and f"model.{name}" in base else name

        if all(whole(name) == name for name in (*self.deltas, *self.whole)):
            return self
        deltas = {whole(name): delta for name, delta in self.deltas.items()}
        brought = {whole(name): stored for name, stored in self.whole.items()}
        return Adapter(deltas, brought, self.weights, self.where, self.config)

    def vocabulary(self, base: Checkpoint) -> int:
        """Rows of the embedding: of the one that the adapter brings, else of the base's."""
        brought = self.weights[self.whole[EMBEDDING]] if self.weights and EMBEDDING in self.whole else base[EMBEDDING]
        return brought.shape[0]

    def unties(self, tied: bool) -> bool:
        """Whether the adapter unties embedding and output matrix of a tied base. Raises ExportError if unclear."""
        if not tied:
            return False
        both = (EMBEDDING, HEAD)
        single = [delta for name in both if isinstance(delta := self.deltas.get(name), TokenRows)]
        if len(single) == 2 and not single[0].same(single[1]):
            raise ExportError(
                f"{self.where}: it trains single tokens of embedding and output matrix apart, but the base ties them",
                _OTHER_BASE,
            )
        loaded = [self.whole[name] for name in both if name in self.whole and name not in self.copies]
        if len(loaded) == 2 and not self._same(*loaded):
            raise ExportError(
                f"{self.where}: it has an embedding and an output matrix that differ, but the base ties them",
                _OTHER_BASE,
            )
        for name in both:
            # What was loaded into one of them is in both.
            if loaded and name not in self.copies:
                self.whole[name] = loaded[0]
        # Tokens of a tied embedding are trained as tokens of both.
        trained = any(name in self.copies or (name in self.deltas and self.deltas[name].unties) for name in both)
        self.untied = trained and not (self.kept_tied and self._head_is_embedding())
        if self.untied and any(isinstance(self.deltas.get(name), TokenRows) for name in both):
            raise ExportError(
                f"{self.where}: it trains single tokens of a tied embedding, and its output matrix apart",
                "merge it with peft",
            )
        if not self.untied:
            self.whole.pop(HEAD, None)
            self.deltas.pop(HEAD, None)
        return self.untied

    def _head_is_embedding(self) -> bool:
        """Whether what the adapter holds for the output matrix is what it holds for the embedding once more."""
        import numpy as np

        whole = self.whole
        if HEAD in whole and not (EMBEDDING in whole and self._same(whole[HEAD], whole[EMBEDDING])):
            return False
        head, embedding = self.deltas.get(HEAD), self.deltas.get(EMBEDDING)
        if head is None:
            return True
        if isinstance(head, TokenRows) or isinstance(embedding, TokenRows):
            return False
        if embedding is None or head.magnitude is not None or head.scaling != embedding.scaling:
            return False
        return np.array_equal(head.a, embedding.b.T) and np.array_equal(head.b, embedding.a.T)

    def _same(self, first: str, second: str) -> bool:
        """Whether two tensors of the adapter are equal, byte for byte."""
        import numpy as np

        weights = self.weights
        if weights is None or weights[first].dtype != weights[second].dtype:
            return False
        one, other = (np.frombuffer(weights.data(name), np.uint8) for name in (first, second))
        return np.array_equal(one, other)

    def check(self, base: Checkpoint, used: Iterable[str], *, resizes: bool = False) -> None:
        """Refuse an adapter that does not fit the base, is incomplete, changes nothing, or cannot be merged whole.

        With `resizes` its embedding may have another number of rows than the base's, as it has its own tokenizer.
        """
        wanted = dict.fromkeys(used)
        rows = self.vocabulary(base) if resizes else None
        for name, delta in self.deltas.items():
            self._check_known(name, wanted, base, "changes")
            # The change of a bias is a delta with one column.
            shape = _shape(base, name, rows)
            if not delta.fits((*shape, 1)[:2]):
                raise ExportError(
                    f"adapter and base do not fit: {name} is {list(shape)} in the base, "
                    f"and the adapter changes {list(delta.shape)}",
                    _OTHER_BASE,
                )
        for name, stored in self.whole.items():
            self._check_known(name, wanted, base, "replaces")
            shape, brought = _shape(base, name, rows), self.weights[stored].shape if self.weights else ()
            if brought != shape:
                raise ExportError(
                    f"adapter and base do not fit: {name} is {list(shape)} in the base, "
                    f"and the adapter brings one of {list(brought)}",
                    f"{_OTHER_BASE}, with its added tokens; or save the tokenizer that it was trained with beside it: "
                    "tokenizer.json and tokenizer_config.json",
                )
        if (
            rows is not None
            and HEAD in wanted
            and HEAD not in self.whole
            and rows > base[HEAD if HEAD in base else EMBEDDING].shape[0]
            and not self.untied
        ):
            raise ExportError(
                f"{self.where}: its embedding has {rows:,} rows, and there is no output matrix for them: the base has "
                f"{base[HEAD].shape[0]:,} rows",
                "save the adapter again with save_embedding_layers=True, or lm_head in modules_to_save",
            )
        for name in wanted:
            module = name.removesuffix(".weight")
            if (
                name not in self.deltas
                and self.config
                and module != name
                and self.config.changes(module, text_part.full(module, self.prefix))
            ):
                raise ExportError(
                    f"{self.where}: target_modules in adapter_config.json names {module}, "
                    "but there are no lora_A and lora_B of it",
                    "copy the adapter again; a module that was not trained belongs in exclude_modules there",
                )

        if self.deltas and not self.whole and all(delta.is_nothing for delta in self.deltas.values()):
            raise ExportError(
                f"{self.where}: the adapter changes nothing: all of its lora_A or lora_B, or its scaling, are zero",
                "train it first, or export the base itself",
            )
        for name in (*wanted, *([HEAD] if HEAD not in wanted and EMBEDDING in wanted else [])):
            self._check_whole(name)

    def _check_whole(self, name: str) -> None:
        """Refuse an adapter that lacks what its configuration says was trained whole."""
        module, _, part = name.rpartition(".")
        if self.config is None or name in self.brought or name in self.deltas:
            return
        if self.config.saves(module):
            says = "modules_to_save"
        elif part == "bias" and self.config.trains_bias(low_rank=f"{module}.weight" in self.deltas):
            says = f"bias ({self.config.bias})"
        else:
            return
        raise ExportError(f"{self.where}: {says} in adapter_config.json means {name}, but it is not there", DAMAGED)

    def _check_known(self, name: str, wanted: Container[str], base: Checkpoint, does: str) -> None:
        if name in wanted:
            return
        module, _, kind = name.rpartition(".")
        if does == "changes" and kind == "bias" and f"{module}.weight" in wanted:
            raise ExportError(
                f"{self.where}: lora_bias trained a bias of {module}, which has none in the base {base.where}",
                "train it without lora_bias: peft cannot merge it either",
            )
        other = next((suffix for suffix in (".weight", ".bias") if name.endswith(suffix)), None)
        if does == "replaces" and not other:
            raise ExportError(
                f"{self.where}: {self.whole[name]} is a kind of adapter weight that ggufy does not merge",
                "merge it with peft",
            )
        raise ExportError(
            f"{self.where}: the adapter {does} {name}, which is not in the base {base.where}", _OTHER_BASE
        )


def _shape(base: Checkpoint, name: str, rows: int | None = None) -> tuple[int, ...]:
    """The shape of a tensor; a tied base has its output matrix as its embedding, which may get other `rows`."""
    shape = base[EMBEDDING if name == HEAD and name not in base else name].shape
    return shape if rows is None or name not in (EMBEDDING, HEAD) else (rows, *shape[1:])


def _file(folder: Path) -> Path:
    """The adapter's weights, which may not be pickled."""
    file = folder / "adapter_model.safetensors"
    if (folder / "adapter_model.bin").is_file() and not file.is_file():
        raise ExportError(
            f"{folder.as_posix()}: no {file.name} there; adapter_model.bin is pickled, and unpickling can run any code",
            "only safetensors adapters are read: if you trust it, save it as safetensors",
        )
    if not file.is_file():
        raise ExportError(f"{folder.as_posix()}: no {file.name} there", "copy the adapter again")
    return file
