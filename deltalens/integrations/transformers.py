"""Callbacks for `transformers.Trainer`, and therefore for TRL's trainers."""

from __future__ import annotations

import abc
import warnings
import weakref
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import TrainerCallback

from deltalens.errors import DeltaLensError
from deltalens.gradients import Subscriber
from deltalens.methods.baselines import HalfFreeze, RandomMask
from deltalens.methods.gmt import GradientMask, Ratio
from deltalens.methods.new_head import exclude_new_head
from deltalens.probes.gradient import GradientProbe

__all__ = [
    "GradientMaskCallback",
    "GradientProbeCallback",
    "HalfFreezeCallback",
    "RandomMaskCallback",
    "SubscriberCallback",
]

S = TypeVar("S", bound=Subscriber)


class SubscriberCallback(TrainerCallback, Generic[S]):
    """Attach a probe or a mask for the duration of `trainer.train()`.

    The reference model of DPO is never touched.

    Args:
        options: keyword arguments of the object to attach.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.attached: S | None = None
        """The attached object, once the training has begun."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.attached or 'not attached yet'}>"

    @abc.abstractmethod
    def build(self, model: Any, first_step: int = 0) -> S:
        """Make the object to attach.

        Args:
            model: the model that is trained.
            first_step: number of the first step, if a training is resumed.

        Returns:
            The object, not attached yet.

        Raises:
            DeltaLensError: an option is invalid.
        """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach, when the trainer starts.

        Args:
            args: the trainer's arguments.
            state: the trainer's state.
            control: unused.
            kwargs: holds the model.

        Raises:
            DeltaLensError: the training uses DeepSpeed, or an option is invalid.
        """
        if getattr(args, "deepspeed", None):
            raise DeltaLensError(
                f"{type(self).__name__}: DeepSpeed ZeRO hides the gradients of single parameters; "
                "use FSDP2 to shard instead (docs/scaling.md)"
            )
        if self.attached is not None:
            self.attached.detach()
        subscriber = self.build(kwargs["model"], state.global_step)
        subscriber.attach()
        self.attached = subscriber
        # A training that raises does not notify its callbacks.
        weakref.finalize(self, subscriber.detach)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detach, when the trainer has finished.

        Args:
            args: unused.
            state: unused.
            control: unused.
            kwargs: unused.
        """
        if self.attached is not None:
            self.attached.detach()

    def abandon(self) -> None:
        """Detach silently, after the training raised an exception."""
        with warnings.catch_warnings():
            # That no step was seen is to be expected then.
            warnings.simplefilter("ignore", UserWarning)
            if self.attached is not None:
                self.attached.detach()


class GradientProbeCallback(SubscriberCallback[GradientProbe]):
    """Log a training with a `GradientProbe`.

    Args:
        log_dir: the run's folder; it must be new.
        options: further keyword arguments of `GradientProbe`.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
        >>> from deltalens import load_run
        >>> from deltalens.integrations.transformers import GradientProbeCallback
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32,
        ...     num_hidden_layers=1, num_attention_heads=2,
        ... )
        >>> row = {"input_ids": torch.arange(8), "labels": torch.arange(8)}
        >>> args = TrainingArguments("out", max_steps=2, report_to="none", disable_tqdm=True)
        >>> trainer = Trainer(
        ...     LlamaForCausalLM(config), args, train_dataset=[row] * 8,
        ...     callbacks=[GradientProbeCallback("my-run", every=1)],
        ... )
        >>> trainer.train().global_step
        {'train_runtime': ...}
        2
        >>> load_run("my-run").tensors["step"].unique().tolist()
        [0, 1]
    """

    def __init__(self, log_dir: str | Path, **options: Any) -> None:
        super().__init__(**options)
        self.log_dir = log_dir

    def build(self, model: Any, first_step: int = 0) -> GradientProbe:
        """Make the probe.

        Args:
            model: the model that is trained.
            first_step: number of the first step, if a training is resumed.

        Returns:
            The probe, not attached yet.

        Raises:
            DeltaLensError: an option is invalid.
        """
        return GradientProbe(model, self.log_dir, **{"first_step": first_step, **self.options})


