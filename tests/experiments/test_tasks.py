"""Tasks: shapes, splits, noise; every file format on tiny files written the way their authors write them."""

import gzip
import hashlib
import pickle
import struct
import sys
import types

import jax
import numpy as np
import pytest

from experiments import checks
from experiments.tasks import (
    arrays,
    formats,
    images,
    mixture,
    modular,
    polynomials,
    teachers,
    text,
)
from experiments.tasks.task import IMAGES, NAMES, default_config, load

EMBEDDED = [name for name in NAMES if name not in IMAGES]


def config_of(name, **changes):
    config = default_config(name)
    config.update(changes)
    return config


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_tasks_have_the_declared_shapes_and_repeat(name):
    task, again = load(default_config(name)), load(default_config(name))
    for data, same in zip((task.train, task.test), (again.train, again.test)):
        assert data.x.shape == (len(data.y), *task.input_shape)
        assert data.x.dtype in (np.float32, np.int32)
        np.testing.assert_array_equal(data.x, same.x)
        np.testing.assert_array_equal(data.y, same.y)
    if task.train.y.dtype == np.int32:
        assert task.train.y.max() < task.outputs
    else:
        assert task.train.y.shape == (len(task.train.x), task.outputs)


@pytest.mark.parametrize("name", EMBEDDED)
def test_another_seed_gives_other_examples(name):
    extra = {"num_train": 100} if name in ("digits", "text", "mnist1d") else {}
    first, second = (load(config_of(name, seed=seed, **extra)) for seed in (0, 1))
    assert not np.array_equal(first.train.x, second.train.x)


def test_mnist1d_is_that_of_its_authors_and_leaves_the_generators_alone(monkeypatch):
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    task = load(config_of("mnist1d", flatten=False))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert (len(task.train.x), len(task.test.x), task.input_shape) == (4000, 1000, (40, 1, 1))
    both = np.concatenate([task.train.y, task.test.y])
    np.testing.assert_array_equal(np.bincount(both), 500)
    few = load(config_of("mnist1d", num_train=30, num_test=20, seed=3))
    assert (len(few.train.x), len(few.test.x), few.input_shape) == (30, 20, (40,))
    with pytest.raises(ValueError, match=r"task\.num_train is 4001, but there are 4000"):
        load(config_of("mnist1d", num_train=4001))
    with pytest.raises(ValueError, match="leave it empty"):
        load(config_of("mnist1d", data_dir="here"))
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    with pytest.raises(ValueError, match="pip install mnist1d"):
        load(default_config("mnist1d"))


def test_digits_are_standardised_disjoint_and_keep_their_shape():
    task = load(config_of("digits", flatten=False))
    assert task.train.x.shape == (1437, 8, 8, 1)
    assert task.test.x.shape == (360, 8, 8, 1)
    assert abs(task.train.x.mean()) < 1e-5
    assert abs(task.train.x.std() - 1) < 1e-5
    seen = {image.tobytes() for image in task.train.x}
    assert sum(image.tobytes() in seen for image in task.test.x) == 0


def test_noise_redraws_a_fraction_and_leaves_the_test_set():
    clean, noisy = load(config_of("digits")), load(config_of("digits", noise=0.3))
    changed = (clean.train.y != noisy.train.y).mean()
    assert abs(changed - 0.3 * 0.9) < 0.03
    np.testing.assert_array_equal(clean.train.x, noisy.train.x)
    np.testing.assert_array_equal(clean.test.y, noisy.test.y)


