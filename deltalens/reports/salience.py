"""What a salience study shows: which weights the metrics choose, and how far they agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.salience import SALIENCE_METRICS
from deltalens.errors import Lines, RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SalienceSummary", "label_of", "summarize_salience"]

_INDEX_BYTES = 4
"""Of an int32."""
_SAMPLES = ("1/8", "1/4", "1/2", "halves")
_NEAR = 0.9
"""From this overlap on, a sample is said to suffice."""


@dataclass(frozen=True)
class Pair:
    """The overlap of two masks."""

    one: str
    other: str
    jaccard: float
    chance: float

    @property
    def shared(self) -> float:
        """The share of a mask that is also in the other, of two of the same size."""
        return 2 * self.jaccard / (1 + self.jaccard)

    @property
    def labels(self) -> str:
        """Both metrics, as a sentence names them."""
        return f"{label_of(self.one)} and {label_of(self.other)}"

    @property
    def times_chance(self) -> float:
        """The Jaccard index over that of random masks; NaN if that is 0."""
        return self.jaccard / self.chance if self.chance else math.nan


def label_of(metric: str) -> str:
    """Name a metric in a table or a picture.

    Args:
        metric: its name in the records.

    Returns:
        Its label in the catalog; the name of one that the catalog does not know.
    """
    facts = SALIENCE_METRICS.get(metric)
    return facts.label if facts is not None else metric


@dataclass(frozen=True)
class SalienceSummary:
    """A salience study in numbers and sentences."""

    record: StudyRecord

    # --- numbers ----------------------------------------------------------------------------------

    @property
    def metrics(self) -> list[str]:
        """The salience metrics that are measured, in the order of the table."""
        return [str(name) for name in dict.fromkeys(self.record.cells["salience"])]

    def pairs(self, part: str) -> list[Pair]:
        """List overlaps.

        Args:
            part: `agreement` (of metrics), `sample`, or `fine-tune`.

        Returns:
            The overlap of each metric's mask with the other mask that is named; one that is no
            number is left out.
        """
        wide = self._wide(part)
        if "jaccard" not in wide:
            return []
        wide = wide[wide["jaccard"].notna()]
        return [
            Pair(str(names[0]), str(names[1]), float(jaccard), float(chance))
            for names, jaccard, chance in zip(
                [*wide.index], wide["jaccard"], wide["chance"], strict=True
            )
        ]

    def budget(self, metric: str) -> pd.DataFrame:
        """Read where a metric's weights lie.

        Args:
            metric: its name.

        Returns:
            Columns `place` (block and layer with a slash between; or `all`), `density`, `kept`.
        """
        cells = self._part("budget")
        own = cells[cells["salience"] == metric]
        wide = own.pivot_table(index="of", columns="metric", values="value", sort=False)
        return wide.reset_index().rename(columns={"of": "place"})

    def _part(self, part: str) -> pd.DataFrame:
        cells = self.record.cells
        return cells[cells["part"] == part]

    def _wide(self, part: str) -> pd.DataFrame:
        cells = self._part(part)
        return cells.pivot_table(
            index=["salience", "of"], columns="metric", values="value", sort=False
        )

    @property
    def kept(self) -> int:
        """The number of weights that a mask keeps; 0 if none is measured."""
        if not self.metrics:
            return 0
        budget = self.budget(self.metrics[0])
        whole = budget[budget["place"] == "all"]
        return int(whole["kept"].iloc[0]) if len(whole) else 0

    # --- tables -----------------------------------------------------------------------------------

    def tables(self) -> Iterator[Table]:
        """Show the metrics, and how far they agree.

        Returns:
            Two tables.
        """
        samples = {(pair.one, pair.other): pair for pair in self.pairs("sample")}
        shown = [name for name in _SAMPLES if any(of == name for _, of in samples)]
        changes = {pair.one: pair for pair in self.pairs("fine-tune")}
        rows = []
        for metric in self.metrics:
            cells = [label_of(metric), *self._where(metric)]
            cells += [_index(samples.get((metric, name))) for name in shown]
            if changes:
                cells.append(_index(changes.get(metric)))
            rows.append(tuple(cells))
        heads = ["two halves" if name == "halves" else f"{name} : all" for name in shown]
        more = [Lines("largest", "changes")] if changes else []
        columns = ("metric", "most in", "densest block", *heads, *more)
        yield Table("Jaccard index between masks", columns, tuple(rows))
        yield from self._agreement()

    def _agreement(self) -> Iterator[Table]:
        found = {frozenset((pair.one, pair.other)): pair for pair in self.pairs("agreement")}
        if not found:
            return
        names = self.metrics
        rows = [
            (
                label_of(one),
                *(
                    "" if one == other else _index(found.get(frozenset((one, other))))
                    for other in names
                ),
            )
            for one in names
        ]
        chance = next(iter(found.values())).chance
        yield Table(
            f"agreement between metrics (Jaccard; by chance {chance:.2g})",
            ("", *(label_of(name) for name in names)),
            tuple(rows),
        )

    def _where(self, metric: str) -> tuple[str, str]:
        """The kind of layer that holds most of a metric's weights, and the densest block."""
        budget = self.budget(metric)
        placed = budget[budget["place"].str.contains("/", regex=False)]
        if placed.empty:
            return "-", "-"
        parts = placed["place"].str.partition("/")
        by_kind = placed["kept"].groupby(parts[2].str.rpartition(".")[2]).sum()
        entries = placed["kept"] / placed["density"].where(placed["density"] > 0)
        by_block = placed["kept"].groupby(parts[0]).sum() / entries.groupby(parts[0]).sum()
        most, block = str(by_kind.idxmax()), str(by_block.fillna(0).idxmax())
        share = by_kind.max() / max(1.0, by_kind.sum())
        return f"{most} ({100 * share:.0f} %)", block.rpartition(".")[2]

    # --- sentences --------------------------------------------------------------------------------

    def sentences(self) -> Iterator[str]:
        """Say what was kept, which metrics agree, whether the examples suffice, and the cost.

        Returns:
            Sentences, as a person reads them.
        """
        yield from self._sizes()
        yield from self._agreeing()
        yield from self._sufficing()
        yield from self._changing()
        yield from self._costs()

    def _sizes(self) -> Iterator[str]:
        facts = self.record.facts
        if self.kept and facts.get("entries"):
            share = 100 * self.kept / facts["parameters"]
            yield (
                f"each mask keeps {self.kept:,} of {facts['entries']:,} weights, {share:.3g} % of "
                "the model"
            )

    def _agreeing(self) -> Iterator[str]:
        pairs = [pair for pair in self.pairs("agreement") if "random" not in (pair.one, pair.other)]
        # With the expectation inside, Taylor-FO is SNIP squared.
        same = [pair for pair in pairs if pair.jaccard == 1]
        for pair in same:
            yield f"{pair.labels} choose the same weights"
        others = [pair for pair in pairs if pair.jaccard < 1]
        if len(others) == 1:
            (only,) = others
            yield (
                f"{only.labels} share {100 * only.shared:.0f} % of their weights "
                f"({_against_chance(only)})"
            )
        if len(others) > 1:
            most = max(others, key=lambda pair: pair.jaccard)
            least = min(others, key=lambda pair: pair.jaccard)
            yield (
                f"{most.labels} agree most: they share {100 * most.shared:.0f} % of their weights "
                f"({_against_chance(most)}); {least.labels} least: {100 * least.shared:.1f} % "
                f"({_against_chance(least)})"
            )

    def _sufficing(self) -> Iterator[str]:
        facts = self.record.facts
        halves = [pair for pair in self.pairs("sample") if pair.other == "halves"]
        if not halves or not facts.get("examples"):
            return
        best = max(halves, key=lambda pair: pair.jaccard)
        worst = min(halves, key=lambda pair: pair.jaccard)
        half = self._wide("sample")["examples"].xs("halves", level="of").iloc[0]
        yield (
            f"two halves of the calibration data, of {int(half):,} examples each, lead "
            f"{label_of(best.one)} to masks that share {100 * best.shared:.0f} % of their weights, "
            f"and {label_of(worst.one)} {100 * worst.shared:.0f} %"
        )
        steady = [label_of(pair.one) for pair in halves if pair.shared >= _NEAR]
        enough = ", ".join(steady) if steady else "no metric"
        yield (
            f"{facts['examples']:,} examples suffice for {enough}, if halves are to share "
            f"{100 * _NEAR:.0f} %"
        )

    def _changing(self) -> Iterator[str]:
        pairs = [pair for pair in self.pairs("fine-tune") if pair.one != "random"]
        if not pairs:
            return
        best = max(pairs, key=lambda pair: pair.jaccard)
        worst = min(pairs, key=lambda pair: pair.jaccard)
        yield (
            f"of the weights that the fine-tune changed most, {label_of(best.one)} chose "
            f"{100 * best.shared:.1f} % ({_against_chance(best)})"
            + (
                f", {label_of(worst.one)} {100 * worst.shared:.1f} % ({_against_chance(worst)})"
                if len(pairs) > 1
                else ""
            )
        )

    def _costs(self) -> Iterator[str]:
        facts = self.record.facts
        seconds = facts.get("seconds", {}).get("all")
        epoch = self.epoch_seconds()
        if seconds and epoch:
            alone = facts["batches"] * facts["seconds_of_pass"]
            yield (
                f"the masks took {seconds:.1f} s together, {_percent(seconds / epoch)} of an "
                f"epoch's passes over {facts['rows']:,} rows; the {facts['batches']} passes of a "
                f"first-order metric alone take {_percent(alone / epoch)}"
            )
        if self.kept and facts.get("model_bytes"):
            size = _INDEX_BYTES * self.kept
            yield (
                f"a mask's indices take {size / 1e6:.3g} MB as int32, "
                f"{_percent(size / facts['model_bytes'])} of the model's weights"
            )

    def epoch_seconds(self) -> float:
        """Estimate the forward and backward passes of an epoch over all rows.

        Returns:
            Seconds, by the time of a measured pass; 0 if none was measured.
        """
        facts = self.record.facts
        batches = math.ceil(facts.get("rows", 0) / max(1, self.record.spec["batch_size"]))
        seconds: float = batches * float(facts.get("seconds_of_pass", 0.0))
        return seconds

    def as_json(self) -> dict[str, Any]:
        """Give the numbers to a script.

        Returns:
            JSON values; numbers may be NaN.
        """
        facts = self.record.facts
        seconds = facts.get("seconds", {}).get("all")
        epoch = self.epoch_seconds()
        return {
            "study": str(self.record.path),
            "kept": self.kept,
            "entries": facts.get("entries"),
            "parameters": facts.get("parameters"),
            "examples": facts.get("examples"),
            "seconds": seconds,
            "share_of_an_epoch": seconds / epoch if seconds and epoch else None,
            "index_bytes": _INDEX_BYTES * self.kept,
            "masks": {
                name: str(self.record.path / "masks" / f"{name}.safetensors")
                for name in self.metrics
            },
            "budget": {
                name: dict(zip(budget["place"], budget["density"], strict=True))
                for name in self.metrics
                if len(budget := self.budget(name))
            },
            **{
                key: [
                    {
                        "of": pair.one,
                        "with": pair.other,
                        "jaccard": pair.jaccard,
                        "chance": pair.chance,
                    }
                    for pair in self.pairs(part)
                ]
                for key, part in _PARTS.items()
            },
        }


_PARTS = {"agreement": "agreement", "samples": "sample", "fine_tune": "fine-tune"}


def _index(pair: Pair | None) -> str:
    return "-" if pair is None or math.isnan(pair.jaccard) else f"{pair.jaccard:.3f}"


def _against_chance(pair: Pair) -> str:
    if math.isnan(pair.times_chance):
        return f"Jaccard {pair.jaccard:.3g}"
    return f"Jaccard {pair.jaccard:.3g}, {pair.times_chance:.3g} times chance"


def summarize_salience(record: StudyRecord) -> SalienceSummary:
    """Summarize a salience study, finished or not.

    Args:
        record: of the study.

    Returns:
        Its summary.

    Raises:
        RecordError: it is another kind of study, or nothing of it is measured.
    """
    if record.kind != "salience" or record.cells.empty:
        raise RecordError(f"{record.path}: no salience study with finished cells")
    return SalienceSummary(record)


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:,.0f} %" if percent >= 10 else f"{percent:.2g} %"
