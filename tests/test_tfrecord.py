"""TFRecord framing and Examples: round trips, TensorFlow's own reader and writer, and every kind of damage."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import pytest

from pipelines import tfrecord
from pipelines.records import ShardError

RECORDS = [b"first", b"", b"\x00" * 1000, "Riß".encode()]
EXAMPLE: dict[str, bytes | str | int | float] = {
    tfrecord.IMAGE_ENCODED: bytes(range(256)),
    tfrecord.IMAGE_TEXT: "Fissuré",
    tfrecord.IMAGE_LABEL: -3,
    "score": 0.5,
}


def read_until_error(data: bytes) -> tuple[list[bytes], ShardError | None]:
    records = []
    try:
        for record in tfrecord.read_records(io.BytesIO(data)):
            records.append(record)
    except ShardError as error:
        return records, error
    return records, None


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_round_trip_of_a_file(tmp_path: Path, compress) -> None:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(compress(b"".join(map(tfrecord.frame, RECORDS))))
    with path.open("rb") as stream:
        assert list(tfrecord.read_records(stream)) == RECORDS


def test_empty_file_has_no_records() -> None:
    assert list(tfrecord.read_records(io.BytesIO(b""))) == []


def test_known_bytes_of_the_format() -> None:
    # CRC32C of eight zero bytes is 0x8C28B28A; masked by hand as the format's page says.
    masked = (((0x8C28B28A >> 15) | (0x8C28B28A << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert tfrecord.frame(b"")[:12] == struct.pack("<QI", 0, masked)


@pytest.mark.parametrize("cut", range(1, 2 * 21 + 16))
def test_cut_anywhere(cut: int) -> None:
    frames = [tfrecord.frame(b"12345"), tfrecord.frame(b""), tfrecord.frame(b"67890")]
    ends = {21: 1, 37: 2}
    records, error = read_until_error(b"".join(frames)[:cut])
    if cut in ends:
        assert error is None
        assert len(records) == ends[cut]
    else:
        whole = sum(cut >= end for end in ends)
        assert error is not None
        assert error.code == "truncated"
        assert f"at byte {[0, 21, 37][whole]}" in str(error)
        assert len(records) == whole


@pytest.mark.parametrize("place", range(21, 42))
def test_flipped_byte_is_corrupt(place: int) -> None:
    data = bytearray(tfrecord.frame(b"12345") * 2)
    data[place] ^= 0x40
    records, error = read_until_error(bytes(data))
    assert records == [b"12345"]
    assert error is not None
    assert error.code == "corrupt"
    assert "record 1 at byte 21" in str(error)


@pytest.mark.parametrize(("length", "code"), [(2**63, "corrupt"), (2**31, "corrupt"), (2**31 - 1, "truncated")])
def test_absurd_length_costs_no_memory(length: int, code: str) -> None:
    packed = struct.pack("<Q", length)
    data = packed + struct.pack("<I", tfrecord._masked_crc(packed)) + b"few"
    _, error = read_until_error(data)
    assert error is not None
    assert error.code == code


def test_record_that_begins_like_gzip_is_read() -> None:
    framed = tfrecord.frame(b"x" * 0x088B1F)
    assert framed.startswith(b"\x1f\x8b\x08")
    assert list(tfrecord.read_records(io.BytesIO(framed))) == [b"x" * 0x088B1F]


def test_damaged_gzip() -> None:
    compressed = gzip.compress(b"".join(tfrecord.frame(bytes([n]) * 50_000) for n in range(20)), compresslevel=0)
    records, error = read_until_error(compressed[: len(compressed) // 2])
    assert error is not None
    assert error.code == "truncated"
    assert 0 < len(records) < 20
    damaged = bytearray(compressed)
    damaged[-6] ^= 1
    _, error = read_until_error(bytes(damaged))
    assert error is not None
    assert error.code == "corrupt"


class OneByteStream(io.BytesIO):
    """A raw stream may give fewer bytes than asked for."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(1, size) if size is not None and size >= 0 else size)


def test_short_reads_are_no_end() -> None:
    assert list(tfrecord.read_records(OneByteStream(tfrecord.frame(b"12345") * 2))) == [b"12345"] * 2


def test_example_round_trip() -> None:
    assert tfrecord.decode_example(tfrecord.encode_example(EXAMPLE)) == {
        tfrecord.IMAGE_ENCODED: [bytes(range(256))],
        tfrecord.IMAGE_TEXT: ["Fissuré".encode()],
        tfrecord.IMAGE_LABEL: [-3],
        "score": [0.5],
    }


def test_example_bytes_do_not_depend_on_the_order() -> None:
    turned = dict(reversed(list(EXAMPLE.items())))
    assert tfrecord.encode_example(EXAMPLE) == tfrecord.encode_example(turned)


def test_garbage_is_no_example() -> None:
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        tfrecord.decode_example(b"\xff\xd8\xff\xe0 a JPEG, say")


def test_values_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match="'a' is a list"):
        tfrecord.encode_example({"a": [1]})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r".+"):
        tfrecord.encode_example({"a": 2**63})


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_agrees_with_tensorflow(tmp_path: Path, compression: str) -> None:
    tf = pytest.importorskip("tensorflow")
    feature = {
        tfrecord.IMAGE_ENCODED: tf.train.Feature(bytes_list=tf.train.BytesList(value=[bytes(range(256))])),
        tfrecord.IMAGE_TEXT: tf.train.Feature(bytes_list=tf.train.BytesList(value=["Fissuré".encode()])),
        tfrecord.IMAGE_LABEL: tf.train.Feature(int64_list=tf.train.Int64List(value=[-3])),
        "score": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5])),
    }
    theirs = tf.train.Example(features=tf.train.Features(feature=feature))
    ours = tfrecord.encode_example(EXAMPLE)
    assert ours == theirs.SerializeToString(deterministic=True)
    assert tf.train.Example.FromString(ours) == theirs

    path = tmp_path / "theirs.tfrecord"
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in [*RECORDS, ours]:
            writer.write(record)
    with path.open("rb") as stream:
        assert list(tfrecord.read_records(stream)) == [*RECORDS, ours]
    if not compression:
        assert path.read_bytes() == b"".join(map(tfrecord.frame, [*RECORDS, ours]))
    own = tmp_path / "ours.tfrecord"
    own.write_bytes(b"".join(map(tfrecord.frame, RECORDS)))
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(own))] == RECORDS
