"""What a training method is: its settings, and what it does to a model that is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from deltalens.catalog.methods import METHODS, MethodFacts
from deltalens.errors import DeltaLensError
from deltalens.numerics.rates import Rate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deltalens.integrations.transformers import SubscriberCallback
    from deltalens.methods.weight_masks import WeightMasks

__all__ = [
    "LEARNING_RATE",
    "SCORE_LEARNING_RATE",
    "Calibration",
    "KeptState",
    "Method",
    "Ready",
    "facts_here",
    "setting",
]

LEARNING_RATE = 2e-5
"""Peak learning rate of weights, where none is given: that of both papers' 7B models."""
SCORE_LEARNING_RATE = 3e-3
"""Peak learning rate of MFT's scores, where none is given. They begin as N(0, 0.02), and a step of
Adam moves one by about the rate: at the weights' 2e-5 it takes a thousand steps to cross the
spread, at this rate about seven. Chosen on validation rows of the demo's three domains."""


def setting(default: Any, about: str, *, metavar: str | None = None, flag: str = "") -> Any:
    """A field of a method's class, with what the command line says about it.

    Args:
        default: its value where none is given.
        about: the help text, in one line.
        metavar: the values it takes, as `tensor|layer|global`.
        flag: a second, shorter spelling, as `--score-lr`.

    Returns:
        A dataclass field.
    """
    return field(default=default, metadata={"about": about, "metavar": metavar, "flag": flag})


def facts_here(name: str) -> MethodFacts:
    """The catalog's row for a method of ours.

    Args:
        name: of the method.

    Returns:
        Its facts.
    """
    return METHODS[name]


class Calibration(Protocol):
    """Batches of the training's rows, for methods that look at data before the first step."""

    size: int
    """Rows in a batch."""

    def __call__(self, number: int) -> Iterator[Mapping[str, Any]]:
        """Go through the rows once.

        Args:
            number: of this pass, from 0; each has an order of its own, drawn from the seed.

        Returns:
            Batches as the model takes them, labels among them.
        """
        ...


class KeptState(Protocol):
    """What can be kept of a model in training, and put back."""

    def state_dict(self) -> dict[str, Any]:
        """What to keep.

        Returns:
            Name -> tensor.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back.

        Args:
            state: what `state_dict` returned.
        """


