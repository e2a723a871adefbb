"""The Llama family: from Hugging Face names, shapes and settings to those of llama.cpp.

Follows llama.cpp's `conversion/llama.py` and `conversion/base.py`: same keys, same order, same tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from ggufy.errors import ExportError
from ggufy.export.adapter.adapter import EMBEDDING, HEAD
from ggufy.export.families import loading, rope
from ggufy.export.rows import READABLE
from ggufy.export.vocab import add_vocab
from ggufy.model import architecture, config_files
from ggufy.model.config_files import Settings
from ggufy.model.llama3 import Shape
from ggufy.model.safetensors import Checkpoint

ARCHITECTURES = ("LlamaForCausalLM",)
_IGNORED = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")


class Config(Settings):
    """What an export uses of config.json, with the defaults of its type."""

    architectures: list[str] = Field(default_factory=list)
    hidden_act: str = "silu"
    hidden_size: PositiveInt = 4096
    intermediate_size: PositiveInt = 11008
    max_position_embeddings: PositiveInt = 2048
    num_attention_heads: PositiveInt = 32
    num_hidden_layers: PositiveInt = 32
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 10000.0
    tie_word_embeddings: bool = False
    vocab_size: PositiveInt = 32000
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = Field(None, multiple_of=2)
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

    @property
    def full_precision(self) -> bool:
        return len(self.shape) == 1 or self.name.endswith("_norm.weight")


def read_config(base: Path) -> dict[str, Any]:
    """config.json of a Llama model with the defaults of its type filled in. Raises ExportError for others."""
    path = base / "config.json"
    config = config_files.read(path)
    known = config_files.check(Config, config, path)
    if (name := architecture.of(config)) not in ARCHITECTURES:
        raise ExportError(
            f"{base.as_posix()}: architecture {name} is not exported yet; "
            f"the known ones are {', '.join(ARCHITECTURES)}",
            "llama.cpp's convert_hf_to_gguf.py may know it",
        )
    if known.hidden_act not in ("silu", "swish"):
        raise ExportError(
            f"{path.as_posix()}: hidden_act is {known.hidden_act}, and llama.cpp computes every Llama with silu",
            "use a Llama with silu: the GGUF would not answer like this model",
        )
    config = known.model_dump(exclude_none=True) | config
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    wholes = {"num_key_value_heads": "num_attention_heads"}
    if "head_dim" not in config:
        wholes["num_attention_heads"] = "hidden_size"
    for part, whole in wholes.items():
        if config[whole] % config[part]:
            raise ExportError(
                f"{path.as_posix()}: {whole} {config[whole]} cannot be divided by {part} {config[part]}",
                "copy the folder again, or correct that key",
            )
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config["rope"] = rope.read(config, path)
    return config


def opened(base: Path) -> tuple[dict[str, Any], Checkpoint]:
    """The configuration and the tensors of a model folder, as transformers loads them."""
    config = read_config(base)
    known = shape_of({**config, "tie_word_embeddings": False}).tensors()
    return loading.loaded(config, Checkpoint.open(base), known)


def plan(config: dict[str, Any], checkpoint: Checkpoint, *, untied: bool = False) -> list[Planned]:
    """Every tensor of the GGUF, in the converter's order. Raises ExportError for a tensor that has no place in it.

    `untied` gives a tied base an output matrix of its own, because the adapter changes it and the embedding apart.
    """
    import gguf

    _check_shapes(config, checkpoint)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    planned = []
    if factors := rope.factors(config["rope"], config["head_dim"]):
        planned.append(Planned("rope_freqs.weight", None, (len(factors),), made=tuple(factors)))
    permuted = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tied, untied = config["tie_word_embeddings"], config["tie_word_embeddings"] and untied
    # In the order of its files, as the converter reads them: a matrix of its own lies where its name would.
    own = [HEAD] if untied and HEAD not in checkpoint else []
    for source in (*own, *checkpoint.tensors):
        if source.endswith(_IGNORED) or (source == HEAD and tied and not untied):
            continue
        name = names.get_name(source, (".weight", ".bias"))
        if name is None:
            raise ExportError(
                f"{checkpoint.where}: the tensor {source} has no place in a llama GGUF of "
                f"{config['num_hidden_layers']} layers",
                "weights and config.json are of different models, or this is not a Llama",
            )
        module = source.split(".")[-2]
        # What a tied base's file may hold as an output matrix is not what the model uses.
        stored = EMBEDDING if source == HEAD and untied else ""
        tensor = checkpoint[stored or source]
        if tensor.dtype not in READABLE:
            raise ExportError(
                f"{tensor.file.as_posix()}: {tensor.name} of the base has type {tensor.dtype}, which cannot be read",
                "use the base in bfloat16, float16 or float32",
            )
        planned.append(Planned(name, source, tensor.shape, permuted.get(module, 0), stored=stored))
    return planned


def _check_shapes(config: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Every tensor that config.json implies is there, with the shape it implies."""
    for name, shape in shape_of(config).tensors().items():
        if checkpoint[name].shape != shape:
            raise ExportError(
                f"{checkpoint.where}: {name} is {list(checkpoint[name].shape)}, but config.json implies {list(shape)}",
                "weights and config.json are of different models",
            )


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape that a configuration of `read_config` describes."""
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        ffn=config["intermediate_size"],
        vocab=config["vocab_size"],
        tied=config["tie_word_embeddings"],
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
    )


def add_keys(writer: Any, config: dict[str, Any], base: Path, ftype: int, general: dict[str, str]) -> None:
    """Every key-value of the GGUF, in the converter's order. `general` are names and notes under `general.`."""
    import gguf

    writer.add_type(gguf.GGUFType.MODEL)
    _add_sampling(writer, base)
    for key, value in general.items():
        writer.add_string(f"general.{key}", value)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    rope.add(writer, config["rope"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_file_type(ftype)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_vocab(writer, base, config["vocab_size"])


def _add_sampling(writer: Any, base: Path) -> None:
    path = base / "generation_config.json"
    values = config_files.read(path) if path.is_file() else {}
    config_files.check(Sampling, values, path)
    if values.get("do_sample") is False:
        return
    for key, add in (("top_k", "top_k"), ("top_p", "top_p"), ("min_p", "min_p"), ("temperature", "temp")):
        if values.get(key) is not None:
            getattr(writer, f"add_sampling_{add}")(values[key])
