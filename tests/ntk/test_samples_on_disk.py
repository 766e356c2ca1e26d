"""Samples on disk: the numbers of samples in memory, and never more than a tile of them read at once."""

import functools

import jax
import numpy as np
import pytest

from ntk import gram, solve, stax
from ntk.large import tiles

NET = stax.serial(stax.Dense(1, 1.5, 0.1), stax.Relu(), stax.Dense(1, 1.5, 0.1))
X = np.random.default_rng(0).normal(size=(53, 6)).astype(np.float32)
OPTIONS = {"tile": 20}


class Chunked:
    """What zarr and HDF5 give: slices, a shape and a dtype; remembers the most samples read at once."""

    chunks = (7, 6)

    def __init__(self, values):
        self._values, self.shape, self.dtype, self.most = values, values.shape, values.dtype, 0

    def __getitem__(self, where):
        found = self._values[where]
        assert isinstance(where, slice)
        self.most = max(self.most, len(found))
        return found


def mapped(path, values):
    np.save(path, values)
    return np.load(path, mmap_mode="r")


@pytest.fixture(params=["memmap", "chunked"])
def disk(request, tmp_path):
    return mapped(tmp_path / "x.npy", X) if request.param == "memmap" else Chunked(X)


@pytest.mark.parametrize("devices", [1, 3])
def test_kernels_of_samples_on_disk_are_those_of_samples_in_memory(disk, devices):
    options = OPTIONS | {"devices": jax.local_devices()[:devices]}
    for name, found, expected in (
        ("symmetric", *(gram.gram(NET.kernel_fn, x, **options) for x in (disk, X))),
        ("rows", *(gram.gram(NET.kernel_fn, x, X[:31] + 1, **options) for x in (disk, X))),
        ("columns", *(gram.gram(NET.kernel_fn, X[:31] + 1, x, **options) for x in (disk, X))),
        ("diagonal", *(gram.diagonal(NET.kernel_fn, x, **options) for x in (disk, X))),
        ("product", *(gram.product(NET.kernel_fn, x, **options)(X[:, :2]) for x in (disk, X))),
        (
            "other product",
            *(gram.product(NET.kernel_fn, X + 1, x, **options)(X) for x in (disk, X)),
        ),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_same_samples_are_known_though_one_of_them_is_on_disk(disk):
    one = gram.gram(NET.kernel_fn, disk, X, **OPTIONS)
    np.testing.assert_array_equal(one, one.T)  # one triangle, mirrored


def test_a_folder_begun_from_memory_goes_on_from_disk(disk, tmp_path):
    found = gram.gram(NET.kernel_fn, X, path=tmp_path / "k", name="relu", **OPTIONS)
    seen = []
    again = gram.gram(
        NET.kernel_fn,
        disk,
        path=tmp_path / "k",
        name="relu",
        progress=lambda done, total: seen.append((done, total)),
        **OPTIONS,
    )
    assert seen == [(6, 6)]
    np.testing.assert_array_equal(found, again)
    other = Chunked(X + np.float32(1e-3))
    with pytest.raises(ValueError, match="belongs to another job"):
        gram.gram(NET.kernel_fn, other, path=tmp_path / "k", name="relu", **OPTIONS)


def test_no_more_than_a_tile_is_read_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(tiles, "BLOCK", 60)  # ten samples
    x = Chunked(X)
    gram.gram(NET.kernel_fn, x, **OPTIONS)
    gram.gram(NET.kernel_fn, x, path=tmp_path / "k", name="relu", **OPTIONS)
    times = gram.product(NET.kernel_fn, x, **OPTIONS)
    reg = 0.1 * float(gram.diagonal(NET.kernel_fn, x, **OPTIONS).mean())
    absolute = {"diag_reg_absolute_scale": True}
    found = solve.conjugate_gradient(times, X[:, 0], reg, tolerance=1e-5, rank=5, **absolute)
    solve.inducing(NET.kernel_fn, x, X[:, 0], X[:9], diag_reg=0.1, block=15)
    assert 0 < x.most <= 20
    expected = solve.conjugate_gradient(
        gram.gram(NET.kernel_fn, X), X[:, 0], reg, tolerance=1e-5, rank=5, **absolute
    )
    np.testing.assert_allclose(found.coefficients, expected.coefficients, rtol=1e-3, atol=1e-4)


def test_regression_and_inducing_points_take_samples_on_disk(disk):
    cg = functools.partial(solve.conjugate_gradient, tolerance=1e-6)
    fits = [
        solve.regression(NET.kernel_fn, x, X[:, :2], solver=cg, diag_reg=0.1) for x in (disk, X)
    ]
    np.testing.assert_allclose(fits[0].predict(disk), fits[1].predict(X), rtol=1e-5, atol=1e-5)
    points = [solve.inducing(NET.kernel_fn, x, X[:, :2], X[:9], diag_reg=0.1) for x in (disk, X)]
    np.testing.assert_allclose(points[0].predict(disk), points[1].predict(X), rtol=1e-5, atol=1e-5)


def test_double_precision_on_disk_is_read_as_a_device_holds_it(tmp_path):
    x = mapped(tmp_path / "x.npy", X.astype(np.float64))
    found = gram.gram(NET.kernel_fn, x, **OPTIONS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, gram.gram(NET.kernel_fn, X, **OPTIONS), rtol=1e-6)


def test_entries_on_disk_that_are_not_finite_are_refused(monkeypatch):
    monkeypatch.setattr(tiles, "BLOCK", 60)
    bad = X.copy()
    bad[50, 3] = np.nan
    with pytest.raises(ValueError, match="x1 has entries that are not finite"):
        gram.gram(NET.kernel_fn, Chunked(bad), **OPTIONS)
