"""A sealed record is known again whatever its order, and no change of it passes."""

import json

import pytest

from deltalens.errors import RecordError
from deltalens.io.checksum import check_sealed, checksum, sealed

RECORD = {"setting": {"rate": 0.5, "strategy": "salient"}, "metrics": {"m": [1.5, "nan", 3]}}


def test_a_sealed_record_passes_after_a_round_trip_in_another_order():
    text = json.dumps(dict(reversed(sealed(RECORD).items())), indent=3)
    check_sealed("here", json.loads(text))


def test_every_changed_field_is_refused_with_its_place():
    for changed in (
        {**sealed(RECORD), "setting": {"rate": 0.6, "strategy": "salient"}},
        {**sealed(RECORD), "more": None},
        {k: v for k, v in sealed(RECORD).items() if k != "metrics"},
        {**sealed(RECORD), "checksum": None},
    ):
        with pytest.raises(RecordError, match=r"^cells, line 7: damaged"):
            check_sealed("cells, line 7", changed)


def test_the_checksum_is_xxh3_128():
    # Of the specification's test vectors: no input, seed 0.
    assert checksum(b"") == "99aa06d3014798d86001c324468d497f"
