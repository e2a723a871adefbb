"""What an export refuses: one line that names what and where, a hint, and nothing lost or left behind.

Every adapter and checkpoint here is the built-in model or its trained adapter with one thing wrong.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from tests.conftest import snapshot

Run = Callable[..., CompletedProcess[str]]
Fails = Callable[..., str]
Edit = Callable[[Path], None]
Tensor = tuple[str, list[int], bytes]
Tensors = dict[str, Tensor]
Case = tuple[Edit, list[str], list[str]]

ADAPTER = ("export", "adapter", "--base", "model", "--quant", "q8_0")
MODEL = ("export", "model", "--quant", "q8_0")

Q0 = "model.layers.0.self_attn.q_proj"
DOWN3 = "model.layers.3.mlp.down_proj"
LORA = "base_model.model."
NAN, INF = np.float32("nan"), np.float32("inf")


@pytest.fixture(scope="module")
def parts(base: Path, quick_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ and adapter/; to be read, not to be written."""
    folder = tmp_path_factory.mktemp("parts")
    shutil.copytree(base, folder / "model", ignore=shutil.ignore_patterns("stamp.json"))
    shutil.copytree(quick_made / "runs/quick/adapter", folder / "adapter")
    return folder


@pytest.fixture
def cwd(parts: Path, tmp_path: Path) -> Path:
    """A folder with a valid model/ and a valid adapter/ in it."""
    return Path(shutil.copytree(parts, tmp_path / "here"))


def refused(fails: Fails, cwd: Path, command: Sequence[str], naming: Sequence[str], hinting: Sequence[str] = ()) -> str:
    """Fails as it should, whether it had begun or not, and leaves nothing, but a lock in a folder that was there."""
    before = snapshot(cwd)
    said = fails(*command, cwd=cwd, naming=naming, hinting=hinting, works=True)
    left = sorted(snapshot(cwd).keys() - before.keys())
    locks = [name for name in left if name.endswith("/lock") and name.removesuffix("/lock") in before]
    assert left == locks, f"left behind: {left}"
    assert "verified" not in said
    return said


# Edits


def both(*edits: Edit) -> Edit:
    def edit(cwd: Path) -> None:
        for one in edits:
            one(cwd)

    return edit


def keys(name: str, **changes: Any) -> Edit:
    """Keys of a JSON file; None removes one."""

    def edit(cwd: Path) -> None:
        content = json.loads((cwd / name).read_text("utf-8"))
        content = {key: value for key, value in (content | changes).items() if changes.get(key, 0) is not None}
        (cwd / name).write_text(json.dumps(content), "utf-8")

    return edit


def content(name: str, data: bytes) -> Edit:
    return lambda cwd: (cwd / name).write_bytes(data) and None


def without(*names: str) -> Edit:
    def edit(cwd: Path) -> None:
        for name in names:
            (cwd / name).unlink()

    return edit


def cut(name: str, size: int) -> Edit:
    return lambda cwd: (cwd / name).write_bytes((cwd / name).read_bytes()[:size]) and None


def read(path: Path) -> Tensors:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: (one["dtype"], one["shape"], data[start + one["data_offsets"][0] : start + one["data_offsets"][1]])
        for name, one in header.items()
    }


def write(path: Path, tensors: Tensors) -> None:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def tensors(name: str, change: Callable[[Tensors], Tensors | None]) -> Edit:
    def edit(cwd: Path) -> None:
        held = read(cwd / name)
        write(cwd / name, change(held) or held)

    return edit


def adapter(change: Callable[[Tensors], Tensors | None]) -> Edit:
    return tensors("adapter/adapter_model.safetensors", change)


def weights(change: Callable[[Tensors], Tensors | None]) -> Edit:
    return tensors("model/model.safetensors", change)


def no_b(held: Tensors) -> None:
    for name, (dtype, shape, data) in held.items():
        if "lora_B" in name:
            held[name] = dtype, shape, bytes(len(data))


def zeros(*shape: int, dtype: str = "F32") -> Tensor:
    size = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "F8_E4M3": 1}[dtype]
    return dtype, list(shape), bytes(prod(shape) * size)


