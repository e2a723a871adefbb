"""Forward gives llama.cpp's own logits, for texts of any length and in any batches, and says what it cannot load."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from ggufy.errors import ExportError, ModelError
from ggufy.export import imatrix
from ggufy.llamacpp.evaluate_gguf import Forward, Watch
from tests.oracle.converter import export


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forward") / "q8_0.gguf"
    export(base, None, {"q8_0": path})
    return path


def test_the_logits_are_llama_cpps(made: Path) -> None:
    rng = np.random.default_rng(3)
    texts = [[736, *rng.integers(0, 700, length).tolist()] for length in (0, 1, 40, 127, 128, 300)]
    settings = {"n_ctx": 512, "n_batch": 128, "n_ubatch": 128, "flash_attn": True}
    theirs = llama_cpp.Llama(str(made), logits_all=True, verbose=False, **settings)
    with Forward(made, 512, 2) as ours:
        assert (ours.width, ours.bos) == (theirs.n_vocab(), theirs.token_bos())
        for text in texts:
            theirs.reset()
            theirs.eval(text)
            expected = np.array(theirs.scores[: len(text)])
            found = np.concatenate([batch.copy() for batch in ours.logits(text)])
            # Longer texts are cut into other batches, which may round in another way.
            slack = 0.0 if len(text) <= 128 else 0.03 * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=slack)
        for text in ("Hello <|eot_id|> there", "  ", "🌻"):
            for special in (True, False):
                assert ours.tokenize(text, special=special) == theirs.tokenize(
                    text.encode(), add_bos=False, special=special
                )
    theirs.close()


def test_what_cannot_be_loaded(made: Path, tmp_path: Path) -> None:
    whole = made.read_bytes()
    path = tmp_path / "cut.gguf"
    handles = Path("/proc/self/fd")
    before = len(list(handles.iterdir())) if handles.is_dir() else 0
    for length in (0, 10, 1000, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf: llama\.cpp cannot load it: .+") as caught:
            Forward(path, 64, 1)
        assert caught.value.hint
        assert "\n" not in caught.value.message
    with pytest.raises(ModelError, match=r"none\.gguf"):
        Forward(tmp_path / "none.gguf", 64, 1)
    assert not before or len(list(handles.iterdir())) <= before


def test_a_watcher_that_fails_is_heard(made: Path) -> None:
    """Nothing is swallowed by the library in between."""

    def watch(name: str, rows: object) -> None:
        del rows
        raise ExportError(f"no more at {name}")

    with Forward(made, 64, 1, watch) as model, pytest.raises(ExportError, match=r"no more at blk\.0\."):
        list(model.logits([736] * 20))


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the garbage collector, in whose callbacks (hypothesis has one) Python drops what is raised."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
def test_ctrl_c_at_any_moment_is_heard(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Python delivers it in a function that llama.cpp has called, which would drop it."""
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)

    def press(delay: float) -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGINT)

    with Forward(made, 512, 1, lambda *_: None) as model:
        for number in range(30):
            presses = threading.Thread(target=press, args=(0.002 * number,))
            heard = False
            try:
                presses.start()
                while presses.is_alive():
                    list(model.logits([736] * 500))
                # A press at the very end comes with the next line of Python at the latest.
                time.sleep(0.01)
            except KeyboardInterrupt:
                heard = True
            presses.join()
            assert heard, number
            assert not dropped
        assert len(list(model.logits([736] * 500))) == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_matrix_that_misses_tokens_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing(Forward):
        """Skips the last product of the first batch."""

        def __init__(self, path: Path, context: int, threads: int, watch: Watch) -> None:
            calls = itertools.count(1)
            super().__init__(path, context, threads, lambda name, rows: next(calls) != 28 and watch(name, rows))

    monkeypatch.setattr(imatrix, "Forward", Losing)
    with pytest.raises(ExportError, match=r"incomplete: blk\.3\..* was given"):
        imatrix.compute(made, [[736] * 200], "text", tmp_path / "x.gguf", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_text_longer_than_the_context(made: Path) -> None:
    with Forward(made, 256, 1) as model, pytest.raises(ModelError, match="cannot evaluate"):
        list(model.logits([736] * 400))
