"""What a training was asked to do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from deltalens.catalog.methods import METHODS, OBJECTIVES, TRAININGS, options_of
from deltalens.errors import DeltaLensError
from deltalens.names import check_scope
from deltalens.numerics.rates import exact_rate, show_rate

__all__ = ["TrainingSpec", "check_own", "config_class"]

_NOT_SHARED = {option for method in METHODS for option in options_of(method)}
_IF_NOT_GIVEN: dict[str, Any] = {
    "scope": "tensor",
    "apply_to": "gradient",
    "blocks": "all",
    "modules": "attention,mlp",
    "rank_by": "magnitude",
    "init_std": 0.02,
    "lora_rank": 64,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """Everything that decides what a training leads to, but for the model and the rows."""

    method: str | None = None
    """`sft` where nothing else says; in a study it is the cell's, and so are the options below."""
    objective: str = "sft"
    mask_ratio: str | None = None
    """As typed. Of gmt and random-mask the fraction masked out in every step, 0.2 if not given; of
    methods that remove weights the fraction removed, 0.1, also by kind, projection and block:
    `0.1,q=0.2,4-7.down=0.05` (`mask_ratios.ratios_of`)."""
    scope: str | None = None
    """What is ranked together: `tensor` if not given."""
    apply_to: str | None = None
    """`gradient` if not given, or `update`."""
    include: str | None = None
    exclude: str | None = None
    blocks: str | None = None
    """Whose weights are masked: `all` if not given, or `4-7,12`."""
    modules: str | None = None
    """`attention,mlp` if not given."""
    complement: bool | None = None
    """Of masks that are not learned: remove what a mask at the ratio would keep, 1 - ratio of the
    weights."""
    threshold: float | None = None
    """Scores at or below it lose their weights (mft), instead of a ratio."""
    rank_by: str | None = None
    """`magnitude` if not given, or `value`."""
    init_std: float | None = None
    """Of the scores; 0.02 if not given."""
    lora_rank: int | None = None
    """64 if not given."""
    lora_alpha: int | None = None
    """16 if not given."""
    lora_dropout: float | None = None
    """0.1 if not given."""
    score_learning_rate: float | None = None
    """Of the scores (mft); the learning rate if not given."""
    epochs: float = 1.0
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 8
    """Rows in a micro-batch."""
    accumulate: int = 1
    """Micro-batches in a step."""
    accumulate_mean: str = "tokens"
    """What a step's loss is the mean of: all `tokens` of its micro-batches, as trl has it; or
    `batch`, the micro-batches' own means, each with the same weight (GMT, Eq. 2). DPO's is the
    latter by nature."""
    learning_rate: float = 2e-5
    weight_decay: float = 0.0
    warmup: float = 0.03
    """The share of the steps over which the learning rate rises; it falls as a cosine (GMT)."""
    seed: int = 0
    max_length: int | None = None
    """Longest row in tokens; the model's positions if not given."""
    loss_on: str = "completion"
    """`completion`, or `all` tokens."""
    gradient_checkpointing: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Further options of trl's configuration."""

    def __post_init__(self) -> None:
        if self.method is not None:
            if self.method not in METHODS or METHODS[self.method].options is None:
                raise DeltaLensError(
                    f"method {self.method!r}: choose one of {', '.join(TRAININGS)}"
                )
            check_own([self.method], self.given)
        for name, known in (
            ("objective", OBJECTIVES),
            ("loss_on", ("completion", "all")),
            ("accumulate_mean", ("tokens", "batch")),
            ("apply_to", ("gradient", "update")),
        ):
            if self.own(name) not in known:
                raise DeltaLensError(
                    f"{name} {getattr(self, name)!r}: choose one of {', '.join(known)}"
                )
        check_scope(self.own("scope"))
        for ratio in self.ratios.values():
            if ratio >= 1:
                raise DeltaLensError(
                    f"mask ratio {show_rate(ratio)}: in [0, 1), the fraction masked out"
                )
        if self.threshold is not None and self.mask_ratio is not None:
            raise DeltaLensError("a threshold and a mask ratio: give one of them")
        gradients = METHODS[self.method or "sft"].masks == "gradients"
        if gradients and {*self.ratios} != {""}:
            raise DeltaLensError(f"mask ratio {self.mask_ratio}: {self.method} takes a single one")
        for name in (
            *("epochs", "batch_size", "accumulate", "learning_rate", "steps", "max_length"),
            *("lora_rank", "lora_alpha", "score_learning_rate"),
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DeltaLensError(f"{name.replace('_', ' ')} {value}: must be above 0")
        if not 0 <= self.warmup < 1:
            raise DeltaLensError(f"warmup {self.warmup}: a share of the steps, in [0, 1)")

    @property
    def given(self) -> tuple[str, ...]:
        """Of the options that only some methods have, those that were given."""
        names = (one.name for one in dataclasses.fields(self))
        return tuple(n for n in names if n in _NOT_SHARED and getattr(self, n) is not None)

    def own(self, option: str) -> Any:
        """An option as it was given, or what holds where it was not."""
        value = getattr(self, option)
        return _IF_NOT_GIVEN.get(option) if value is None else value

    def of(self, method: str, **settings: Any) -> TrainingSpec:
        """The same for a method: without what other methods' options were given, and with these."""
        foreign = {name: None for name in self.given if name not in options_of(method)}
        return dataclasses.replace(self, method=method, **{**foreign, **settings})

    @property
    def ratios(self) -> dict[str, Fraction]:
        """The mask ratio of each kind, projection or block; the one for all others stands under ''.

        Raises:
            DeltaLensError: not so many ratios with names, or two for the same.
        """
        default = "0.1" if "blocks" in options_of(self.method or "") else "0.2"
        found: dict[str, Fraction] = {}
        for part in (self.mask_ratio or default).split(","):
            name, _, ratio = part.rpartition("=")
            if name.strip() in found:
                raise DeltaLensError(
                    f"mask ratio {self.mask_ratio}: two for {name.strip() or 'all'}; write one "
                    "for all that has no name, as in 0.1,q=0.2,4-7.down=0.05"
                )
            found[name.strip()] = exact_rate(ratio)
        if self.complement or (self.method or "").endswith("-complement"):
            return {name: 1 - ratio for name, ratio in found.items()}
        return found

    @property
    def peak_learning_rate(self) -> float:
        """The method's."""
        own = self.score_learning_rate if self.method == "mft" else None
        return own or self.learning_rate

    @property
    def beta(self) -> float:
        """Of DPO's rewards: the recipe's, or trl's default."""
        known = {one.name: one.default for one in dataclasses.fields(config_class("dpo"))}
        given = self.recipe.get("beta", known["beta"])
        try:
            return float(given)
        except (TypeError, ValueError) as error:
            raise DeltaLensError(f"beta {given!r}: not a number") from error

    @property
    def loss_unit(self) -> str:
        """What the training loss is, and in which unit."""
        kinds = self.recipe.get("loss_type")
        named = ", ".join(map(str, kinds)) if isinstance(kinds, list) else kinds
        if self.objective == "dpo":
            plain = named in (None, "sigmoid")
            return (
                "DPO loss, nats per preference" if plain else f"DPO loss ({named}) per preference"
            )
        plain = named in (None, "nll", "chunked_nll")
        return "nats per target token" if plain else f"{named} loss per target token"

    def shared(self) -> dict[str, Any]:
        """The settings that every method has, but for the seed, as JSON values."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {n: v for n, v in found.items() if n not in {"method", "seed", *_NOT_SHARED}}

    def settings(self) -> dict[str, Any]:
        """The method's own settings as they are used, as JSON values; `of` takes them again."""
        found = {name: self.own(name) for name in options_of(self.method or "sft")}
        if "mask_ratio" in found:
            shown = ((kind, show_rate(ratio)) for kind, ratio in sorted(self.ratios.items()))
            text = ",".join(f"{kind}={ratio}" if kind else ratio for kind, ratio in shown)
            found["mask_ratio"] = text if self.threshold is None else None
        if "complement" in found:
            # The ratio above is that of the weights removed, whichever way it was given.
            found["complement"] = None
        if "score_learning_rate" in found:
            found["score_learning_rate"] = self.peak_learning_rate
        return found

    def identity(self) -> dict[str, Any]:
        """As JSON values: two trainings with the same lead to the same."""
        alone = {"method": self.method or "sft", "seed": self.seed}
        return {**alone, **self.settings(), **self.shared()}


def check_own(
    methods: Sequence[str],
    given: Iterable[str],
    *,
    swept: Mapping[str, str] | None = None,
    show: Callable[[str], str] = str,
    offered: Iterable[str] = _NOT_SHARED,
) -> None:
    """Refuse options that none of the methods has: nobody would look at them.

    Args:
        methods: of a training or a study; unknown ones have no options.
        given: names of options that were given, of those that only some methods have.
        swept: options that a study goes through, and what to give it instead.
        show: how an option is called where it was given.
        offered: the options that can be given there.

    Raises:
        DeltaLensError: names the options, and those that the methods have.
    """
    given, swept = list(given), swept or {}
    faults = [
        f"{show(name)}: this study goes through several; give {swept[name]} instead"
        for name in given
        if name in swept
    ]
    foreign = [name for name in given if not any(name in options_of(m) for m in methods)]
    if foreign:
        has = {*offered} - {*swept}
        own = {m: [show(name) for name in options_of(m) if name in has] for m in methods}
        known = "; ".join(f"{m} has {', '.join(names) or 'none'}" for m, names in own.items())
        faults.append(f"{', '.join(map(show, foreign))}: an option of other methods ({known})")
    if faults:
        raise DeltaLensError("; ".join(faults))


def config_class(objective: str) -> Any:
    """trl's configuration of an objective.

    Raises:
        DeltaLensError: trl is not installed.
    """
    try:
        import trl
    except ImportError as error:
        raise DeltaLensError("training needs trl: pip install 'deltalens[train]'") from error
    return trl.DPOConfig if objective == "dpo" else trl.SFTConfig
