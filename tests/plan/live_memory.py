"""How many bytes of tensors are alive while the real code trains, counted on tensors without memory behind them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from peft import LoraConfig, PeftModel, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from ggufy.model import random_llama
from ggufy.model.llama3 import Shape


class Live(TorchDispatchMode):
    """Counts every storage from its first appearance until Python lets go of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return out


def adapted(shape: Shape, modules: Sequence[str], r: int, dora: bool = False) -> PeftModel:
    """The real model in bf16 with peft's float32 adapter, on the meta device."""
    values = {key: value for key, value in random_llama.config(shape).items() if key != "architectures"}
    with torch.device("meta"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = LlamaForCausalLM(LlamaConfig(**values, attn_implementation="sdpa"))
        finally:
            torch.set_default_dtype(torch.float32)
        model.config.use_cache = False
        lora = LoraConfig(r=r, lora_alpha=16, target_modules=list(modules), use_dora=dora, task_type="CAUSAL_LM")
        made = get_peft_model(model, lora)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return made


def peak(
    shape: Shape, modules: Sequence[str], r: int, *, batch: int, length: int, again: bool, chunk: int
) -> tuple[int, int]:
    """Bytes of the model, and the most that is alive in its second step, with Adam's states and the gradients."""
    made = adapted(shape, modules, r)
    with FakeTensorMode():
        for module in made.modules():
            for kind in (module._parameters, module._buffers):
                for name, old in list(kind.items()):
                    if old is not None:
                        new = torch.empty(old.shape, dtype=old.dtype)
                        kind[name] = torch.nn.Parameter(new, old.requires_grad) if kind is module._parameters else new
        model = made.get_base_model()
        model.lm_head._parameters["weight"] = model.model.embed_tokens._parameters["weight"]
        made.train()
        if again:
            made.gradient_checkpointing_enable({"use_reentrant": False})
            made.enable_input_require_grads()
        trained = [p for p in made.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=False)
        live = Live()
        for tensor in (*made.parameters(), *made.buffers()):
            live.add(tensor)
        static = live.now
        ids = torch.zeros(batch, length, dtype=torch.long)
        with live:
            for step in range(2):
                live.peak = 0
                # Of an earlier batch of the same step, as with gradient accumulation.
                kept = [torch.empty_like(p) for p in trained] if step else []
                with torch.autocast("cpu", torch.bfloat16):
                    loss = _loss(model, ids, chunk)
                forward = live.peak
                del kept
                live.peak = 0
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return static, max(forward, live.peak)


def _loss(model: Any, ids: torch.Tensor, chunk: int) -> torch.Tensor:
    """trl 1.14's `_chunked_cross_entropy_loss`, for all tokens: how many are trained these do not know."""
    states = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    states = states[:, :-1].reshape(-1, states.shape[-1])
    labels = ids[:, 1:].reshape(-1)
    states = states[torch.arange(len(states))]
    weight = model.lm_head.weight

    def one(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = (part @ weight.to(part.dtype).t()).float()
        log_p = F.log_softmax(logits, dim=-1)
        loss = F.nll_loss(log_p, wanted, reduction="sum")
        with torch.no_grad():
            (logits.argmax(-1) == wanted).sum()
            -(log_p.exp() * log_p).sum(-1)
        return loss

    total = torch.zeros(())
    for start in range(0, len(labels), chunk):
        stop = start + chunk
        total = total + checkpoint(one, states[start:stop], labels[start:stop], use_reentrant=False)
    return total
