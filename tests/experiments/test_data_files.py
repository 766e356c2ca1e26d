"""Damaged and hostile data files: each is one ValueError that says why, and none takes memory for what it claims."""

import gzip
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from experiments.tasks.task import default_config, load

PEAK = 64 * 2**20
"""Bytes that reading any of these files may take: the largest real content among them is under one megabyte."""
IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def refused(name, data_dir, message, **changes):
    config = default_config(name)
    config.update({"data_dir": str(data_dir), "verify": False} if name != "text" else {})
    config.data_dir = str(data_dir)
    config.update(changes)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            load(config)
        assert tracemalloc.get_traced_memory()[1] < PEAK
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1500


# --- IDX


def idx(shape, content=None, kind=8):
    count = int(np.prod(shape))
    content = bytes(i % 10 for i in range(count)) if content is None else content
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


def damaged_gzip(content):
    packed = bytearray(gzip.compress(content))
    packed[-8] ^= 1  # its checksum
    return bytes(packed)


IMAGES, LABELS = idx((6, 4, 4)), idx((6,))
IDX_CASES = {
    "empty": (0, b"", "begins with bytes none"),
    "one byte": (0, b"\0", "begins with bytes 00"),
    "text": (0, b"not an image file", "begins with bytes"),
    "floats": (0, idx((6, 4, 4), kind=13), "an IDX file of unsigned bytes"),
    "labels for images": (0, LABELS, "with 3 axes begins with 00000803"),
    "images for labels": (1, IMAGES, "with 1 axes begins with 00000801"),
    "cut in the header": (0, IMAGES[:9], "ends within its header"),
    "one byte short": (0, IMAGES[:-1], "truncated or damaged"),
    "one byte long": (0, IMAGES + b"\0", "truncated or damaged"),
    "no images": (0, idx((0, 4, 4)), "is empty"),
    "no pixels": (0, idx((6, 0, 4)), "is empty"),
    "claims 4 TB": (0, idx((2**20, 2**11, 2**11), b"\0" * 96), "needs 4.1e.03 GiB|truncated"),
    "claims 2^96": (0, idx((2**32 - 1,) * 3, b""), "GiB"),
    "gzip cut": (0, gzip.compress(IMAGES)[:-12], "damaged or truncated gzip"),
    "gzip of nothing": (0, gzip.compress(b""), "begins with bytes none"),
    "gzip's first bytes": (0, b"\x1f\x8b", "damaged or truncated gzip"),
    "gzip damaged": (0, damaged_gzip(IMAGES), "damaged or truncated gzip"),
    "gzip, then text": (0, gzip.compress(IMAGES) + b"text", "damaged or truncated gzip"),
    "gzip twice": (0, gzip.compress(gzip.compress(IMAGES)), "begins with bytes 1f8b"),
    "gzip bomb": (0, gzip.compress(idx((6, 4, 4)) + b"\0" * 2**28), "more than 112"),
    "gzip claims 3 GB": (0, gzip.compress(idx((3000, 1000, 1000), b"\0" * 96)), "at most"),
    "label 10": (1, idx((6,), bytes([0, 1, 2, 3, 4, 10])), "labels run from 0 to 10"),
    "fewer labels": (1, idx((5,)), "6 inputs, but 5 targets"),
    "other sizes": (2, idx((6, 4, 5)), "expected the same"),
}


@pytest.mark.parametrize("case", IDX_CASES)
def test_idx(case, tmp_path):
    which, content, message = IDX_CASES[case]
    for number, (name, whole) in enumerate(zip(IDX, (IMAGES, LABELS) * 2)):
        (tmp_path / name).write_bytes(content if number == which else whole)
    refused("mnist", tmp_path, message)


# --- CIFAR, binary and pickled


def batch(rows=4, **changes):
    return {"data": np.zeros((rows, 3072), np.uint8), "labels": [1] * rows} | changes


class Asks:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def raw(*operations):
    return b"\x80\x02" + b"".join(operations) + b"."


def array(shape=b"(K\x04M\x00\x0ct", kind=b"u1", data=None, state=b""):
    """Operations of an array as NumPy pickles it, with its parts to be replaced."""
    data = b"\0" * (4 * 3072) if data is None else data
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tc_codecs\nencode\n(X\x01\0\0\0b"
        b"X\x06\0\0\0latin1tRtR(K\x01"
        + shape
        + b"cnumpy\ndtype\n(U\x02"
        + kind
        + b"K\0K\x01tR"
        + state
        + b"\x89T"
        + struct.pack("<i", len(data))
        + data
        + b"tb"
    )


