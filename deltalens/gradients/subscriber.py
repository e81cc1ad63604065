"""The base class of everything that reads or masks the gradients of a model's optimizer steps."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from torch import nn
from torch.optim.optimizer import Optimizer

from deltalens.errors import DeltaLensError
from deltalens.gradients.steps import GradientStep, Step
from deltalens.gradients.watching import ATTACHING, GradientPass

__all__ = ["Subscriber"]


class Subscriber(abc.ABC):
    """An object that is notified of a model's optimizer steps while it is attached.

    It is a context manager: entering attaches, leaving detaches.

    Args:
        model: the model whose steps are watched.
        optimizer: watch only the steps of this optimizer, or of these; None: of all.
    """

    writes: ClassVar[bool] = False
    """Whether the subscriber changes gradients. If so, it runs after all that only read, and first
    after the step, when it may change parameters."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None = None
    ) -> None:
        self.model, self._optimizer = model, optimizer
        self._attached = False
        self.notified = False
        """Whether a step was seen since the subscriber was attached."""
        self._last_counted: Step | None = None
        self.steps = 0
        """Number of steps masked or logged."""
        self.seconds = 0.0
        """Time spent in the hooks, in seconds."""

    def open_step(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Called before a step that computes its gradients itself (with a closure).

        Args:
            parameters: name and parameter of all that the step may move; they have not moved yet.
        """
        return

    @abc.abstractmethod
    def before_step(self, step: GradientStep) -> Any:
        """Called when the gradients are final and no parameter has moved.

        Args:
            step: the optimizer step.

        Returns:
            Anything to be passed to `after_step`.
        """

    @abc.abstractmethod
    def after_step(self, step: GradientStep, state: Any) -> None:
        """Called when the optimizer has stepped.

        Args:
            step: the optimizer step.
            state: what `before_step` returned.
        """

    def attach(self) -> Self:
        """Begin to watch the model's optimizer steps.

        Returns:
            The object itself.

        Raises:
            DeltaLensError: the object is attached already, a given optimizer holds none of the
                model's parameters, or the model is wrapped by DeepSpeed.
        """
        _refuse_deepspeed(self.model)
        with ATTACHING:
            if self._attached:
                raise DeltaLensError(
                    f"this {type(self).__name__} is attached already; call detach() first"
                )
            GradientPass.of(self.model).attach(self, self._optimizer)
            self._attached, self.notified = True, False
        return self

    def notify(self, step: GradientStep) -> Any:
        """Handle a step whose gradients are final.

        Args:
            step: the optimizer step.

        Returns:
            What `before_step` returns.
        """
        self.notified = True
        return self.before_step(step)

    def count_step(self, step: GradientStep) -> None:
        """Count a step once, however many optimizers take part in it.

        Args:
            step: the optimizer step.
        """
        if self._last_counted is None or self._last_counted is not step.shared_step:
            self._last_counted = step.shared_step
            self.steps += 1

    def detach(self) -> None:
        """Stop watching and remove the hooks. A step that has begun is still completed."""
        with ATTACHING:
            if not self._attached:
                return
            self._attached = False
        gradient_pass = GradientPass.of(self.model)
        gradient_pass.detach(self)
        if not self.notified:
            warnings.warn(
                f"{type(self).__name__} saw no optimizer step of this model: is it the model that "
                "was trained, and did its optimizer step inside the context?",
                stacklevel=2,
            )
        with gradient_pass.working:
            self.close()

    def close(self) -> None:
        """Called after the subscriber was detached, when none of its steps is in progress."""
        return

    def _settings(self) -> dict[str, object]:
        """The most important settings, by name, for `repr`."""
        return {}

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self._settings().items())
        state = "attached" if self._attached else "not attached"
        return (
            f"<{type(self).__name__} of {type(self.model).__name__}: {settings}; {state}, "
            f"{self.steps} steps>"
        )

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()


def _refuse_deepspeed(model: nn.Module) -> None:
    """Refuse ZeRO, which keeps gradients in flat buffers where those of single parameters are
    hidden."""
    wrapped = type(model).__module__.partition(".")[0] == "deepspeed"
    if wrapped or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise DeltaLensError(
            "DeepSpeed ZeRO hides the gradients of single parameters; use FSDP2 to shard instead "
            "(docs/scaling.md)"
        )
