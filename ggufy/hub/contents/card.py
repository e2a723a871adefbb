"""The model card of a push: a header that the Hub reads, and a text for people, both from the run's facts."""

from __future__ import annotations

from importlib import resources
from typing import Any

from ggufy.errors import HubError
from ggufy.hub.contents import facts
from ggufy.hub.contents.bundle import Bundle, counts, kind_of
from ggufy.hub.contents.facts import CardMetadata, Gguf, Place
from ggufy.recipe import recipe


def render(bundle: Bundle, repo: str, branch: str, stated: CardMetadata) -> str:
    """README.md. Raises HubError where the header would not be one that the Hub takes."""
    from jinja2 import Environment, StrictUndefined

    text = resources.files("ggufy.hub.contents").joinpath("card.md.jinja").read_text(encoding="utf-8")
    # Values are shown as they are: the card is Markdown, and every value is the run's own.
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(text)
    models = facts.ggufs(bundle)
    body = template.render(_said(bundle, models, repo, branch, stated))
    return f"---\n{_header(bundle, models, stated)}---\n\n{body}"


def check(text: str) -> None:
    """The Hub client's own check of a card, without asking the Hub. Raises HubError."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        read = ModelCard(text)
        if not dict(vars(read.data)):
            raise ValueError("the header is empty")
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise HubError(f"the model card is not valid: {error}", "this is a bug in ggufy") from None


def license_of(bundle: Bundle, stated: CardMetadata) -> str | None:
    known = facts.llama(str(bundle.frozen["base"]["name"]))
    return stated.license or (known[0] if known else None)


def naming_rule(bundle: Bundle, repo: str, stated: CardMetadata) -> str | None:
    """What the licence of the base asks of the repository's name, where the name does not do that."""
    license_name = license_of(bundle, stated) or ""
    if license_name.startswith("llama3") and not repo.partition("/")[2].lower().startswith("llama"):
        return f"the {license_name} licence asks that the name of a derived model begins with Llama"
    return None


def notice(bundle: Bundle, stated: CardMetadata) -> str | None:
    """The text that Llama's licence asks to be in a file of every copy."""
    licensed = (license_of(bundle, stated) or "").startswith("llama")
    llama = facts.llama(str(bundle.frozen["base"]["name"])) if licensed else None
    if llama is None:
        return None
    return (
        f"{llama[1]} is licensed under the {llama[1]} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
    )


def _header(bundle: Bundle, models: list[Gguf], stated: CardMetadata) -> str:
    from huggingface_hub import ModelCardData

    frozen, name = bundle.frozen, bundle.name
    base = facts.base_on_the_hub(frozen)
    adapter, merged = bool(bundle.paths("adapter")), bool(bundle.paths("merged"))
    results = _results(bundle)
    known: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": None
        if base is None
        else "adapter"
        if adapter
        else "finetune"
        if merged
        else "quantized",
        "library_name": "peft" if adapter else "transformers" if merged else "gguf",
        "pipeline_tag": "text-generation",
        "license": license_of(bundle, stated),
        "license_name": stated.license_name,
        "license_link": stated.license_link,
        "language": [*(frozen["recipe"]["hub"].get("language") or stated.language)] or None,
        "datasets": [place.name for place in facts.trained_on(frozen) if place.on_the_hub] or None,
        "tags": [
            "ggufy",
            *(["lora"] if adapter else []),
            *(["gguf", "llama.cpp"] if models else []),
            "conversational",
            "text-generation",
        ],
        "model_name": name if results else None,
        "eval_results": results,
    }
    data_of_card = ModelCardData(**{key: value for key, value in known.items() if value is not None})
    return f"{data_of_card.to_yaml()}\n"


def _results(bundle: Bundle) -> list[Any] | None:
    """The held-out loss for model-index, and on what; the names it takes are the Hub's, for data on the Hub."""
    from huggingface_hub import EvalResult

    loss = facts.summary(bundle.run.path).get("eval_loss")
    if loss is None:
        return None
    places = facts.held_out(bundle.frozen)
    one = places[0] if len(places) == 1 and places[0].on_the_hub else None
    names = " and ".join(place.name for place in places)
    rows = counts(bundle.run).get("eval", {}).get("kept")
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=one.name if one else "mixed" if len(places) > 1 else "local",
            dataset_name=f"{names}, {f'{rows:,} ' if rows else ''}held-out conversations",
            dataset_revision=one.commit if one else None,
            metric_type="loss",
            metric_name="Loss on held-out conversations",
            metric_value=round(float(loss), 6),
        )
    ]