def entry(name, value):
    return b"U" + bytes([len(name)]) + name + value + b"s"


FOUR = b"](K\x01K\x01K\x01K\x01e"
LABELS_OK = entry(b"labels", FOUR)
NESTED_TUPLE = b")" + b"\x85" * 200_000
BOMB = b"](K\x01K\x01K\x01K\x01e" + b"".join(
    b"q%c0](h%ch%ch%ch%ch%ch%ch%ch%ch%ch%ce" % ((i,) * 11) for i in range(12)
)
PICKLES = {
    "empty": (b"", "not a whole CIFAR batch"),
    "text": (b"this is no pickle", "not a whole CIFAR batch"),
    "cut": (pickle.dumps(batch(), 2)[:-100], "not a whole CIFAR batch"),
    "cut at the end": (pickle.dumps(batch(), 2)[:-1], "not a whole CIFAR batch"),
    "a list": (pickle.dumps([1, 2], 2), "a list, expected a dictionary"),
    "a number": (pickle.dumps(3, 2), "a int, expected a dictionary"),
    "no data": (pickle.dumps({"labels": [1]}, 2), "'data'"),
    "no labels": (pickle.dumps({"data": batch()["data"]}, 2), "'labels'"),
    "data is a list": (pickle.dumps(batch(data=[1, 2]), 2), "'data' is a list"),
    "data is text": (pickle.dumps(batch(data="pixels"), 2), "'data' is a str"),
    "floats": (pickle.dumps(batch(data=np.zeros((4, 3072))), 2), "'data' is float64"),
    "complex": (pickle.dumps(batch(data=np.zeros((4, 3072), complex)), 2), "'c16' are not allowed"),
    "objects": (pickle.dumps(batch(data=np.array([None])), 2), "'O8' are not allowed"),
    "strings": (pickle.dumps(batch(data=np.array(["a"])), 2), "'U1' are not allowed"),
    "records": (pickle.dumps(batch(data=np.zeros(3, "u1,u1")), 2), "not allowed"),
    "big-endian": (pickle.dumps(batch(data=np.zeros((4, 3072), ">u2")), 2), "byte order"),
    "other columns": (pickle.dumps(batch(data=np.zeros((4, 3071), np.uint8)), 2), "expected uint8"),
    "one axis": (pickle.dumps(batch(data=np.zeros(3072, np.uint8)), 2), "expected uint8"),
    "text labels": (pickle.dumps(batch(labels=["cat"] * 4), 2), "whole numbers"),
    "float labels": (pickle.dumps(batch(labels=[0.5] * 4), 2), "whole numbers"),
    "negative labels": (pickle.dumps(batch(labels=[-1] * 4), 2), "whole numbers"),
    "huge labels": (pickle.dumps(batch(labels=[10**400] * 4), 2), "whole numbers"),
    "label 10": (pickle.dumps(batch(labels=[10] * 4), 2), "labels run from"),
    "an array of float labels": (
        pickle.dumps(batch(labels=np.full(4, 0.5)), 2),
        "labels are float64",
    ),
    "an array of columns": (
        pickle.dumps(batch(labels=np.ones((4, 1), int)), 2),
        r"labels are int64 \(4, 1\)",
    ),
    "an array beyond 32 bits": (
        pickle.dumps(batch(labels=np.arange(4) + 2**32), 2),
        "expected 0 to 9",
    ),
    "nested labels": (pickle.dumps(batch(labels=[[1]] * 4), 2), "whole numbers"),
    "labels are a dictionary": (pickle.dumps(batch(labels={1: 2}), 2), "whole numbers"),
    "fewer labels": (pickle.dumps(batch(labels=[1]), 2), "inputs, but"),
    "runs a command": (
        pickle.dumps(batch(labels=Asks(exec, "raise SystemExit")), 2),
        "not allowed",
    ),
    "asks for eval": (raw(b"c__builtin__\neval\n(U\x011tR"), "eval is not allowed"),
    "asks for the system": (b"cos\nsystem\n(S'true'\ntR.", "os.system is not allowed"),
    "an instance": (b"(ios\nsystem\n.", "INST is not allowed"),
    "a persistent object": (b"Pname\n.", "PERSID is not allowed"),
    "an extension": (raw(b"\x82\x01"), "EXT1 is not allowed"),
    "a new object": (raw(b"cnumpy\ndtype\n)\x81"), "NEWOBJ is not allowed"),
    "a memo of 32 GB": (raw(b"}r\xff\xff\xff\xff"), "memo"),
    "text of 8 EB": (raw(b"\x8e" + struct.pack("<Q", 2**63 - 1)), "not a whole CIFAR batch"),
    "text of 2 GB": (raw(b"T" + struct.pack("<i", 2**31 - 1)), "not a whole CIFAR batch"),
    "a deep key": (raw(b"}" + NESTED_TUPLE + b"K\x01s"), "TUPLE1 is not allowed"),
    "a deep list": (
        raw(
            b"}" + entry(b"data", array()) + b"U\x06labels" + b"]" * 100_000 + b"a" * 99_999 + b"s"
        ),
        "whole numbers",
    ),
    "a number of 10^5 digits": (b"}S'labels'\nL" + b"9" * 100_000 + b"L\ns.", "not a whole CIFAR"),
    "a list of lists that doubles": (
        raw(b"}" + entry(b"data", array()) + b"U\x06labels" + BOMB + b"s"),
        "whole numbers",
    ),
    "array larger than its bytes": (
        raw(b"}" + entry(b"data", array(data=b"\0" * 99)) + LABELS_OK),
        "has 99 bytes",
    ),
    "array of 2^60": (
        raw(
            b"}" + entry(b"data", array(shape=b"(\x8a\x08\0\0\0\0\0\0\0\x10M\x00\x0ct")) + LABELS_OK
        ),
        "bytes: it is truncated",
    ),
    "negative shape": (
        raw(b"}" + entry(b"data", array(shape=b"(J\xff\xff\xff\xffM\x00\x0ct")) + LABELS_OK),
        "without shape",
    ),
    "shape of text": (
        raw(b"}" + entry(b"data", array(shape=b"U\x01a")) + LABELS_OK),
        "without shape",
    ),
    "dtype with a state of objects": (
        raw(
            b"}"
            + entry(
                b"data",
                array(kind=b"O8", state=b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"),
            )
            + LABELS_OK
        ),
        "'O8' are not allowed",
    ),
    "dtype with a hostile state": (
        raw(b"}" + entry(b"data", array(state=b"(K\x03NNNNtb")) + LABELS_OK),
        "byte order None",
    ),
    "a function with a state": (
        raw(b"}cnumpy\ndtype\n}U\x08functionK\x01sb"),
        "a function has no state",
    ),
    "content is a number": (
        raw(b"}" + entry(b"data", array()[:-12_295] + b"K\x01tb") + LABELS_OK),
        "not a whole CIFAR",
    ),
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickled_cifar(case, tmp_path):
    content, message = PICKLES[case]
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps(batch(), 2))
    (tmp_path / "data_batch_1").write_bytes(content)
    refused("cifar10", tmp_path, message)


def test_the_array_that_the_cases_are_made_of_is_read(tmp_path):
    """So that a case is refused for its own fault."""
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = raw(
            b"}" + entry(b"data", array(data=(bytes(range(251)) * 49)[:12288])) + LABELS_OK
        )
        (tmp_path / name).write_bytes(content)
    config = default_config("cifar10")
    config.update({"data_dir": str(tmp_path), "verify": False})
    assert load(config).train.x.shape == (20, 3072)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole number of 3073-byte records"),
        (b"\0" * 3072, "not a whole number"),
        (b"\0" * 6145, "not a whole number"),
        (b"\x0a" + b"\0" * 3072, "labels run from 0 to 10|labels run from"),
        (b"\xff" * 3073, "labels run from"),
    ],
)
def test_binary_cifar(content, message, tmp_path):
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (tmp_path / name).write_bytes(b"\1" + b"\0" * 3072)
    (tmp_path / "data_batch_2.bin").write_bytes(content)
    refused("cifar10", tmp_path, message)


