"""What the study of wide CNNs claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

import metrics
from experiments.claims import Claim, absent, at_least, at_most, listed, near, over_seeds
from experiments.fits import power_law
from experiments.judges import as_lost
from limits import eigenlearning

CFW = "Cagnetta et al. 2023"
KONZ = "Konz & Mazurowski 2024"
CASES = {
    "1 patch: d = 1 by d = 1": (1, 1, 1),
    "2 patches: d = 1 by d = 2": (2, 1, 2),
    "2 patches: d = 2 by d = 2": (2, 2, 2),
    "4 patches: d = 1 by d = 4": (4, 1, 4),
    "4 patches: d = 2 by d = 4": (4, 2, 4),
    "4 patches: d = 4 by d = 4": (4, 4, 4),
}
"""Teacher by student: patches, and the dimension of the largest patch that each sees."""
SMOOTHNESS = {"ntk": 0.5, "nngp": 1.5}


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    return [*_sector_claims(data), *_curve_claims(data), *_dimension_claims(data)]


def error_of(data: xr.Dataset, case: str, what: str = "error") -> xr.DataArray:
    """Test error of a case, over (seed, sample), or what is "predicted" of it, over sample."""
    patches = CASES[case][0]
    return data[f"{what}_{patches}"].sel({f"case_{patches}": case}).transpose(..., "sample")


def beta(data: xr.Dataset, case: str) -> metrics.PowerLaw:
    """Power law of the test error in the number of samples, from the first that is fitted."""
    line = error_of(data, case)
    line = line.sel(sample=line["sample"] >= data.attrs["fit_from"])
    return power_law(line["sample"], line.values)


def _sector_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    deep, shallow = data.sel(layers=2), data.sel(layers=1)
    for kind, nu in SMOOTHNESS.items():
        for name, d, tolerance in (("one_patch", 1, 0.15), ("two_patches", 2, 0.1)):
            values = deep[name].sel(kind=kind)
            law = power_law(data.wavenumber, values.values)
            made.append(
                near(
                    f"1 sector of {name.replace('_', ' ')}, {kind}",
                    CFW,
                    f"two hidden layers, two circles: exponent of the eigenvalues in the wavenumber, 2 nu + {d}",
                    -law.exponent,
                    2 * nu + d,
                    tolerance,
                    reads=(values,),
                )
            )
    for name, part, control in (("", deep, False), (", control, one hidden layer", shallow, True)):
        share = (part.two_patches / part.one_patch).isel(wavenumber=0)
        made.append(
            at_least(
                f"1 both patches together{name}",
                CFW,
                f"eigenvalue of a mode of both patches over that of one, k = {int(data.wavenumber[0])}: smallest of "
                "the kernels",
                float(share.max() if control else share.min()),
                1e-9,
                control=control,
                reads=(part.two_patches, part.one_patch),
            )
        )
    return made


def _curve_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for case, (_, teacher, student) in CASES.items():
        if student > 2:
            continue
        law = beta(data, case)
        made.append(
            near(
                f"2 exponent, {case}",
                CFW,
                f"exponent of the test error in samples, from {data.attrs['fit_from']} on, against the formula",
                -law.exponent,
                eigenlearning.learning_exponent(teacher, student),
                0.08,
                interval=tuple(-law.exponent_interval[::-1]),
                reads=(error_of(data, case),),
            )
        )
    deep = [case for case, (patches, *_) in CASES.items() if patches == 4]
    found = [-beta(data, case).exponent for case in deep]
    reads = tuple(error_of(data, case) for case in deep)
    made.append(
        at_least(
            "3 fewer dimensions are learnt faster",
            CFW,
            "student of four patches: exponent for a teacher of d = 1 less that of 2, and 2 less 4, the smaller",
            float(min(found[0] - found[1], found[1] - found[2])),
            0.05,
            reads=reads,
        )
    )
    made.append(
        at_least(
            "3 control, the whole input at once",
            CFW,
            "exponent for a teacher of d = 4, against that of two dimensions",
            float(found[2]),
            0.5,
            control=True,
            reads=reads[2:],
        )
    )
    quarter = data["sample"] <= data.attrs["curve_points"] / 4
    for name, shift in (("", 0), (", control, another teacher's", 1)):
        off, reads = [], []
        for case in deep:
            other = deep[(deep.index(case) + shift) % len(deep)]
            error = error_of(data, case).sel(sample=quarter)
            expected = error_of(data, other, "predicted").sel(sample=quarter)
            ratio = error.mean("curve_seed", skipna=False) / expected
            off.append(float(abs(ratio - 1).max()))
            reads += [error, expected]
        made.append(
            at_most(
                f"4 predicted without training{name or ', four patches'}",
                "Simon et al. 2023",
                "test error up to a quarter of the points: largest relative distance from the prediction of "
                "metrics.learning_curve" + (", made for another teacher" if shift else ""),
                max(off),
                0.15,
                control=bool(shift),
                reads=reads,
            )
        )
    return made


def _dimension_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for d in data.dimension.values:
        error = data.manifold_error.sel(dimension=d)
        laws = [manifold_slope(data, d, a) for a in data.ambient.values]
        made.append(
            near(
                f"5 exponent of data of dimension {d}",
                KONZ,
                f"exponent of the test error times {d}, mean over inputs of {_list(data.ambient.values)} dimensions: 1",
                float(-np.mean(laws) * d),
                1.0,
                0.15,
                reads=(error,),
            )
        )
        judge = functools.partial(
            near,
            f"5 dimension {d} is measured",
            KONZ,
            "dimension by nearest neighbours, worst of seeds and inputs",
            target=float(d),
            tolerance=round(0.15 * d, 2),
        )
        made.append(over_seeds(judge, data.measured_dimension.sel(dimension=d)))
    slopes = np.array(
        [[manifold_slope(data, d, a) for a in data.ambient.values] for d in data.dimension.values]
    )
    reads = (data.manifold_error,)
    ends = data.ambient.values[[0, -1]]
    made.append(
        at_most(
            "5 inputs of more dimensions",
            KONZ,
            f"exponent for inputs of {ends[0]} dimensions less that of {ends[1]}: largest over the data's dimensions",
            float(abs(slopes[:, 0] - slopes[:, -1]).max()),
            0.05,
            reads=reads,
        )
    )
    made.append(
        at_least(
            "5 control, as the dimension of the inputs says",
            KONZ,
            f"1 / exponent over the number of coordinates, inputs of {ends[0]}: largest over the data's dimensions",
            float((-1 / slopes[:, 0] / ends[0]).max()),
            0.85,
            control=True,
            reads=reads,
        )
    )
    image = data.image_error.isel(get=0)
    law = power_law(data.image_sample, image.values)
    several = () if image.sizes["image_sample"] > 2 else (absent("third number of samples"),)
    made.append(
        near(
            "6 images",
            KONZ,
            "exponent of the predicted test error of a Gaussian teacher on the images, times their dimension by "
            "nearest neighbours",
            float(-law.exponent * data.image_dimension[0]),
            1.0,
            0.3,
            reads=(image, data.image_dimension),
            preconditions=several,
        )
    )
    return made


def manifold_slope(data: xr.Dataset, d: int, a: int) -> float:
    """Slope of the test error in samples, on data of dimension d in inputs of dimension a."""
    line = data.manifold_error.sel(dimension=d, ambient=a).transpose("manifold_seed", ...)
    line = line.sel(manifold_sample=line.manifold_sample >= data.attrs["fit_from"])
    return power_law(line.manifold_sample, line.values).exponent


def _list(values) -> str:
    return " and ".join(str(v) for v in values)