def put(name: str, tensor: Tensor | None) -> Callable[[Tensors], None]:
    """A tensor in the place of another, or beside the others; None removes it."""

    def change(held: Tensors) -> None:
        held.pop(name) if tensor is None else held.update({name: tensor})

    return change


def value(name: str, number: np.float32, at: int = 100) -> Callable[[Tensors], None]:
    """One number of a bf16 or float32 tensor."""

    def change(held: Tensors) -> None:
        dtype, shape, data = held[name]
        size = {"BF16": 2, "F32": 4}[dtype]
        new = np.float32(number).tobytes()[-size:]
        held[name] = dtype, shape, data[: at * size] + new + data[(at + 1) * size :]

    return change


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda held: {name.replace(old, new): tensor for name, tensor in held.items()}


def in_two_shards(cwd: Path, moved: str = "layers.3.") -> None:
    """model/ as two shards and their index."""
    model = cwd / "model"
    held = read(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: shards[moved in name] for name in held}
    for shard in shards:
        write(model / shard, {name: tensor for name, tensor in held.items() if where[name] == shard})
    index = {"metadata": {"total_size": sum(len(data) for _, _, data in held.values())}, "weight_map": where}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def index_entry(name: str, shard: str | None) -> Edit:
    def edit(cwd: Path) -> None:
        path = cwd / "model/model.safetensors.index.json"
        index = json.loads(path.read_text("utf-8"))
        index["weight_map"].pop(name)
        index["weight_map"] |= {name: shard} if shard else {}
        path.write_text(json.dumps(index), "utf-8")

    return edit


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(cwd: Path) -> None:
        path = cwd / "model/tokenizer.json"
        spec = json.loads(path.read_text("utf-8"))
        change(spec)
        path.write_text(json.dumps(spec), "utf-8")

    return edit


def added_token(number: int) -> Edit:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return tokenizer(lambda spec: spec["added_tokens"].append({"id": number, "content": "<|mine|>", **flags}))


def splitting(spec: dict[str, Any]) -> None:
    """A pre-tokenizer nobody knows."""
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[aeiou]+|x"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }


# The valid ones, so that what follows fails for its own reason


@pytest.mark.parametrize("command", [ADAPTER, MODEL], ids=["adapter", "model"])
def test_without_a_fault_it_works(command: tuple[str, ...], cwd: Path, light_run: Run) -> None:
    for edit in (adapter(dict), weights(dict), in_two_shards):
        edit(cwd)
        done = light_run(*command, cwd=cwd)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(cwd / "exports")


# Adapters

A0, B0 = f"{LORA}{Q0}.lora_A.weight", f"{LORA}{Q0}.lora_B.weight"
CONFIG = "adapter/adapter_config.json"