# --- .npz

X, Y = np.random.default_rng(0).normal(size=(6, 4)), np.array([0, 1, 2, 0, 1, 2])


def npz(**changes):
    content = io.BytesIO()
    np.savez(content, **({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y} | changes))
    return content.getvalue()


def member(header, data=b"", compression=zipfile.ZIP_STORED, **options):
    """A .npz whose x_train has this header."""
    header = header.encode() if isinstance(header, str) else header
    header += b" " * (118 - len(header) % 64) + b"\n" if header.startswith(b"{") else b""
    content = io.BytesIO(npz())
    whole = zipfile.ZipFile(content)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as file:
        for name in whole.namelist():
            if name != "x_train.npy":
                file.writestr(name, whole.read(name))
        version = options.get("version", b"\1\0")
        file.writestr(
            "x_train.npy", b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data
        )
    return made.getvalue()


def claims(shape, kind="<f8"):
    return f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}"


def flagged(content):
    """Marks every member as encrypted."""
    content = bytearray(content)
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.find(mark)
        while start >= 0:
            content[start + offset] |= 1
            start = content.find(mark, start + 4)
    return bytes(content)


def lying(content):
    """Says in its directory that x_train has 300 GB when it is unpacked."""
    content = bytearray(content)
    start = content.rfind(b"PK\1\2", 0, content.rfind(b"x_train.npy"))
    content[start + 24 : start + 28] = struct.pack("<I", 2**32 - 2)
    return bytes(content)


