"""What a model family says of a base folder: from Hugging Face's names, shapes and settings to those of llama.cpp.

Follows llama.cpp's `conversion/base.py`: same keys, same order, same tensors. A family is a subclass in a file of its
own, which says only what differs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from pydantic import Field, PositiveFloat, PositiveInt

from ggufy.errors import ExportError
from ggufy.export import vocab
from ggufy.export.adapter.adapter import EMBEDDING, HEAD
from ggufy.export.rows import READABLE
from ggufy.export.vocab import Rules
from ggufy.model import config_files, text_part
from ggufy.model.config_files import Settings
from ggufy.model.llama3 import Shape
from ggufy.model.safetensors import Checkpoint

log = logging.getLogger("ggufy")

_IGNORED = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
# Of a reward model's or trl's own head, which transformers leaves out where it loads a model that writes text.
_OTHER_HEADS = ("v_head.", "value_head.", "score.")
# Of the checkpoint's rotary halves, where llama.cpp pairs them: by module, the number of heads.
PAIRED = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


class Config(Settings):
    """What an export uses of every family's config.json. Its defaults are those of the family's type in transformers.

    How to rotate is in rope_parameters, which older files call rope_scaling.
    """

    architectures: list[str] = Field(default_factory=list)
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    num_attention_heads: PositiveInt
    num_hidden_layers: PositiveInt
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 10000.0
    tie_word_embeddings: bool = False
    vocab_size: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = Field(None, multiple_of=2)
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False


class Sampling(Settings):
    """What an export uses of generation_config.json."""

    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Planned:
    """One tensor of the GGUF: from `source` in the checkpoint, or `made` by us. Shape as in PyTorch."""

    name: str
    source: str | None
    shape: tuple[int, ...]
    heads: int = 0
    """q and k: rows are permuted within each of this many heads. HF keeps rotary halves apart, llama.cpp pairs them."""
    made: tuple[float, ...] = ()
    stored: str = ""
    """Where the base holds it, if under another name than `source`."""
    shift: float = 0.0
    """Added to each weight in the GGUF, not in a merged checkpoint: for norms learnt as their difference to 1."""

    @property
    def full_precision(self) -> bool:
        return len(self.shape) == 1 or self.name.endswith("_norm.weight")


class Family:
    """A base folder of one family. Raises ExportError for a config.json that llama.cpp would compute otherwise.

    `config` are the values of config.json with the defaults of its type, and under `rope` how it rotates.
    """

    name: ClassVar[str]
    """As people call it."""
    arch: ClassVar[str]
    """As llama.cpp calls it."""
    settings: ClassVar[type[Config]]
    shape_type: ClassVar[type[Shape]] = Shape
    paired: ClassVar[Mapping[str, str]] = {}
    """Modules whose rows are permuted, and the key that holds their number of heads."""
    activation: ClassVar[tuple[str, ...]] = ("hidden_act", "silu", "swish")
    """The key of the activation, and the values of it that llama.cpp computes."""
    vocab_rules: ClassVar[Rules] = Rules.OTHER
    """How the converter writes the tokenizer."""
    sees_all: ClassVar[bool] = False
    """Whether llama.cpp lets every layer see all tokens where config.json has a window."""
    always_tied: ClassVar[bool] = False
    """Whether llama.cpp takes the embedding as the output matrix, whatever else there is."""
    says_head_dim: ClassVar[bool] = False
    """Whether transformers, and so the converter, puts head_dim into a config without it."""

    def __init__(self, base: Path) -> None:
        self.base, self.path = base, base / "config.json"
        self.tokenizer = base
        """The folder with the tokenizer's files: the base's, or that of the training."""
        self.config = self._read()
        self.check()

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the embedding."""
        return bool(self.config["tie_word_embeddings"])

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def head_dim(self) -> int:
        config = self.config
        return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])

    @property
    def shape(self) -> Shape:
        config = self.config
        return self.shape_type(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=self.head_dim,
            ffn=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=config["tie_word_embeddings"],
            attention_bias=config["attention_bias"],
            mlp_bias=config["mlp_bias"],
        )

    def _read(self) -> dict[str, Any]:
        config = text_part.settings(config_files.read(self.path))
        known = config_files.check(self.settings, config, self.path)
        config = known.model_dump(exclude_none=True) | config
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
        wholes = {"num_key_value_heads": "num_attention_heads"}
        if "head_dim" not in config:
            wholes["num_attention_heads"] = "hidden_size"
        for part, whole in wholes.items():
            if config[whole] % config[part]:
                raise ExportError(
                    f"{self.path.as_posix()}: {whole} {config[whole]} cannot be divided by {part} {config[part]}",
                    "copy the folder again, or correct that key",
                )
        if self.says_head_dim:
            config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        config["rope"] = self.read_rope(config)
        return config

    def check(self) -> None:
        """Refuse what llama.cpp computes in one way only, where the config says another. Raises ExportError."""
        key, *computed = self.activation
        if self.config[key] not in computed:
            self.refuse(f"{key} is {self.config[key]}", f"computes every {self.name} with {computed[0]}")

    def say_limits(self) -> None:
        """Log what llama.cpp leaves out, and the converter with it, though it makes no difference to most texts."""
        window, context = self.config.get("sliding_window"), self.config["max_position_embeddings"]
        if self.sees_all and window and window < context:
            log.info(
                "config.json has a sliding window of %s tokens, which llama.cpp does not use for a %s: the GGUF is the "
                "same model up to that length",
                f"{window:,}",
                self.name,
            )

    def refuse(self, what: str, does: str) -> NoReturn:
        raise ExportError(
            f"{self.path.as_posix()}: {what}, and llama.cpp {does}",
            f"use a {self.name} without that: the GGUF would not answer like this model",
        )

    def refuse_own_head_dim(self) -> None:
        """For families where llama.cpp takes the width of the model by the number of heads."""
        width, heads = self.config["hidden_size"], self.config["num_attention_heads"]
        if self.head_dim * heads != width:
            self.refuse(f"head_dim is {self.head_dim}", f"takes {width} / {heads} for it in every {self.name}")

    def read_rope(self, config: dict[str, Any]) -> dict[str, Any]:
        """How it rotates: rope_theta, rope_type and what the type needs."""
        raise NotImplementedError

    def plan(self, checkpoint: Checkpoint, *, untied: bool = False) -> list[Planned]:
        """Every tensor of the GGUF, in the converter's order. Raises ExportError for one that has no place in it.

        `untied` gives a tied base an output matrix of its own, because the adapter changes it and the embedding apart.
        """
        import gguf

        self._check_shapes(checkpoint)
        layers = self.config["num_hidden_layers"]
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[self.arch.upper()], layers)
        planned = list(self.made())
        tied, untied = self.tied, self.tied and untied
        if self.always_tied and (untied or not tied):
            raise ExportError(
                f"{checkpoint.where}: embedding and output matrix are trained apart, and llama.cpp takes the embedding "
                f"of a {self.name} as its output matrix",
                "train neither, or both as one",
            )
        # In the order of its files, as the converter reads them: a matrix of its own lies where its name would.
        own = [HEAD] if untied and HEAD not in checkpoint else []
        known = self.shape.tensors().keys() | {HEAD}
        if left := [name for name in checkpoint.tensors if name.startswith(_OTHER_HEADS)]:
            log.info("%s: %s is another task's head, which transformers leaves out, too", checkpoint.where, left[0])
        for source in (*own, *checkpoint.tensors):
            ignored = f".{source}".endswith(_IGNORED) or source in left
            if ignored or (source == HEAD and tied and not untied):
                continue
            name = names.get_name(source, (".weight", ".bias"))
            if name is None:
                raise ExportError(
                    f"{checkpoint.where}: the tensor {source} has no place in a {self.arch} GGUF of {layers} layers",
                    f"weights and config.json are of different models, or this is not a {self.name}",
                )
            if source not in known:
                raise ExportError(
                    f"{checkpoint.where}: {source} is in the weights, and config.json has none: transformers leaves it "
                    "out, and llama.cpp would not",
                    "if the model was trained with it, config.json has to say so (attention_bias, mlp_bias); if not, "
                    "remove it from the weights",
                )
            module = source.split(".")[-2]
            # What a tied base's file may hold as an output matrix is not what the model uses.
            stored = EMBEDDING if source == HEAD and untied else ""
            tensor = checkpoint[stored or source]
            if tensor.dtype not in READABLE:
                raise ExportError(
                    f"{tensor.file.as_posix()}: {tensor.name} of the base has type {tensor.dtype}, "
                    "which cannot be read",
                    "use the base in bfloat16, float16 or float32",
                )
            heads = self.config[self.paired[module]] if module in self.paired else 0
            planned.append(Planned(name, source, tensor.shape, heads, stored=stored, shift=self.shift(source)))
        return planned

    def made(self) -> Iterator[Planned]:
        """The tensors that come from config.json, before all others."""
        yield from ()

    def shift(self, source: str) -> float:
        """What is added to each weight of a tensor of the checkpoint."""
        del source
        return 0.0

    def _check_shapes(self, checkpoint: Checkpoint) -> None:
        """Every tensor that config.json implies is there, with the shape it implies."""
        for name, shape in self.shape.tensors().items():
            if checkpoint[name].shape != shape:
                raise ExportError(
                    f"{checkpoint.where}: {name} is {list(checkpoint[name].shape)}, "
                    f"but config.json implies {list(shape)}",
                    "weights and config.json are of different models",
                )

    def add_keys(self, writer: Any, ftype: int, general: Mapping[str, str]) -> None:
        """Every key-value of the GGUF, in the converter's order. `general` are names and notes under `general.`."""
        import gguf

        writer.add_type(gguf.GGUFType.MODEL)
        _add_sampling(writer, self.base)
        for key, value in general.items():
            writer.add_string(f"general.{key}", value)
        self.add_parameters(writer, ftype)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        self.add_vocab(writer)

    def add_parameters(self, writer: Any, ftype: int) -> None:
        """The numbers that llama.cpp runs the model by: the converter's `set_gguf_parameters`."""
        config = self.config
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        self.add_rope(writer)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        self.add_head_dim(writer)
        writer.add_file_type(ftype)

    def add_head_dim(self, writer: Any) -> None:
        if "head_dim" in self.config:
            writer.add_key_length(self.config["head_dim"])
            writer.add_value_length(self.config["head_dim"])

    def add_rope(self, writer: Any) -> None:
        """How it rotates."""
        raise NotImplementedError

    def add_vocab(self, writer: Any) -> None:
        """The tokenizer."""
        vocab.add_vocab(writer, self.tokenizer, self.vocab_size, rules=self.vocab_rules)

    def named(self, general: Mapping[str, str]) -> dict[str, str]:
        """`general` with a name by which llama.cpp reads the tokenizer's marks as the tokenizer does."""
        name = given = general.get("name", "")
        found = vocab.NAMED.search(name)
        if (needed := vocab.read(self.tokenizer, self.vocab_size, rules=self.vocab_rules).named) is None:
            name = vocab.NAMED.sub("Phi 3", name)
        elif not found:
            name = f"{name} ({needed})".strip()
        if name == given:
            return dict(general)
        log.info("the GGUF's general.name is %r, as llama.cpp reads a tokenizer's marks by it", name)
        return {**general, "name": name}

    def check_vocab(self, texts: vocab.Texts = vocab.OWN) -> None:
        """Raise ExportError where llama.cpp would read these texts, or ggufy's own, otherwise than the tokenizer."""
        vocab.check(self.tokenizer, self.vocab_size, texts, rules=self.vocab_rules)


def _add_sampling(writer: Any, base: Path) -> None:
    path = base / "generation_config.json"
    values = config_files.read(path) if path.is_file() else {}
    config_files.check(Sampling, values, path)
    if values.get("do_sample") is False:
        return
    for key, add in (("top_k", "top_k"), ("top_p", "top_p"), ("min_p", "min_p"), ("temperature", "temp")):
        if values.get(key) is not None:
            getattr(writer, f"add_sampling_{add}")(values[key])
