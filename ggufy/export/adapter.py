"""A PEFT adapter, and what it adds to rows of the base.

LoRA: W + (B @ A) * scaling, with scaling alpha/r, or alpha/sqrt(r) with rsLoRA, where r and alpha may differ by module
(rank_pattern, alpha_pattern). DoRA: rows of that, brought to the learnt length. As in peft 0.21, `lora/layer.py` and
`lora/dora.py`; everything in float32.

Where a base ties its output matrix to its embedding and the adapter changes one of them, or both apart, the model in
training was no longer tied, and so neither is what is exported. (peft's merge adds the LoRA of either to both, and
warns of it: its own forward pass does not.)
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy import ggml
from ggufy.errors import ExportError
from ggufy.export import fourbit
from ggufy.export.adapter_config import AdapterConfig
from ggufy.weights import FOUR_BIT, SIZES, Checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PREFIX = "base_model.model."
_DAMAGED = "the adapter is damaged: copy it again, or train it again"
_OTHER_BASE = "name the base this adapter was trained on with --base"
READABLE = ("F32", "F16", "BF16", FOUR_BIT)
"""The dtypes whose numbers can be read."""
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


@dataclass
class Pair:
    """The low-rank change of one matrix: float32 arrays a (r, columns) and b (rows, r)."""

    a: Any
    b: Any
    scaling: float
    magnitude: Any = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def plain(self) -> bool:
        """Whether the change is only added: scaling times `product`."""
        return not self.transposed and self.magnitude is None

    @property
    def is_nothing(self) -> bool:
        """Whether it leaves the base as it is."""
        return self.magnitude is None and not (self.scaling and self.a.any() and self.b.any())

    def product(self, start: int, stop: int, scratch: Any) -> Any:
        """Rows [start, stop) of B @ A, in `scratch`: float32 (n, columns)."""
        import numpy as np

        if self.transposed:
            np.copyto(scratch, (self.b @ self.a[:, start:stop]).T)
            return scratch
        return np.matmul(self.b[start:stop], self.a, out=scratch)

    def apply(self, rows: Any, start: int, scratch: Any) -> None:
        """Change rows [start, start + len(rows)) of the base, float32 (n, columns), in place.

        `scratch` is a float32 array of the same shape, for the product.
        """
        import numpy as np

        stop = start + len(rows)
        delta = self.product(start, stop, scratch)
        delta *= np.float32(self.scaling)
        rows += delta
        if self.magnitude is not None:
            lengths = np.linalg.norm(rows, axis=1).astype(np.float32)
            rows *= (self.magnitude[start:stop] / lengths)[:, None]


class Adapter:
    """The adapter in a folder. `pairs` by the name of the base tensor; `whole` replaces tensors of the base.

    `copies` are those of `whole` that were trained as copies (modules_to_save); the others were loaded into the base.
    `kept_tied` where peft kept the copies of embedding and output matrix the same (ensure_weight_tying).
    """

    def __init__(
        self,
        pairs: dict[str, Pair],
        whole: dict[str, str],
        weights: Checkpoint | None,
        where: str,
        config: AdapterConfig | None,
    ) -> None:
        self.pairs, self.whole, self.weights, self.where, self.config = pairs, whole, weights, where, config
        # Without an effect, so that any other number will do.
        self.alpha = (config.lora_alpha if config else 0) or 1.0
        saved = config.saved if config else ()
        self.copies = {name for name in whole if saved and name.rpartition(".")[0].endswith(saved)}
        self.brought = frozenset(whole)
        self.kept_tied, self.untied = bool(config and config.ensure_weight_tying), False

    @classmethod
    def none(cls) -> Adapter:
        return cls({}, {}, None, "no adapter", None)

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Read a PEFT adapter folder. Raises ExportError for what cannot be merged exactly."""
        where = folder.as_posix()
        config = AdapterConfig.read(folder / "adapter_config.json")
        weights = Checkpoint.open(_file(folder))
        found: dict[str, dict[str, Any]] = {}
        whole: dict[str, str] = {}
        for name in weights.tensors:
            short = name.removeprefix(_PREFIX)
            suffix = next((s for s in _PARTS if short.endswith(s)), None)
            if suffix:
                found.setdefault(short.removesuffix(suffix), {})[_PARTS[suffix]] = float32(weights, name)
            elif "lora_" in short or "trainable_tokens" in short:
                raise ExportError(
                    f"{where}: {name} is a kind of adapter weight that ggufy does not merge", "merge it with peft"
                )
            else:
                _check_readable(weights, name)
                whole[short.replace(".modules_to_save", "").replace(".base_layer.", ".")] = name
        if config.trainable_token_indices:
            raise ExportError(
                f"{where}: trainable_token_indices in adapter_config.json, but there are no trained tokens", _DAMAGED
            )
        if not found and not whole:
            raise ExportError(f"{where}: the adapter is empty", "train it first")
        pairs = {
            f"{module}.{kind}": pair
            for module, parts in found.items()
            for kind, pair in _pairs(module, parts, config, where)
        }
        return cls(pairs, whole, weights, where, config)

    def unties(self, tied: bool) -> bool:
        """Whether embedding and output matrix part, where the base ties them. Raises ExportError if that is unclear."""
        if not tied:
            return False
        both = (EMBEDDING, HEAD)
        loaded = [self.whole[name] for name in both if name in self.whole and name not in self.copies]
        if len(loaded) == 2 and not self._same(*loaded):
            raise ExportError(
                f"{self.where}: brings an embedding and an output matrix that differ, but the base ties them",
                _OTHER_BASE,
            )
        for name in both:
            # What was loaded into one of them is in both.
            if loaded and name not in self.copies:
                self.whole[name] = loaded[0]
        trained = any(name in self.copies or name in self.pairs for name in both)
        self.untied = trained and not (self.kept_tied and self._head_is_embedding())
        if not self.untied:
            self.whole.pop(HEAD, None)
            self.pairs.pop(HEAD, None)
        return self.untied

    def _head_is_embedding(self) -> bool:
        """Whether what the adapter holds for the output matrix is what it holds for the embedding once more."""
        import numpy as np

        whole = self.whole
        if HEAD in whole and not (EMBEDDING in whole and self._same(whole[HEAD], whole[EMBEDDING])):
            return False
        head, embedding = self.pairs.get(HEAD), self.pairs.get(EMBEDDING)
        if head is None:
            return True
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

    def check(self, base: Checkpoint, used: Iterable[str]) -> None:
        """Refuse an adapter of which anything does not fit the base, would be left out, is missing, or is nothing."""
        names = dict.fromkeys(used)
        for name, pair in self.pairs.items():
            self._check_known(name, names, base, "changes")
            # The change of a bias is a pair with one column.
            shape = _shape(base, name)
            if pair.shape != (*shape, 1)[:2]:
                raise ExportError(
                    f"adapter and base do not fit: {name} is {list(shape)} in the base, "
                    f"and the adapter changes {list(pair.shape)}",
                    _OTHER_BASE,
                )
        for name, stored in self.whole.items():
            self._check_known(name, names, base, "replaces")
            shape, brought = _shape(base, name), self.weights[stored].shape if self.weights else ()
            if brought != shape:
                raise ExportError(
                    f"adapter and base do not fit: {name} is {list(shape)} in the base, "
                    f"and the adapter brings one of {list(brought)}",
                    f"{_OTHER_BASE}, and with its added tokens: a folder where the base was saved after "
                    "resize_token_embeddings, with that tokenizer",
                )
        for name in names:
            module = name.removesuffix(".weight")
            if name not in self.pairs and self.config and module != name and self.config.changes(module):
                raise ExportError(
                    f"{self.where}: target_modules in adapter_config.json names {module}, "
                    "but there are no lora_A and lora_B of it",
                    "copy the adapter again; a module that was not trained belongs into exclude_modules there",
                )

        if self.pairs and not self.whole and all(pair.is_nothing for pair in self.pairs.values()):
            raise ExportError(
                f"{self.where}: the adapter changes nothing: all of its lora_A or lora_B, or its scaling, are zero",
                "train it first, or export the base itself",
            )
        for name in (*names, *([HEAD] if HEAD not in names and EMBEDDING in names else [])):
            self._check_whole(name)

    def _check_whole(self, name: str) -> None:
        """Refuse an adapter that lacks what its configuration says was trained whole."""
        module, _, part = name.rpartition(".")
        if self.config is None or name in self.brought or name in self.pairs:
            return
        if self.config.saves(module):
            says = "modules_to_save"
        elif part == "bias" and self.config.trains_bias(low_rank=f"{module}.weight" in self.pairs):
            says = f"bias ({self.config.bias})"
        else:
            return
        raise ExportError(f"{self.where}: {says} in adapter_config.json means {name}, but it is not there", _DAMAGED)

    def _check_known(self, name: str, names: Container[str], base: Checkpoint, does: str) -> None:
        if name in names:
            return
        module, _, kind = name.rpartition(".")
        if does == "changes" and kind == "bias" and f"{module}.weight" in names:
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


