"""The schema of a recipe: sections, keys, defaults and meanings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ggufy.recipe.section import Section, rows_or_share, template_fields
from ggufy.recipe.sharing import Hub, Space

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
# As in Phi-3: one matrix in the place of several.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
MODULE_GROUPS = {"attention": ATTENTION, "mlp": MLP, "all": ATTENTION + MLP}

# Sections that may change in a run that is already trained: they say what is made of it, not what it is.
LATE_SECTIONS = frozenset({"description", "export", "hub", "space", "tracking"})

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


# The names by which formats know columns, the two keys of a turn, and what may stand beside a format.
Column = Literal[
    "conversations",
    "messages",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "text",
    "role",
    "content",
    "system",
    "system_prompt",
    "tools",
    "functions",
    "history",
    "chat",
]


class Model(Section):
    """The base model, in 16 bits, and how it is loaded for training."""

    base: str = Field(min_length=1)
    """Hub repository or local folder with 16-bit safetensors, or builtin:tiny."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    max_length: Annotated[int, Field(ge=8)] = 2048
    """Longest conversation in tokens."""
    load_in: Literal["4bit", "8bit", "16bit"] = "16bit"
    """How the frozen base is held in memory while training: 4bit is QLoRA."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the GPU has it, else fp16 on a GPU, fp32 on a CPU."""


class Lora(Section):
    """The adapter."""

    r: Positive = 16
    """Rank."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """Scaling: alpha/r, or alpha/sqrt(r) with rslora."""
    dropout: Fraction = 0.0
    target_modules: Literal["attention", "mlp", "all"] | tuple[str, ...] = "all"
    """attention, mlp, all, or a list of module names."""
    rslora: bool = False
    dora: bool = False

    @field_validator("target_modules")
    @classmethod
    def _not_empty(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("needs at least one module")
        return value

    @property
    def modules(self) -> tuple[str, ...]:
        if isinstance(self.target_modules, str):
            return MODULE_GROUPS[self.target_modules]
        return self.target_modules

    def modules_in(self, base: Collection[str]) -> tuple[str, ...]:
        """The same in a base with these modules, which may have some of a group as one matrix."""
        modules = list(self.modules)
        if isinstance(self.target_modules, str):
            for whole, parts in FUSED.items():
                if whole in base and not any(part in base for part in parts):
                    modules = [whole if module == parts[0] else module for module in modules if module not in parts[1:]]
        return tuple(modules)


class Part(Section):
    """Rows of one place, and how they are read."""

    source: str = Field(min_length=1)
    """Hub data set, local file (.jsonl, .json, .parquet, .csv) or folder of such, builtin:samples or builtin:tools."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    subset: str | None = None
    """Which configuration of a data set that has several."""
    split: str = Field(default="train", min_length=1)
    """Split, or a part of one: train[:10000], train[10%:20%], train[-500:]."""
    format: Literal["auto", "sharegpt", "messages", "alpaca", "prompt-completion", "glaive", "text"] = "auto"
    """auto: detected from the columns."""
    columns: dict[Column, str] = Field(default={})
    """Maps the usual column names to the data's own, as in {instruction: question, output: answer}."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(default={})
    """Maps the data's own names of roles, as in {agent: assistant}, to system, user, assistant or tool."""
    prompt: str | None = None
    """What the user says, made of a row's columns: "[{TASK}] {instruction}"; {prompt} is the original text."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share in a mix of several sources; without weights all rows of each are taken, one source after the other."""

    @field_validator("prompt")
    @classmethod
    def _fields_are_plain(cls, value: str | None) -> str | None:
        if value is not None and not template_fields(value):
            raise ValueError("names no column; write one as {instruction}")
        return value