def test_more_examples_contain_the_fewer():
    fewer, more = (load(config_of("digits", num_train=n)).train for n in (50, 100))
    np.testing.assert_array_equal(fewer.y, more.y[:50])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("digits", {"num_train": 1700}, "at most the 1797 digits"),
        ("digits", {"noise": 1.5}, "between 0 and 1"),
        ("digits", {"noise": float("nan")}, "between 0 and 1"),
        ("digits", {"seed": -1}, "seed is -1"),
        ("teacher", {"kind": "ranking"}, "'regression' or 'classification'"),
        ("teacher", {"kind": "classification"}, "outputs of at least 2"),
        ("teacher", {"dim": 0}, "dim is 0"),
        ("teacher", {"noise": -1.0}, "0 or larger"),
        ("modular", {"operation": "divide"}, "expected one of add"),
        ("modular", {"fraction": 1.0}, "some for test"),
        ("modular", {"encoding": "binary"}, "'onehot' or 'tokens'"),
        ("modular", {"modulus": 1}, "between 2 and 10000"),
        ("polynomial", {"coefficients": (1.0,)}, "one beyond c_0"),
        ("mixture", {"centres": (1.0, 2.0)}, "a row of finite numbers for each component"),
        (
            "mixture",
            {"centres": ((1.0, 2.0), (3.0,))},
            "a row of finite numbers for each component",
        ),
        ("mixture", {"deviation": -0.1}, "0 or larger"),
        ("mixture", {"noise": 0.0}, "nothing to denoise"),
        ("mixture", {"num_test": 0}, "num_test is 0"),
        ("text", {"length": 0}, "at least 1 token"),
        ("text", {"length": 10**6}, "too few"),
        ("text", {"level": "byte"}, "'character' or 'word'"),
        ("text", {"vocabulary": 1}, "at least 2"),
    ],
)
def test_values_outside_their_range_are_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        load(config_of(name, **change))


def test_an_unknown_name_and_a_missing_key_are_explained():
    with pytest.raises(ValueError, match="did you mean 'mnist'"):
        default_config("minst")
    with pytest.raises(ValueError, match=r"needs the keys .*noise.*default_config\('digits'\)"):
        load(types.SimpleNamespace(name="digits", seed=0))


# --- synthetic tasks


def test_teacher_targets_have_variance_one_and_noise_adds_its_own():
    clean = load(config_of("teacher", outputs=3, num_train=8000))
    noisy = load(config_of("teacher", outputs=3, num_train=8000, noise=0.5))
    np.testing.assert_allclose(clean.train.y.var(axis=0), 1, atol=0.1)
    np.testing.assert_allclose((noisy.train.y - clean.train.y).std(axis=0), 0.5, atol=0.02)
    np.testing.assert_array_equal(clean.test.y, noisy.test.y)


def test_one_teacher_labels_every_seed():
    f = teachers.teacher(32, 16, 1, 1, seed=0)
    task = load(config_of("teacher", seed=5))
    np.testing.assert_allclose(task.test.y, f(task.test.x.astype(np.float64)), atol=1e-5)
    classes = load(config_of("teacher", kind="classification", outputs=4))
    assert set(np.unique(classes.train.y)) == {0, 1, 2, 3}


def test_modular_table_is_split_without_overlap_and_corrupted_only_in_training():
    task = load(config_of("modular", modulus=13, noise=0.5, encoding="tokens"))
    pairs = np.concatenate([task.train.x, task.test.x])
    assert len({tuple(pair) for pair in pairs}) == 169
    np.testing.assert_array_equal(task.test.y, task.test.x.sum(axis=1) % 13)
    right = (task.train.y == modular.answers(task.train.x, 13, "add")).mean()
    assert abs(right - (0.5 + 0.5 / 13)) < 0.1
    onehot = load(config_of("modular", modulus=13, noise=0.5))
    assert onehot.input_shape == (26,)
    np.testing.assert_array_equal(
        modular.answers(onehot.train.x, 13, "add"), task.train.x.sum(axis=1) % 13
    )


@pytest.mark.parametrize("operation", modular.OPERATIONS)
def test_modular_answers_agree_with_pythons_integers(operation):
    x, y = modular.table(7, operation)
    formula = {
        "add": "a + b",
        "subtract": "a - b",
        "multiply": "a * b",
        "square_sum": "a**2 + b**2",
    }
    expected = [eval(formula[operation], {"a": int(a), "b": int(b)}) % 7 for a, b in x]
    np.testing.assert_array_equal(y, expected)


def test_polynomial_depends_on_its_direction_alone():
    task = load(config_of("polynomial", coefficients=(0.5, -1.0, 2.0)))
    z = task.test.x.astype(np.float64) @ polynomials.direction(40, 0)
    np.testing.assert_allclose(task.test.y[:, 0], 0.5 - z + 2 * z**2, atol=1e-4)


# --- text


