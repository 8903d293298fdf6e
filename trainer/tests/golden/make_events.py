"""Writes events.bin with TensorBoard's own writer of records (tensorboard 2.21)."""

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def scalars(wall_time, step, values):
    value = [Summary.Value(tag=tag, simple_value=scalar) for tag, scalar in values.items()]
    return Event(wall_time=wall_time, step=step, summary=Summary(value=value))


with (Path(__file__).parent / "events.bin").open("wb") as file:
    writer = RecordWriter(file)
    for event in [
        Event(wall_time=1_700_000_000.25, file_version="brain.Event:2"),
        scalars(1_700_000_001.5, 0, {"train/loss": 3.25, "terms/distill": 0.0}),
        scalars(1_700_000_002.75, 300, {"train/loss": -1.5e-7, "telemetry/cosine.1": float("inf")}),
    ]:
        writer.write(event.SerializeToString())
    writer.flush()
