"""Compute the memory that a training takes, by part, from the base's shape and the recipe, without torch.

Everything that stays (weights, LoRA, gradients, optimizer) is counted to the byte as the hf backend holds it. What
passes (activations, logits) follows the tensors that autograd keeps in transformers' Llama under 16-bit autocast, with
peft's LoRA and trl's chunked loss; the tests compare it with a count of every live tensor of the real code. Notation: T
tokens of a batch, h hidden size, q query width, f width of the MLP, V vocabulary, c bytes of the compute type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from ggufy.model.llama3 import Shape
from ggufy.recipe.schema import Lora, Recipe

CHUNK = 256
"""Tokens whose logits exist at once: trl 1.14 computes the loss in chunks of that many (`loss_type: chunked_nll`)."""
LONGEST = 131072

_CUDA = 600_000_000
_FRAGMENTS = 0.05
# Logits in the compute type and in float32, log-softmax, its exponential and their product (trl's `_chunk`): the first
# is gone before the last comes.
_BYTES_A_LOGIT = 16
# The same without chunks, at the start of the backward pass: logits, log-softmax, and the gradients of both.
_BYTES_A_LOGIT_AT_ONCE = 14


@dataclass(frozen=True)
class Parts:
    """Bytes at the moment when most is held. `logits` is the larger work of loss and last layer, so parts add up."""

    weights: int
    lora: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    overhead: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def adapter_tensors(shape: Shape, lora: Lora) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what is trained: A (r, in) and B (out, r) a module, with DoRA also its magnitudes (out).

    A module is adapted as peft decides it: its name is one of the target modules, or ends in a dot and one.
    """
    matrices = {name.removesuffix(".weight"): size for name, size in shape.tensors().items() if len(size) == 2}
    matrices.setdefault("lm_head", (shape.vocab, shape.hidden))
    found: dict[str, tuple[int, ...]] = {}
    modules = lora.modules_in({name.rpartition(".")[2] for name in matrices})
    for name, (outward, inward) in matrices.items():
        if any(name == module or name.endswith(f".{module}") for module in modules):
            found[f"{name}.lora_A"], found[f"{name}.lora_B"] = (lora.r, inward), (outward, lora.r)
            if lora.dora:
                found[f"{name}.magnitude"] = (outward,)
    return found


def trainable(shape: Shape, lora: Lora) -> int:
    """How many parameters are trained."""
    return sum(math.prod(size) for size in adapter_tensors(shape, lora).values())


def weight_bytes(shape: Shape, load_in: str, compute: int) -> int:
    """The base as it lies in memory.

    bitsandbytes packs the matrices of the layers, not embedding, head and norms. 4 bits: half a byte a weight, for each
    block of 64 a scale of 1 byte and for 256 of those one of 4 (QLoRA's double quantization, arXiv:2305.14314), and
    tables of 16 and 256 floats and an offset a matrix. 8 bits: a byte a weight, 4 a row (LLM.int8, arXiv:2208.07339).
    """
    total = 0
    for name, size in shape.tensors().items():
        count = math.prod(size)
        if load_in == "16bit" or len(size) == 1 or ".layers." not in name:
            total += count * compute
        elif load_in == "8bit":
            total += count + 4 * size[0]
        else:
            blocks = -(-count // 64)
            total += -(-count // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)
    return total


def optimizer_bytes(shape: Shape, lora: Lora, optimizer: str) -> int:
    """Adam's two states: 8 bytes a parameter in float32.

    In bitsandbytes' 8 bits (arXiv:2110.02861): 2 bytes and for each block of 256 two scales of 4, and two shared tables
    of 256 floats; a tensor of fewer than 4,096 numbers stays in float32.
    """
    sizes = [math.prod(size) for size in adapter_tensors(shape, lora).values()]
    if not optimizer.endswith("8bit"):
        return sum(8 * count for count in sizes)
    packed = [count for count in sizes if count >= 4096]
    tables = 2 * 256 * 4 if packed else 0
    return tables + sum(2 * count + 8 * -(-count // 256) if count >= 4096 else 8 * count for count in sizes)


def layer_activations(shape: Shape, lora: Lora, compute: int) -> int:
    """Bytes a token that one layer keeps for its backward pass.

    Two norms keep their input in float32 (4h each); attention keeps q, k, v (repeated to all heads) and its output
    (4qc); the MLP keeps gate, its activation and up (3fc). peft keeps the input of every adapted matrix apart, and its
    r inner values; with dropout a byte of mask for each input; with DoRA both outputs of the matrix.
    """
    queries = shape.heads * shape.head_dim
    kept = 2 * 4 * shape.hidden + 4 * queries * compute + 3 * shape.ffn * compute + shape.hidden
    first = {name: size for name, size in adapter_tensors(shape, lora).items() if ".layers.0." in name}
    for name, size in first.items():
        if name.endswith("lora_A"):
            kept += size[1] * (compute + bool(lora.dropout)) + lora.r * compute
        elif name.endswith("magnitude"):
            kept += 2 * size[0] * compute
    return kept


def logits_at_once(shape: Shape, tokens: int) -> int:
    """What the loss would take without chunks."""
    return _BYTES_A_LOGIT_AT_ONCE * tokens * shape.vocab


def needs(shape: Shape, recipe: Recipe, compute: int, batch: int, length: int, *, cuda: bool = True) -> Parts:
    """The memory of a training step of `batch` conversations of `length` tokens, by part.

    With gradient checkpointing each layer keeps only its input (hc a token), and one layer at a time computes the rest
    again. On top of what is kept comes the larger of two moments: the loss, and the backward pass of a layer, whose MLP
    holds three more gradients (3fc). `overhead` is assumed, not counted: CUDA's context and workspaces (0.6 GB), the
    matrix being unpacked from 4 or 8 bits, and 5% lost between blocks of memory.
    """
    lora, tokens = recipe.lora, batch * length
    count = trainable(shape, lora)
    weights = weight_bytes(shape, recipe.model.load_in, compute)
    optimizer = optimizer_bytes(shape, lora, recipe.train.optimizer)
    layer = layer_activations(shape, lora, compute) * tokens
    # Conversations of one batch are padded: a mask for every pair of tokens, and a copy of it.
    tail = 7 * shape.hidden * tokens + (4 * batch * length**2 if batch > 1 else 0)
    backward = 3 * shape.ffn * compute * tokens
    if recipe.train.gradient_checkpointing:
        kept = shape.layers * shape.hidden * compute * tokens + tail
        backward += layer
    else:
        kept = shape.layers * layer + tail
    # Until the forward pass ends autocast keeps what it has cast: the adapter, in the compute type.
    loss = _BYTES_A_LOGIT * min(tokens, CHUNK) * shape.vocab + 10 * shape.hidden * tokens + count * compute
    overhead = 0
    if cuda:
        largest = max((math.prod(size) for name, size in shape.tensors().items() if ".layers." in name), default=0)
        unpacked = largest * compute if recipe.model.load_in != "16bit" else 0
        held = weights + 8 * count + optimizer + kept + max(loss, backward)
        overhead = _CUDA + unpacked + int(_FRAGMENTS * held)
    more = max(0, backward - loss)
    return Parts(weights, 4 * count, 4 * count, optimizer, kept + more, loss, overhead)


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number from 1 to `limit` for which `fits` holds, where it holds for all below; 0 if for none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