def _shape(base: Checkpoint, name: str) -> tuple[int, ...]:
    """The shape of a tensor; a tied base has its output matrix as its embedding."""
    return base[EMBEDDING if name == HEAD and name not in base else name].shape


def float32(weights: Checkpoint, name: str) -> Any:
    """A whole tensor of a checkpoint as float32."""
    import numpy as np

    _check_readable(weights, name)
    tensor = weights[name]
    out = np.empty(tensor.shape, np.float32)
    read_rows(weights, name, 0, tensor.shape[0], out)
    return out


def _check_readable(weights: Checkpoint, name: str) -> None:
    tensor = weights[name]
    if tensor.dtype not in READABLE:
        raise ExportError(
            f"{tensor.file.as_posix()}: {name} of the adapter has the type {tensor.dtype}, which cannot be merged",
            "save the adapter in float32, bfloat16 or float16",
        )
    if 0 in tensor.shape or not tensor.shape:
        raise ExportError(
            f"{tensor.file.as_posix()}: {name} has the shape {list(tensor.shape)}, so it holds no matrix",
            "a trainer that shards weights may have saved them in pieces: gather them, then save again",
        )


def read_rows(weights: Checkpoint, name: str, start: int, stop: int, out: Any) -> None:
    """Rows [start, stop) of a tensor into the float32 array `out`, which holds as many numbers."""
    tensor = weights[name]
    if tensor.dtype == FOUR_BIT:
        fourbit.decode(weights, tensor, start, stop, out)
        return
    width = out.size // (stop - start) * SIZES.get(tensor.dtype, 0)
    decode(weights.data(name)[start * width : stop * width], tensor.dtype, out.reshape(-1))


