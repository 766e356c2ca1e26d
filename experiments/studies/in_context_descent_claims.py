"""What the study of descent in context claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import Claim, absent, at_least, at_most, listed, near, over_seeds
from experiments.judges import as_lost, completed

SETTINGS = ("isotropic", "anisotropic", "whitened", "ReLU", "sign", "random start")
WRONG = ("n + 10", "whitened", "isotropic", "anisotropic")  # optima that a setting is held against
PREDICTORS = ("zero", "one step", "two steps", "ridge")
MAHANKALI, OSWALD = "Mahankali et al. 2023", "von Oswald et al. 2023"
SQUARE = ("row", "column")


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = completed(completed(as_lost(data), "setting", SETTINGS), "descent_steps", (1, 2))
    return [
        *_matrix_claims(data),
        *_loss_claims(data),
        *_response_claims(data),
        *_exact_claims(data),
        *_correction_claims(data),
    ]


def size(matrix: xr.DataArray) -> xr.DataArray:
    """Frobenius norm."""
    return np.sqrt((matrix**2).sum(SQUARE, skipna=False))


def distance(data: xr.Dataset, setting: str, other: str = "") -> xr.DataArray:
    """|G - G*| / |G*| of each seed, or from the optimum of another setting."""
    part = data.sel(setting=setting)
    goal = part.other.sel(wrong=other) if other else part.best
    return (size(part.matrix - goal) / size(goal)).drop_vars(("setting", "wrong"), errors="ignore")


def rate(matrix: xr.DataArray) -> xr.DataArray:
    """The multiple of the identity nearest to a matrix."""
    eye = xr.DataArray(np.eye(matrix.sizes["row"]), dims=SQUARE)
    return (matrix * eye).sum(SQUARE, skipna=False) / matrix.sizes["row"]


def off_identity(matrix: xr.DataArray) -> xr.DataArray:
    """Share of a matrix that is no multiple of the identity."""
    eye = xr.DataArray(np.eye(matrix.sizes["row"]), dims=SQUARE)
    return size(matrix - rate(matrix) * eye) / size(matrix)


def _matrix_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for number, setting, bound, wrong, words in (
        (1, "isotropic", 0.03, "n + 10", "for ten more examples"),
        (3, "anisotropic", 0.05, "whitened", "for weights of covariance Lam^{-1}"),
        (4, "whitened", 0.05, "anisotropic", "for weights of covariance I"),
    ):
        source = f"{MAHANKALI}, Thm {1 if number == 1 else 3}"
        for other, control in (("", False), (wrong, True)):
            made.append(
                over_seeds(
                    at_most,
                    distance(data, setting, other),
                    name=f"{number} matrix, {setting}" + (f", {words}" if control else ""),
                    source=source,
                    statement="distance of the trained matrix from the best one "
                    + (words + ", " if control else "")
                    + "over that one's norm",
                    bound=bound,
                    control=control,
                )
            )
    matrix = data.matrix.sel(setting="anisotropic", drop=True)
    made.append(
        over_seeds(
            at_most,
            off_identity(matrix),
            name="3 matrix, a plain step",
            source=f"{MAHANKALI}, Thm 3",
            statement="anisotropic inputs: share of the trained matrix that is no multiple of the identity",
            bound=0.05,
            control=True,
        )
    )
    made.append(
        over_seeds(
            at_most,
            distance(data, "random start"),
            name="3 matrix, random start",
            source="Zhang, Frei & Bartlett 2024",
            statement="anisotropic inputs, every matrix drawn at random: distance of the trained matrix from the best "
            "one, over that one's norm",
            bound=0.05,
        )
    )
    return made


def _loss_claims(data: xr.Dataset) -> list[Claim]:
    part = data.sel(setting="isotropic", drop=True)
    final = part.loss.isel(step=-1, drop=True)
    made = [
        over_seeds(
            near,
            final / part.predictor_loss.sel(predictor=name, drop=True),
            name=f"2 loss, {name}",
            source=f"{MAHANKALI}, Thm 1",
            statement=f"loss of the trained layer over that of {words}",
            target=1.0,
            tolerance=0.01,
            control=name != "one step",
        )
        for name, words in (
            ("one step", "the best step"),
            ("zero", "the prediction 0"),
            ("two steps", "the best two plain steps"),
        )
    ]
    agreement = functools.partial(at_least, source=f"{OSWALD}, Fig. 2", bound=0.999)
    made.append(
        over_seeds(
            agreement,
            part.agreement,
            name="6 predictions",
            statement="correlation of the trained layer's predictions with those of the best step",
        )
    )
    made.append(
        agreement(
            "6 predictions, ridge",
            statement="correlation of ridge regression's predictions with those of the best step",
            measured=float(part.ridge_agreement),
            control=True,
            reads=(part.ridge_agreement,),
        )
    )
    return made


def _response_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for response in ("ReLU", "sign"):
        part = data.sel(setting=response, drop=True)
        made.append(
            over_seeds(
                at_most,
                off_identity(part.matrix),
                name=f"5 a plain step, {response}",
                source=f"{MAHANKALI}, Thm 4",
                statement="share of the trained matrix that is no multiple of the identity",
                bound=0.05,
            )
        )
        for goal, control in (
            (part.best, False),
            (part.other.sel(wrong="isotropic", drop=True), True),
        ):
            made.append(
                over_seeds(
                    near,
                    rate(part.matrix) / rate(goal),
                    name=f"5 rate, {response}" + (", of linear responses" if control else ""),
                    source=f"{MAHANKALI}, Thm 4",
                    statement="rate of the trained step over the best one"
                    + (" of linear responses" if control else ""),
                    target=1.0,
                    tolerance=0.03,
                    control=control,
                )
            )
    return made


def _exact_claims(data: xr.Dataset) -> list[Claim]:
    made = [
        over_seeds(
            at_most,
            data.construction.sel(sign=sign, drop=True),
            name="7 construction" + (", values of the other sign" if sign < 0 else ""),
            source=f"{OSWALD}, Prop. 1",
            statement="largest difference of a constructed layer's predictions from a step of descent, in float64",
            bound=1e-12,
            control=sign < 0,
        )
        for sign in (1, -1)
    ]
    closeness = functools.partial(
        over_seeds, at_most, source="Li et al. 2023, with a bound of our own"
    )
    return [
        *made,
        closeness(
            data.softmax_ratio,
            name="9 a step moves little",
            statement="softmax regression: largest movement of the prediction over |A| |dx| / 2",
            bound=1.0,
        ),
        closeness(
            2 * data.tight_ratio,
            name="9 with a bound of a quarter",
            statement="two even classes: movement of the prediction over |A| |dx| / 4",
            bound=1.0,
            control=True,
        ),
        closeness(
            data.shift_error,
            name="9 a step is a shift of the weights",
            statement="softmax regression: largest difference between a step in x and a shift of A",
            bound=1e-12,
        ),
    ]


def _correction_claims(data: xr.Dataset) -> list[Claim]:
    several = () if data.descent_steps.size > 1 else (absent("second layer"),)
    ratio = data.descent_loss.sel(descent="GD++", drop=True) / data.descent_loss.sel(
        descent="GD", drop=True
    )
    return [
        over_seeds(
            at_most,
            ratio.sel(descent_steps=steps, drop=True),
            name=f"8 GD++, {words}",
            source=f"{OSWALD}, Fig. 4",
            statement=f"{words}: loss of descent with curvature correction over that without",
            bound=0.75,
            control=steps == 1,
            preconditions=several,
        )
        for steps, words in ((2, "two layers"), (1, "one layer"))
    ]