def test_text_targets_are_the_next_tokens_and_splits_do_not_overlap(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(chr(97 + i % 26) for i in range(1000)))
    task = load(config_of("text", data_dir=str(path), length=10))
    assert task.outputs == 26
    np.testing.assert_array_equal(task.train.x[:, 1:], task.train.y[:, :-1])
    np.testing.assert_array_equal(task.train.x[1:, 0], task.train.y[:-1, -1])
    assert len(task.train.x) * 10 <= 900
    assert len(task.test.x) * 10 <= 100
    from_folder = load(config_of("text", data_dir=str(tmp_path), length=10))
    np.testing.assert_array_equal(task.train.x, from_folder.train.x)


def test_tokens_are_ranked_by_frequency_and_rare_ones_are_unknown():
    tokens = text.tokenize("The cat, the dog, the END", "word", 3)
    assert tokens.vocabulary == ("<unk>", "the", ",")
    np.testing.assert_array_equal(tokens.ids, [1, 0, 2, 1, 0, 2, 1, 0])
    whole = text.tokenize("hello", "character")
    assert "".join(whole.vocabulary[i] for i in whole.ids) == "hello"


def test_missing_empty_and_binary_texts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no text at"):
        text.read(str(tmp_path / "nothing.txt"))
    with pytest.raises(ValueError, match="no text at"):
        text.read(str(tmp_path))
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(ValueError, match="is empty"):
        text.read(str(tmp_path / "empty.txt"))
    (tmp_path / "empty.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        text.read(str(tmp_path))


# --- IDX files


def idx_bytes(array):
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + array.astype(np.uint8).tobytes()


def write_idx_set(folder, compressed, train=6, test=3, side=5):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for part, n in (("train", train), ("t10k", test)):
        made[part] = rng.integers(0, 256, (n, side, side)), np.arange(n) % 10
        for kind, array in zip(("images-idx3", "labels-idx1"), made[part]):
            content = idx_bytes(array)
            name = f"{part}-{kind}-ubyte" + (".gz" if compressed else "")
            (folder / name).write_bytes(gzip.compress(content) if compressed else content)
    return made


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_read_plain_and_gzipped(tmp_path, name, compressed):
    folder = tmp_path / images.IDX[name].folder if compressed else tmp_path
    made = write_idx_set(folder, compressed)
    task = load(config_of(name, data_dir=str(tmp_path), verify=False, flatten=False))
    pixels, labels = made["train"]
    assert task.train.x.shape == (6, 5, 5, 1)
    assert task.outputs == 10
    np.testing.assert_array_equal(task.train.y, labels)
    np.testing.assert_allclose(
        task.train.x[..., 0], (pixels - pixels.mean()) / pixels.std(), atol=1e-5
    )
    np.testing.assert_allclose(
        task.test.x[..., 0], (made["t10k"][0] - pixels.mean()) / pixels.std(), atol=1e-5
    )


def test_files_that_are_not_the_published_ones_are_refused(tmp_path):
    write_idx_set(tmp_path / "gz", compressed=True)
    with pytest.raises(ValueError, match=r"MD5 \w+, the published file has f68b3c2d.*verify=False"):
        load(config_of("mnist", data_dir=str(tmp_path / "gz")))
    write_idx_set(tmp_path / "plain", compressed=False)
    with pytest.raises(ValueError, match=r"166 bytes, the published file has 47040016"):
        load(config_of("mnist", data_dir=str(tmp_path / "plain")))
    path = tmp_path / "gz" / "train-images-idx3-ubyte.gz"
    formats.check_md5(path, hashlib.md5(path.read_bytes()).hexdigest(), "")


def test_damaged_idx_files_are_refused(tmp_path):
    write_idx_set(tmp_path, compressed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content, message in (
        (whole[:40], "truncated gzip"),
        (whole[:-30] + b"0" * 30, "truncated gzip"),
        (
            gzip.compress(gzip.decompress(whole)[:-3]),
            r"announces shape \(6, 5, 5\).*166 bytes, and it has 163",
        ),
        (gzip.compress(gzip.decompress(whole)[:9]), "truncated"),
        (b"", "begins with bytes none"),
        (b"<html>not found</html>", "begins with bytes 3c68746d"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(config_of("mnist", data_dir=str(tmp_path), verify=False))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_missing_file_says_where_it_was_looked_for_and_where_to_get_it(tmp_path, name):
    home = {"mnist": "yann.lecun.com", "fashion_mnist": "zalandoresearch"}.get(
        name, "cs.toronto.edu"
    )
    with pytest.raises(ValueError, match=f"{tmp_path}.*{home}.*data_dir"):
        load(config_of(name, data_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="data_dir is empty"):
        load(config_of(name))


# --- CIFAR files


def write_cifar(folder, name, version, n=4):
    """As the authors lay it out: planes red, green, blue; Python 2 pickles with byte-string keys."""
    known = images.CIFAR[name]
    subfolder, files = known.binary if version == "binary" else known.python
    (folder / subfolder).mkdir(parents=True)
    rng, made = np.random.default_rng(1), []
    for file, _ in files:
        pixels, labels = (
            rng.integers(0, 256, (n, 3072), dtype=np.uint8),
            rng.integers(0, known.outputs, n),
        )
        made.append((pixels.reshape(n, 3, 32, 32), labels))
        if version == "binary":
            columns = np.repeat(labels[:, None].astype(np.uint8), known.label_bytes, axis=1)
            columns[:, :-1] = 7  # the coarse label of CIFAR-100, which is not the one we want
            np.concatenate([columns, pixels], axis=1).tofile(folder / subfolder / file)
        else:
            batch = {"data": pixels, known.label_key: labels.tolist(), "filenames": ["a.png"] * n}
            (folder / subfolder / file).write_bytes(pickle.dumps(batch, protocol=2))
    return folder / subfolder, files, made


@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_files_are_read_in_both_formats(tmp_path, name, version):
    _, _, made = write_cifar(tmp_path, name, version)
    task = load(config_of(name, data_dir=str(tmp_path), verify=False, flatten=False))
    planes = np.concatenate([pixels for pixels, _ in made[:-1]]).astype(np.float64)
    mean, deviation = planes.mean(axis=(0, 2, 3)), planes.std(axis=(0, 2, 3))
    np.testing.assert_array_equal(task.train.y, np.concatenate([labels for _, labels in made[:-1]]))
    np.testing.assert_allclose(
        task.train.x, (planes.transpose(0, 2, 3, 1) - mean) / deviation, atol=1e-5
    )
    np.testing.assert_array_equal(task.test.y, made[-1][1])
    assert task.outputs == images.CIFAR[name].outputs
    with pytest.raises(ValueError, match="the published file has"):
        load(config_of(name, data_dir=str(tmp_path)))


def test_damaged_cifar_files_are_refused(tmp_path):
    folder, files, _ = write_cifar(tmp_path, "cifar10", "binary")
    whole = (folder / files[0][0]).read_bytes()
    (folder / files[0][0]).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="not a whole number of 3073-byte records"):
        load(config_of("cifar10", data_dir=str(tmp_path), verify=False))
    (folder / files[0][0]).write_bytes(b"\x63" + whole[1:])
    with pytest.raises(ValueError, match="labels run from 0 to 99, expected 0 to 9"):
        load(config_of("cifar10", data_dir=str(tmp_path), verify=False))


def test_a_pickle_that_is_cut_or_would_run_code_is_refused(tmp_path):
    folder, files, _ = write_cifar(tmp_path, "cifar100", "python")
    path = folder / files[0][0]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="not a whole CIFAR batch"):
        load(config_of("cifar100", data_dir=str(tmp_path), verify=False))
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path).encode() + b"/harm'\ntR.")
    with pytest.raises(ValueError, match=r"os\.system is not allowed"):
        load(config_of("cifar100", data_dir=str(tmp_path), verify=False))
    assert not (tmp_path / "harm").exists()


def test_pickles_written_by_python_2_are_read(tmp_path):
    """Their dtype is made with align and copy as integers, and keys are byte strings."""
    data = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    raw = b"(dp0\nS'labels'\np1\n(lp2\nI3\naI4\nasS'data'\np3\ncnumpy.core.multiarray\n_reconstruct\np4\n"
    raw += b"(cnumpy\nndarray\np5\n(I0\ntS'b'\ntRp6\n(I1\n(I2\nI3072\ntcnumpy\ndtype\np7\n(S'u1'\nI0\nI1\ntRp8\n"
    raw += b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n" + pickle_string(data.tobytes()) + b"tbs."
    (tmp_path / "batch").write_bytes(raw)
    pixels, labels = formats.read_cifar_python(tmp_path / "batch", "labels")
    np.testing.assert_array_equal(labels, [3, 4])
    np.testing.assert_array_equal(pixels, data.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1))


