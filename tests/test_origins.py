"""fastbn's numbers beside those of the code that people come from; the table of docs/origins.md comes from here.

``FASTBN_WRITE_ORIGINS=1 pytest tests/test_origins.py`` writes the table anew; every library must be there.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.origins import ORIGINS
from tests.origins.compare import DTYPES, QUANTITIES
from tests.origins.keras import KEPT_ARRAYS

PAGE = Path(__file__).parents[1] / "docs" / "origins.md"
NONE = "none"
TABLE = re.compile(r"(?:^\|.*\n)+", flags=re.MULTILINE)
WRITE = "FASTBN_WRITE_ORIGINS" in os.environ
ROWS = [(origin, dtype) for origin in ORIGINS for dtype in DTYPES]

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings(KEPT_ARRAYS)]


@functools.cache
def measured(origin, dtype):
    return origin.differences(dtype)


def cell(value):
    return NONE if value is None else f"{value:.0e}"


def line(cells):
    return f"| {' | '.join(cells)} |\n"


@pytest.mark.parametrize(("origin", "dtype"), ROWS, ids=lambda value: getattr(value, "name", None) or value.__name__)
def test_numbers_agree(origin, dtype):
    for quantity, value in measured(origin, dtype).items():
        assert value is None or value <= origin.bounds(dtype)[quantity], quantity


@pytest.mark.skipif(not WRITE, reason="only where FASTBN_WRITE_ORIGINS is set")
def test_write_the_table():
    rows = [line(["coming from", "compared with", "dtype", *QUANTITIES]), line(["---"] * (3 + len(QUANTITIES)))]
    for origin, dtype in ROWS:
        values = [cell(measured(origin, dtype)[quantity]) for quantity in QUANTITIES]
        rows.append(line([origin.name, origin.against(), np.dtype(dtype).name, *values]))
    PAGE.write_text(TABLE.sub("".join(rows), PAGE.read_text(), count=1))


def test_the_page_shows_every_origin_and_keeps_the_bounds():
    """Its figures are of one machine and of the versions that it names; the bounds hold everywhere."""
    header, _, *rows = TABLE.search(PAGE.read_text()).group().splitlines()
    assert all(quantity in header for quantity in QUANTITIES)
    for (origin, dtype), row in zip(ROWS, rows, strict=True):
        name, _, kind, *cells = [text.strip() for text in row.strip("|").split("|")]
        assert (name, kind) == (origin.name, np.dtype(dtype).name)
        for quantity, text in zip(QUANTITIES, cells, strict=True):
            assert text == NONE or float(text) <= origin.bounds(dtype)[quantity]
