"""What the functions of `ntk.predict` return: results, and the types of the predictors that give them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, overload

import jax
from jax.typing import ArrayLike

from ntk import show
from ntk.types import Data


@show.readable
class Gaussian(NamedTuple):
    """Predictions: mean, shaped as the outputs, and covariance, shaped as their kernel."""

    mean: jax.Array
    covariance: jax.Array


@show.readable
class ODEState(NamedTuple):
    """Outputs on training and test points, and their velocities under momentum."""

    fx_train: jax.Array | None = None
    fx_test: jax.Array | None = None
    qx_train: jax.Array | None = None
    qx_test: jax.Array | None = None


class Posterior(Protocol):
    """``predict_fn(get, k_test_train, k_test_test)`` of `gp_inference`."""

    @overload
    def __call__(
        self, get: str, k_test_train: Any = None, k_test_test: None = None
    ) -> jax.Array: ...
    @overload
    def __call__(self, get: str, k_test_train: Any = None, *, k_test_test: object) -> Gaussian: ...
    @overload
    def __call__(self, get: str, k_test_train: Any, k_test_test: object) -> Gaussian: ...
    @overload
    def __call__(
        self,
        get: tuple[str, ...] | None = None,
        k_test_train: Any = None,
        k_test_test: Any = None,
    ) -> Any: ...


class Ensemble(Protocol):
    """``predict_fn(t, x_test, get, compute_cov, **kernel_kwargs)`` of `gradient_descent_mse_ensemble`."""

    @overload
    def __call__(
        self,
        t: ArrayLike | None = None,
        x_test: Any = None,
        *,
        get: str,
        compute_cov: Literal[False] = False,
        **kernel_kwargs: Any,
    ) -> jax.Array: ...
    @overload
    def __call__(
        self,
        t: ArrayLike | None = None,
        x_test: Any = None,
        *,
        get: str,
        compute_cov: Literal[True],
        **kernel_kwargs: Any,
    ) -> Gaussian: ...
    @overload
    def __call__(
        self,
        t: ArrayLike | None = None,
        x_test: Any = None,
        get: str | tuple[str, ...] | None = None,
        compute_cov: bool = False,
        **kernel_kwargs: Any,
    ) -> Any: ...


class Flow(Protocol):
    """``predict_fn(t, fx_train_0, fx_test_0, k_test_train)``: outputs on training points, test points, or both."""

    @overload
    def __call__(
        self,
        t: ArrayLike | None = None,
        fx_train_0: ArrayLike = 0.0,
        fx_test_0: None = None,
        k_test_train: Data | None = None,
    ) -> jax.Array: ...
    @overload
    def __call__(
        self, t: ArrayLike | None, fx_train_0: None, fx_test_0: ArrayLike, k_test_train: Data
    ) -> jax.Array: ...
    @overload
    def __call__(
        self,
        t: ArrayLike | None = None,
        *,
        fx_train_0: None,
        fx_test_0: ArrayLike,
        k_test_train: Data,
    ) -> jax.Array: ...
    @overload
    def __call__(
        self, t: ArrayLike | None, fx_train_0: ArrayLike, fx_test_0: ArrayLike, k_test_train: Data
    ) -> tuple[jax.Array, jax.Array]: ...
    @overload
    def __call__(
        self,
        t: ArrayLike | None = None,
        fx_train_0: ArrayLike = 0.0,
        *,
        fx_test_0: ArrayLike,
        k_test_train: Data,
    ) -> tuple[jax.Array, jax.Array]: ...


class StateFlow(Protocol):
    """The same of `gradient_descent`, which also takes the state at time 0, and then gives one."""

    @overload
    def __call__(
        self,
        t: ArrayLike | None,
        fx_train_or_state_0: ODEState,
        fx_test_0: None = None,
        k_test_train: Data | None = None,
    ) -> ODEState: ...
    @overload
    def __call__(
        self,
        t: ArrayLike | None = None,
        fx_train_or_state_0: ArrayLike = 0.0,
        fx_test_0: None = None,
        k_test_train: Data | None = None,
    ) -> jax.Array: ...
    @overload
    def __call__(
        self,
        t: ArrayLike | None,
        fx_train_or_state_0: None,
        fx_test_0: ArrayLike,
        k_test_train: Data,
    ) -> jax.Array: ...
    @overload
    def __call__(
        self,
        t: ArrayLike | None,
        fx_train_or_state_0: ArrayLike,
        fx_test_0: ArrayLike,
        k_test_train: Data,
    ) -> tuple[jax.Array, jax.Array]: ...
    @overload
    def __call__(
        self,
        t: ArrayLike | None = None,
        fx_train_or_state_0: ArrayLike = 0.0,
        *,
        fx_test_0: ArrayLike,
        k_test_train: Data,
    ) -> tuple[jax.Array, jax.Array]: ...