def _said(bundle: Bundle, models: list[Gguf], repo: str, branch: str, stated: CardMetadata) -> dict[str, Any]:
    frozen, run = bundle.frozen, bundle.run
    base = frozen["base"]
    quants = [gguf for gguf in models if gguf.bits is not None]
    modelfiles = [path for path in bundle.sources if path.endswith(".Modelfile")]
    method = "QLoRA" if frozen["recipe"]["model"]["load_in"] != "16bit" else "LoRA"
    rows = {split: found.get("kept") for split, found in counts(run).items()}
    return {
        "title": repo.partition("/")[2] + ("" if branch == "main" else f" ({branch})"),
        "name": bundle.name,
        "repo": repo,
        "branch": branch,
        "branch_is_main": branch == "main",
        "method": method,
        "base_id": facts.base_on_the_hub(frozen),
        "base_name": base["name"],
        "base_commit": base["commit"],
        "data_said": _data_said(facts.trained_on(frozen), rows.get("train") or frozen["recipe"]["data"]["train_size"]),
        "held_out_said": _data_said(facts.held_out(frozen), rows.get("eval")) if _results(bundle) else None,
        "ggufy": frozen["ggufy"],
        # As stamps have it: only what is not the base's is noted there.
        "own_tokenizer": any(stamp["inputs"].get("tokenizer") for stamp in bundle.stamps),
        "notice": (notice(bundle, stated) or "").strip() or None,
        "files": _files(bundle, models),
        "measured": _positions(models),
        "merged": next((stamp["inputs"]["quant"] for stamp in bundle.stamps if kind_of(stamp) == "merged"), None),
        "revision": "" if branch == "main" else f', revision="{branch}"',
        "has_adapter": bool(bundle.paths("adapter")),
        "gguf": _recommended(quants),
        "modelfile": modelfiles[0] if modelfiles else None,
        "date": frozen["date"],
        "training": _training(bundle),
        "losses": facts.losses(run.path),
        "has_curve": "loss.png" in bundle.sources,
        "recipe": recipe.show(recipe.from_values(frozen["recipe"])),
        "versions": ", ".join(f"{name} {version}" for name, version in frozen["versions"].items()),
    }


def _positions(models: list[Gguf]) -> str | None:
    """Over how many positions files were compared; where that is not the same for all, file by file."""
    measured = {gguf.name: gguf.closeness["positions"] for gguf in models if gguf.closeness}
    if len(set(measured.values())) <= 1:
        return next((f"{positions:,} positions" for positions in measured.values()), None)
    return f"{', '.join(f'{positions:,} (`{name}`)' for name, positions in measured.items())} positions"


def _recommended(quants: list[Gguf]) -> Gguf | None:
    """The file that the card shows how to run: q4_k_m as everywhere, else the smallest."""
    whole = [gguf for gguf in quants if gguf.parts == 1] or quants
    return next((gguf for gguf in whole if gguf.quant == "q4_k_m"), whole[0] if whole else None)


def _data_said(places: list[Place], rows: int | None) -> str:
    counted = f"{rows:,} conversations" if rows else "conversations"
    return f"{counted} of {' and of '.join(place.said() for place in places)}"


def _files(bundle: Bundle, models: list[Gguf]) -> list[dict[str, str]]:
    rows = []
    if adapter := bundle.paths("adapter"):
        size = sum(f["size"] for s in bundle.stamps if s["output"] == adapter[0] for f in s["files"].values())
        rows.append(_row("adapter_model.safetensors", "the adapter, with tokenizer", size))
    for gguf in models:
        split = f", in {gguf.parts} files" if gguf.parts > 1 else ""
        what = "the adapter, for llama.cpp's --lora" if gguf.bits is None else f"GGUF, {gguf.quant}{split}"
        bits = None if gguf.bits is None else f"{gguf.bits:.2f}"
        rows.append(_row(gguf.name, what, gguf.size, bits, gguf.closeness))
    for stamp in bundle.stamps:
        if stamp["output"] in bundle.paths("merged"):
            size = sum(facts["size"] for facts in stamp["files"].values())
            rows.append(_row(f"{stamp['inputs']['quant']}/", "base and adapter merged, 16 bits", size, "16.00"))
    return rows


def _row(
    name: str, what: str, size: int, bits: str | None = None, near: dict[str, Any] | None = None
) -> dict[str, str]:
    """A line of the table of files; what was not measured is a dash."""
    same = f"{100 * near['agreement']:.1f}%" if near else "–"
    divergence = f"{near['divergence']:.2g}" if near else "–"
    return {
        "name": name,
        "what": what,
        "size": facts.amount(size),
        "bits": bits or "–",
        "same": same,
        "divergence": divergence,
    }


def _training(bundle: Bundle) -> list[tuple[str, str]]:
    wanted, found = bundle.frozen["recipe"], facts.summary(bundle.run.path)
    lora, train = wanted["lora"], wanted["train"]
    kind = "".join(name for name, on in ((" rsLoRA", lora["rslora"]), (" DoRA", lora["dora"])) if on)
    rows = [
        ("adapter", f"rank {lora['r']}, alpha {lora['alpha']:g}, dropout {lora['dropout']:g}{kind}"),
        ("learning rate", f"{train['learning_rate']:g}, {train['schedule']}"),
        ("batch", f"{train['batch_size']} conversations, {train['gradient_accumulation']} to a step"),
        ("longest conversation", f"{wanted['model']['max_length']:,} tokens"),
        ("seed", str(bundle.frozen["seed"])),
    ]
    measured = (
        ("steps", "steps", "{:,}"),
        ("loss at the end", "final_loss", "{:.4f}"),
        ("loss on held-out conversations", "eval_loss", "{:.4f}"),
        ("trained parameters", "trainable_parameters", "{:,}"),
        ("epochs", "epochs", "{:.3g}"),
        ("peak GPU memory", "peak_gpu_bytes", "{:,} bytes"),
        ("tokens a second", "tokens_per_second", "{:,.0f}"),
    )
    rows += [(said, form.format(found[key])) for said, key, form in measured if found.get(key) is not None]
    if wanted["train"].get("keep_best") and found.get("best_eval_step") is not None:
        rows.append(("the adapter is that of step", f"{found['best_eval_step']:,}, with the lowest held-out loss"))
    if hardware := facts.hardware(found):
        rows.append(("hardware", hardware))
    if found.get("seconds") is not None:
        resumed = f", from step {found['resumed_from_step']} on" if found.get("resumed_from_step") else ""
        rows.append(("time", f"{found['seconds']:,.0f} s{resumed}"))
    return rows
