"""The model card of a push: a header that the Hub reads, and a text for people, both from the run's facts."""

from __future__ import annotations

from importlib import resources
from typing import Any

from ggufy import recipe
from ggufy.errors import HubError
from ggufy.hub import facts
from ggufy.hub.bundle import Bundle, conversations
from ggufy.hub.facts import Gguf


def render(bundle: Bundle, repo: str, branch: str, license_of_base: str | None) -> str:
    """README.md. Raises HubError where the header would not be one that the Hub takes."""
    from jinja2 import Environment, StrictUndefined

    text = resources.files("ggufy.hub").joinpath("card.md.jinja").read_text(encoding="utf-8")
    # Values are shown as they are: the card is Markdown, and every value is the run's own.
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(text)
    models = facts.ggufs(bundle)
    body = template.render(_said(bundle, models, repo, branch))
    return f"---\n{_header(bundle, models, license_of_base)}---\n\n{body}"


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


def license_of(bundle: Bundle, license_of_base: str | None) -> str | None:
    known = facts.llama(str(bundle.frozen["base"]["name"]))
    return license_of_base or (known[0] if known else None)


def naming_rule(bundle: Bundle, repo: str, license_of_base: str | None) -> str | None:
    """What the licence of the base asks of the repository's name, where the name does not do that."""
    license_name = license_of(bundle, license_of_base) or ""
    if license_name.startswith("llama3") and not repo.partition("/")[2].lower().startswith("llama"):
        return f"the {license_name} licence asks that the name of a derived model begins with Llama"
    return None


def _header(bundle: Bundle, models: list[Gguf], license_of_base: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    frozen, name = bundle.frozen, bundle.run.name
    base, data = (facts.on_the_hub(str(frozen[key]["name"])) for key in ("base", "data"))
    adapter, merged = bool(bundle.paths("adapter")), bool(bundle.paths("merged"))
    results = None
    if (loss := facts.summary(bundle.run.path).get("eval_loss")) is not None:
        # Of another source all of it may be held out, which the recipe does not count.
        counted = f"{size} " if (size := frozen["recipe"]["data"]["eval_size"]) else ""
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=data or "local",
                dataset_name=f"{data or 'local data'}, {counted}held-out conversations",
                metric_type="loss",
                metric_name="Loss on held-out conversations",
                metric_value=round(float(loss), 6),
            )
        ]
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
        "license": license_of(bundle, license_of_base),
        "datasets": [data] if data else None,
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


def _said(bundle: Bundle, models: list[Gguf], repo: str, branch: str) -> dict[str, Any]:
    frozen, run = bundle.frozen, bundle.run
    base, data = frozen["base"], frozen["data"]
    quants = [gguf for gguf in models if gguf.bits is not None]
    llama = facts.llama(str(base["name"]))
    modelfiles = [path for path in bundle.sources if path.endswith(".Modelfile")]
    method = "QLoRA" if frozen["recipe"]["model"]["load_in"] != "16bit" else "LoRA"
    return {
        "title": repo.partition("/")[2] + ("" if branch == "main" else f" ({branch})"),
        "name": run.name,
        "repo": repo,
        "branch": branch,
        "branch_is_main": branch == "main",
        "method": method,
        "base_id": facts.on_the_hub(str(base["name"])),
        "base_name": base["name"],
        "base_commit": base["commit"],
        "data_said": _data_said(data, conversations(run) or frozen["recipe"]["data"]["train_size"]),
        "ggufy": frozen["ggufy"],
        "family": llama[1] if llama else None,
        "files": _files(bundle, models),
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


def _recommended(quants: list[Gguf]) -> Gguf | None:
    """The file that the card shows how to run: q4_k_m as everywhere, else the smallest."""
    return next((gguf for gguf in quants if gguf.quant == "q4_k_m"), quants[0] if quants else None)


def _data_said(data: dict[str, Any], rows: int | None) -> str:
    counted = f"{rows:,} conversations" if rows else "conversations"
    name = facts.on_the_hub(str(data["name"]))
    if name:
        return f"{counted} of [{name}](https://huggingface.co/datasets/{name})"
    return f"{counted} of `{data['name']}`, which is not on the Hub"


def _files(bundle: Bundle, models: list[Gguf]) -> list[dict[str, str]]:
    rows = []
    if adapter := bundle.paths("adapter"):
        size = sum(f["size"] for s in bundle.stamps if s["output"] == adapter[0] for f in s["files"].values())
        rows.append(
            {"name": "adapter_model.safetensors", "what": "the adapter, with tokenizer", "size": size, "bits": "–"}
        )
    for gguf in models:
        what = "the adapter, for llama.cpp's --lora" if gguf.bits is None else f"GGUF, {gguf.quant}"
        bits = "–" if gguf.bits is None else f"{gguf.bits:.2f}"
        rows.append({"name": gguf.name, "what": what, "size": gguf.size, "bits": bits})
    for stamp in bundle.stamps:
        if stamp["output"] in bundle.paths("merged"):
            size = sum(facts["size"] for facts in stamp["files"].values())
            what = "base and adapter merged, 16 bits"
            rows.append({"name": f"{stamp['inputs']['quant']}/", "what": what, "size": size, "bits": "16.00"})
    return [{**row, "size": facts.amount(int(row["size"]))} for row in rows]


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
        ("hardware", "device", "{}"),
        ("peak GPU memory", "peak_gpu_bytes", "{:,} bytes"),
        ("tokens a second", "tokens_per_second", "{:,.0f}"),
    )
    rows += [(said, form.format(found[key])) for said, key, form in measured if found.get(key) is not None]
    if found.get("seconds") is not None:
        resumed = f", from step {found['resumed_from_step']} on" if found.get("resumed_from_step") else ""
        rows.append(("time", f"{found['seconds']:,.0f} s{resumed}"))
    return rows