def decode(data: Any, dtype: str, out: Any) -> None:
    """The numbers of a safetensors dtype, as many as the flat float32 array `out` holds. Exact."""
    import numpy as np

    if dtype == "BF16":
        bits = out.view(np.uint32)
        bits[:] = np.frombuffer(data, np.dtype("<u2"), out.size)
        bits <<= 16
    elif dtype == "F16":
        ggml.from_f16(np.frombuffer(data, np.dtype("<f2"), out.size), out)
    elif dtype == "F32":
        out[:] = np.frombuffer(data, np.dtype("<f4"), out.size)
    else:
        raise ExportError(f"weights of type {dtype} cannot be read", "use a base in bf16, f16 or f32")


def _file(folder: Path) -> Path:
    """The adapter's weights, which may not be pickled."""
    file = folder / "adapter_model.safetensors"
    if (folder / "adapter_model.bin").is_file() and not file.is_file():
        raise ExportError(
            f"{folder.as_posix()}: no {file.name} there; adapter_model.bin is pickled, and unpickling can run any code",
            "only safetensors adapters are read: save it as safetensors where you trust it",
        )
    if not file.is_file():
        raise ExportError(f"{folder.as_posix()}: no {file.name} there", "copy the adapter again")
    return file


def _pairs(module: str, parts: dict[str, Any], config: AdapterConfig, where: str) -> Iterator[tuple[str, Pair]]:
    """The changes of a module's weight and, with lora_bias, of its bias."""
    embedding = "embedding_a" in parts or "embedding_b" in parts
    if embedding:
        if {"a", "b"} & parts.keys():
            raise ExportError(f"{where}: {module}.lora_embedding_A is there beside a lora_A or lora_B", _DAMAGED)
        # delta = (B @ A).T, which is what a transposed pair has.
        parts = {name.removeprefix("embedding_"): part for name, part in parts.items()}
    if missing := {"a", "b"} - parts.keys():
        kind = "lora_embedding_" if embedding else "lora_"
        raise ExportError(f"{where}: {module} has no {kind}{missing.pop().upper()}", _DAMAGED)
    pair = _pair(module, parts, config, where, embedding)
    yield "weight", pair
    if "bias" in parts:
        import numpy as np

        yield "bias", Pair(parts["bias"][None], np.ones((1, 1), np.float32), pair.scaling, transposed=True)


def _pair(module: str, parts: dict[str, Any], config: AdapterConfig, where: str, embedding: bool) -> Pair:
    _check_shapes(module, parts, config, where)
    transposed = embedding or config.fan_in_fan_out
    if transposed and "magnitude" in parts:
        what = f"of {module}" if embedding else "with fan_in_fan_out"
        raise ExportError(f"{where}: DoRA {what} is a kind that ggufy does not merge", "merge it with peft")
    if config.use_dora != ("magnitude" in parts):
        has = "no lora_magnitude_vector" if config.use_dora else "a lora_magnitude_vector"
        says = str(config.use_dora).lower()
        raise ExportError(
            f"{where}: {module} has {has}, but adapter_config.json says use_dora: {says}",
            "weights and adapter_config.json are of different adapters: copy both again",
        )
    return Pair(parts["a"], parts["b"], config.scaling(module), parts.get("magnitude"), transposed)


def _check_shapes(module: str, parts: dict[str, Any], config: AdapterConfig, where: str) -> None:
    """Raise ExportError unless A is (rank, columns), B (rows, rank), and the magnitudes are one a row."""
    a, b, rank = parts["a"], parts["b"], config.rank(module)
    shapes = f"lora_A is {list(a.shape)} and lora_B {list(b.shape)}"
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ExportError(f"{where}: {module}: {shapes}, which do not make a matrix", _DAMAGED)
    if a.shape[0] != rank:
        raise ExportError(
            f"{where}: {module} has rank {a.shape[0]}, but adapter_config.json says {rank}",
            "weights and adapter_config.json are of different adapters: copy both again",
        )
    if "magnitude" in parts and parts["magnitude"].shape != b.shape[:1]:
        found = list(parts["magnitude"].shape)
        raise ExportError(f"{where}: {module}: lora_B is {list(b.shape)}, its magnitude vector {found}", _DAMAGED)
