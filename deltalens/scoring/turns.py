"""Applying chat templates to conversations, and finding where an answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltalens.errors import DataError, DeltaLensError, errors_from, is_library_error
from deltalens.io.platform import quiet_panics
from deltalens.scoring.deadline import Deadline
from deltalens.scoring.rows import DataFile, Row, Turns

__all__ = ["TEMPLATE_SECONDS", "Ends", "apply_template", "check_template", "ends_of", "text_ends"]

TEMPLATE_SECONDS = 5.0
"""Time limit of a template for one row. A long conversation takes milliseconds, but a template can
contain an endless loop."""
_ANSWER = "answer7f3a"
_PROBE = ({"role": "user", "content": "question7f3a"}, {"role": "assistant", "content": _ANSWER})


def apply_template(
    tokenizer: Any, row: Row, turns: Turns, data: DataFile, *, prompting: bool = False
) -> str:
    """Turn messages into text with the tokenizer's chat template.

    Args:
        tokenizer: a tokenizer with a chat template.
        row: the row, which may have tools and further arguments of the template.
        turns: the messages.
        data: the row's file, for the message.
        prompting: whether to append what introduces the assistant's next answer.

    Returns:
        The text.

    Raises:
        DataError: the template fails, or does not support messages that consist of parts.
    """
    with errors_from("the chat template", f"{data.path}: {row.location}", kind=DataError):
        text = tokenizer.apply_chat_template(
            list(turns),
            tools=None if row.tools is None else list(row.tools),
            add_generation_prompt=prompting,
            tokenize=False,
            **row.template,
        )
    for turn in turns:
        if isinstance(turn.get("content"), list) and str(turn["content"]) in text:
            raise DataError(
                f"{data.path}: {row.location}: the chat template does not support messages with "
                "parts; make each message's 'content' a single text"
            )
    return str(text)


def check_template(tokenizer: Any, data: DataFile) -> None:
    """Refuse conversations if the tokenizer has no chat template.

    Args:
        tokenizer: the tokenizer.
        data: the rows' file, for the message.

    Raises:
        DataError: there is no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{data.path}: rows are conversations, but the tokenizer has no chat template; use "
            "'prompt' and 'completion' as texts instead"
        )


@dataclass(frozen=True)
class Ends:
    """The tokens by which the end of an answer is found."""

    stops: frozenset[int]
    """Tokens at which generation stops, according to the model's generation configuration, the
    tokenizer, or the chat template."""
    padding: frozenset[int]
    """Tokens that may follow the end of an answer without being part of it: special tokens, and
    what the template writes after the end of a turn."""

    def length(self, ids: Sequence[int], start: int) -> int:
        """Find the end of an answer, without what a template or tokenizer appends to it.

        Args:
            ids: the sequence.
            start: the earliest index at which the answer can begin.

        Returns:
            The number of tokens up to the end of the answer; of all tokens, if none of the last
            ones is a stop.
        """
        end = position = len(ids)
        while position > start and (
            ids[position - 1] in self.stops or ids[position - 1] in self.padding
        ):
            position -= 1
            if ids[position] in self.stops:
                end = position + 1
        return end


def ends_of(tokenizer: Any | None, model: Any | None = None) -> Ends:
    """Determine which tokens end a model's answers.

    Args:
        tokenizer: the model's tokenizer; None if it has none.
        model: the model, for its generation configuration; None: that is not considered.

    Returns:
        The tokens.
    """
    stops = set(_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None)))
    if tokenizer is None:
        return Ends(frozenset(stops), frozenset())
    specials = {*tokenizer.all_special_ids}
    specials |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    stops |= set(_ids(tokenizer.eos_token_id))
    if tokenizer.eos_token_id is None:
        stops |= set(_ids(tokenizer.sep_token_id))
    end, appended = _turn_end(tokenizer)
    return Ends(frozenset(stops | set(_ids(end))), frozenset(specials | set(appended)))


def text_ends(ends: Ends, tokenizer: Any) -> Ends:
    """Determine which tokens end a text: only the tokenizer's end-of-sequence token.

    Args:
        ends: what ends an answer.
        tokenizer: the tokenizer.

    Returns:
        The tokens.
    """
    return Ends(frozenset(_ids(tokenizer.eos_token_id)), ends.padding)


def _turn_end(tokenizer: Any) -> tuple[int | None, list[int]]:
    """The first special or added token that the template writes after an answer, and the tokens
    after that. To find them, the template is applied to an answer that occurs nowhere else."""
    if not getattr(tokenizer, "chat_template", None):
        return None, []
    try:
        with quiet_panics(), Deadline(TEMPLATE_SECONDS) as deadline:
            deadline.restart("the chat template, on two short messages,")
            text = tokenizer.apply_chat_template(list(_PROBE), tokenize=False)
            _, answer, rest = text.rpartition(_ANSWER)
            ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if answer else []
    except BaseException as error:  # A template may refuse the two messages with any error.
        if not is_library_error(error) or isinstance(error, DeltaLensError):
            raise
        return None, []
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    for index, token in enumerate(ids):
        if token in added or token in tokenizer.all_special_ids:
            return token, ids[index + 1 :]
    return None, []


def _ids(value: Any) -> list[int]:
    """The token ids in a configuration's value: one, several, or none."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in values if isinstance(item, int)]
