"""Images from files: MNIST and Fashion-MNIST, CIFAR-10 and CIFAR-100, arrays in .npz, folders of pictures.

Nothing is downloaded: a missing file is an error that says where to get it and where it was looked for.
"""

from __future__ import annotations

import pathlib
import warnings
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments import checks, files
from experiments.tasks import formats
from experiments.tasks.arrays import Data, Task, assemble, check_examples, choose, image_config

MNIST_HOME = "the MNIST page of its authors, http://yann.lecun.com/exdb/mnist"
FASHION_HOME = "the page of its authors, https://github.com/zalandoresearch/fashion-mnist"
CIFAR_HOME = "the CIFAR page of its author, https://cave.cs.toronto.edu/kriz/cifar.html"
PIXELS = 2**24
"""Most pixels of a picture."""
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Kinds of pixels of eight bits a channel; PIL cuts those of more off at 255."""


class Idx(NamedTuple):
    """A data set of four IDX files: MD5 of each gzipped file, in the order of `IDX_FILES`."""

    home: str
    folder: str
    md5: tuple[str, str, str, str]


class Cifar(NamedTuple):
    """A CIFAR data set in its two formats: files of the training set, then the test file."""

    outputs: int
    label_bytes: int
    label_key: str
    binary: tuple[
        str, tuple[tuple[str, int], ...]
    ]  # folder, (file, bytes): no checksum of each is published
    python: tuple[str, tuple[tuple[str, str], ...]]  # folder, (file, MD5)


# file name without .gz, its axes, its length when not compressed
IDX_FILES = (
    ("train-images-idx3-ubyte", 3, 16 + 60000 * 784),
    ("train-labels-idx1-ubyte", 1, 8 + 60000),
    ("t10k-images-idx3-ubyte", 3, 16 + 10000 * 784),
    ("t10k-labels-idx1-ubyte", 1, 8 + 10000),
)
IDX = {
    "mnist": Idx(
        MNIST_HOME,
        "MNIST/raw",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion_mnist": Idx(
        FASHION_HOME,
        "FashionMNIST/raw",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
}
CIFAR = {
    "cifar10": Cifar(
        outputs=10,
        label_bytes=1,
        label_key="labels",
        binary=(
            "cifar-10-batches-bin",
            (
                *((f"data_batch_{i}.bin", 10000 * 3073) for i in range(1, 6)),
                ("test_batch.bin", 10000 * 3073),
            ),
        ),
        python=(
            "cifar-10-batches-py",
            (
                ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
                ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
                ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
                ("data_batch_4", "634d18415352ddfa80567beed471001a"),
                ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
                ("test_batch", "40351d587109b95175f43aff81a1287e"),
            ),
        ),
    ),
    "cifar100": Cifar(
        outputs=100,
        label_bytes=2,
        label_key="fine_labels",
        binary=("cifar-100-binary", (("train.bin", 50000 * 3074), ("test.bin", 10000 * 3074))),
        python=(
            "cifar-100-python",
            (
                ("train", "16019d7e3df5f24257cddd939b257f8d"),
                ("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            ),
        ),
    ),
}


def default_config(name: str) -> ml_collections.ConfigDict:
    """The keys of an image task (see `image_config`); image_folder adds image_size, 0 for as it is."""
    config = image_config(name)
    if name == "image_folder":
        config.image_size = 0
    return config


def load(config: Any) -> Task:
    """The image task that ``config.name`` names.

    Raises:
        ValueError: a file is missing, truncated, or not the published one; shapes or values are wrong.
    """
    train, test, outputs = _read(files.expanded(config.data_dir), config)
    for part, data in (("train", train), ("test", test)):
        check_examples(f"{config.data_dir}, {part} set", data)
    _check_labels(config, train, test, outputs)
    if train.x.shape[1:] != test.x.shape[1:] or train.x.ndim not in (2, 3, 4):
        raise ValueError(
            f"{config.data_dir}: inputs have shape {train.x.shape} in train and {test.x.shape} in test; expected "
            "the same (N, H, W, C), (N, H, W) or (N, features) but for N"
        )
    if len(train.x) > 1 and (train.x == train.x[:1]).all():
        raise ValueError(
            f"{config.data_dir}, train set: all {len(train.x)} inputs are equal; nothing can be learnt from them"
        )
    train = choose("num_train", train, config.num_train, config.seed)
    test = choose("num_test", test, config.num_test, config.seed)
    return assemble(train, test, outputs, config)


def _check_labels(config: Any, train: Data, test: Data, outputs: int) -> None:
    """Labels are numbers of classes, before they are cast to 32 bits; real targets are anything."""
    if train.y.ndim == 2:
        return
    for part, data in (("train", train), ("test", test)):
        if data.y.min() < 0 or data.y.max() >= outputs:
            raise ValueError(
                f"{config.data_dir}, {part} set: labels run from {data.y.min()} to {data.y.max()}, expected 0 to "
                f"{outputs - 1}"
            )
    if outputs > max(1000, len(train.y)):
        raise ValueError(
            f"{config.data_dir}: labels run to {outputs - 1}, more classes than the {len(train.y)} training examples; "
            "number the classes 0, 1, 2, ..."
        )


def _read(directory: pathlib.Path, config: Any) -> tuple[Data, Data, int]:
    if config.name in IDX:
        return *_read_idx_set(directory, IDX[config.name], config), 10
    if config.name in CIFAR:
        return *_read_cifar_set(directory, CIFAR[config.name], config), CIFAR[config.name].outputs
    train, test = (_read_npz if config.name == "npz" else _read_folder)(directory, config)
    if train.y.ndim != test.y.ndim or train.y.shape[1:] != test.y.shape[1:]:
        raise ValueError(
            f"{config.data_dir}: y_train has shape {train.y.shape}, y_test {test.y.shape}; expected both labels (N,), "
            "or both real targets (N, outputs)"
        )
    if train.y.ndim == 2:
        return train, test, train.y.shape[1]
    return train, test, int(max(train.y.max(initial=0), test.y.max(initial=0))) + 1


def _read_idx_set(directory: pathlib.Path, known: Idx, config: Any) -> tuple[Data, Data]:
    arrays = []
    for (name, axes, size), md5 in zip(IDX_FILES, known.md5):
        advice = f"Get {name}.gz from {known.home} (MD5 {md5})."
        variants = (f"{name}.gz", name, name.replace("-idx", ".idx"))
        path = _find(config, directory, ("", known.folder), variants, advice)
        if config.verify and path.suffix == ".gz":
            formats.check_md5(path, md5, advice)
        elif config.verify:
            formats.check_size(path, size, advice)
        arrays.append(formats.read_idx(path, axes))
    return Data(*arrays[:2]), Data(*arrays[2:])


def _read_cifar_set(directory: pathlib.Path, known: Cifar, config: Any) -> tuple[Data, Data]:
    binary_folder, binary = known.binary
    python_folder, python = known.python
    is_binary = any((directory / folder / binary[-1][0]).exists() for folder in ("", binary_folder))
    folder, files = (binary_folder, binary) if is_binary else (python_folder, python)
    advice = (
        f"Get the binary or the python version from {CIFAR_HOME} and unpack it there "
        f"(it makes the folder {binary_folder} or {python_folder})."
    )
    parts = []
    for name, published in files:
        path = _find(config, directory, ("", folder), (name,), advice)
        if is_binary:
            if config.verify:
                formats.check_size(path, published, advice)
            parts.append(formats.read_cifar_binary(path, known.label_bytes))
        else:
            if config.verify:
                formats.check_md5(path, published, advice)
            parts.append(formats.read_cifar_python(path, known.label_key))
    images, labels = zip(*parts[:-1])
    return Data(np.concatenate(images), np.concatenate(labels)), Data(*parts[-1])


def _read_npz(path: pathlib.Path, config: Any) -> tuple[Data, Data]:
    keys = ("x_train", "y_train", "x_test", "y_test")
    if not path.is_file():
        raise ValueError(
            f"task 'npz': no file {config.data_dir!r}; set config.task.data_dir to a .npz file with the arrays "
            f"{', '.join(keys)}"
        )
    arrays = list(formats.read_npz(path, keys).values())
    for key, x in zip(keys[::2], arrays[::2]):
        if x.ndim not in (2, 3, 4) or 0 in x.shape[1:]:
            raise ValueError(
                f"{path}: {key} has shape {x.shape}; expected (N, features), (N, H, W) or (N, H, W, C)"
            )
    for key, y in zip(keys[1::2], arrays[1::2]):
        labels = y.ndim == 1 and y.dtype.kind in "iu"
        if not labels and not (y.ndim == 2 and y.dtype.kind == "f" and y.shape[1]):
            raise ValueError(
                f"{path}: {key} is {y.dtype} {y.shape}; expected integer labels (N,) or real targets (N, outputs)"
            )
    return Data(*arrays[:2]), Data(*arrays[2:])


def _read_folder(directory: pathlib.Path, config: Any) -> tuple[Data, Data]:
    layout = "train/<class>/<picture> and test/<class>/<picture>"
    if not (directory / "train").is_dir() or not (directory / "test").is_dir():
        raise ValueError(
            f"task 'image_folder': no folders train and test in {config.data_dir!r}; set config.task.data_dir "
            f"to a folder with {layout}"
        )
    classes = sorted(entry.name for entry in (directory / "train").iterdir() if entry.is_dir())
    extra = {entry.name for entry in (directory / "test").iterdir() if entry.is_dir()} - set(
        classes
    )
    if not classes or extra:
        raise ValueError(
            f"{directory}: classes {classes} in train, besides them {sorted(extra)} in test"
        )
    parts = []
    for part in ("train", "test"):
        images, labels = [], []
        for label, name in enumerate(classes):
            paths = sorted((directory / part / name).glob("*"))
            paths = [path for path in paths if path.suffix.lower() in PICTURES]
            for path in paths:
                if images:
                    checks.memory(str(directory), (len(images) + len(paths)) * images[0].size)
                images.append(_read_picture(path, config.image_size))
                labels.append(label)
                if images[-1].shape != images[0].shape:
                    raise ValueError(
                        f"{path} is {images[-1].shape[:2]} pixels high and wide, the first is "
                        f"{images[0].shape[:2]}; set config.task.image_size to resize all"
                    )
        if not images:
            raise ValueError(
                f"{directory / part} holds no pictures; expected {layout} ({', '.join(PICTURES)})"
            )
        parts.append(Data(np.stack(images), np.array(labels, np.int32)))
    return parts[0], parts[1]


def _read_picture(path: pathlib.Path, size: int) -> np.ndarray:
    from PIL import Image

    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        # A header may announce more than a machine holds: PIL warns of it, and decodes only on demand.
        strict = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
        with strict, Image.open(path) as picture:
            if picture.width * picture.height > PIXELS:
                raise ValueError(
                    f"it has {picture.width} x {picture.height} pixels, {PIXELS} at most"
                )
            if picture.mode not in MODES:
                raise ValueError(
                    f"its pixels are of kind {picture.mode}, with more than eight bits; save it with eight, or give "
                    "the arrays as an .npz file, task 'npz'"
                )
            clear = picture.convert("RGBA").getchannel("A").getextrema()[0]
            if clear < 255:
                raise ValueError("some of its pixels are transparent; put it on a background")
            picture = picture.convert("RGB")
            return np.asarray(picture.resize((size, size)) if size else picture)
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise ValueError(f"{path} is not a readable picture ({error})") from error


def _find(
    config: Any,
    directory: pathlib.Path,
    folders: tuple[str, ...],
    names: tuple[str, ...],
    advice: str,
) -> pathlib.Path:
    looked = [directory / folder / name for folder in folders for name in names if config.data_dir]
    for path in looked:
        if path.is_file():
            return path
    where = (
        ", ".join(str(path) for path in looked) or "nowhere, because config.task.data_dir is empty"
    )
    raise ValueError(
        f"task {config.name!r}: {names[0]} is missing. Looked for it at: {where}. {advice} "
        "Then set --config.task.data_dir to the folder"
    )
