"""The table of public architectures in the documentation: ``python tests/models/architecture_table.py`` renews it.

Each row is measured: roles by `roles.measured`, kernels by `ntk.infinite_width`. The tests beside it hold every row to
what they measure again.
"""

import importlib.util
import pathlib
import re
import sys

import ntk

FOLDER = pathlib.Path(__file__).parent
PAGE = FOLDER.parent.parent / "docs" / "architectures.md"
COLUMNS = ("architecture", "roles", "one wrong role", "kernel")
RULE = "by rule"
HEAD = """# Public architectures

Models as people bring them, written small in plain Flax (`tests/models/architectures_*.py`), and what the library says
of each. The page is made by `python tests/models/architecture_table.py`, and the tests measure its rows again.

**roles**: `limits.parametrize` with the roles that `ntk.width_axes` reads (or with `roles=`, where it says so), under
the NTK parametrization at widths 32 and 128: of all parameters, the exponent of the width furthest from 0 in what a
step on it alone does to the outputs, with its standard error over 64 initialisations. Right is within 1/2, the border
to the next power, by three standard errors; otherwise it is undecided. Parameters that start at zero are drawn.

**one wrong role**: the same with the last readout taken for a first layer, which must be found out.

**kernel**: by rule from the model's own program, or the reason why not. What is not marked "alter the model" has its
kernel by means over finite networks, `otherwise="sample"`, with a standard error.

"""


def helper(name):
    """A module of this folder, which is not a package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


architectures, roles = helper("architectures"), helper("roles")
ROLES = {"tied GPT": {"Embed_0/embedding": "tied"}}
"""What shapes cannot tell, by architecture."""


def reason(refusal):
    """The beginning of a refusal, and whether the model has to be altered."""
    text = str(refusal)
    first = re.split(r"[:.] ", text.removeprefix("no infinite-width kernel: "))[0]
    return first + ("" if 'otherwise="sample"' in text else "; alter the model")


def kernel(name):
    """The kernel's column: "by rule", or the beginning of the refusal."""
    family, x = architectures.ARCHITECTURES[name].family, architectures.inputs(name)
    try:
        ntk.infinite_width(family, x)
    except ValueError as refusal:
        return reason(refusal)
    return RULE


def checked(name):
    """(exponents with right roles, exponents with one wrong role) of an architecture."""
    family, x = architectures.ARCHITECTURES[name].family, architectures.inputs(name)
    return roles.measured(family, x, ROLES.get(name))


def words(name, right, wrong):
    """Both columns of roles."""
    cells = [
        f"{found.verdict}, {found.value[found.worst]:+.2f} ({found.error[found.worst]:.2f}) `{found.worst}`"
        for found in (right, wrong)
    ]
    given = "".join(f"; `roles={{{k!r}: {v!r}}}`" for k, v in ROLES.get(name, {}).items())
    return cells[0] + given, cells[1]


def rows():
    """{architecture: {column: text}} as the page has them."""
    found = {}
    for line in PAGE.read_text().splitlines() if PAGE.exists() else ():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == len(COLUMNS) and cells[0] != COLUMNS[0]:
            found[cells[0]] = dict(zip(COLUMNS, cells))
    return found


def row(name):
    """A row of the page, measured."""
    return f"| {name} | {' | '.join((*words(name, *checked(name)), kernel(name)))} |"


def main(names):
    """Writes the page, row by row; rows of other names than those given stay as they are."""
    lines = {name: f"| {' | '.join(kept.values())} |" for name, kept in rows().items()}
    head = [f"| {' | '.join(COLUMNS)} |", "| " + " | ".join(["---"] * len(COLUMNS)) + " |"]
    for name in names or architectures.ARCHITECTURES:
        lines[name] = row(name)
        print(lines[name], flush=True)
        body = [lines[n] for n in architectures.ARCHITECTURES if n in lines]
        PAGE.write_text(HEAD + "\n".join(head + body) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
