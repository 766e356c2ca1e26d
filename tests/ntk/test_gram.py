import pathlib
import signal
import subprocess
import sys
import textwrap
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import empirical, gram, reference, solve
from ntk.large import batching
from ntk.stax import combinators, linear, nonlinearities

ROOT = pathlib.Path(__file__).parents[2]


def network():
    layers = [linear.Dense(8, 1.5, 0.1), nonlinearities.Relu()]
    return combinators.serial(*layers, linear.Dense(2, 1.5, 0.1))


@pytest.fixture(scope="module")
def mlp():
    return network()[2]


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(53, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def z():
    return np.random.default_rng(1).normal(size=(31, 5)).astype(np.float32)


def rbf(x1, x2, get, scale=1.0):
    x2 = x1 if x2 is None else x2
    square = jnp.sum((x1[:, None] - x2[None]) ** 2, -1)
    return jnp.exp(-square / scale)


class Counted:
    """A kernel function that counts how often it is traced."""

    def __init__(self, fn):
        self.fn, self.shapes = fn, []

    def __call__(self, x1, x2, get, **kwargs):
        self.shapes.append((x1.shape[0], None if x2 is None else x2.shape[0]))
        return self.fn(x1, x2, get, **kwargs)


@pytest.mark.parametrize("tile", [1, 16, 53, 1024])
def test_tiles_give_the_whole_kernel(x, z, tile):
    devices = jax.devices()[:1]
    symmetric = gram.gram(rbf, x, tile=tile, devices=devices)
    np.testing.assert_allclose(symmetric, rbf(x, None, "ntk"), rtol=1e-5)
    np.testing.assert_array_equal(symmetric, symmetric.T)
    rectangular = gram.gram(rbf, x, z, tile=tile, devices=devices)
    np.testing.assert_allclose(rectangular, rbf(x, z, "ntk"), rtol=1e-5, atol=1e-7)


def test_eight_devices_equal_one_to_rounding(mlp, x, z):
    assert len(jax.devices()) == 8
    for second in (None, z):
        many = gram.gram(mlp, x, second, tile=7)
        one = gram.gram(mlp, x, second, tile=7, devices=jax.devices()[:1])
        np.testing.assert_allclose(many, one, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(many, mlp(x, second, "ntk"), rtol=1e-5, atol=1e-6)


def test_at_most_two_tiles_for_each_device_are_alive(x):
    before, most = sum(v.nbytes for v in jax.live_arrays()), 0

    def watch(done, total):
        nonlocal most
        most = max(most, sum(v.nbytes for v in jax.live_arrays()) - before)

    gram.gram(rbf, x, tile=10, devices=jax.devices()[:2], progress=watch)
    tiles, inputs, positions = 2 * 2 * 10 * 10 * 4, 60 * 5 * 4, 200
    assert inputs < most <= inputs + tiles + positions < 53 * 53 * 4 / 3


def test_one_triangle_in_two_programs_whatever_the_sizes(x, z):
    calls, counted = [], Counted(rbf)
    gram.gram(counted, x, tile=10, progress=lambda *now: calls.append(now))
    assert calls == [(done, 21) for done in range(22)]
    assert sorted(set(counted.shapes), key=str) == [(10, 10), (10, None)]
    assert len(counted.shapes) <= 3  # one more for the shape of the result
    calls.clear()
    gram.gram(rbf, x, z, tile=10, progress=lambda *now: calls.append(now))
    assert calls[-1] == (24, 24)


def test_second_batch_of_equal_values_is_symmetric(x):
    totals = []
    gram.gram(rbf, x, x.copy(), tile=20, progress=lambda done, total: totals.append(total))
    assert totals[-1] == 6


def finite_network(trace_axes=(), diagonal_axes=()):
    init_fn, apply_fn, _ = combinators.serial(
        linear.Dense(6), nonlinearities.Relu(), linear.Dense(2)
    )
    _, params = init_fn(jax.random.key(0), (1, 5))
    return empirical.empirical_kernel_fn(apply_fn, trace_axes, diagonal_axes), params


@pytest.mark.parametrize("diagonal_axes", [(), (-1,)])
def test_output_axes_of_an_empirical_kernel_are_mirrored(x, diagonal_axes):
    kernel_fn, params = finite_network(diagonal_axes=diagonal_axes)
    whole = kernel_fn(x, None, "ntk", params)
    tiled = gram.gram(kernel_fn, x, tile=20, params=params, devices=jax.devices()[:2])
    np.testing.assert_allclose(tiled, whole, rtol=1e-4, atol=1e-5)
    if not diagonal_axes:
        tiled = batching.batch(kernel_fn, 20, 2)(x, None, "ntk", params)
        np.testing.assert_allclose(tiled, whole, rtol=1e-4, atol=1e-5)


def test_mirror_tells_pairs_from_other_layouts():
    block = np.random.default_rng(0).normal(size=(4, 4, 2, 2))
    pairs = block + block.transpose(1, 0, 3, 2)
    other = block + block.transpose(1, 0, 2, 3)
    assert gram.mirror(pairs) == (1, 0, 3, 2)
    assert gram.mirror(other) == (1, 0, 2, 3)
    with pytest.raises(ValueError, match="not symmetric"):
        gram.mirror(block)


def test_lists_of_inputs_and_per_sample_arguments_are_cut(x, z):
    def kernel_fn(x1, x2, get, weights, scale):
        (a, b), (w1, w2) = x1, weights
        c, d = x1 if x2 is None else x2
        return scale * (a @ c.T + b @ d.T) * w1[:, None] * w2[None]

    weights = (np.arange(53.0, dtype=np.float32), np.arange(31.0, dtype=np.float32))
    arguments = {"weights": weights, "scale": jnp.float32(0.5)}
    tiled = gram.gram(kernel_fn, [x, x[:, :2]], [z, z[:, :2]], tile=10, **arguments)
    expected = kernel_fn([x, x[:, :2]], [z, z[:, :2]], "ntk", **arguments)
    np.testing.assert_allclose(tiled, expected, rtol=1e-4, atol=1e-3)


def test_product_and_diagonal_need_no_matrix(x, z):
    v = np.random.default_rng(2).normal(size=(53, 3))
    whole = np.asarray(rbf(x, None, "ntk"), float)
    np.testing.assert_allclose(gram.product(rbf, x, tile=10)(v), whole @ v, rtol=1e-5, atol=1e-6)
    whole = np.asarray(rbf(z, x, "ntk"), float)
    product = gram.product(rbf, z, x, tile=10)
    np.testing.assert_allclose(product(v[:, 0]), whole @ v[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gram.diagonal(rbf, x, tile=10), np.ones(53))
    with pytest.raises(ValueError, match=r"must be \(53,\)"):
        product(v[:5])


@pytest.mark.parametrize("second", [False, True])
def test_a_product_of_kept_tiles_goes_on_and_computes_each_once(x, z, second, tmp_path):
    """The same numbers as without a folder, from tiles of a call that was cut; then no kernel is evaluated."""
    sides, height = ((z, x), 16) if second else ((x,), 20)
    options = {"tile": 20, "path": tmp_path / "run", "name": "rbf"}
    calls = []

    def cut(done, total):
        calls.append((done, total))
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gram.product(rbf, *sides, **options, progress=cut)
    gram.product(rbf, *sides, **options, progress=cut)
    assert calls[4:] == [(3, 6), (4, 6), (5, 6), (6, 6)]
    counted = Counted(rbf)
    kept = gram.product(counted, *sides, **options)
    here = gram.product(rbf, *sides, tile=20)
    v = np.random.default_rng(2).normal(size=(53, 3))
    for vectors in (v, v[:, 0]):
        np.testing.assert_allclose(kept(vectors), here(vectors), rtol=1e-6, atol=1e-6)
    assert len(counted.shapes) == 2  # its shape and dtype, and its fingerprint
    # One triangle, or all; whole tiles of 4 bytes an entry, after NumPy's header.
    assert (tmp_path / "run" / "gram.npy").stat().st_size == 128 + 4 * 6 * height * 20


def test_kept_tiles_that_changed_are_computed_again_and_other_folders_refused(x, finished):
    path, _ = finished
    with pytest.raises(ValueError, match=r"belongs to another job \(shape is \[53, 53\] there"):
        gram.product(rbf, x, tile=20, path=path, name="rbf")
    options = {"tile": 20, "path": path.with_name("kept"), "name": "rbf"}
    gram.product(rbf, x, **options)
    stored = np.load(options["path"] / "gram.npy", mmap_mode="r+")
    stored[30] += 1e-6
    stored.flush()
    with pytest.warns(UserWarning, match="1 of 6 tiles .* do not match their checksum"):
        kept = gram.product(rbf, x, **options)
    np.testing.assert_allclose(kept(x), gram.product(rbf, x, tile=20)(x), rtol=1e-6, atol=1e-6)
    with (options["path"] / "gram.npy").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(OSError, match="ends after 5000 bytes"):
        kept(x)
    for change, message in (
        ({"name": None}, "path needs name"),
        ({"path": None, "progress": print}, "path is None"),
    ):
        with pytest.raises(ValueError, match=message):
            gram.product(rbf, x, **(options | change))
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda x: gram.product(rbf, x, **options))(x)


def test_a_product_computes_hardly_more_than_its_entries(x):
    """53 samples by tiles of at most 50 are two of 32, not two of 50."""
    seen = set()

    def counted(x1, x2, get):
        seen.add(len(x1))
        return rbf(x1, x2, get)

    v = np.random.default_rng(2).normal(size=(53, 3))
    found = gram.product(counted, x, tile=50)(v)
    np.testing.assert_allclose(found, np.asarray(rbf(x, None, "ntk")) @ v, rtol=1e-5, atol=1e-6)
    assert seen == {32}


MILLION = """
    import sys, time
    import jax, numpy as np
    from ntk import gram
    from ntk.stax import combinators, linear, nonlinearities
    layers = [linear.Dense(8, 1.5, 0.1), nonlinearities.Relu()]
    kernel_fn = combinators.serial(*layers, linear.Dense(2, 1.5, 0.1))[2]

    def progress(done, total):
        print(done, flush=True)
        time.sleep(0.02)

    x = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
    gram.gram(kernel_fn, x, tile=96, path=sys.argv[1], name="relu-1", progress=progress)
"""


def test_a_killed_job_resumes_to_the_same_bits(tmp_path, mlp):
    path = tmp_path / "gram"
    command = [sys.executable, "-c", textwrap.dedent(MILLION), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        for line in child.stdout:
            if int(line) >= 25:
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    x = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
    calls = []
    resumed = gram.gram(
        mlp, x, tile=96, path=path, name="relu-1", progress=lambda *now: calls.append(now)
    )
    assert 25 <= calls[0][0] < 66
    assert calls[-1] == (66, 66)
    assert isinstance(resumed, np.memmap)
    uninterrupted = gram.gram(mlp, x, tile=96)
    np.testing.assert_array_equal(resumed, uninterrupted)
    np.testing.assert_array_equal(np.load(path / "gram.npy"), uninterrupted)


@pytest.fixture
def finished(tmp_path, x):
    path = tmp_path / "finished"
    matrix = np.array(gram.gram(rbf, x, tile=20, path=path, name="rbf"))
    return path, matrix


@pytest.mark.parametrize("entry", [(3, 30), (30, 3), (50, 50)])
def test_a_corrupt_tile_is_computed_again_and_reported(finished, x, entry):
    path, matrix = finished
    stored = np.load(path / "gram.npy", mmap_mode="r+")
    stored[entry] += 1e-6
    stored.flush()
    calls = []
    with pytest.warns(UserWarning, match="1 of 6 tiles .* do not match their checksum"):
        mended = gram.gram(
            rbf, x, tile=20, path=path, name="rbf", progress=lambda *now: calls.append(now)
        )
    assert calls == [(5, 6), (6, 6)]
    np.testing.assert_array_equal(mended, matrix)


def test_a_note_cut_short_is_not_a_finished_tile(finished, x):
    path, matrix = finished
    journal = path / "tiles.txt"
    journal.write_text(journal.read_text()[:-9])
    calls = []
    again = gram.gram(
        rbf, x, tile=20, path=path, name="rbf", progress=lambda *now: calls.append(now)
    )
    assert calls == [(5, 6), (6, 6)]
    np.testing.assert_array_equal(again, matrix)


def test_a_finished_job_computes_nothing(finished, x):
    path, matrix = finished
    counted = Counted(rbf)
    np.testing.assert_array_equal(gram.gram(counted, x, tile=20, path=path, name="rbf"), matrix)
    assert counted.shapes == [(20, None), (3, None)]  # its shape and dtype, and its fingerprint


def test_a_folder_of_another_job_is_refused(finished, x, tmp_path):
    path, _ = finished
    job = {"tile": 20, "path": path, "name": "rbf"}
    for change, message in (
        ({"name": "rbf-2"}, "kernel is 'rbf' there, 'rbf-2' here"),
        ({"tile": 21}, r"tile is \[20, 20\] there"),
        ({"scale": 2.0}, "options is"),
        ({"scale": jnp.float32(2.0)}, "inputs is"),
    ):
        with pytest.raises(ValueError, match=message):
            gram.gram(rbf, x, **(job | change))
    with pytest.raises(ValueError, match="inputs is"):
        gram.gram(rbf, 2 * x, **job)
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="holds other files, such as 'finished'"):
        gram.gram(rbf, x, path=tmp_path, name="rbf")
    (path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        gram.gram(rbf, x, **job)
    with pytest.raises(ValueError, match="path needs name"):
        gram.gram(rbf, x, path=path)


def test_bad_input_is_refused(x):
    with pytest.raises(ValueError, match="x1 has entries that are not finite"):
        gram.gram(rbf, np.where(x > 2, np.nan, x))
    with pytest.raises(ValueError, match="x2 is empty"):
        gram.gram(rbf, x, x[:0])
    with pytest.raises(ValueError, match="x1 must be an array with samples along axis 0"):
        gram.gram(rbf, [[1.0, 2.0]])
    with pytest.raises(ValueError, match="tile is 0"):
        gram.gram(rbf, x, tile=0)
    with pytest.raises(ValueError, match="it must be a function"):
        gram.gram("rbf", x)
    with pytest.raises(ValueError, match="get must be one name"):
        gram.gram(lambda *_: jnp.zeros(3), x)
    with pytest.raises(ValueError, match="not symmetric"):
        gram.gram(lambda a, b, get: a @ (a if b is None else b).T @ jnp.diag(a[:, 0]), x)
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda x: gram.gram(rbf, x))(x)


@pytest.mark.parametrize(("batch_size", "device_count"), [(20, 0), (20, 3), (0, -1), (64, 2)])
@pytest.mark.parametrize("on_device", [True, False])
def test_batch_takes_sizes_that_do_not_divide(x, z, batch_size, device_count, on_device):
    batched = batching.batch(rbf, batch_size, device_count, on_device)
    for second in (None, z):
        kernel = batched(x, second, "ntk")
        assert isinstance(kernel, jax.Array if on_device else np.ndarray)
        np.testing.assert_allclose(kernel, rbf(x, second, "ntk"), rtol=1e-5, atol=1e-7)


def test_batch_of_a_whole_kernel_and_of_several_names(mlp, x, z):
    batched = batching.batch(mlp, 20, 1)
    whole, together = mlp(x), batched(x)
    assert jax.tree.structure(whole) == jax.tree.structure(together)
    for got, want in zip(jax.tree.leaves(together), jax.tree.leaves(whole)):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    names = ("nngp", "cov1", "cov2", "x1_is_x2")
    for got, want in zip(batched(x, z, names), mlp(x, z, names)):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_batch_traces_alike_on_every_call(x):
    counted = Counted(rbf)
    batched = batching.batch(counted, 20, 1)
    batched(x, None, "ntk")
    first = len(counted.shapes)
    batched(x, None, "ntk")
    assert len(counted.shapes) == first


def test_batch_can_be_differentiated_and_compiled(x):
    batched = batching.batch(rbf, 20)

    def loss(fn):
        return lambda x: jnp.sum(jnp.sin(fn(x, None, "ntk")))

    np.testing.assert_allclose(
        jax.jit(jax.grad(loss(batched)))(x), jax.grad(loss(rbf))(x), rtol=1e-4, atol=1e-5
    )


def test_batch_refuses_what_there_is_not(mlp):
    with pytest.raises(ValueError, match="device_count is 9; there are 8"):
        batching.batch(mlp, device_count=9)
    with pytest.raises(ValueError, match="batch_size is -1"):
        batching.batch(mlp, -1)


def test_neural_tangents_kernels_in_tiles(x):
    nt = reference.neural_tangents()
    stax = nt.stax
    theirs = stax.serial(stax.Dense(8, 1.5, 0.1), stax.Relu(), stax.Dense(2, 1.5, 0.1))[2]
    ours = reference.from_neural_tangents(theirs)
    whole = theirs(x, None)
    np.testing.assert_allclose(gram.gram(ours, x, tile=20), whole.ntk, rtol=1e-3)
    together = batching.batch(ours, 20, 2)(x)
    assert type(together) is type(whole)
    assert together.shape1 == whole.shape1
    for name in ("nngp", "ntk", "cov1", "x1_is_x2"):
        np.testing.assert_allclose(getattr(together, name), getattr(whole, name), rtol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = nt.batch(theirs, 10, 1)(x[:50], None, "ntk")
    np.testing.assert_allclose(batching.batch(ours, 10, 1)(x[:50], None, "ntk"), peer, rtol=1e-3)


def test_regression_streams_its_predictions(x, z):
    y = np.stack([x[:, 0], np.sin(x[:, 1])], 1)
    fitted = solve.regression(rbf, x, y, tile=20, scale=4.0)
    np.testing.assert_allclose(fitted.predict(x), y, atol=1e-3)
    weights = jnp.linalg.solve(rbf(x, None, "ntk", scale=4.0), y)
    np.testing.assert_allclose(fitted.predict(z), rbf(z, x, "ntk", scale=4.0) @ weights, atol=1e-3)
    assert fitted.solution.jitter == 0
