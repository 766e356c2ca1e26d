"""What the study of neural collapse claims: criteria fixed before the run, and their controls."""

# One file: the criteria of the five experiments share their measures of frames and their fits.

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import Claim, Precondition, absent, at_least, at_most, listed, over_seeds
from experiments.judges import as_lost
from metrics import frames

DANG, GARROD = "Dang et al. 2023", "Garrod & Keating 2024"
SHEN = "Shen, Sun & Wei 2023 (Equiangular Basis Vectors)"
ROWS = ("row", "column")  # of a Gram matrix
GRAMS = ("weight_gram", "mean_gram", "product")
CLASSIFIERS = ("learnt", "equiangular", "in a plane")


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    made = [*_free_claims(part_of(data, "free")), *_tail_claims(part_of(data, "tail"))]
    made += _map_claims(part_of(data, "map"))
    for name in data.attrs["networks"].split():
        made += _network_claims(name, part_of(data, name), data.attrs["task"])
    if "fixed_test" in data:
        made += _fixed_claims(part_of(data, "fixed"))
    return made


def part_of(data: xr.Dataset, name: str) -> xr.Dataset:
    """One experiment of the study's data (free, tail, map or a network), its names without the prefix."""
    names = {*data.variables, *data.dims}
    own = {key: key.removeprefix(f"{name}_") for key in names if key.startswith(f"{name}_")}
    return data[[key for key in data.data_vars if key in own]].rename(own)


def frame_errors(part: xr.Dataset, **targets: np.ndarray) -> xr.DataArray:
    """NC2 of W and of the class means, and NC3, as distances from the predicted frames (or from other targets)."""
    errors = []
    for key in GRAMS:
        target = part[f"{key}_predicted"] if key not in targets else targets[key]
        dims = [dim for dim in part[key].dims if dim not in ROWS]
        if isinstance(target, xr.DataArray):
            target = target.broadcast_like(part[key]).transpose(*part[key].dims)
        errors.append(xr.DataArray(distance(part[key].values, np.asarray(target)), dims=dims))
    return xr.concat(errors, "measure").assign_coords(
        {"measure": list(GRAMS), **{d: part[d] for d in dims if d in part.coords}}
    )


def distance(gram, target) -> np.ndarray:
    """|| G/|G| - T/|T| ||, Frobenius norms over the last two axes: `metrics.geometry.gram_error` of many."""

    def normalised(matrix):
        return matrix / np.linalg.norm(matrix, axis=(-2, -1), keepdims=True)

    return np.linalg.norm(normalised(gram) - normalised(target), axis=(-2, -1))


def _at_most(name, source, statement, values: xr.DataArray, bound, **rest) -> Claim:
    """The claim about the largest value of each seed."""
    largest = values.max([dim for dim in values.dims if dim != "seed"], skipna=False)
    claim = functools.partial(at_most, name, source, statement, bound=bound)
    return over_seeds(claim, largest, **rest)


def _grams(part: xr.Dataset) -> list[xr.DataArray]:
    return [part[key] for key in GRAMS]


def _fitted(accuracy: xr.DataArray) -> Precondition:
    """That every training example is answered right."""
    found = f"training accuracy {float(accuracy):.4g} at the end"
    return Precondition("fitted", bool(accuracy == 1), found)


