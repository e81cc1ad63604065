"""The harness's view of a live model. It imports the harness: import it where it is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn

from deltalens.scoring.placement import input_device

__all__ = ["LiveLM", "TokenMemo"]


class TokenMemo:
    """What the harness would compute again for every model: tokens of texts, and batch sizes."""

    def __init__(self) -> None:
        self.tokens: dict[Any, list[int]] = {}
        self.batches: dict[Any, tuple[Tensor, Tensor]] = {}
        self.batch_sizes: dict[Any, int] = {}


class _Listener(CacheHook):  # type: ignore[misc]
    """Stands where the harness would cache answers: it is told of every request that is done."""

    def __init__(self, answered: Callable[[], None]) -> None:
        super().__init__(None)
        self._answered = answered

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """See `CacheHook`."""
        self._answered()


class LiveLM(HFLM):  # type: ignore[misc]
    """A model in memory, with the tokens of earlier cells.

    Args:
        model: the model, on its device.
        tokenizer: its tokenizer; the harness may give it a padding token.
        batch_size: requests per batch, or `auto`.
        memo: shared by the models of a study.
        answered: called after each request; of a batch, after the batch, and of rolling
            likelihoods, after the last window of all.

    Attributes:
        model_seconds: time spent in the model itself.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        batch_size: int | str,
        memo: TokenMemo,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        self._memo, self.model_seconds = memo, 0.0
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        # Of a model that accelerate has spread, the first parameter may be on the disk.
        self._device = input_device(model)
        self.set_cache_hook(_Listener(answered))

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """See `HFLM`."""
        key = (string, add_special_tokens, left_truncate_len, *sorted(kwargs.items()))
        if key not in self._memo.tokens:
            self._memo.tokens[key] = super().tok_encode(
                string, add_special_tokens, left_truncate_len, **kwargs
            )
        return [*self._memo.tokens[key]]

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """See `HFLM`."""
        key = (*strings, padding_side, left_truncate_len, truncation)
        if key not in self._memo.batches:
            self._memo.batches[key] = super().tok_batch_encode(
                strings, padding_side, left_truncate_len, truncation
            )
        tokens, mask = self._memo.batches[key]
        return tokens.clone(), mask.clone()

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        """See `HFLM`; it depends on the longest request alone, and takes five batches to find."""
        key = requests and tuple(len(part) for part in requests[pos][1:])
        if key not in self._memo.batch_sizes:
            self._memo.batch_sizes[key] = super()._detect_batch_size(requests, pos)
        return self._memo.batch_sizes[key]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """See `HFLM`; without a bar of its own."""
        return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """See `HFLM`; without a bar of its own."""
        return super().loglikelihood_rolling(requests, disable_tqdm)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """See `HFLM`; without a bar of its own."""
        return super().generate_until(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None
    ) -> Any:
        """See `HFLM`; without a bar of its own."""
        return super()._loglikelihood_tokens(requests, True, override_bs)

    def _model_call(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._timed(super()._model_call, *args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._timed(super()._model_generate, *args, **kwargs)

    def _timed(self, compute: Any, *args: Any, **kwargs: Any) -> Tensor:
        begun = time.perf_counter()
        result: Tensor = compute(*args, **kwargs)
        if result.is_cuda:
            torch.cuda.synchronize(result.device)
        self.model_seconds += time.perf_counter() - begun
        return result
