"""Read adapter_config.json: how a LoRA adapter is merged, and which modules of the base it changes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, field_validator

from ggufy.errors import ExportError
from ggufy.model import config_files
from ggufy.model.config_files import Settings

# Ways of starting an adapter that leave the base as it is. Others, as pissa, olora, corda, loftq and lora_ga, also take
# something away from the base that the adapter is trained on.
_STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
# What adapters of other tasks give.
_OTHER_TASKS = {
    "SEQ_CLS": "a classifier or reward model, which gives scores",
    "TOKEN_CLS": "a classifier of tokens",
    "QUESTION_ANS": "a model that marks answers in a text",
}
# Other sums than W + B @ A, by the key that peft sets for them.
_OTHER_SUMS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
# Modules that every model whose checkpoint names them so has: not experts, which transformers may fuse, nor towers that
# a text-only training leaves away.
_SURE = re.compile(
    r"model\.layers\.\d+\.(self_attn\.([qkvo]|qkv)_proj|mlp\.(gate|up|gate_up|down)_proj)|model\.embed_tokens|lm_head"
)
_NOT_LINEAR_LAYERS = ("embed_tokens", "lm_head")


class AdapterConfig(Settings):
    """What ggufy uses of PEFT's LoraConfig."""

    r: PositiveInt
    lora_alpha: float
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    ensure_weight_tying: bool = False
    # A list of names or a string that means something else; what is neither says nothing.
    target_modules: Any = None
    exclude_modules: Any = None
    modules_to_save: Any = None
    layers_to_transform: Any = None
    layers_pattern: Any = None
    bias: str = "none"
    trainable_token_indices: Any = None

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _are_patterns(cls, patterns: dict[str, Any]) -> dict[str, Any]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns

    @classmethod
    def read(cls, path: Path) -> AdapterConfig:
        """The config of a LoRA adapter. Raises ExportError for other methods, and for what cannot be read."""
        values = config_files.read(path)
        if (kind := values.get("peft_type")) != "LORA":
            what = f"peft_type is {kind!r:.60}" if kind else "peft_type is missing"
            raise ExportError(f"{path.as_posix()}: {what}; ggufy merges LoRA, rsLoRA and DoRA", "merge it with peft")
        if task := _OTHER_TASKS.get(str(values.get("task_type"))):
            raise ExportError(
                f"{path.as_posix()}: task_type {values['task_type']} is that of {task}, not text",
                "export an adapter of a model that writes text: what this one learnt is not in its answers",
            )
        initial = str(values.get("init_lora_weights", True)).lower()
        if initial not in _STARTS:
            raise ExportError(
                f"{path.parent.as_posix()}: an adapter of this kind (init_lora_weights: {initial}) does not fit the "
                "published base",
                "convert it with peft's own tool for that method, or merge it with peft",
            )
        if other := next((key for key in _OTHER_SUMS if values.get(key)), None):
            raise ExportError(
                f"{path.parent.as_posix()}: {other} makes it an adapter of a kind that ggufy does not merge",
                "merge it with peft",
            )
        if values.get("layer_replication"):
            raise ExportError(
                f"{path.as_posix()}: layer_replication makes a different model of the base, which ggufy cannot do",
                "merge it with peft",
            )
        return config_files.check(cls, values, path)

    @property
    def saved(self) -> tuple[str, ...]:
        """modules_to_save: names of modules that were trained whole."""
        return tuple(map(str, self.modules_to_save)) if isinstance(self.modules_to_save, list) else ()

    def rank(self, module: str) -> int:
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def scaling(self, module: str) -> float:
        rank, alpha = self.rank(module), float(_by_pattern(self.alpha_pattern, module, self.lora_alpha))
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def saves(self, module: str) -> bool:
        """Whether peft trains this module whole, by modules_to_save."""
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.saved)

    def trains_bias(self, *, low_rank: bool) -> bool:
        """Whether peft trains the bias of a module with a pair, or of one without."""
        return self.bias == "all" or (self.bias == "lora_only" and low_rank)

    def changes(self, module: str, known_as: str = "") -> bool:
        """Whether peft surely puts a pair on this module of a base, by the rule of `check_target_module_exists`.

        `known_as` is its name for peft, where that is another: where the language model is a part of a model.
        """
        known_as = known_as or module
        try:
            return bool(_SURE.fullmatch(module)) and not self._leaves_out(known_as) and self._names(known_as)
        except (re.error, TypeError):
            return False

    def _leaves_out(self, module: str) -> bool:
        if self.saves(module):
            return True
        if isinstance(self.exclude_modules, str):
            return bool(re.fullmatch(self.exclude_modules, module))
        return _is_one_of(module, self.exclude_modules or ())

    def _names(self, module: str) -> bool:
        targets = self.target_modules
        if isinstance(targets, str):
            if targets.lower() == "all-linear":
                return not module.endswith(_NOT_LINEAR_LAYERS)
            return bool(re.fullmatch(targets, module))
        if not isinstance(targets, list):
            return False
        return module in targets or (_is_one_of(module, targets) and self._in_layers(module))

    def _in_layers(self, module: str) -> bool:
        """Whether layers_to_transform, a number or a list, has the layer of this module."""
        layers, patterns = self.layers_to_transform, self.layers_pattern or [r"[^.]*"]
        if layers is None or layers == []:
            return True
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module):
                return int(found[1]) in (layers if isinstance(layers, list) else [layers])
        return False


def _is_one_of(module: str, names: Any) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(patterns: dict[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