def pickle_string(content):
    return b"T" + struct.pack("<i", len(content)) + content


# --- npz and folders


def test_npz_classification_regression_and_nan(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.npz"
    x, labels = rng.normal(3, 2, (20, 4)), rng.integers(0, 3, 20)
    np.savez(path, x_train=x, y_train=labels, x_test=x[:5], y_test=labels[:5])
    task = load(config_of("npz", data_dir=str(path)))
    np.testing.assert_allclose(task.train.x.mean(axis=0), 0, atol=1e-5)
    assert task.outputs == 3
    assert load(config_of("npz", data_dir=str(path), num_train=7)).train.x.shape == (7, 4)
    with pytest.raises(ValueError, match="num_train is 21, but there are 20"):
        load(config_of("npz", data_dir=str(path), num_train=21))
    np.savez(path, x_train=x, y_train=x[:, :2], x_test=x[:5], y_test=x[:5, :2])
    task = load(config_of("npz", data_dir=str(path)))
    assert task.outputs == 2
    np.testing.assert_allclose(task.train.y, x[:, :2], rtol=1e-6)
    x[7, 2], x[9, 0] = np.nan, np.inf
    np.savez(path, x_train=x, y_train=labels, x_test=x[:5], y_test=labels[:5])
    with pytest.raises(ValueError, match=r"train set: x\[7, 2\] is nan, the first of 2 entries"):
        load(config_of("npz", data_dir=str(path)))


def test_npz_of_other_arrays_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(ValueError, match="no file"):
        load(config_of("npz", data_dir=str(path)))
    path.write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=r"not a whole \.npz"):
        load(config_of("npz", data_dir=str(path)))
    x, y = np.zeros((3, 2)), np.zeros(3, int)
    for arrays_, message in (
        ({"x": x}, "holds the arrays x; expected x_train"),
        ({"x_train": x, "y_train": y * 1.0, "x_test": x, "y_test": y}, "y_train is float64"),
        ({"x_train": x, "y_train": y[:2], "x_test": x, "y_test": y}, "3 inputs, but 2 targets"),
        ({"x_train": x, "y_train": y, "x_test": x[:, :1], "y_test": y}, "expected the same"),
        ({"x_train": x[:0], "y_train": y[:0], "x_test": x, "y_test": y}, "is empty"),
        ({"x_train": x, "y_train": y - 1, "x_test": x, "y_test": y}, "labels run from -1"),
    ):
        np.savez(path, **arrays_)
        with pytest.raises(ValueError, match=message):
            load(config_of("npz", data_dir=str(path)))


