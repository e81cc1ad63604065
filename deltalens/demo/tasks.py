"""What the demo's models learn: three small domains and the mixture that comes before them.

Everything is generated, so the demo needs no download and no license. A row is a prompt that
ends in ``>`` and a completion that writes its steps out: written-out steps are what lets a model
of half a million parameters reach its goal within a minute. The base model learns the pieces (one
sum, one event, one operation), a target domain joins them.

Every function draws from the ``random.Random`` it is handed; none reads the global generator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Set
from random import Random
from typing import NamedTuple, TypeAlias

from deltalens.errors import DeltaLensError

ALPHABET = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789+-=,()>"
"""Every character that a row may contain; the tokenizer has one token for each."""

SPLITS = ("validation", "test")

_NAMES = ("ann", "bob", "eve", "joe", "kim", "max", "sue", "tom")
_SIGN_OF_VERB = {"gets": "+", "finds": "+", "loses": "-", "eats": "-"}
_LETTERS = "abcdefghij"
_ATTEMPTS = 10_000


class Row(NamedTuple):
    """One problem: what the model is given, and exactly what it must answer."""

    prompt: str
    completion: str

    def to_json(self) -> str:
        """The row as one line of a ``.jsonl`` file, without the line break."""
        return json.dumps(self._asdict())


Sampler: TypeAlias = Callable[[Random], Row]


class HeldOut(NamedTuple):
    """A domain's rows that no training stream may contain."""

    validation: tuple[Row, ...]
    test: tuple[Row, ...]


def _reverse(text: str) -> str:
    return text[::-1]


def _sort(text: str) -> str:
    return "".join(sorted(text))


def _increment(digits: str) -> str:
    return "".join(str((int(digit) + 1) % 10) for digit in digits)


def _rotate(digits: str) -> str:
    return digits[1:] + digits[0]


def _double(letters: str) -> str:
    return "".join(2 * letter for letter in letters)


def _first(letters: str) -> str:
    return letters[0]


def _last(letters: str) -> str:
    return letters[-1]


_CODE = {"rev": _reverse, "sort": _sort, "inc": _increment, "rot": _rotate}
_ORDERINGS = {"reverse": _reverse, "sort": _sort}
_FINISHINGS = {"upper": str.upper, "double": _double, "first": _first, "last": _last}
_INSTRUCTIONS = _ORDERINGS | _FINISHINGS


def _chain(start: int, steps: list[tuple[str, int]]) -> str:
    """``26+2=28+3=31``: a running sum in which every intermediate value is written once."""
    written, value = str(start), start
    for sign, amount in steps:
        value += amount if sign == "+" else -amount
        written += f"{sign}{amount}={value}"
    return written


def _story(rng: Random, events: int) -> Row:
    start = rng.randint(20, 50)
    prompt, steps = f"{rng.choice(_NAMES)} {start}", []
    for _ in range(events):
        verb, amount = rng.choice(tuple(_SIGN_OF_VERB)), rng.randint(1, 5)
        prompt += f" {verb} {amount}"
        steps.append((_SIGN_OF_VERB[verb], amount))
    return Row(f"{prompt}>", _chain(start, steps))


def sample_number(rng: Random) -> str:
    """Draw a number of three or four digits.

    Returns:
        Its digits.
    """
    length = rng.randint(3, 4)
    return str(rng.randrange(10 ** (length - 1), 10**length))


def _word(rng: Random) -> str:
    return "".join(rng.choices(_LETTERS, k=rng.randint(3, 4)))


def sample_maths(rng: Random) -> Row:
    """A story of two or three events: ``ann 26 gets 2 eats 3>`` -> ``26+2=28-3=25``."""
    return _story(rng, rng.randint(2, 3))


def sample_code(rng: Random) -> Row:
    """Two nested calls on digits, the inner first: ``rev(inc(877))>`` -> ``988,889``."""
    outer, inner = rng.choice(tuple(_CODE)), rng.choice(tuple(_CODE))
    digits = sample_number(rng)
    between = _CODE[inner](digits)
    return Row(f"{outer}({inner}({digits}))>", f"{between},{_CODE[outer](between)}")


