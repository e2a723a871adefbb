"""SmolLM3: Llama, but that every fourth layer does not rotate. As `conversion/llama.py`."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from ggufy.export.families import llama
from ggufy.export.families.llama import Llama

_EVERY = 4


class Config(llama.Config):
    """With the defaults of transformers' SmolLM3Config."""

    hidden_size: PositiveInt = 2048
    max_position_embeddings: PositiveInt = 32768
    num_attention_heads: PositiveInt = 16
    num_hidden_layers: PositiveInt = 36
    num_key_value_heads: PositiveInt | None = 4
    rope_theta: PositiveFloat = 2000000.0
    tie_word_embeddings: bool = True
    vocab_size: PositiveInt = 128256
    use_sliding_window: bool = False
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: PositiveInt = 4


class SmolLM3(Llama):
    name, arch = "SmolLM3", "smollm3"
    settings = Config
    says_head_dim, by_factors = False, False

    def check(self) -> None:
        super().check()
        layers, every = range(1, self.config["num_hidden_layers"] + 1), self.config["no_rope_layer_interval"]
        rotates = self.config.get("no_rope_layers") or [int(layer % every != 0) for layer in layers]
        if [bool(one) for one in rotates] != [layer % _EVERY != 0 for layer in layers]:
            self.refuse(
                f"no_rope_layers leaves out layers {[n for n, one in enumerate(rotates) if not one]}",
                "rotates all layers of a SmolLM3 but every fourth",
            )
        if self.config["use_sliding_window"]:
            self.refuse("use_sliding_window is true", "lets every layer of a SmolLM3 see all tokens")
        for key in ("attention_bias", "mlp_bias"):
            if self.config[key]:
                self.refuse(f"{key} is true", "knows no such bias in a SmolLM3")