def test_image_folder_classes_sizes_and_damage(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
                image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    config = config_of("image_folder", data_dir=str(tmp_path), flatten=False)
    task = load(config)
    assert task.train.x.shape == (4, 6, 7, 3)
    np.testing.assert_array_equal(task.train.y, [0, 0, 1, 1])
    image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "test" / "dog" / "9.png")
    with pytest.raises(ValueError, match="image_size to resize"):
        load(config)
    assert load(config_of("image_folder", data_dir=str(tmp_path), image_size=4)).input_shape == (
        48,
    )
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"0\.png is not a readable picture"):
        load(config)
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(ValueError, match="besides them \\['cow'\\] in test"):
        load(config)
    with pytest.raises(ValueError, match="no folders train and test"):
        load(config_of("image_folder", data_dir=str(tmp_path / "train")))


def test_a_constant_channel_becomes_zero():
    x = np.zeros((4, 2, 2, 3), np.uint8)
    x[..., 0] = np.arange(4)[:, None, None]
    train, _ = arrays.standardise(x, x)
    assert np.isfinite(train).all()
    assert (train[..., 1:] == 0).all()


def test_digits_read_no_folder():
    """Who gives one means other data, and would train on digits unawares."""
    config = default_config("digits")
    config.data_dir = "elsewhere"
    with pytest.raises(ValueError, match=r"task\.data_dir is 'elsewhere'.*task\.name='npz'"):
        load(config)


@pytest.mark.parametrize(
    ("value", "allowed"), [(1e-300, "at least 1e-30"), (0.0, "above 0"), (1e31, "at most 1e")]
)
def test_numbers_that_single_precision_does_not_hold_are_refused(value, allowed):
    with pytest.raises(ValueError, match=f"config.rate.*{allowed}"):
        checks.positive()("config.rate", value)
    checks.positive()("config.rate", 1e-29)