class Data(Part):
    """The conversations."""

    more: tuple[Part, ...] = ()
    """Further sources, each a list item with keys such as source, split, format and weight."""
    shuffle_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Shuffle the rows before train_size and eval_size are counted off; null keeps their order."""
    train_size: Positive | None = None
    """The first N rows; all of them if not given."""
    eval_size: int | str = 0
    """The N rows after those are held out, or a share such as 10%; of eval_split or eval_source the first N, 0: all."""
    eval_split: str | None = None
    """Hold out a split of the same source instead."""
    eval_source: str | None = None
    """Hold out another source instead, such as validation.jsonl."""
    train_on: Literal["responses", "all"] = "responses"
    """responses: only what the assistant says, and its end-of-turn, counts in the loss."""
    prompt_tokens: Positive | None = None
    """A prompt (each thing the user says) of more tokens is cut to this many, or fewer, so that the answer fits."""
    prompt_cut: Literal["end", "middle", "start"] = "end"
    """Where such a prompt is cut."""
    overflow: Literal["truncate", "drop", "refuse", "split"] = "truncate"
    """What happens to a row longer than model.max_length; split, for plain text only, continues it in another row."""
    on_bad_row: Literal["error", "skip"] = "error"
    """skip: leave unusable rows out, and say how many."""
    unique_ids: bool = True
    """A row whose `id` already appeared in the same file is unusable; false: ids are ignored."""

    @field_validator("eval_size", mode="before")
    @classmethod
    def _rows_or_a_share(cls, value: Any) -> int | str:
        return rows_or_share(value)

    @property
    def holds_out(self) -> bool:
        """Whether rows are held out."""
        return bool(self.eval_size or self.eval_split or self.eval_source)


class Train(Section):
    """The training itself."""

    backend: Literal["auto", "unsloth", "hf"] = "auto"
    """auto: unsloth on a CUDA GPU where installed, else hf (transformers, peft, trl). Name hf to train on any CPU."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 3407
    max_steps: Positive | None = None
    """Optimizer steps; if not given, epochs counts."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Positive = 1
    """Conversations on the device at once."""
    gradient_accumulation: Positive = 4
    """Batches per step."""
    gpus: Positive = 1
    """Processes with a GPU each that share the rows of every step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Below 1 a share of the steps, else a number of steps."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = "adamw_8bit"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    gradient_checkpointing: bool = True
    packing: bool = False
    """Whole conversations share a row of up to model.max_length tokens, and does not see the others."""
    group_by_length: bool = False
    """Batches of conversations that are about equally long, so that less is padding."""
    keep_best: bool = False
    """The adapter is that of the checkpoint with the lowest eval loss, not the last one."""
    early_stopping: Positive | None = None
    """Stop after that many evaluations in a row without a lower eval loss."""
    save_steps: Positive = 50
    """A checkpoint every N steps, and one at the end."""
    keep_checkpoints: Positive = 2
    """How many verified checkpoints stay on the disk."""


class Eval(Section):
    """The loss on held-out conversations (data.eval_size)."""

    steps: Positive | None = None
    """Every N steps; if not given, at the end only."""
    batch_size: Positive = 1


class Export(Section):
    """The GGUF files."""

    quants: tuple[str, ...] = ("q4_k_m",)
    """llama.cpp's names: f16, q8_0, q4_k_m, ..."""
    imatrix: bool = False
    """Weigh the quants by an importance matrix, computed from the training conversations."""


class Tracking(Section):
    """Where the figures of a run go, beside metrics.jsonl."""

    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    log_steps: Positive = 1
    """The loss is logged every N steps."""


class Recipe(Section):
    """One recipe, complete and checked."""

    name: str = Field(default="recipe", pattern=r"^[\w][\w.-]*$")
    description: str = ""
    model: Model
    lora: Lora = Lora()
    data: Data
    train: Train = Train()
    eval: Eval = Eval()
    export: Export = Export()
    hub: Hub = Hub()
    space: Space = Space()
    tracking: Tracking = Tracking()

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Keys in which `other` differs: {"train.seed": (mine, theirs)}."""
        mine, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        keys = [*mine, *(key for key in theirs if key not in mine)]
        return {k: (mine.get(k), theirs.get(k)) for k in keys if mine.get(k) != theirs.get(k) and k != "name"}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