NPZ = {
    "text": (b"no archive", r"not a whole \.npz"),
    "empty": (b"", r"not a whole \.npz"),
    "one array": (zlib.compress(b"1"), r"not a whole \.npz"),
    "cut": (npz()[:-30], r"not a whole \.npz"),
    "other names": (
        member(claims((6, 4)), X.tobytes()).replace(b"y_train", b"z_train"),
        "expected x_train",
    ),
    "complex": (npz(x_train=X + 0j), "x_train is complex128"),
    "complex targets": (npz(y_train=X + 0j), "y_train is complex128"),
    "strings": (npz(x_train=X.astype(str)), "x_train is <U"),
    "bytes": (npz(x_train=X.astype("S9")), r"x_train is \|S9"),
    "dates": (npz(x_train=X.astype("M8[s]")), "x_train is datetime64"),
    "durations": (npz(x_train=X.astype("m8[s]")), "x_train is timedelta64"),
    "objects": (npz(x_train=X.astype(object)), "x_train is object"),
    "records": (npz(x_train=np.zeros(6, "f8,f8")), "x_train is "),
    "a number": (npz(x_train=np.float64(3)), r"x_train has shape \(\)"),
    "one axis": (npz(x_train=X[:, 0]), r"x_train has shape \(6,\)"),
    "five axes": (npz(x_train=X[..., None, None, None]), "expected .N, features"),
    "no features": (npz(x_train=X[:, :0], x_test=X[:, :0]), r"x_train has shape \(6, 0\)"),
    "no examples": (npz(x_train=X[:0], y_train=Y[:0]), "is empty"),
    "a label": (npz(y_train=np.int64(3)), "expected integer labels"),
    "float labels": (npz(y_train=Y * 1.0), "y_train is float64"),
    "boolean labels": (npz(y_train=Y > 0), "y_train is bool"),
    "labels in columns": (npz(y_train=Y[:, None]), "y_train is int64"),
    "labels to 1e9": (npz(y_train=Y * 500_000_000), "more classes than the 6 training"),
    "labels beyond 64 bits": (npz(y_train=np.full(6, 2**64 - 1, np.uint64)), "more classes"),
    "labels that wrap": (npz(y_train=Y + 2**32), "more classes"),
    "negative labels": (npz(y_test=Y - 1), "labels run from -1"),
    "labels and targets": (npz(y_test=X), "expected both labels"),
    "other targets": (npz(y_train=X, y_test=X[:, :2]), "expected both labels"),
    "fewer targets": (npz(y_train=Y[:4]), "6 inputs, but 4 targets"),
    "other features": (npz(x_test=X[:, :3]), "expected the same"),
    "nan": (npz(x_train=np.where(X > 1, np.nan, X)), "not finite|is nan"),
    "inf": (npz(x_test=np.where(X > 0, np.inf, X)), "is inf"),
    "too large": (npz(x_train=X * 1e300), "single precision"),
    "too small": (npz(x_train=X * 1e-200), "the largest entry of x is .* single precision"),
    "no targets": (npz(y_train=X[:, :0], y_test=X[:, :0]), r"y_train is float64 \(6, 0\)"),
    "all alike": (npz(x_train=np.ones((6, 4))), "all 6 inputs are equal"),
    "two negative sizes": (member(claims((-6, -4)), X.tobytes()), "there are fewer"),
    "too large targets": (npz(y_train=X * 1e200, y_test=X), "single precision"),
    "claims 4 TB": (member(claims((2**20, 2**19))), "there are fewer"),
    "claims 2^200": (member(claims((2**100, 2**100))), "there are fewer"),
    "claims less": (member(claims((2, 4)), X.tobytes()), "has .* with its header"),
    "a shape of text": (member(claims("'six'"), X.tobytes()), r"not a whole \.npz"),
    "no header": (member(b""), r"not a whole \.npz"),
    "a header of code": (
        member("{'descr': exit(), 'shape': (6, 4)}"),
        r"arrays \(x_train has no header of an",
    ),
    "a shape of code": (
        member(claims(f"f({'4, ' * 400})")),
        r"not a whole \.npz file of plain arrays \(x_train has no header of an array: [^<>]*\)$",
    ),
    "a deep header": (member("{" + "(" * 5000), r"not a whole \.npz"),
    "another version": (member(claims((6, 4)), X.tobytes(), version=b"\7\0"), r"not a whole \.npz"),
    "packed by bzip2": (member(claims((6, 4)), X.tobytes(), zipfile.ZIP_BZIP2), "another method"),
    "packed by lzma": (member(claims((6, 4)), X.tobytes(), zipfile.ZIP_LZMA), "another method"),
    "a bomb": (
        member(claims((6, 4)), X.tobytes() + b"\0" * 2**27, zipfile.ZIP_DEFLATED),
        "with its header",
    ),
    "a bomb that claims it": (
        lying(member(claims((2**14, 2**15)), b"\0" * 2**20, zipfile.ZIP_DEFLATED)),
        "there are fewer|whole",
    ),
    "encrypted": (flagged(npz()), r"not a whole \.npz"),
}


