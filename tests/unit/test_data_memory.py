"""Preparing 100,000 rows stays below 2 GB: rows and images pass through, they do not pile up."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

NUM_ROWS = 100_000
ROWS_PER_IMAGE = 4
MAX_BYTES = 2 * 10**9

PREPARE = """
import resource, sys
from mrpo.data.__main__ import main
code = main(["prepare", "data.set=pathvqa", f"data.source={sys.argv[1]}", f"data.out={sys.argv[2]}"])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(code)
"""


def write_rows(file: Path, start: int, stop: int) -> None:
    """Rows of 64 × 64 noise, about 12 KB each, four questions an image."""
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", kind), ("question", pyarrow.string()), ("answer", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(file, schema, use_dictionary=False, compression="none") as out:
        for first in range(start, stop, 1000):
            rows = []
            for number in range(first, first + 1000):
                if number % ROWS_PER_IMAGE == 0:
                    rng = np.random.default_rng(number)
                    png = io.BytesIO()
                    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
                        png, "PNG", compress_level=1
                    )
                rows.append({"image": {"bytes": png.getvalue(), "path": None}, "question": f"{number}?", "answer": "a"})
            out.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


@pytest.mark.slow
def test_memory_for_100_000_rows(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_rows(source / "train-0.parquet", 0, NUM_ROWS * 8 // 10)
    write_rows(source / "test-0.parquet", NUM_ROWS * 8 // 10, NUM_ROWS)
    total = sum(file.stat().st_size for file in source.iterdir())
    assert total > 1e9  # what would have to fit if rows piled up
    run = subprocess.run(
        [sys.executable, "-c", PREPARE, str(source), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    peak = int(run.stdout.rsplit("peak ", 1)[1])
    assert len(list((tmp_path / "out" / "images").iterdir())) == NUM_ROWS // ROWS_PER_IMAGE
    assert peak < MAX_BYTES, f"{peak / 1e9:.2f} GB for {total / 1e9:.2f} GB of parquet"
    sys.stdout.write(f"peak {peak / 1e9:.2f} GB for {total / 1e9:.2f} GB of parquet\n")
