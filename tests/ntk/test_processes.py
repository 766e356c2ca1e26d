"""Several processes over loopback: the same Gram matrices, products and regressions as one, also after a kill."""

import jax.numpy as jnp
import numpy as np
import pytest

from ntk import empirical_kernel_fn, gram, stax

NET = stax.serial(stax.Dense(1, 1.5, 0.1), stax.Relu(), stax.Dense(1, 1.5, 0.1))
X = np.random.default_rng(0).normal(size=(53, 6)).astype(np.float32)

SAME = ("memory", "rectangle", "diagonal")
HEAD = """
from ntk import gram, solve, stax
net = stax.serial(stax.Dense(1, 1.5, 0.1), stax.Relu(), stax.Dense(1, 1.5, 0.1))
x = np.random.default_rng(0).normal(size=(53, 6)).astype(np.float32)
options = {"tile": 20, "devices": jax.devices()}
def keep(name, value):
    np.save(folder / f"{name}-{index}.npy", value)
"""

# The same network with parameters, three outputs.
EMPIRICAL = """
import jax.numpy as jnp
from ntk import empirical_kernel_fn
rng = np.random.default_rng(1)
params = {"w": rng.normal(size=(6, 7)).astype("f4"), "v": rng.normal(size=(7, 3)).astype("f4")}
kernel_fn = empirical_kernel_fn(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], (), vmap_axes=0)
keep("empirical", gram.gram(kernel_fn, x, None, "ntk", params=params, **options))
"""

# From a folder each process reads its own rows: a matrix that no process holds whole.
SHARDED = """
from jax.sharding import Mesh, NamedSharding, PartitionSpec
disk = gram.gram(net.kernel_fn, x[:48], path=folder / "even", name="relu-v1", **options)
rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
theta = jax.make_array_from_callback(disk.shape, rows, lambda part: disk[part])
everywhere = NamedSharding(rows.mesh, PartitionSpec())
keep("sharded", jax.jit(lambda k: k @ k[:, :2], out_shardings=everywhere)(theta))
keep("own", np.array(sum(shard.data.size for shard in theta.addressable_shards)))
"""

ALL = """
keep("memory", gram.gram(net.kernel_fn, x, **options))
keep("rectangle", gram.gram(net.kernel_fn, x, x[:31] + 1, "nngp", **options))
keep("diagonal", gram.diagonal(net.kernel_fn, x, **options))
keep("product", gram.product(net.kernel_fn, x, **options)(x[:, :2]))
kept = {"path": folder / "kept", "name": "relu-v1"}
keep("kept", gram.product(net.kernel_fn, x, **kept, **options)(x[:, :2]))
keep("disk", gram.gram(net.kernel_fn, x, path=folder / "run", name="relu-v1", **options))
import functools
cg = functools.partial(solve.conjugate_gradient, tolerance=1e-6)
fit = solve.regression(net.kernel_fn, x, x[:, :1], solver=cg, diag_reg=1e-2, **options)
keep("predicted", fit.predict(x[:5] + 1))
"""

ERRORS = """
try:
    gram.gram(net.kernel_fn, x, path=folder / "run", name="another", **options)
except ValueError as error:
    (folder / f"error-{index}.txt").write_text(str(error))
try:
    gram.gram(net.kernel_fn, x, devices=jax.devices()[:1] if index == 1 else jax.local_devices())
except ValueError as error:
    (folder / f"owners-{index}.txt").write_text(str(error))
"""

# One process, which has two tiles or more to do, dies before its second; the others finish theirs and wait for it.
DIES = """
def progress(done, total):
    if str(index) == rest[0] and done:
        os.kill(os.getpid(), signal.SIGKILL)
gram.gram(net.kernel_fn, x, path=folder / "run", name="relu-v1", progress=progress, **options)
"""


@pytest.fixture(scope="module")
def one():
    """What a single process finds."""
    options = {"tile": 20}
    rng = np.random.default_rng(1)
    params = {"w": rng.normal(size=(6, 7)).astype("f4"), "v": rng.normal(size=(7, 3)).astype("f4")}
    network = empirical_kernel_fn(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], (), vmap_axes=0)
    even = gram.gram(NET.kernel_fn, X[:48], **options)
    return {
        "empirical": gram.gram(network, X, None, "ntk", params=params, **options),
        "sharded": even @ even[:, :2],
        "memory": gram.gram(NET.kernel_fn, X, **options),
        "rectangle": gram.gram(NET.kernel_fn, X, X[:31] + 1, "nngp", **options),
        "diagonal": gram.diagonal(NET.kernel_fn, X, **options),
        "product": gram.product(NET.kernel_fn, X, **options)(X[:, :2]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_find_what_one_finds(count, one, tmp_path, job):
    # Four devices each: the 48 rows are shared evenly by 8 and by 16.
    code = HEAD + ALL + EMPIRICAL + SHARDED + ERRORS
    assert job(count, tmp_path, code, devices=4) == [0] * count
    for index in range(count):
        found = {
            name: np.load(tmp_path / f"{name}-{index}.npy")
            for name in (*SAME, "product", "kept", "disk")
        }
        for name in SAME:
            np.testing.assert_array_equal(found[name], one[name], err_msg=name)
        np.testing.assert_array_equal(found["disk"], one["memory"])
        np.testing.assert_allclose(found["product"], one["product"], rtol=1e-6)
        np.testing.assert_allclose(found["kept"], one["product"], rtol=1e-6)
        empirical, sharded, own = (
            np.load(tmp_path / f"{name}-{index}.npy") for name in ("empirical", "sharded", "own")
        )
        np.testing.assert_array_equal(empirical, one["empirical"])
        np.testing.assert_allclose(sharded, one["sharded"], rtol=2e-6)
        assert own == 48**2 / count
        predicted = np.load(tmp_path / f"predicted-{index}.npy")
        np.testing.assert_array_equal(predicted, np.load(tmp_path / "predicted-0.npy"))
        assert "belongs to another job" in (tmp_path / f"error-{index}.txt").read_text()
    assert "give those of all processes" in (tmp_path / "owners-1.txt").read_text()
    assert not (tmp_path / "owners-0.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "dead", "others"), [(3, 2, 2), (4, 1, 3)])
def test_a_job_whose_process_died_goes_on_with_another_number_of_them(
    count, dead, others, one, tmp_path, job
):
    statuses = job(count, tmp_path, HEAD + DIES, str(dead))
    assert statuses[dead] == -9
    assert all(status != 0 for status in statuses)  # nobody reports success
    left = next(index for index in range(1, count) if index != dead)
    told = (tmp_path / f"stderr-{left}.txt").read_text()
    named = f"task:{dead}" in told.replace("/", "").replace(" ", "")
    assert named or "peer" in told, told[-2000:]
    kept = sum(len(p.read_text().splitlines()) for p in (tmp_path / "run").glob("tiles*.txt"))
    assert 0 < kept < 6
    assert job(others, tmp_path, HEAD + ALL) == [0] * others
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "gram.npy"), one["memory"])
    assert [p.name for p in (tmp_path / "run").glob("tiles*.txt")]