def _settled(loss: xr.DataArray, bound: float) -> Precondition:
    """That training has converged: over its last third the loss moves by a tenth of the bound at most.

    A loss that is still on its way there says nothing about where it ends, and a small learning rate can hold it up:
    the rate falls before the last third begins.
    """
    before = loss.isel(step=2 * (loss.sizes["step"] - 1) // 3)
    moved = abs(before / loss.isel(step=-1) - 1).max(skipna=False)
    found = f"the loss still moves by {float(moved):.2g} of itself over the last third of training"
    return Precondition("converged", bool(moved <= 0.1 * bound), found)


def modes(sizes, total: float, depth: int, decay: tuple[float, float], **options) -> np.ndarray:
    """Predicted strength x of classes of these sizes among ``total`` samples (see `metrics.frames.mode`)."""
    kappa = (total * decay[1] * decay[0] ** depth) ** (1 / depth)
    return frames.mode(depth * total * kappa / np.asarray(sizes, float), depth, **options)


def fitted(x: np.ndarray, depth: int) -> np.ndarray:
    """z = x^M / (1 + x^M): the outputs of a mode of strength x."""
    return x**depth / (1 + x**depth)


def _free_claims(part: xr.Dataset) -> list[Claim]:
    free = part.isel(step=-1)
    errors, made, bound = frame_errors(free), [], 1e-4
    for name in free.problem.values:
        run, undecayed = free.sel(problem=name), name == "no_decay"
        # Without decay the loss falls for ever: nothing is to converge.
        needs = () if undecayed else (_settled(part.loss.sel(problem=name), bound),)
        made.append(
            _at_most(
                f"C1 frame, {name}",
                f"{DANG}, squared error",
                "largest distance of W W^T, H^T H and W H from the closed form, over depths",
                errors.sel(problem=name),
                bound,
                control=undecayed,
                reads=_grams(run),
                preconditions=needs,
            )
        )
        made.append(
            _at_most(
                f"C1 NC1, {name}",
                f"{DANG}, squared error",
                "largest variability within classes, tr(Sigma_W Sigma_B^+)/K, over depths",
                run.nc1,
                1e-8,
                control=undecayed,
                preconditions=needs,
            )
        )
    decayed = [name for name in free.problem.values if name != "no_decay"]
    held, needs = free.sel(problem=decayed), (_settled(part.loss.sel(problem=decayed), bound),)
    made.append(
        _at_most(
            "C1 duality",
            f"{DANG}, squared error",
            "largest angle between a row of W and its class mean, in radians",
            held.angle,
            1e-4,
            preconditions=needs,
        )
    )
    made.append(
        _at_most(
            "C1 loss",
            f"{DANG}, squared error",
            "largest relative distance of the loss from the closed form",
            abs(held.loss / held.loss_predicted - 1),
            bound,
            reads=(held.loss,),
            preconditions=needs,
        )
    )
    classes = free.sizes["row"]
    for frame, target in (("simplex", frames.simplex(classes)), ("equal lengths", np.eye(classes))):
        wrong = frame_errors(free, weight_gram=target).sel(measure="weight_gram")
        made.append(
            _at_most(
                f"C1 control, imbalanced as {frame}",
                f"{DANG}, imbalanced",
                f"the distance of W W^T from a frame of {frame}, imbalanced classes",
                wrong.sel(problem="imbalanced"),
                bound,
                control=True,
                reads=(free.weight_gram.sel(problem="imbalanced"),),
            )
        )
    return made


def crossing(tail: xr.Dataset, depth: int) -> tuple[float, float]:
    """(class size, z) where a trained mode costs as much as none, interpolated between the classes; nan if nowhere."""
    own = tail.sel(depth=depth).mean("seed", skipna=False).sortby("size")
    alive = own.isel({"class": np.flatnonzero(own.z.values > 0.05)})
    excess = alive.mode_loss.values - 1
    if not (excess.size and excess[0] > 0 > excess[-1]):
        return np.nan, np.nan
    i = int(np.flatnonzero(excess > 0)[-1])
    share = excess[i] / (excess[i] - excess[i + 1])
    return tuple(
        float(v[i] + share * (v[i + 1] - v[i])) for v in (alive["size"].values, alive.z.values)
    )


def _tail_claims(tail: xr.Dataset) -> list[Claim]:
    source = f"{DANG}, imbalanced"
    deep = tail.isel(depth=np.flatnonzero(tail.depth > 1))
    made = [
        _at_most(
            "C2 lengths follow class sizes",
            source,
            "largest distance of z, the fitted output of a class, from the closed form's",
            abs(tail.z - tail_theory(tail)),
            1e-3,
            reads=(tail.z, tail.decay),
        ),
        *_threshold_claims(deep, source),
    ]
    first = tail.reindex(depth=[1]).isel(depth=0).sortby("size")
    sizes, threshold = first["size"].values, float(tail.threshold)
    jump = [np.interp(threshold, sizes, z) for z in first.z.transpose("seed", "class").values]
    first_layer = functools.partial(
        at_least,
        "C2 control, jump of one layer",
        source,
        "z at the threshold for M = 1, where collapse is continuous",
        bound=0.25,
        control=True,
        preconditions=() if 1 in tail.depth else (absent("depth 1"),),
    )
    return [*made, over_seeds(first_layer, xr.DataArray(jump, dims="seed"), reads=(first.z,))]


def _threshold_claims(deep: xr.Dataset, source: str) -> list[Claim]:
    found = {int(depth): crossing(deep, depth) for depth in deep.depth.values}
    off = [abs(size / float(deep.threshold) - 1) for size, _ in found.values()]
    heights = [abs(z - frames.thresholds(depth).jump) for depth, (_, z) in found.items()]
    needs = () if found else (absent("two layers or more"),)
    wrong = (
        abs(deep.z - tail_theory(deep, layers=1)) if found else xr.DataArray([np.nan], dims="seed")
    )
    return [
        at_most(
            "C2 threshold",
            source,
            "class size at which a mode costs as much as none, largest relative distance from the prediction, M >= 2",
            np.max(off or [np.nan]),
            0.02,
            reads=(deep.z, deep.mode_loss),
            preconditions=needs,
        ),
        at_most(
            "C2 first order",
            source,
            "largest distance of z there from (M - 1)/M, from which it falls to 0, M >= 2",
            np.max(heights or [np.nan]),
            0.02,
            reads=(deep.z, deep.mode_loss),
            preconditions=needs,
        ),
        _at_most(
            "C2 control, deep as shallow",
            source,
            "the distance of z from one layer's formula at the same decay, M >= 2",
            wrong,
            1e-3,
            control=True,
            reads=(deep.z, deep.decay),
            preconditions=needs,
        ),
    ]


def tail_theory(tail: xr.Dataset, layers: int | None = None) -> xr.DataArray:
    """z of the metastable branch, where training from a fit ends, by the formula of M (or of other) layers."""
    sizes, total, rows = tail["size"].values, float(tail["size"].sum()), []
    for depth, decay in zip(tail.depth.values, tail.decay.values):
        m = int(depth) if layers is None else layers
        if np.isnan(decay):
            rows.append(np.full(sizes.size, np.nan))
            continue
        rows.append(fitted(modes(sizes, total, m, (decay, decay), branch="upper"), m))
    return xr.DataArray(np.array(rows), dims=("depth", "class"), coords={"depth": tail.depth})


def _map_claims(cells: xr.Dataset) -> list[Claim]:
    """The best run of a cell, from either start, stands for the optimum; none may have diverged."""
    runs = cells.stack(run=("start", "seed"))
    best = runs.isel(run=runs.loss.fillna(np.inf).argmin("run"))
    shallow = (cells.depth == 1) | (cells.classes == 3)
    beaten = cells.known < 0.999 * cells.simplex
    named = xr.zeros_like(beaten)
    for classes, depth in ((4, 3), (6, 2), (10, 2), (10, 3)):
        named = named | ((cells.classes == classes) & (cells.depth == depth))
    stays = abs(cells.loss.sel(start="simplex") / cells.simplex - 1) < 1e-3
    share = float(stays.where(beaten).mean())
    what = {"shallow": "one layer or three classes", "beaten": "lower rank has less"}

    def largest(name, source, statement, values, bound, cells_of, **rest):
        some = bool(cells_of.any())
        needs = () if some else (absent("cell of this kind"),)
        number = float(values.where(cells_of, -np.inf).max(skipna=False)) if some else np.nan
        reads = cells.loss, cells.simplex_error
        return at_most(
            name, source, statement, number, bound, reads=reads, preconditions=needs, **rest
        )

    return [
        largest(
            "C3 simplex loss",
            f"{DANG}, cross-entropy",
            f"{what['shallow']}: largest relative distance of the best loss from the simplex's",
            abs(best.loss / cells.simplex - 1),
            1e-4,
            shallow,
        ),
        largest(
            "C3 simplex frame",
            f"{DANG}, cross-entropy",
            f"{what['shallow']}: largest distance of the logits from the simplex",
            best.simplex_error,
            1e-2,
            shallow,
        ),
        largest(
            "C3 lower rank wins",
            f"{GARROD}, deep linear",
            "largest ratio of the best loss to the simplex's where a known frame of lower rank has less",
            best.loss / cells.simplex,
            0.99,
            beaten,
        ),
        largest(
            "C3 frames of lower rank",
            f"{GARROD}, deep linear",
            "excess of the best loss over the orthoplex's (K = 4, M = 3; K = 6, 10, M = 2) or pairs' (K = 10, M = 3)",
            best.loss / cells.known - 1,
            1e-3,
            named,
        ),
        at_least(
            "C3 simplex stays a minimum",
            f"{GARROD}, loss surface",
            f"share of the runs from beside the simplex that end at its loss where {what['beaten']}",
            share,
            0.5,
            reads=(cells.loss,),
            preconditions=() if beaten.any() else (absent("cell of this kind"),),
        ),
        largest(
            "C3 control, simplex at every depth",
            f"{DANG}, cross-entropy",
            "the relative distance of the best loss from the simplex's over all cells",
            abs(best.loss / cells.simplex - 1),
            1e-4,
            xr.ones_like(beaten),
            control=True,
        ),
    ]


def _network_claims(name: str, net: xr.Dataset, task: str) -> list[Claim]:
    last, source, bound = net.isel(step=-1), f"{DANG}, experiments", 1e-4
    fitted = _fitted(last.accuracy)
    needs = {"preconditions": (fitted, _settled(net.loss, bound))}
    undecayed = last.drop_vars(GRAMS).rename({f"undecayed_{key}": key for key in GRAMS})
    made = [
        _at_most(
            f"C4 frame, {name}",
            source,
            f"largest distance of W W^T, H^T H and W H on {task} from the free-feature optimum",
            frame_errors(last),
            1e-3,
            reads=_grams(last),
            **needs,
        ),
        _at_most(
            f"C4 loss, {name}",
            source,
            "relative distance of the loss from that optimum's",
            abs(last.loss / last.loss_predicted - 1),
            bound,
            reads=(net.loss,),
            **needs,
        ),
        _at_most(
            f"C4 NC1, {name}",
            source,
            "variability of the features within classes, tr(Sigma_W Sigma_B^+)/K",
            last.nc1.sel(layer="features"),
            1e-3,
            **needs,
        ),
        _at_most(
            f"C4 control, {name} without decay",
            source,
            "the same distance of the frames of the network trained without weight decay",
            frame_errors(undecayed),
            1e-3,
            control=True,
            reads=_grams(undecayed),
            preconditions=(_fitted(last.undecayed_accuracy),),
        ),
    ]
    if bool(net.squared):
        simplex = frames.simplex(net.sizes["row"])
        wrong = frame_errors(last, weight_gram=simplex).sel(measure="weight_gram")
        statement = "the distance of W W^T from the simplex, imbalanced classes"
        made.append(
            _at_most(
                f"C4 control, {name} as simplex",
                source,
                statement,
                wrong,
                1e-3,
                control=True,
                reads=(last.weight_gram,),
                preconditions=(fitted,),
            )
        )
    return made


def _fixed_claims(part: xr.Dataset) -> list[Claim]:
    """Fixed class vectors against the learnt readout, seed by seed."""
    made = []
    for name, title in (
        ("equiangular", "equiangular vectors as good as a readout"),
        ("in a plane", "control, vectors at random angles in a plane"),
    ):
        claim = functools.partial(
            at_least,
            f"C5 {title}",
            SHEN,
            "test accuracy with fixed class vectors less that with a learnt readout, mean over seeds",
            bound=-0.01,
            control=name == "in a plane",
        )
        gain = part.test.sel(classifier=name) - part.test.sel(classifier="learnt")
        made.append(over_seeds(claim, gain, "mean", reads=(part.test, part.train)))
    return made