@pytest.mark.parametrize("scale", [1e-200, 1e150])
def test_the_posterior_mean_of_a_mixture_does_not_depend_on_the_scale(scale):
    z, centres = np.array([[0.2, 0.1], [2.0, -3.0]]), np.array([[-1.0, 0.0], [1.0, 0.5]])
    expected = mixture.posterior_mean(z, centres, 0.3, 0.5)
    found = mixture.posterior_mean(scale * z, scale * centres, scale * 0.3, scale * 0.5)
    np.testing.assert_allclose(found / scale, expected)
    # Without noise to speak of it is the nearest centre, or the mean of those equally near.
    z = np.array([[2.0, 0.0], [-0.1, 0.0], [0.0, 0.0]])
    for noise in (1e-10, 1e-200):
        found = mixture.posterior_mean(z, [[-1.0, 0.0], [1.0, 0.0]], 0.0, noise)
        np.testing.assert_array_equal(found, [[1, 0], [-1, 0], [0, 0]])


def test_arguments_of_a_mixture_are_refused_in_words():
    z, centres = np.ones((2, 1)), ((-1.0,), (1.0,))
    for function in (mixture.posterior_mean, mixture.score):
        with pytest.raises(TypeError, match="deviation is None; it must be a finite number"):
            function(z, centres, None, 0.5)
        with pytest.raises(ValueError, match=r"z are .* a row of finite numbers for each point"):
            function([[1.0], [1.0, 2.0]], centres, 0.1, 0.5)
        with pytest.raises(TypeError, match=r"z is traced; .* outside of jit"):
            jax.jit(lambda z, f=function: f(z, centres, 0.1, 0.5))(z)
        with pytest.raises(TypeError, match=r"noise is traced; .* outside of jit"):
            jax.jit(lambda s, f=function: f(z, centres, 0.1, s))(0.5)


def test_the_posterior_mean_of_a_mixture_is_the_integral_and_gives_the_score():
    """E[x_0 | z] by quadrature over x_0; the score by differences of log p(z), and by Tweedie's formula."""
    centres, deviation, noise = ((-1.0,), (0.5,), (2.0,)), 0.3, 0.7
    z, x = np.linspace(-2, 3, 11)[:, None], np.linspace(-6, 8, 20001)

    def density(x, c, s):
        return np.exp(-((x - np.ravel(c)[:, None, None]) ** 2) / (2 * s**2)).sum(0) / s

    prior = density(x[None], centres, deviation)
    seen = prior * np.exp(-((z - x) ** 2) / (2 * noise**2))
    exact = mixture.posterior_mean(z, centres, deviation, noise)
    np.testing.assert_allclose(exact[:, 0], (seen @ x) / seen.sum(1), rtol=1e-10, atol=1e-12)
    h, total = 1e-5, np.hypot(deviation, noise)
    slope = np.diff([np.log(density(z + e, centres, total))[:, 0] for e in (-h, h)], axis=0)[0] / (
        2 * h
    )
    found = mixture.score(z, centres, deviation, noise)[:, 0]
    np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found, (exact - z)[:, 0] / noise**2, rtol=1e-10, atol=1e-12)


def test_a_mixture_is_drawn_as_it_says_and_its_test_targets_are_the_best_prediction():
    config = config_of("mixture", centres=((0.0, 3.0), (4.0, 0.0)), num_train=20000, noise=0.5)
    task = load(config)
    (z, x), (z_test, exact) = task.train, task.test
    assert x.std(0) == pytest.approx(np.sqrt([4.09, 2.34]), rel=0.02)
    assert (z - x).std() == pytest.approx(0.5, rel=0.02)
    best = mixture.posterior_mean(z, config.centres, 0.3, 0.5)
    risk = ((best - x) ** 2).mean()
    # Inside one component the posterior variance is a^2 s^2 / (a^2 + s^2).
    assert risk == pytest.approx(0.09 * 0.25 / 0.34, rel=0.05)
    for wrong in (0.9 * best, z):
        assert ((wrong - x) ** 2).mean() > 1.5 * risk
    np.testing.assert_allclose(
        exact, mixture.posterior_mean(z_test, config.centres, 0.3, 0.5), atol=1e-5
    )
    point = mixture.posterior_mean([[0.0, 2.9]], config.centres, 0.0, 0.1)
    np.testing.assert_allclose(point, [[0.0, 3.0]])