@dataclass(frozen=True)
class Ready:
    """A model made ready for a method."""

    model: nn.Module
    """What is trained."""
    plain: Callable[[], nn.Module]
    """Returns the ordinary model that is written in the end; called once."""
    plain_state: Callable[[], Mapping[str, Tensor]] | None = None
    """Returns the tensors of the ordinary model as they are now, by its names, for a checkpoint
    that is kept; the training goes on unchanged. None: those of the model's state dict."""
    callbacks: tuple[SubscriberCallback[Any], ...] = ()
    """Attached to the trainer."""
    masks: Callable[[], WeightMasks] | None = None
    """Returns the masks of weights as they are now, where the method has such."""
    trains: bool = True
    """Whether there are steps to take."""
    watched: Mapping[str, Any] = field(default_factory=dict)
    """Further options for a probe that logs this training."""
    adapter: Callable[[Any], None] | None = None
    """Writes the adapter into a folder before it is merged, where the method has one."""
    notes: tuple[str, ...] = ()
    """Sentences for the user about how the method took this model."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the training's manifest should say of it, as JSON values by name."""
    state: KeptState | None = None
    """What is kept of the best checkpoint; None: the parameters that need a gradient."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train a model. Each method is a subclass, whose fields are the settings of its own.

    Importing a subclass must not import torch: import it inside the functions that need it.

    Example:
        >>> from deltalens.training.methods import method_of
        >>> method_of("gmt", mask_ratio=0.5)
        Gmt(mask_ratio='0.5', scope='tensor', apply_to='gradient', include=None, exclude=None)
    """

    name: ClassVar[str] = ""
    """In commands and records."""
    facts: ClassVar[MethodFacts] = MethodFacts()
    """How it is called, drawn and printed."""
    replaces: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """A setting -> the one whose default does not apply where it is given."""
    budget_settings: ClassVar[tuple[str, ...]] = ()
    """The settings that decide how many parameters it trains. Set to a rank, the first one has it
    train as many as a LoRA of that rank on the same layers. (): it has no such choice."""
    changes_base: ClassVar[bool] = False
    """Whether the weights beside the adapter differ from the base's, so that the model without its
    adapter is no reference for preferences."""
    given: ClassVar[tuple[str, ...] | None] = None
    """The settings that were typed for this method alone; None: it was not typed."""

    def __post_init__(self) -> None:
        if "mask_ratio" in self.own_settings():
            object.__setattr__(self, "mask_ratio", _as_text(getattr(self, "mask_ratio")))  # noqa: B009
        self.check()

    @classmethod
    def own_settings(cls) -> dict[str, dataclasses.Field[Any]]:
        """The method's settings.

        Returns:
            Name -> field, in the order of records and help texts.
        """
        return {each.name: each for each in dataclasses.fields(cls)}

    @classmethod
    def from_record(cls, settings: Mapping[str, Any]) -> Self:
        """The method as a record has it.

        Args:
            settings: what `settings` returned; those that are missing have their defaults.

        Returns:
            The method with these settings.
        """
        return cls(**settings)

    @property
    def changed(self) -> list[str]:
        """The names of the settings that differ from their defaults."""
        own = self.own_settings().values()
        return [each.name for each in own if getattr(self, each.name) != each.default]

    @property
    def variant(self) -> str:
        """The label of this method among others of its name: the name and every setting that was
        given for it, `gmt:scope=global`. It tells nothing of the others, so that it stays the same
        when a study gets another variant."""
        given = self.changed if self.given is None else self.given
        used = self.settings(None)
        shown = ((name, used.get(name)) for name in self.own_settings() if name in given)
        texts = (
            f"{name.replace('_', '-')}={_as_typed(getattr(self, name) if value is None else value)}"
            for name, value in shown
        )
        return ":".join([self.name, *texts])

    def check(self) -> None:
        """Refuse settings that no model can be trained with.

        Raises:
            DeltaLensError: names the setting, its value, and what it may be.
        """

    def settings(self, learning_rate: float | None) -> dict[str, Any]:
        """The settings as they are used: what decides the result beside the shared settings.

        Args:
            learning_rate: peak learning rate of the training; None: not given.

        Returns:
            JSON values by name, in the order of the fields; `from_record` takes them again.
        """
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def peak_learning_rate(self, learning_rate: float | None) -> float:
        """The optimizer's peak learning rate.

        Args:
            learning_rate: of the training; None: not given.

        Returns:
            That rate, or the method's default.
        """
        return LEARNING_RATE if learning_rate is None else learning_rate

    def callbacks(self, seed: int) -> list[SubscriberCallback[Any]]:
        """What is attached to the trainer; a method that masks gradients overrides this.

        Args:
            seed: of the training.

        Returns:
            Callbacks, in the order in which they see a step.
        """
        return []

    def prepare(self, model: nn.Module, seed: int, calibration: Calibration) -> Ready:
        """Make a loaded model ready to be trained; may change it in place.

        Args:
            model: as transformers loads it.
            seed: of the training.
            calibration: batches of the rows that it will be trained on.

        Returns:
            What is trained, and how an ordinary model comes out of it.

        Raises:
            DeltaLensError: the settings do not fit the model.
        """
        return Ready(model, plain=lambda: model, callbacks=tuple(self.callbacks(seed)))


def _as_text(ratio: Rate | Mapping[str, Rate] | None) -> str | None:
    """A mask ratio as it would be typed: `0.1`, or `0.1,q=0.2` of a mapping."""
    if isinstance(ratio, Mapping):
        pairs = ((name, str(value)) for name, value in ratio.items())
        return ",".join(f"{name}={value}" if name else value for name, value in pairs)
    return ratio if ratio is None else str(ratio)


def _as_typed(value: Any) -> str:
    """A value as the command line takes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices.

    Args:
        name: of the setting.
        value: as given.
        choices: those that exist.

    Raises:
        DeltaLensError: names them.
    """
    if value not in choices:
        raise DeltaLensError(f"{name} {value!r}: choose one of {', '.join(choices)}")


def check_above_zero(name: str, value: float | None) -> None:
    """Refuse a number that is not above 0; None passes.

    Args:
        name: of the setting.
        value: as given.

    Raises:
        DeltaLensError: names both.
    """
    if value is not None and not value > 0:
        raise DeltaLensError(f"{name} {value}: must be above 0")