def sample_instructions(rng: Random) -> Row:
    """Two orders, followed left to right: ``reverse first ihb>`` -> ``bhi,b``."""
    ordering, finishing = rng.choice(tuple(_ORDERINGS)), rng.choice(tuple(_FINISHINGS))
    word = _word(rng)
    between = _ORDERINGS[ordering](word)
    return Row(f"{ordering} {finishing} {word}>", f"{between},{_FINISHINGS[finishing](between)}")


def sample_sum(rng: Random) -> Row:
    """One raw sum over every value a story can pass through: ``26+2>`` -> ``28``."""
    start, sign, amount = rng.randint(6, 65), rng.choice("+-"), rng.randint(1, 5)
    return Row(f"{start}{sign}{amount}>", str(start + (amount if sign == "+" else -amount)))


def sample_counting(rng: Random) -> Row:
    """Four numbers in order: ``count 26>`` -> ``26,27,28,29``."""
    start = rng.randint(1, 67)
    return Row(f"count {start}>", ",".join(str(start + step) for step in range(4)))


def sample_one_event(rng: Random) -> Row:
    """A story of one event: ``ann 26 gets 2>`` -> ``26+2=28``."""
    return _story(rng, 1)


def sample_one_call(rng: Random) -> Row:
    """One call on digits: ``inc(877)>`` -> ``988``."""
    name, digits = rng.choice(tuple(_CODE)), sample_number(rng)
    return Row(f"{name}({digits})>", _CODE[name](digits))


def sample_one_instruction(rng: Random) -> Row:
    """One order: ``reverse ihb>`` -> ``bhi``."""
    name, word = rng.choice(tuple(_INSTRUCTIONS)), _word(rng)
    return Row(f"{name} {word}>", _INSTRUCTIONS[name](word))


DOMAINS: Mapping[str, Sampler] = {
    "maths": sample_maths,
    "code": sample_code,
    "instructions": sample_instructions,
}
"""The domains that a base model can be fine-tuned on, by name."""

PIECES: Mapping[str, Sampler] = {
    "sums": sample_sum,
    "counting": sample_counting,
    "one_event": sample_one_event,
    "one_call": sample_one_call,
    "one_instruction": sample_one_instruction,
}
"""What the base model learns beside a trace of every domain, by name."""


def hold_out(seed: int, *, validation_rows: int, test_rows: int) -> dict[str, HeldOut]:
    """Draw each domain's validation and test rows, no prompt twice.

    A domain's rows depend on the seed and the domain's name alone, so that another domain or
    another recipe with the same seed leaves them as they are.
    """
    held_out = {}
    for name, sampler in DOMAINS.items():
        rng = Random(f"{seed}/{name}/held out")
        rows = sample_apart(sampler, rng, validation_rows + test_rows, frozenset())
        held_out[name] = HeldOut(tuple(rows[:validation_rows]), tuple(rows[validation_rows:]))
    return held_out


def sample_apart(sampler: Sampler, rng: Random, count: int, rejected: Set[str]) -> list[Row]:
    """So many rows of a domain, no prompt twice, none of the rejected."""
    taken, rows = set(rejected), []
    for _ in range(count):
        row = _sample_outside(sampler, rng, taken)
        taken.add(row.prompt)
        rows.append(row)
    return rows


def held_out_prompts(held_out: Mapping[str, HeldOut]) -> frozenset[str]:
    """The prompts of every domain and split, for `stream` to reject."""
    return frozenset(row.prompt for splits in held_out.values() for rows in splits for row in rows)


def stream(weights: Mapping[str, float], rng: Random, *, rejected: Set[str]) -> Iterator[Row]:
    """Yield training rows without end, none with a rejected prompt.

    ``weights`` gives the tasks' relative frequencies, by their names in `DOMAINS` and `PIECES`.
    """
    samplers = {**DOMAINS, **PIECES}
    names, frequencies = list(weights), list(weights.values())
    while True:
        (name,) = rng.choices(names, frequencies)
        yield _sample_outside(samplers[name], rng, rejected)


def _sample_outside(sampler: Sampler, rng: Random, rejected: Set[str]) -> Row:
    for _ in range(_ATTEMPTS):
        row = sampler(rng)
        if row.prompt not in rejected:
            return row
    raise DeltaLensError(
        f"{sampler.__name__} gave {_ATTEMPTS} rows in a row that are held out or taken already; "
        "ask for fewer validation_rows and test_rows"
    )