ADAPTERS: dict[str, Case] = {
    "lora_B of another height": (adapter(put(B0, zeros(512, 32))), [Q0, "512", "256"], ["base"]),
    "a bigger model's adapter": (
        adapter(
            lambda held: {
                name: zeros(*(2 * side if side != 32 else side for side in shape))
                for name, (_, shape, _) in held.items()
            }
        ),
        # The first module in the model's own order, and the shapes on both sides.
        ["layers.0.", "512", "256"],
        ["base"],
    ),
    "a pair too many": (
        adapter(
            lambda held: held.update(
                {name.replace("layers.3.", "layers.9."): t for name, t in held.items() if "layers.3.mlp.up" in name}
            )
        ),
        ["model.layers.9.mlp.up_proj"],
        ["base"],
    ),
    "an embedding's pair on a module that is none": (
        adapter(put(f"{LORA}{Q0}.lora_embedding_A", zeros(32, 256))),
        [f"{Q0}.lora_embedding_A"],
        [],
    ),
    "a bias trained where the base has none": (
        both(adapter(put(f"{LORA}{Q0}.lora_B.bias", zeros(256))), keys(CONFIG, lora_bias=True)),
        ["lora_bias", Q0],
        ["lora_bias"],
    ),
    "a tensor of no known kind": (adapter(put(f"{LORA}{Q0}.hada_w1_a", zeros(8, 8))), ["hada_w1_a"], []),
    "lora_B is missing": (adapter(put(B0, None)), [Q0, "lora_B"], []),
    "empty": (adapter(lambda held: held.clear()), ["adapter", "empty"], []),
    "another rank in the config": (keys(CONFIG, r=16), ["layers.0.", "16", "32"], []),
    "another rank in rank_pattern": (keys(CONFIG, rank_pattern={"q_proj": 4}), [Q0, "4", "32"], []),
    "ranks of A and B differ": (adapter(put(B0, zeros(256, 16))), [Q0, "16", "32"], []),
    "a pair is missing": (
        adapter(lambda held: [held.pop(name) for name in (A0, B0)] and None),
        [Q0],
        [],
    ),
    "pairs of no rows, as a sharded trainer saves them": (
        adapter(lambda held: {name: zeros(0) for name in held}),
        ["layers.0.", "[0]"],
        [],
    ),
    "an embedding of another vocabulary": (
        both(
            adapter(put(f"{LORA}model.embed_tokens.weight", zeros(1000, 256))),
            keys(CONFIG, modules_to_save=["embed_tokens"]),
        ),
        ["model.embed_tokens.weight", "1000", "768"],
        [],
    ),
    "magnitudes without DoRA": (
        adapter(put(f"{LORA}{Q0}.lora_magnitude_vector", zeros(256))),
        [Q0, "lora_magnitude_vector"],
        [],
    ),
    "DoRA without its magnitudes": (keys(CONFIG, use_dora=True), ["lora_magnitude_vector"], []),
    "NaN": (adapter(value(f"{LORA}{DOWN3}.lora_B.weight", NAN)), [DOWN3, "finite"], []),
    "the sum is beyond F16": (adapter(value(f"{LORA}{DOWN3}.lora_B.weight", np.float32(1e30))), [DOWN3], []),
    "weights of whole numbers": (adapter(put(A0, zeros(32, 256, dtype="I8"))), [Q0, "I8"], []),
    "truncated": (cut("adapter/adapter_model.safetensors", -1), ["adapter_model.safetensors", "truncated"], []),
    "no weights": (without("adapter/adapter_model.safetensors"), ["adapter", "adapter_model.safetensors"], []),
    "pickled": (
        lambda cwd: (cwd / "adapter/adapter_model.safetensors").rename(cwd / "adapter/adapter_model.bin") and None,
        ["adapter", "adapter_model.safetensors", "adapter_model.bin"],
        ["safetensors"],
    ),
    "config is truncated": (cut(CONFIG, 300), ["adapter_config.json"], []),
    "config is a list": (content(CONFIG, b"[1, 2]"), ["adapter_config.json"], []),
    "config without r": (keys(CONFIG, r=None), ["adapter_config.json", "r"], []),
    "r is 0": (keys(CONFIG, r=0), ["adapter_config.json", "r", "0"], []),
    "lora_alpha is a word": (keys(CONFIG, lora_alpha="many"), ["adapter_config.json", "lora_alpha"], []),
    "rank_pattern is not a regular expression": (
        keys(CONFIG, rank_pattern={"q_proj(": 4}),
        ["adapter_config.json", "q_proj("],
        [],
    ),
    "without peft_type": (keys(CONFIG, peft_type=None), ["adapter_config.json", "peft_type"], []),
    "LoHa": (keys(CONFIG, peft_type="LOHA"), ["LOHA"], []),
    "all of it is zero": (adapter(no_b), ["changes nothing", "lora_B"], ["train"]),
    "lora_alpha is 0": (keys(CONFIG, lora_alpha=0), ["changes nothing", "scaling"], []),
    "LoRA-GA": (keys(CONFIG, init_lora_weights="lora_ga"), ["lora_ga"], []),
    "BD-LoRA": (keys(CONFIG, use_bdlora={"nblocks": 2}), ["use_bdlora"], []),
    "PiSSA": (keys(CONFIG, init_lora_weights="pissa_niter_4"), ["pissa"], []),
}


