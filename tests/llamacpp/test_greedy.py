"""What a model says to a prompt is what llama-cpp-python's own `generate` says, token by token."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from ggufy.errors import ModelError
from ggufy.llamacpp import greedy
from ggufy.llamacpp.evaluate_gguf import Forward


@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m"])
def test_it_says_what_llama_cpp_python_generates(quant: str, taught_made: Path) -> None:
    path = taught_made / f"runs/taught/export/taught-{quant}.gguf"
    settings = {"n_ctx": 512, "n_batch": 128, "n_ubatch": 128, "flash_attn": True, "n_threads": 2}
    rng = np.random.default_rng(5)
    theirs = llama_cpp.Llama(str(path), verbose=False, **settings)
    with Forward(path, 512, 2) as ours:
        prompts = [rng.integers(0, ours.width, length).tolist() for length in (1, 2, 40, 127, 300)]
        # The last two again: what was said before changes nothing.
        for prompt in [*prompts, *prompts[-2:], ours.tokenize("What is the capital of France?", special=False)]:
            theirs.reset()
            expected = list(islice(theirs.generate(list(prompt), temp=0.0), 40))
            assert list(islice(greedy.tokens(path, theirs.ctx, prompt), 40)) == expected
            ends = [llama_cpp.llama_vocab_is_eog(ours.vocab, token) for token in expected]
            upto = ends.index(True) + 1 if True in ends else len(expected)
            assert greedy.answer(path, theirs.ctx, prompt, 40) == expected[:upto]
            assert greedy.answer(path, theirs.ctx, prompt, 1) == expected[:1]
            # A prompt in several batches may round in another way, as do weights that are repacked for speed.
            if len(prompt) <= 128 and quant == "q8_0":
                assert ours.answer(prompt, 40) == expected[:upto]
    theirs.close()


def test_what_does_not_fit_into_the_context(taught_made: Path) -> None:
    path = taught_made / "runs/taught/export/taught-q8_0.gguf"
    with Forward(path, 256, 2) as model:
        assert len(model.answer([7] * 255, 1)) == 1
        with pytest.raises(ModelError, match=r"llama\.cpp cannot evaluate it"):
            model.answer([7] * 400, 1)
        # And goes on.
        assert model.answer([7] * 20, 1)
