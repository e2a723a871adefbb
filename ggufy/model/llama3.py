"""Facts of the Llama 3 family that several stages need: the shape of a checkpoint, and the pre-tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

# How Llama 3's tokenizer.json splits text before any merge; llama.cpp calls it `llama-bpe`.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Shape:
    """The numbers that make a Llama, or a model that is made like it: a subclass has other modules in its layers."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int = 128256
    tied: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the checkpoint's tensors, layer by layer."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        parts = self.layer()
        for layer in range(self.layers):
            found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
            found |= {
                f"model.layers.{layer}.{name}.bias": shape[:1] for name, shape in parts.items() if self.is_biased(name)
            }
        found["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            found["lm_head.weight"] = (self.vocab, self.hidden)
        return found

    def layer(self) -> dict[str, tuple[int, ...]]:
        """Modules of a layer, and the shapes of their weights."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "post_attention_layernorm": (self.hidden,),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }

    def is_biased(self, module: str) -> bool:
        """Whether a module of a layer has a bias."""
        part = module.partition(".")[0]
        return (part == "self_attn" and self.attention_bias) or (part == "mlp" and self.mlp_bias)