@pytest.mark.parametrize(("edit", "naming", "hinting"), ADAPTERS.values(), ids=ADAPTERS.keys())
def test_adapter(edit: Edit, naming: list[str], hinting: list[str], cwd: Path, fails: Fails) -> None:
    edit(cwd)
    refused(fails, cwd, ADAPTER, naming, hinting)


# Checkpoints

SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
K2 = "model.layers.2.self_attn.k_proj.weight"

CHECKPOINTS: dict[str, Case] = {
    "a shard is missing": (both(in_two_shards, without(f"model/{SHARD}")), [SHARD], []),
    "the index is missing": (both(in_two_shards, without(f"model/{INDEX}")), ["model", "index"], []),
    "the index is a list": (both(in_two_shards, content(f"model/{INDEX}", b"[]")), [INDEX], []),
    "an entry is missing in the index": (both(in_two_shards, index_entry(K2, None)), [K2], []),
    "the index names the wrong shard": (both(in_two_shards, index_entry(K2, SHARD)), [K2, SHARD], []),
    "the index leaves the folder": (both(in_two_shards, index_entry(K2, "../other.safetensors")), [INDEX], []),
    "a shard is truncated": (both(in_two_shards, cut(f"model/{SHARD}", -2)), [SHARD, "truncated"], []),
    "a header that is no JSON": (
        content("model/model.safetensors", (16).to_bytes(8, "little") + b"x" * 600),
        ["model.safetensors"],
        [],
    ),
    "a header longer than the file": (
        content("model/model.safetensors", (1 << 62).to_bytes(8, "little") + b"{}" * 600),
        ["model.safetensors"],
        [],
    ),
    "only a pickle": (
        both(without("model/model.safetensors"), content("model/pytorch_model.bin", b"\x80\x04K\x01.")),
        ["model", "pytorch_model.bin"],
        ["safetensors"],
    ),
    "no weights": (without("model/model.safetensors"), ["model"], []),
    "a tensor is missing": (weights(put(K2, None)), [K2], []),
    "a tensor of another shape": (weights(put(K2, zeros(64, 128, dtype="BF16"))), [K2, "128", "256"], []),
    "a layer too many": (
        weights(
            lambda held: held.update({n.replace("layers.3.", "layers.4."): t for n, t in held.items() if ".3." in n})
        ),
        ["model.layers.4."],
        [],
    ),
    "weights of 8 bits": (weights(put(K2, zeros(64, 256, dtype="F8_E4M3"))), [K2, "F8_E4M3"], []),
    "NaN in a matrix": (weights(value(f"{DOWN3}.weight", NAN)), [f"{DOWN3}.weight", "finite"], []),
    "NaN at the matrix's end": (
        weights(value(f"{DOWN3}.weight", NAN, at=256 * 768 - 1)),
        [f"{DOWN3}.weight", "finite"],
        [],
    ),
    "NaN in a norm": (weights(value("model.norm.weight", NAN)), ["model.norm.weight", "finite"], []),
    "beyond F16": (weights(value(f"{DOWN3}.weight", np.float32(1e5))), [f"{DOWN3}.weight"], []),
    "vocabulary beyond the embedding": (added_token(768), ["tokenizer.json", "768", "<|mine|>"], []),
    "tokenizer is missing": (without("model/tokenizer.json"), ["model", "tokenizer.json"], []),
    "tokenizer is a list": (content("model/tokenizer.json", b"[]"), ["tokenizer.json"], []),
    "tokenizer splits in its own way": (tokenizer(splitting), ["tokenizer"], []),
    "config is missing": (without("model/config.json"), ["model", "config.json"], []),
    "config is a list": (content("model/config.json", b"[]"), ["config.json"], []),
    "a size is a word": (keys("model/config.json", hidden_size="wide"), ["config.json", "hidden_size"], []),
    "heads do not divide": (
        keys("model/config.json", num_key_value_heads=3),
        ["config.json", "num_key_value_heads", "3"],
        [],
    ),
    "unknown architecture": (
        keys("model/config.json", architectures=["FooForCausalLM"], model_type="foo"),
        ["FooForCausalLM"],
        [],
    ),
    "no architecture": (keys("model/config.json", architectures=None, model_type=None), ["model", "architecture"], []),
    "unknown rope scaling": (
        keys("model/config.json", rope_scaling={"rope_type": "spiral", "factor": 2.0}),
        ["spiral"],
        [],
    ),
}