class GradientMaskCallback(SubscriberCallback[GradientMask]):
    """Train with Gradient-Mask Tuning.

    Args:
        mask_ratio: the fraction masked out, in [0, 1).
        options: further keyword arguments of `GradientMask`.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
        >>> from deltalens.integrations.transformers import GradientMaskCallback
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32,
        ...     num_hidden_layers=1, num_attention_heads=2,
        ... )
        >>> row = {"input_ids": torch.arange(8), "labels": torch.arange(8)}
        >>> args = TrainingArguments("out", max_steps=2, report_to="none", disable_tqdm=True)
        >>> callback = GradientMaskCallback(mask_ratio=0.8)
        >>> trainer = Trainer(
        ...     LlamaForCausalLM(config), args, train_dataset=[row] * 8, callbacks=[callback]
        ... )
        >>> trainer.train().global_step
        {'train_runtime': ...}
        2
        >>> callback.attached
        <GradientMask of LlamaForCausalLM: mask_ratio=0.8, scope=tensor, ...; not attached, 2 steps>
    """

    def __init__(self, mask_ratio: Ratio = 0.2, **options: Any) -> None:
        super().__init__(mask_ratio=mask_ratio, **options)

    def build(self, model: Any, first_step: int = 0) -> GradientMask:
        """Make the mask.

        Args:
            model: the model that is trained.
            first_step: number of the first step, if a training is resumed.

        Returns:
            The mask, not attached yet.

        Raises:
            DeltaLensError: an option is invalid.
        """
        options = exclude_new_head(model, self.options)
        return GradientMask(model, **{"first_step": first_step, **options})


class RandomMaskCallback(SubscriberCallback[RandomMask]):
    """Train random entries of every tensor.

    Args:
        mask_ratio: the fraction masked out, in [0, 1).
        options: further keyword arguments of `RandomMask`.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
        >>> from deltalens.integrations.transformers import RandomMaskCallback
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32,
        ...     num_hidden_layers=1, num_attention_heads=2,
        ... )
        >>> row = {"input_ids": torch.arange(8), "labels": torch.arange(8)}
        >>> args = TrainingArguments("out", max_steps=2, report_to="none", disable_tqdm=True)
        >>> callback = RandomMaskCallback(mask_ratio=0.8, resample="once")
        >>> trainer = Trainer(
        ...     LlamaForCausalLM(config), args, train_dataset=[row] * 8, callbacks=[callback]
        ... )
        >>> trainer.train().global_step
        {'train_runtime': ...}
        2
        >>> round(callback.attached.coverage(), 1)
        0.2
    """

    def __init__(self, mask_ratio: Ratio = 0.2, **options: Any) -> None:
        super().__init__(mask_ratio=mask_ratio, **options)

    def build(self, model: Any, first_step: int = 0) -> RandomMask:
        """Make the mask.

        Args:
            model: the model that is trained.
            first_step: number of the first step, if a training is resumed.

        Returns:
            The mask, not attached yet.

        Raises:
            DeltaLensError: an option is invalid.
        """
        options = exclude_new_head(model, self.options)
        return RandomMask(model, **{"first_step": first_step, **options})


class HalfFreezeCallback(SubscriberCallback[HalfFreeze]):
    """Train with half of the layers of every block frozen.

    Args:
        options: keyword arguments of `HalfFreeze`.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
        >>> from deltalens.integrations.transformers import HalfFreezeCallback
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32,
        ...     num_hidden_layers=1, num_attention_heads=2,
        ... )
        >>> row = {"input_ids": torch.arange(8), "labels": torch.arange(8)}
        >>> args = TrainingArguments("out", max_steps=2, report_to="none", disable_tqdm=True)
        >>> callback = HalfFreezeCallback(seed=0)
        >>> trainer = Trainer(
        ...     LlamaForCausalLM(config), args, train_dataset=[row] * 8, callbacks=[callback]
        ... )
        >>> trainer.train().global_step
        {'train_runtime': ...}
        2
        >>> sum("self_attn" in name for name in callback.attached.frozen)  # of q, k, v and o
        2
    """

    def build(self, model: Any, first_step: int = 0) -> HalfFreeze:
        """Make the object that freezes.

        Args:
            model: the model that is trained.
            first_step: unused; the draw does not depend on the step.

        Returns:
            The object, not attached yet.

        Raises:
            DeltaLensError: an option is invalid.
        """
        return HalfFreeze(model, **self.options)
