"""The loss of a transformers model on the texts that the files are measured on."""

from __future__ import annotations

from typing import Any

from ggufy.evaluate.texts import Text


def loss(model: Any, text: Text) -> dict[str, Any]:
    """As `measure.loss`, of a model in torch, on the device that it is on."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([list(text.read)], device=model.device)
        wanted = torch.tensor(text.wanted, device=model.device)
        targets = torch.tensor(text.targets, device=model.device)
        # Only where a token counts: the vocabulary is large.
        logits = model(ids).logits[0][wanted].double()
        chosen = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])
    return {"tokens": len(targets), "nll": float(-chosen.sum())}


def to_gpu(model: Any) -> None:
    """Move a model to a GPU that holds it."""
    import torch

    if torch.cuda.is_available():
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
        free, _ = torch.cuda.mem_get_info()
        if free > 1.2 * size:
            model.to("cuda")
