"""The bare package names must be ours: the index also has other distributions called limits, models or metrics."""

import importlib
import pathlib
import subprocess
import sys

import pytest

import experiments

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("ntk", "limits", "models", "metrics", "experiments")


@pytest.mark.parametrize("name", PACKAGES)
def test_package_resolves_inside_this_project(name):
    found = pathlib.Path(importlib.import_module(name).__file__).resolve()
    assert found == ROOT / name / "__init__.py"


def test_a_foreign_package_is_named(tmp_path):
    """A `limits` that shadows ours is an error that says where it lies and what to do."""
    (tmp_path / "limits").mkdir()
    (tmp_path / "limits" / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(tmp_path)!r}); "
        "import experiments"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert f"'limits' resolves to {tmp_path}" in done.stderr.replace("\n", " ")
    assert "pip uninstall" in done.stderr


def test_no_import_switches_x64_on_or_imports_heavy_peers():
    code = (
        "import sys, jax; before = jax.config.jax_enable_x64; import ntk, limits, models, metrics; "
        "assert jax.config.jax_enable_x64 == before; "
        "assert not {'tensorflow', 'torch', 'neural_tangents', 'matplotlib', 'ml_collections'} & set(sys.modules); "
        "assert not {'jaxtyping', 'beartype'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


def test_ntk_imports_without_flax_and_optax():
    code = "import sys, ntk; assert not {'flax', 'optax', 'scipy.optimize'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_version_is_the_changelogs():
    assert f"## {experiments.__version__}" in (ROOT / "CHANGELOG.md").read_text()
