"""Importance matrices: the numbers against torch, the format and the bytes against llama.cpp's own quantizer."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ggufy.data import source
from ggufy.errors import ExportError, ModelError
from ggufy.export import engine, imatrix
from ggufy.export.gguf import quant_support
from ggufy.export.imatrix import Imatrix
from ggufy.export.request import Request
from ggufy.llamacpp import library
from ggufy.model import random_llama
from ggufy.model.llama3 import Shape
from tests.oracle.converter import contents, export

Run = Callable[..., CompletedProcess[str]]
Sums = dict[str, tuple[np.ndarray, np.ndarray]]

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# One batch, several, both sides of their edges, and two that are too short to count.
LENGTHS = (16, 15, 17, 127, 128, 129, 400, 1)
COUNTED = sum(length for length in LENGTHS if length >= 16)
TEXTS = [
    [736, *np.random.default_rng(length).integers(0, 700, length - 1).tolist()] if length > 1 else [736]
    for length in LENGTHS
]


@pytest.fixture(scope="module")
def f16(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("f16") / "f16.gguf"
    export(base, None, {"f16": path})
    return path


@pytest.fixture(scope="module")
def file(f16: Path) -> Path:
    """A matrix as ggufy computes it."""
    path = f16.with_name("matrix.gguf")
    imatrix.compute(f16, TEXTS, "some texts", path, 2)
    return path


@pytest.fixture(scope="module")
def matrix(file: Path) -> Imatrix:
    return imatrix.read(file)


def load(path: Path) -> Sums:
    found = {tensor.name: np.array(tensor.data).reshape(-1) for tensor in gguf.GGUFReader(path).tensors}
    stems = [name.removesuffix(".in_sum2") for name in found if name.endswith(".in_sum2")]
    return {stem: (found[f"{stem}.in_sum2"], found[f"{stem}.counts"]) for stem in stems}


def save(path: Path, sums: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """What llama-imatrix's `save_imatrix` writes."""
    writer = gguf.GGUFWriter(path, "none")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (squares, counts) in sums.items():
        writer.add_tensor(f"{name}.in_sum2", squares.astype(np.float32).reshape(len(counts), -1))
        writer.add_tensor(f"{name}.counts", counts.astype(np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_numbers_are_those_of_torch(base: Path, file: Path) -> None:
    """Mean squares of what goes into every linear layer, of the model with the file's 16-bit weights."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
        for name, module in model.named_modules():
            layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
            if not layer or layer[2] not in NAMES:
                continue

            def hook(_: Any, inputs: Any, name: str = f"blk.{layer[1]}.{NAMES[layer[2]]}.weight") -> None:
                total = inputs[0].double().square().sum((0, 1)).numpy()
                expected[name] = expected.get(name, 0) + total

            module.register_forward_pre_hook(hook)
        for text in TEXTS:
            if len(text) >= 16:
                model(torch.tensor([text]))
    found = load(file)
    assert found.keys() == expected.keys()
    assert len(found) == 28
    for name, (sums, counts) in found.items():
        assert counts.tolist() == [COUNTED]
        np.testing.assert_allclose(sums, expected[name], rtol=0.01, err_msg=name)


def test_the_file_is_as_llama_imatrix_writes_it(file: Path) -> None:
    reader = gguf.GGUFReader(file)
    assert [(name, field.contents()) for name, field in reader.fields.items() if not name.startswith("GGUF.")] == [
        ("general.type", "imatrix"),
        ("imatrix.datasets", ["some texts"]),
        ("imatrix.chunk_count", max(1, COUNTED // 512)),
        ("imatrix.chunk_size", 512),
    ]
    names = sorted(f"blk.{layer}.{name}.weight" for layer in range(4) for name in NAMES.values())
    assert [tensor.name for tensor in reader.tensors] == [
        f"{name}.{kind}" for name in names for kind in ("in_sum2", "counts")
    ]
    for tensor in reader.tensors:
        columns = 768 if "ffn_down" in tensor.name else 256
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        # llama.cpp writes no dimension of 1 behind the first.
        assert list(tensor.shape) == [columns if tensor.name.endswith("in_sum2") else 1]


def test_the_numbers_do_not_depend_on_threads(f16: Path, file: Path, tmp_path: Path) -> None:
    imatrix.compute(f16, TEXTS, "some texts", tmp_path / "one.gguf", 1)
    assert (tmp_path / "one.gguf").read_bytes() == file.read_bytes()


def test_every_quant_is_llama_cpps_with_the_same_matrix(base: Path, tmp_path: Path) -> None:
    """Whole files, with every key. Of a smaller model, whose ffn_down has a width that not every type takes."""
    model = Path(shutil.copytree(base, tmp_path / "model"))
    vocab = json.loads((base / "config.json").read_text())["vocab_size"]
    random_llama.write_model(model, Shape(layers=2, hidden=256, heads=8, kv_heads=2, head_dim=32, ffn=416, vocab=vocab))
    f16, plain = tmp_path / "model.gguf", {"f32", "f16", "bf16"}
    export(model, None, {"f16": f16})
    imatrix.compute(f16, TEXTS, "some texts", tmp_path / "matrix.gguf", 2)
    matrix = imatrix.read(tmp_path / "matrix.gguf")
    ours: dict[str, Path] = {}
    for quant in library.ftypes():
        try:
            library.quantize_file(
                f16,
                tmp_path / f"{quant}.theirs",
                library.ftypes()[quant],
                threads=2,
                overrides=matrix.notes,
                imatrix=matrix.for_llama_cpp(),
            )
        except ExportError as error:
            with pytest.raises(ExportError, match=re.escape(error.message)):
                export(model, None, {quant: tmp_path / "refused.gguf"}, imatrix=matrix)
            assert not (tmp_path / "refused.gguf").exists()
        else:
            ours[quant] = tmp_path / f"{quant}.gguf"
    # All in one pass, as a user may ask.
    export(model, None, ours, imatrix=matrix)
    different = [
        quant
        for quant in ours
        if quant not in plain and ours[quant].read_bytes() != (tmp_path / f"{quant}.theirs").read_bytes()
    ]
    assert different == []
    few = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs")
    assert {*few, "q2_k", "q2_k_s", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "q4_0"} <= ours.keys()
    # The matrix weighs: without it other bytes. It says nothing about types without blocks.
    export(model, None, {"q4_k_m": tmp_path / "without.gguf", "bf16": tmp_path / "bf16"})
    assert contents(tmp_path / "without.gguf").tensors != contents(ours["q4_k_m"]).tensors
    assert ours["f16"].read_bytes() == f16.read_bytes()
    assert ours["bf16"].read_bytes() == (tmp_path / "bf16").read_bytes()


def test_types_that_need_a_matrix_say_so(base: Path, tmp_path: Path) -> None:
    for quant in ("iq1_s", "iq2_xxs", "q2_k_s"):
        with pytest.raises(ExportError, match=rf"{quant}: .*imatrix") as caught:
            export(base, None, {quant: tmp_path / "x.gguf"})
        assert "--imatrix" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_a_trial_says_what_llama_cpp_will(base: Path, tmp_path: Path) -> None:
    """Before a model is touched: which quants there are, and which need a matrix."""
    said = {}
    for quant in library.ftypes():
        try:
            engine.plan(Request(base, None, {quant: tmp_path / "x"}, {"name": "x"}), tmp_path)
        except ExportError as error:
            said[quant] = error.message
    needing = {quant for quant, message in said.items() if "imatrix" in message}
    assert needing == {quant for quant in library.ftypes() if quant_support.needs_imatrix(quant)}
    assert {quant for quant, message in said.items() if "invalid" in message} == library.ftypes().keys() - set(
        quant_support.known()
    )
    assert needing >= {"iq1_m", "iq2_s", "iq2_m", "iq3_xs", "q2_k_s"}


def another(sums: Sums, kind: str) -> Sums:
    changed = dict(sums)
    if kind == "a missing layer":
        return {name: value for name, value in sums.items() if not name.startswith("blk.3.")}
    if kind == "another column count":
        changed["blk.2.attn_k.weight"] = (np.ones(512), np.array([7]))
    if kind == "a further layer":
        changed["blk.4.attn_k.weight"] = sums["blk.3.attn_k.weight"]
    return changed


@pytest.mark.parametrize(
    ("kind", "naming"),
    [
        ("a missing layer", r"no entry for blk\.3\."),
        ("another column count", r"blk\.2\.attn_k\.weight has 256 columns, and the importance matrix 512"),
        ("a further layer", r"entry for blk\.4\.attn_k\.weight"),
    ],
)
def test_a_matrix_of_another_model(kind: str, naming: str, base: Path, file: Path, tmp_path: Path) -> None:
    other = imatrix.read(save(tmp_path / "other.gguf", another(load(file), kind)))
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=rf"other\.gguf: .*{naming}"):
        export(base, None, {"q4_0": tmp_path / "out" / "x.gguf"}, imatrix=other)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_matrix_with_its_output_is_taken(base: Path, f16: Path, file: Path, tmp_path: Path) -> None:
    """`llama-imatrix --process-output` has more than the blocks; the embedding weighs by none of it."""
    sums = load(file)
    sums["output.weight"] = sums["blk.0.attn_q.weight"]
    more = imatrix.read(save(tmp_path / "more.gguf", sums))
    export(base, None, {"q4_0": tmp_path / "ours.gguf"}, imatrix=more)
    library.quantize_file(
        f16,
        tmp_path / "theirs.gguf",
        library.ftypes()["q4_0"],
        overrides=more.notes,
        imatrix=more.for_llama_cpp(),
    )
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_what_no_text_reached_weighs_alike(tmp_path: Path) -> None:
    """llama.cpp's `load_imatrix` gives ones where the count is zero; per expert where there are several."""
    some = {
        "blk.0.a": (np.array([0, 0]), np.array([0])),
        "blk.0.b": (np.array([8, 4, 3, 5]), np.array([2, 0])),
    }
    means = imatrix.read(save(tmp_path / "x.gguf", some)).means
    assert {name: values.tolist() for name, values in means.items()} == {"blk.0.a": [1, 1], "blk.0.b": [4, 2, 1, 1]}


def test_what_is_no_importance_matrix(f16: Path, file: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("The quick brown fox.")
    sums = load(file)
    uncounted = tmp_path / "uncounted.gguf"
    uncounted.write_bytes(file.read_bytes().replace(b"blk.1.attn_q.weight.counts", b"blk.1.attn_q.weight.kounts"))
    for path, naming in {
        tmp_path / "none.gguf": "no file",
        tmp_path: "no file",
        text: "not a GGUF file",
        f16: "not an importance matrix",
        **{
            save(tmp_path / f"{value}.gguf", sums | {"blk.1.attn_q.weight": (np.full(256, value), np.array([5]))}): (
                r"blk\.1\.attn_q\.weight has values that cannot be mean squares"
            )
            for value in (np.nan, np.inf, -1.0, 1e38)
        },
        uncounted: r"blk\.1\.attn_q\.weight do not match",
        save(tmp_path / "empty.gguf", {}): "no importance",
    }.items():
        with pytest.raises(ModelError, match=naming) as caught:
            imatrix.read(path)
        assert caught.value.hint


def test_a_truncated_matrix(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for length in (0, 3, 4, 20, 30, 60, 100, 500, 2000, len(whole) // 2, len(whole) - 32):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf") as caught:
            imatrix.read(path)
        assert "\n" not in caught.value.message


def test_texts_that_are_too_short(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="short ones: no text of 16 tokens or more"):
        imatrix.compute(f16, [[736] * 15, [736]], "short ones", tmp_path / "x.gguf", 1)
    assert list(tmp_path.iterdir()) == []


# The command line.


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "runs/quick/export").glob("*.gguf")}


def assert_nothing_stray(folder: Path) -> None:
    assert not list(folder.rglob("partial"))
    assert not [path for path in folder.rglob("*.gguf") if not path.name.startswith("quick-")]


def ok(done: CompletedProcess[str]) -> CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def weighed(quick_made: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run exported with a matrix of its own conversations, twice; and what of it was there before."""
    folder = Path(shutil.copytree(quick_made, tmp_path_factory.mktemp("weighed") / "quick"))
    ok(run("export", "quick", "--quant", "iq2_xs", "--quant", "q4_0", "--imatrix", "--no-verify", cwd=folder))
    return folder


WEIGHED = ("export", "quick", "--quant", "iq2_xs", "--quant", "q4_0", "--no-verify")


def test_a_matrix_of_the_runs_own_conversations(weighed: Path, quick: Path, run: Run) -> None:
    made = outputs(weighed)
    assert made.keys() == {f"quick-{name}.gguf" for name in ("q8_0", "imatrix", "iq2_xs", "q4_0")}
    assert_nothing_stray(weighed)
    [count] = {counts.tolist()[0] for _, counts in load(weighed / "runs/quick/export/quick-imatrix.gguf").values()}
    reader = gguf.GGUFReader(weighed / "runs/quick/export/quick-q4_0.gguf")
    assert {name: field.contents() for name, field in reader.fields.items() if name.startswith("quantize.imatrix")} == {
        "quantize.imatrix.file": "quick-imatrix.gguf",
        "quantize.imatrix.dataset": "training data",
        "quantize.imatrix.entries_count": 28,
        "quantize.imatrix.chunks_count": count // 512,
    }
    # The finished matrix gives the same bytes, in a run that never computed one.
    shutil.copyfile(weighed / "runs/quick/export/quick-imatrix.gguf", quick / "quick-imatrix.gguf")
    ok(run(*WEIGHED, "--imatrix-file", "quick-imatrix.gguf", cwd=quick))
    again = outputs(quick)
    assert {name: again[name] for name in ("quick-iq2_xs.gguf", "quick-q4_0.gguf")} == {
        name: made[name] for name in ("quick-iq2_xs.gguf", "quick-q4_0.gguf")
    }
    # And all that was made is found made.
    for how in (["--imatrix"], ["--imatrix-file", "runs/quick/export/quick-imatrix.gguf"]):
        done = ok(run(*WEIGHED, *how, cwd=weighed))
        assert all(line.endswith("(up to date)") for line in done.stdout.splitlines()), done.stdout
        assert "importance matrix from" not in done.stderr
    assert outputs(weighed) == made


def test_the_recipe_can_ask_for_it(weighed: Path, quick: Path, quick_again: tuple[str, ...], run: Run) -> None:
    ok(run("train", *quick_again, "--set", "export.imatrix=true", "--set", "export.quants=[iq2_xs,f16]", cwd=quick))
    plan = ok(run("export", "quick", "--dry-run", cwd=quick)).stdout
    assert "an importance matrix is computed from" in plan
    before = outputs(quick)
    assert before.keys() == {"quick-q8_0.gguf"}
    ok(run("export", "quick", "--no-verify", cwd=quick))
    made = outputs(quick)
    assert made["quick-iq2_xs.gguf"] == outputs(weighed)["quick-iq2_xs.gguf"]
    assert made.keys() == {f"quick-{name}.gguf" for name in ("q8_0", "imatrix", "iq2_xs", "f16")}
    assert_nothing_stray(quick)


def test_a_matrix_from_a_text(quick: Path, run: Run) -> None:
    ok(run("export", "quick", "--quant", "f16", "--no-verify", cwd=quick))
    plain = outputs(quick)["quick-f16.gguf"]
    words = " ".join(source.sample_texts())
    (quick / "text.txt").write_text(words, "utf-8")
    command = ("export", "quick", "--quant", "q4_0", "--quant", "f16", "--no-verify", "--imatrix-data", "text.txt")
    ok(run(*command, "--imatrix-tokens", "1200", cwd=quick))
    first = outputs(quick)
    assert first["quick-f16.gguf"] == plain
    sums = load(quick / "runs/quick/export/quick-imatrix.gguf")
    assert {counts.tolist()[0] for _, counts in sums.values()} == {1024}
    reader = gguf.GGUFReader(quick / "runs/quick/export/quick-imatrix.gguf")
    assert reader.fields["imatrix.datasets"].contents() == ["text.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    assert "up to date" in ok(run(*command, "--imatrix-tokens", "1200", cwd=quick)).stdout.splitlines()[0]
    # Another text, another matrix, another file; and the same f16.
    (quick / "text.txt").write_text(words.upper(), "utf-8")
    done = ok(run(*command, "--imatrix-tokens", "1200", cwd=quick))
    assert "quick-f16.gguf" in next(line for line in done.stdout.splitlines() if "up to date" in line)
    second = outputs(quick)
    assert second["quick-f16.gguf"] == plain
    assert second["quick-q4_0.gguf"] != first["quick-q4_0.gguf"]
    assert_nothing_stray(quick)


def test_a_matrix_from_conversations(quick: Path, run: Run, row: Callable[..., str]) -> None:
    """Of an adapter too, which has no conversations of its own."""
    (quick / "talk.jsonl").write_text(row("What is the capital of France?", "Paris, of course.") * 3, "utf-8")
    shutil.move(quick / "runs/quick/adapter", quick / "mine")
    command = ("export", "mine", "--quant", "iq3_xxs", "--no-verify", "--out", "out", "--imatrix-data")
    ok(run(*command, "talk.jsonl", cwd=quick))
    assert {path.name for path in (quick / "out").glob("*.gguf")} == {"mine-imatrix.gguf", "mine-iq3_xxs.gguf"}
    assert not (quick / "out" / "partial").exists()


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("quick", "--imatrix", "--imatrix-file", "m.gguf"), "--imatrix-file is a finished matrix"),
        (("quick", "--imatrix-data", "t.txt", "--imatrix-file", "m.gguf"), "--imatrix-file is a finished matrix"),
        (("runs/quick/adapter", "--imatrix"), "nothing to compute an importance matrix from"),
        (("quick", "--imatrix-file", "m.gguf"), "no file m.gguf"),
        (("quick", "--imatrix-file", "runs/quick/export/quick-q8_0.gguf"), "is not an importance matrix"),
        (("quick", "--imatrix-data", "t.txt"), "no file t.txt"),
        (("quick", "--quant", "iq1_s"), "iq1_s needs an importance matrix"),
    ],
)
def test_what_cannot_be_weighed(
    arguments: tuple[str, ...], naming: str, quick: Path, fails: Callable[..., str]
) -> None:
    # Of a folder the place for its exports is made, and locked, before.
    fails("export", *arguments, cwd=quick, naming=[naming], works=arguments[0] != "quick")


def test_texts_that_do_not_do(quick: Path, fails: Callable[..., str], row: Callable[..., str]) -> None:
    (quick / "short.txt").write_text("Hi.")
    (quick / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    (quick / "bad.jsonl").write_text(row("fine") + '{"other": 1}\n')
    for name, naming in (
        ("short.txt", "short.txt: no text of 16 tokens"),
        ("latin.txt", "latin.txt: not UTF-8"),
        ("bad.jsonl", "bad.jsonl:2: no column"),
    ):
        fails("export", "quick", "--quant", "q4_0", "--imatrix-data", name, cwd=quick, naming=[naming], works=True)
        assert not list(quick.rglob("*imatrix*.gguf"))
        assert_nothing_stray(quick)
