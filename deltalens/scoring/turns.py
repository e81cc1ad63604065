"""Conversations as their chat template writes them, and where an answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltalens.errors import DataError, DeltaLensError, errors_from, is_library_error
from deltalens.io.platform import quiet_panics
from deltalens.scoring.deadline import Deadline
from deltalens.scoring.rows import DataFile, Row, Turns

__all__ = ["SECONDS_OF_TEMPLATE", "Ends", "check_template", "ends_of", "text_ends", "written"]

SECONDS_OF_TEMPLATE = 5.0
"""For one row; a long conversation takes thousandths. A template can loop without end."""
_ANSWER = "answer7f3a"
_PROBE = ({"role": "user", "content": "question7f3a"}, {"role": "assistant", "content": _ANSWER})


def written(
    tokenizer: Any, row: Row, turns: Turns, data: DataFile, *, prompting: bool = False
) -> str:
    """Messages of a row, as the tokenizer's chat template writes them out.

    Args:
        tokenizer: it has a template.
        row: tells of tools, and of further arguments of the template.
        turns: the messages, whole.
        data: whose row it is.
        prompting: with what comes before an answer that is still to be given.

    Raises:
        DataError: the template refuses them, or writes out how a list looks in Python.
    """
    with errors_from("the chat template", f"{data.path}: {row.place}", kind=DataError):
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
                f"{data.path}: {row.place}: the chat template takes no parts; give a message's "
                "'content' as one text"
            )
    return str(text)


def check_template(tokenizer: Any, data: DataFile) -> None:
    """Refuse conversations that no template can write out.

    Raises:
        DataError: there is no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{data.path}: rows are conversations and the tokenizer has no chat template; give "
            "'prompt' and 'completion' as texts instead"
        )


@dataclass(frozen=True)
class Ends:
    """Where an answer ends."""

    stops: frozenset[int]
    """Tokens at which generation stops: the union of what the model's generation configuration, the
    tokenizer, and the chat template end an answer with."""
    padding: frozenset[int]
    """Tokens that may stand behind an answer's end without being part of it: special tokens, and
    what the template writes after a turn's end."""

    def length(self, ids: Sequence[int], start: int) -> int:
        """How many tokens there are up to an answer's end: what a template or a tokenizer writes
        behind it is left out. All, where no stop is found at the end.

        Args:
            ids: the whole sequence.
            start: where the answer begins, at the earliest.
        """
        end = place = len(ids)
        while place > start and (ids[place - 1] in self.stops or ids[place - 1] in self.padding):
            place -= 1
            if ids[place] in self.stops:
                end = place + 1
        return end


def ends_of(tokenizer: Any | None, model: Any | None = None) -> Ends:
    """What ends an answer of a model.

    Args:
        tokenizer: the model's, if it has one.
        model: its generation configuration counts.
    """
    stops = set(_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None)))
    if tokenizer is None:
        return Ends(frozenset(stops), frozenset())
    specials = {*tokenizer.all_special_ids}
    specials |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    stops |= set(_ids(tokenizer.eos_token_id))
    if tokenizer.eos_token_id is None:
        stops |= set(_ids(tokenizer.sep_token_id))
    end, behind = _turn_end(tokenizer)
    return Ends(frozenset(stops | set(_ids(end))), frozenset(specials | set(behind)))


def text_ends(ends: Ends, tokenizer: Any) -> Ends:
    """What ends a text: the tokenizer's end of sequence, and nothing else."""
    return Ends(frozenset(_ids(tokenizer.eos_token_id)), ends.padding)


def _turn_end(tokenizer: Any) -> tuple[int | None, list[int]]:
    """The first token of its own that the template writes behind an answer, and what comes behind
    that; found by an answer that stands nowhere else."""
    if not getattr(tokenizer, "chat_template", None):
        return None, []
    try:
        with quiet_panics(), Deadline(SECONDS_OF_TEMPLATE) as deadline:
            deadline.restart("the chat template, on two short messages,")
            text = tokenizer.apply_chat_template(list(_PROBE), tokenize=False)
            _, found, rest = text.rpartition(_ANSWER)
            ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if found else []
    except BaseException as error:  # A template may refuse the two messages, with any error.
        if not is_library_error(error) or isinstance(error, DeltaLensError):
            raise
        return None, []
    own = {i for i, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    for place, token in enumerate(ids):
        if token in own or token in tokenizer.all_special_ids:
            return token, ids[place + 1 :]
    return None, []


def _ids(found: Any) -> list[int]:
    """One id, several, or none, as configurations have it."""
    several = found if isinstance(found, (list, tuple)) else [found]
    return [one for one in several if isinstance(one, int)]