@pytest.mark.parametrize("case", NPZ)
def test_npz(case, tmp_path):
    content, message = NPZ[case]
    (tmp_path / "a.npz").write_bytes(content)
    refused("npz", tmp_path / "a.npz", message)


# --- pictures and text


def part(kind, data):
    """A chunk of a PNG file."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, pixels=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = pixels or b"\0" * (height * (3 * width + 1) if width * height < 10**6 else 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", header)
        + part(b"IDAT", zlib.compress(rows))
        + part(b"IEND", b"")
    )


def grey(bits, content=b"\0" * 4 * 9):
    """A PNG file of 4 x 4 grey pixels, with as many bits, or of 8 bits and an opacity."""
    kind = 4 if bits == 8 else 0
    header = struct.pack(">IIBBBBB", 4, 4, bits, kind, 0, 0, 0)
    return png(4, 4, content).replace(png(4, 4)[12:33], part(b"IHDR", header)[4:])


PICTURES = {
    "text": (b"no picture", "not a readable picture", {}),
    "empty": (b"", "not a readable picture", {}),
    "cut": (png(4, 4)[:40], "not a readable picture", {}),
    "a bomb": (png(60_000, 60_000), "not a readable picture", {}),
    "a bomb that PIL only warns of": (png(10_000, 10_000), "not a readable picture", {}),
    "a large one": (png(5_000, 5_000), "16777216 at most", {}),
    "another size": (png(5, 4), "image_size to resize", {}),
    "resized beyond memory": (
        png(4, 4),
        "config.task.image_size is 1000000",
        {"image_size": 10**6},
    ),
    "resized below": (png(4, 4), "config.task.image_size is -1", {"image_size": -1}),
    "16 bits": (grey(16), "its pixels are of kind I", {}),
    "transparent": (grey(8), "some of its pixels are transparent", {}),
    "a pipe": (None, "it is no file", {}),
}


@pytest.mark.parametrize("case", PICTURES)
def test_pictures(case, tmp_path):
    pytest.importorskip("PIL")
    content, message, changes = PICTURES[case]
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").write_bytes(png(4, 4))
    if content is None:
        os.mkfifo(tmp_path / "test" / "dog" / "1.png")
    else:
        (tmp_path / "test" / "dog" / "1.png").write_bytes(content)
    refused("image_folder", tmp_path, message, **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n ", "is empty"), (b"\xff\xfe\0", "not UTF-8"), (b"short", "too few")],
)
def test_texts(content, message, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    refused("text", tmp_path / "a.txt", message)


def test_a_folder_of_texts_holds_files_only(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 1000)
    os.mkfifo(tmp_path / "b.txt")
    refused("text", tmp_path, "no text at .*b.txt")


@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_numbers_that_single_precision_does_not_hold_are_standardised(kind, tmp_path):
    """Times in seconds since 1970, a second apart."""
    x = (np.arange(6)[:, None] + 1_800_000_000).astype(kind)
    (tmp_path / "a.npz").write_bytes(npz(x_train=x, x_test=x))
    config = default_config("npz")
    config.data_dir = str(tmp_path / "a.npz")
    found = load(config).train.x[:, 0]
    np.testing.assert_allclose(found, (np.arange(6) - 2.5) / np.sqrt(35 / 12), rtol=1e-6)


def test_there_are_enough_cases():
    assert sum(map(len, (IDX_CASES, PICKLES, NPZ, PICTURES))) + 9 >= 78
