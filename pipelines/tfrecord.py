"""TFRecord files and ``tf.train.Example`` messages without TensorFlow.

The framing is that of https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details: per record the
length (u64, little endian), its masked CRC32C (u32), the data, the masked CRC32C of the data. The messages are those of
tensorflow/core/example/example.proto and feature.proto.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from pipelines.records import ShardError

IMAGE_ENCODED = "image/encoded"
IMAGE_FORMAT = "image/format"
IMAGE_LABEL = "image/class/label"
IMAGE_TEXT = "image/class/text"
IMAGE_FILENAME = "image/filename"
IMAGE_SHA256 = "image/sha256"

HEADER_SIZE = 12
GZIP_MAGIC = b"\x1f\x8b"

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8
# Protocol buffers end at 2 GiB, so no writer makes a longer record.
_MAX_LENGTH = 2**31
_READ_SIZE = 1 << 24


def _masked_crc(data: bytes) -> int:
    crc = int(google_crc32c.value(data))
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """One record as it stands in a TFRecord file: 16 bytes longer than its data."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        (length, _CHECKSUM.pack(_masked_crc(length)), data, _CHECKSUM.pack(_masked_crc(data))),
    )


def is_record_header(header: bytes) -> bool:
    """Whether the first 12 bytes of a file are a record's length with its checksum."""
    if len(header) < HEADER_SIZE:
        return False
    _, checksum = _HEADER.unpack_from(header)
    return bool(checksum == _masked_crc(header[:8]))


def read_records(stream: BinaryIO) -> Iterator[bytes]:
    """The records of a TFRecord file, one in memory at a time; a GZIP-compressed file is decompressed on the way.

    Args:
        stream: the file, positioned at its beginning; seekable where it is compressed.

    Raises:
        ShardError: ``truncated`` where the file ends inside a record, ``corrupt`` where a checksum differs or a length
            is beyond 2 GiB. The message gives the record's index and its byte offset (of the decompressed data). The
            records before it have been yielded.
        OSError: the stream cannot be read.
    """
    start = _read_exactly(stream, HEADER_SIZE)
    # An uncompressed first record of 559,903 bytes begins like a gzip file: the checksum decides.
    if start.startswith(GZIP_MAGIC) and not is_record_header(start):
        stream.seek(-len(start), 1)
        with gzip.GzipFile(fileobj=stream, mode="rb") as decompressed:
            yield from _read_framed(cast(BinaryIO, decompressed), b"")
    else:
        yield from _read_framed(stream, start)


def _read_framed(stream: BinaryIO, start: bytes) -> Iterator[bytes]:
    offset = index = 0
    while True:
        where = f"record {index} at byte {offset}"
        try:
            header = start or _read_exactly(stream, HEADER_SIZE)
            start = b""
            if not header:
                return
            if len(header) < HEADER_SIZE:
                raise ShardError("truncated", f"{where}: the file ends inside the length")
            if not is_record_header(header):
                raise ShardError("corrupt", f"{where}: wrong checksum of the length")
            length = _HEADER.unpack(header)[0]
            if length >= _MAX_LENGTH:
                raise ShardError("corrupt", f"{where}: a length of {length} bytes")
            data = _read_exactly(stream, length)
            checksum = _read_exactly(stream, _CHECKSUM.size) if len(data) == length else b""
        except EOFError as error:
            raise ShardError("truncated", f"{where}: the compressed file ends too early") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ShardError("corrupt", f"{where}: cannot decompress: {error}") from error
        if len(checksum) < _CHECKSUM.size:
            raise ShardError("truncated", f"{where}: the file ends inside the data of {length} bytes")
        if _CHECKSUM.unpack(checksum)[0] != _masked_crc(data):
            raise ShardError("corrupt", f"{where}: wrong checksum of the data")
        yield data
        offset += HEADER_SIZE + length + _CHECKSUM.size
        index += 1


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    """``size`` bytes, fewer only at the end of the file; never allocates much more than the file holds."""
    data = stream.read(min(size, _READ_SIZE))
    if len(data) == size:
        return data
    chunks = [data]
    missing = size - len(data)
    while missing and chunks[-1]:
        chunks.append(stream.read(min(missing, _READ_SIZE)))
        missing -= len(chunks[-1])
    return b"".join(chunks)


def _make_example_class() -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="crackscan/example.proto", package="tensorflow", syntax="proto3")

    def add_field(owner: Any, number: int, name: str, type_name: str, repeated: bool = False) -> Any:
        label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
        if type_name.startswith("TYPE_"):
            return owner.field.add(name=name, number=number, label=label, type=getattr(kinds, type_name))
        return owner.field.add(
            name=name, number=number, label=label, type=kinds.TYPE_MESSAGE, type_name=f".tensorflow.{type_name}"
        )

    for name, type_name in (("BytesList", "TYPE_BYTES"), ("FloatList", "TYPE_FLOAT"), ("Int64List", "TYPE_INT64")):
        add_field(file.message_type.add(name=name), 1, "value", type_name, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, type_name) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), start=1
    ):
        add_field(feature, number, name, type_name).oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add_field(entry, 1, "key", "TYPE_STRING")
    add_field(entry, 2, "value", "Feature")
    add_field(features, 1, "feature", "Features.FeatureEntry", repeated=True)
    add_field(file.message_type.add(name="Example"), 1, "features", "Features")
    # A pool of its own: the default one refuses these names where TensorFlow is imported as well.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_Example = _make_example_class()


def encode_example(features: Mapping[str, bytes | str | int | float]) -> bytes:
    """A serialized ``tf.train.Example`` of single values; equal features give equal bytes, in whatever order.

    Text becomes UTF-8 in a bytes list, int an int64 list, float a float list (float32).

    Raises:
        TypeError: a value of another type.
        ValueError: an int beyond 64 bits, or text with lone surrogates.
    """
    example = _Example()
    fields = example.features.feature
    for name, value in features.items():
        if isinstance(value, bytes):
            fields[name].bytes_list.value.append(value)
        elif isinstance(value, str):
            fields[name].bytes_list.value.append(value.encode())
        elif isinstance(value, int):
            fields[name].int64_list.value.append(value)
        elif isinstance(value, float):
            fields[name].float_list.value.append(value)
        else:
            raise TypeError(f"feature {name!r} is a {type(value).__name__}, not bytes, str, int or float")
    return cast(bytes, example.SerializeToString(deterministic=True))


def decode_example(data: bytes) -> dict[str, list[bytes] | list[int] | list[float]]:
    """The features of a serialized ``tf.train.Example``; a feature without a value is an empty list.

    Raises:
        ValueError: the bytes are no Example. (Some other messages and random bytes parse as an Example without
            features: look for the keys that you need.)
    """
    try:
        example = _Example.FromString(data)
    except DecodeError as error:
        raise ValueError(f"not a tf.train.Example: {error}") from error
    decoded: dict[str, list[bytes] | list[int] | list[float]] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        decoded[name] = list(getattr(feature, kind).value) if kind else []
    return decoded
