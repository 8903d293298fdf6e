"""Writes the .parquet files of this folder with pyarrow (26.0)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

here = Path(__file__).parent
texts = [f"row {row} {'ab ' * (row % 7)}é" for row in range(700)]
ids = list(range(700))
nullable = pa.table({"id": ids, "text": texts})
pq.write_table(nullable, here / "snappy.parquet", compression="snappy", row_group_size=300)
pq.write_table(
    nullable.cast(pa.schema([("id", pa.int64()), ("text", pa.large_string())])),
    here / "zstd_v2.parquet",
    compression="zstd",
    data_page_version="2.0",
    data_page_size=1024,
    row_group_size=1000,
    use_dictionary=False,
    column_encoding={"text": "DELTA_BYTE_ARRAY", "id": "PLAIN"},
)
for codec in ["gzip", "brotli", "lz4"]:
    pq.write_table(nullable, here / f"{codec}.parquet", compression=codec, row_group_size=300)
required = pa.schema([pa.field("text", pa.string(), nullable=False)])
pq.write_table(
    pa.table({"text": texts}, schema=required), here / "plain_required.parquet", compression="none", use_dictionary=False
)
mixed = {
    "id": [0, 1, 2],
    "body": ["a", None, "c"],
    "meta": [{"title": "t0"}, {"title": "t1"}, {"title": "t2"}],
    "tags": [["x"], [], ["y", "z"]],
}
pq.write_table(pa.table(mixed), here / "mixed.parquet")
pq.write_table(pa.table({"text": pa.array([b"fine", b"abc\xff"], pa.binary())}), here / "binary.parquet")
# Conversations: of a list that may be null, empty or with null parts, and of one that may not, in several row groups.
message = pa.struct([("content", pa.string()), ("role", pa.string())])
rows = [
    [{"role": "user", "content": f"question {row}"}, {"role": "assistant", "content": "é" * row}] * (1 + row % 2) for row in range(5)
] + [[], None, [{"role": "user", "content": None}, None]]
pq.write_table(pa.table({"id": list(range(8)), "messages": pa.array(rows, pa.list_(message))}), here / "chats.parquet", row_group_size=3)
fixed = pa.struct([pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string(), nullable=False)])
schema = pa.schema([pa.field("talk", pa.list_(pa.field("element", fixed, nullable=False)), nullable=False)])
pq.write_table(pa.table({"talk": rows[:6]}, schema=schema), here / "chats_required.parquet", compression="none")