@pytest.mark.parametrize(("edit", "naming", "hinting"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_checkpoint(edit: Edit, naming: list[str], hinting: list[str], cwd: Path, fails: Fails) -> None:
    edit(cwd)
    refused(fails, cwd, MODEL, naming, hinting)


@pytest.mark.parametrize("what", ["NaN in a matrix", "vocabulary beyond the embedding"])
def test_base_of_an_adapter(what: str, cwd: Path, fails: Fails) -> None:
    """The same faults are named when the checkpoint is an adapter's base, for every output."""
    edit, naming, hinting = CHECKPOINTS[what]
    edit(cwd)
    # Beside its own tokenizer the base's is of no account.
    for path in (cwd / "adapter").glob("tokenizer*"):
        path.unlink()
    command = (*ADAPTER, "--quant", "q4_k_m", "--merged", "--adapter-gguf", "--out", "out")
    refused(fails, cwd, command, naming, hinting)


def test_a_plan_refuses_them_too(cwd: Path, fails: Fails) -> None:
    """--dry-run does not promise what the export then refuses."""
    for edit, naming, _ in (ADAPTERS["a pair too many"], CHECKPOINTS["a tensor of another shape"]):
        clean = {path: path.read_bytes() for path in cwd.rglob("*") if path.is_file()}
        edit(cwd)
        fails(*ADAPTER, "--dry-run", cwd=cwd, naming=naming)
        for path, data in clean.items():
            path.write_bytes(data)


@pytest.mark.parametrize(
    ("arguments", "naming", "edit"),
    [
        (("--adapter-gguf",), ["hold DoRA"], "dora"),
        (("--ollama", "mine"), ["ollama is not installed"], None),
        (("--kernels", "native"), ["its own kernels"], None),
        ((), ["out/adapter-q8_0.gguf already exists"], "foreign"),
        (("--imatrix-data", "text"), ["out/adapter-q8_0.gguf already exists"], "foreign"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else None,
)
def test_a_plan_and_an_export_refuse_the_same(
    arguments: tuple[str, ...],
    naming: list[str],
    edit: str | None,
    cwd: Path,
    fails: Fails,
    env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """And an importance matrix is not computed first."""
    monkeypatch.setitem(env, "GGUFY_KERNELS", str(tmp_path))
    (cwd / "text").write_text("Some words to read. " * 40)
    if edit == "dora":
        keys(CONFIG, use_dora=True)(cwd)
        adapter(lambda held: held.update(_magnitudes(held)))(cwd)
        arguments = (*arguments, "--imatrix-data", "text")
    elif edit == "foreign":
        (cwd / "out").mkdir()
        (cwd / "out/adapter-q8_0.gguf").write_text("mine")
    command = (*ADAPTER, "--out", "out", *arguments)
    fails(*command, "--dry-run", cwd=cwd, naming=naming)
    assert "importance matrix from" not in refused(fails, cwd, command, naming)


def _magnitudes(held: Tensors) -> Tensors:
    pairs = {name: tensor for name, tensor in held.items() if name.endswith(".lora_B.weight")}
    return {
        name.replace("lora_B.weight", "lora_magnitude_vector"): (
            "F32",
            tensor[1][:1],
            np.ones(tensor[1][0], "<f4").tobytes(),
        )
        for name, tensor in pairs.items()
    }


def test_a_plan_lists_the_adapters_own_gguf(cwd: Path, light_run: Run) -> None:
    command = ("export", "adapter", "--base", "model", "--adapter-gguf")
    said = light_run(*command, "--dry-run", cwd=cwd).stdout
    found = re.search(r"^adapter +([\d.]+) MB at most$", said, re.M)
    assert found, said
    assert light_run(*command, cwd=cwd).returncode == 0
    size = (cwd / "exports/adapter/adapter-adapter.gguf").stat().st_size / 1e6
    assert size <= float(found[1]) < size + 0.3


def test_a_plan_of_a_run_has_no_other_place(quick: Path, fails: Fails) -> None:
    fails("export", "quick", "--out", "elsewhere", "--dry-run", cwd=quick, naming=["--out"])


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("--quant", "q4_0", "--imatrix-tokens", "100"), "no importance matrix is computed"),
        (("--quant", "q4_0", "--imatrix-tokens", "100", "--imatrix-file", "text"), "finished already"),
        (("--quant", "f16", "--quant", "bf16", "--imatrix-data", "text"), "has no effect on f16 and bf16"),
        (("--merged", "--adapter-gguf", "--imatrix-data", "text"), "has no effect on merged and adapter"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else None,
)
def test_what_would_be_of_no_effect(arguments: tuple[str, ...], naming: str, cwd: Path, fails: Fails) -> None:
    (cwd / "text").write_text("Some words to read. " * 40)
    refused(fails, cwd, ("export", "adapter", "--base", "model", *arguments), [naming])


def test_a_file_that_the_index_does_not_name_is_not_the_models(cwd: Path, light_run: Run) -> None:
    """As in Meta's own repositories: the same weights once more, under other names."""
    in_two_shards(cwd)
    write(cwd / "model/consolidated.safetensors", {"layers.0.attention.wq.weight": zeros(256, 256, dtype="BF16")})
    done = light_run(*MODEL, cwd=cwd)
    assert done.returncode == 0, done.stderr


# The command


@pytest.mark.parametrize(
    ("arguments", "naming", "hinting"),
    [
        (("export", "model", "--quant", "q9_k"), ["q9_k", "q4_k_m", "q8_0"], []),
        (("export", "model", "--quant", "iq2_xxs"), ["iq2_xxs", "imatrix"], ["--imatrix"]),
        (("export", "model", "--quant", "q8_0", "--quant", "iq1_s"), ["iq1_s", "imatrix"], ["--imatrix"]),
        (("export", "adapter", "--base", "model", "--quant", "q2_k_s"), ["q2_k_s", "imatrix"], ["--imatrix-data or"]),
        (("export", "adapter", "--base", "model", "--quant", "iq3_xs"), ["iq3_xs", "imatrix"], ["--imatrix-data or"]),
        (("export", "model", "--quant", "nvfp4"), ["unknown quant 'nvfp4'", "iq1_s, iq4_nl"], []),
        (("export", "adapter", "--quant", "q8_0", "--base", "gone"), ["gone"], ["--base"]),
        (("export", "adapter", "--quant", "q8_0", "--base", "adapter"), ["adapter"], ["--base"]),
        (("export", "adapter", "--quant", "q8_0", "--base", "model/config.json"), ["model/config.json"], []),
        (("export", "model", "--quant", "q8_0", "--base", "model"), ["--base"], []),
        (("export", "model/config.json", "--quant", "q8_0"), ["model/config.json"], []),
        (("export", "gone/model", "--quant", "q8_0"), ["gone/model"], []),
        (("export", "gone.gguf", "--quant", "q8_0"), ["gone.gguf"], []),
    ],
    ids=lambda part: " ".join(part[1:]) if isinstance(part, tuple) else "",
)
def test_command(arguments: tuple[str, ...], naming: list[str], hinting: list[str], cwd: Path, fails: Fails) -> None:
    fails(*arguments, cwd=cwd, naming=naming, hinting=hinting)


@pytest.mark.parametrize("named", ["gone", "unsloth/Llama-3.2-1B-Instruct-bnb-4bit", None])
def test_the_adapters_own_name_for_its_base_does_not_do(named: str | None, cwd: Path, fails: Fails) -> None:
    path = cwd / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"base_model_name_or_path": named}), "utf-8")
    naming = [(named or "adapter").removesuffix("-bnb-4bit")]
    refused(fails, cwd, ("export", "adapter", "--quant", "q8_0"), naming, [])


def test_a_model_without_its_tokenizer_is_named_with_its_path(cwd: Path, fails: Fails) -> None:
    (cwd / "deep").mkdir()
    (cwd / "model").rename(cwd / "deep/model")
    (cwd / "deep/model/tokenizer.json").unlink()
    fails("export", "deep/model", cwd=cwd, naming=["deep/model: no tokenizer.json there"])


def test_llama_cpp_does_not_speak_beside_the_error(quick_made: Path, tmp_path: Path, fails: Fails) -> None:
    """It prints past its own log where a scale is not a number."""
    made = bytearray((quick_made / "runs/quick/export/quick-q8_0.gguf").read_bytes())
    made[-34:-32] = np.float16("nan").tobytes()
    (tmp_path / "bad.gguf").write_bytes(made)
    fails("verify", "bad.gguf", cwd=tmp_path, naming=["is not valid"])


def test_an_imatrix_quant_of_a_run(quick: Path, fails: Fails) -> None:
    fails("export", "quick", "--quant", "iq2_xxs", cwd=quick, naming=["iq2_xxs"], hinting=["--imatrix"])


def test_a_base_for_a_run(quick: Path, base: Path, fails: Fails) -> None:
    fails("export", "quick", "--quant", "q8_0", "--base", str(base), cwd=quick, naming=["--base", "run"])


def test_a_folder_with_neither(cwd: Path, fails: Fails) -> None:
    (cwd / "empty").mkdir()
    fails("export", "./empty", "--quant", "q8_0", cwd=cwd, naming=["empty"])


@pytest.mark.parametrize("option", [["--threads", "0"], ["--merged", "f8"], ["--quants", "q8_0"]])
def test_usage(option: list[str], cwd: Path, light_run: Run) -> None:
    before = snapshot(cwd)
    done = light_run(*MODEL, *option, cwd=cwd)
    assert done.returncode == 2
    assert option[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(cwd) == before


# Where it goes


def test_out_is_a_file(cwd: Path, fails: Fails) -> None:
    (cwd / "out").write_text("mine")
    fails(*MODEL, "--out", "out", cwd=cwd, naming=["out"])


def test_out_is_below_a_file(cwd: Path, fails: Fails) -> None:
    (cwd / "mine").write_text("mine")
    fails(*MODEL, "--out", "mine/out", cwd=cwd, naming=["mine"])


def test_exports_is_a_file(cwd: Path, fails: Fails) -> None:
    (cwd / "exports").write_text("mine")
    fails(*MODEL, cwd=cwd, naming=["exports"])


def test_out_where_nobody_can_write(cwd: Path, fails: Fails) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    fails(*MODEL, "--out", "/proc/mine", cwd=cwd, naming=["/proc"])


@pytest.mark.parametrize("exists", [True, False], ids=["out", "its parent"])
def test_out_may_not_be_written(exists: bool, cwd: Path, fails: Fails) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; test_export_disk_full.py tries a read-only disk")
    (cwd / "kept").mkdir(mode=0o555)
    try:
        fails(*MODEL, "--out", "kept" if exists else "kept/out", cwd=cwd, naming=["kept"])
    finally:
        (cwd / "kept").chmod(0o755)


# What is there already


def test_a_run_does_not_write_over_what_is_not_its_own(quick: Path, fails: Fails, light_run: Run) -> None:
    mine = quick / "runs/quick/export/quick-q4_k_m.gguf"
    mine.write_bytes(b"mine")
    command = ("export", "quick", "--quant", "f16", "--quant", "q4_k_m")
    fails(*command, cwd=quick, naming=["quick-q4_k_m.gguf"], hinting=["--force"])
    done = light_run(*command, "--force", cwd=quick)
    assert done.returncode == 0, done.stderr
    assert mine.read_bytes()[:4] == b"GGUF"
    assert light_run("verify", "quick", cwd=quick).returncode == 0


def test_a_merged_folder_of_someone_else(cwd: Path, fails: Fails, light_run: Run) -> None:
    """Refused before the GGUF beside it is made; with --force only the files of the export are replaced."""
    mine = cwd / "out/adapter-merged"
    mine.mkdir(parents=True)
    (mine / "model.safetensors").write_bytes(b"mine")
    (mine / "notes.txt").write_text("mine")
    command = (*ADAPTER, "--merged", "--out", "out")
    refused(fails, cwd, command, ["adapter-merged"], ["--force"])
    done = light_run(*command, "--force", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert (mine / "model.safetensors").stat().st_size > 1_000_000
    assert (mine / "notes.txt").read_text() == "mine"
    assert not (cwd / "out/partial").exists()


def test_a_folder_is_not_mixed_with_someone_elses_model(cwd: Path, fails: Fails) -> None:
    """transformers would load the adapter that lies beside the merged weights, once more."""
    theirs = cwd / "out/adapter-merged/adapter_config.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    command = ("export", "adapter", "--base", "model", "--merged", "--out", "out", "--force")
    refused(fails, cwd, command, ["adapter-merged/adapter_config.json"], ["move it away"])


def test_an_adapter_gguf_of_someone_else(cwd: Path, fails: Fails) -> None:
    (cwd / "out").mkdir()
    (cwd / "out/adapter-adapter.gguf").write_bytes(b"mine")
    command = (*ADAPTER, "--adapter-gguf", "--out", "out")
    refused(fails, cwd, command, ["adapter-adapter.gguf"], ["--force"])


def test_a_folder_under_the_files_name(cwd: Path, fails: Fails) -> None:
    (cwd / "out/model-q8_0.gguf").mkdir(parents=True)
    (cwd / "out/model-q8_0.gguf/notes.txt").write_text("mine")
    refused(fails, cwd, (*MODEL, "--out", "out"), ["model-q8_0.gguf"])
    refused(fails, cwd, (*MODEL, "--out", "out", "--force", "--no-verify"), ["model-q8_0.gguf/notes.txt"])


def test_a_link_under_the_files_name(cwd: Path, fails: Fails, light_run: Run) -> None:
    """With --force the link is replaced; what it points to is someone else's and stays."""
    (cwd / "out").mkdir()
    (cwd / "theirs.gguf").write_bytes(b"theirs")
    (cwd / "out/model-q8_0.gguf").symlink_to(cwd / "theirs.gguf")
    refused(fails, cwd, (*MODEL, "--out", "out"), ["model-q8_0.gguf"], ["--force"])
    done = light_run(*MODEL, "--out", "out", "--force", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert (cwd / "theirs.gguf").read_bytes() == b"theirs"
    assert (cwd / "out/model-q8_0.gguf").read_bytes()[:4] == b"GGUF"


def test_a_broken_link_under_the_files_name(cwd: Path, fails: Fails) -> None:
    (cwd / "out").mkdir()
    (cwd / "out/model-q8_0.gguf").symlink_to(cwd / "gone.gguf")
    refused(fails, cwd, (*MODEL, "--out", "out"), ["model-q8_0.gguf"], ["--force"])
    assert (cwd / "out/model-q8_0.gguf").is_symlink()


def test_a_failed_export_leaves_the_one_before(cwd: Path, fails: Fails, light_run: Run) -> None:
    """A base gone bad after a good export: refused, and the good files stay; verify says that it changed."""
    assert light_run(*ADAPTER, "--out", "out", cwd=cwd).returncode == 0
    before = (cwd / "out/adapter-q8_0.gguf").read_bytes()
    CHECKPOINTS["NaN in a matrix"][0](cwd)
    refused(fails, cwd, (*ADAPTER, "--quant", "q4_k_m", "--out", "out"), [f"{DOWN3}.weight", "finite"], [])
    assert (cwd / "out/adapter-q8_0.gguf").read_bytes() == before
    done = light_run("verify", "out/adapter-q8_0.gguf", cwd=cwd)
    assert "was made before its base or adapter changed" in done.stderr
