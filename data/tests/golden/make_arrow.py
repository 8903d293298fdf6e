"""Writes the .arrow and .feather files of this folder with pyarrow (26.0)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.feather

here = Path(__file__).parent
rows = 300
texts = [f"row {row} {'ab ' * (row % 7)}é" for row in range(rows)]
notes = ["fine", None] + ["x"] * (rows - 2)
table = pa.table(
    {
        "id": list(range(rows)),
        "text": pa.array(texts, pa.string()),
        "large": pa.array(texts, pa.large_string()),
        "view": pa.array(texts, pa.string_view()),
        "meta": [{"title": text, "note": note} for text, note in zip(texts, notes)],
    }
)


strings = pa.array([f"row {row % 7} é" for row in range(rows)])
dictionaries = pa.table(
    {
        "text": strings.dictionary_encode(),
        "some": pa.array(["a", None] * (rows // 2)).dictionary_encode(),
        "none": pa.array([None] * rows, pa.string()).dictionary_encode(),
        "number": pa.array([row % 3 for row in range(rows)]).dictionary_encode(),
    }
)


def write(open_writer, name, compression=None, table=table):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with open_writer(here / name, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=128)


write(pa.ipc.new_file, "plain.arrow")
write(pa.ipc.new_file, "zstd.arrow", "zstd")
write(pa.ipc.new_stream, "stream.arrow")
write(pa.ipc.new_file, "dictionary.arrow", table=dictionaries)
pyarrow.feather.write_feather(table, here / "lz4.feather", compression="lz4", chunksize=128)
