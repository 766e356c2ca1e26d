"""The theory card of a model: what the library knows of it, measured, on one page.

::

    python -m experiments.card my_module.py:family --data digits
    python -m experiments.card my_module.py:MyNet:hidden --data images.npz --preset smoke
    python -m experiments.card Transformer --data text --config.parts="('axes', 'kernel')"

MODEL is an architecture of `models`, a function of the width in a file, or a linen, NNX or Equinox class in a file,
with the name of its width field. DATA is a task by name (`python -m experiments --list`), an .npz archive, a folder of
images or of .txt files, or a text. Every other option is one of `experiments.run`; the page is report.html in the
folder of the run.
"""

from __future__ import annotations

import pathlib
import sys

from experiments import files, run, settings
from experiments.tasks import task as task_list

USAGE = "usage: python -m experiments.card MODEL [--data DATA] [--preset PRESET] [--config.KEY=VALUE ...]"


def main(arguments: list[str]) -> int:
    """Runs the study `card` for a model; returns the exit status."""
    try:
        return run.main([arguments[0], *options(arguments[1:])])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def options(arguments: list[str]) -> list[str]:
    """The options of `experiments.run` that a card's command line stands for.

    Raises:
        ValueError: no model, or data of no known kind.
    """
    if not arguments or arguments[0].startswith("-"):
        if "--help" in arguments or "-h" in arguments:
            return ["--help"]
        raise ValueError(f"give a model first; {USAGE}")
    chosen, rest = {"data": "digits", "preset": "cpu"}, []
    words = iter(arguments[1:])
    for word in words:
        name, given, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in chosen:
            chosen[name] = value if given else next(words, "")
        else:
            rest.append(word)
    model, preset = arguments[0], chosen["preset"]
    task, folder = find_data(chosen["data"])
    made = [f"--config=card:{preset}", f"--config.model.name={model}", f"--config.task.name={task}"]
    made += [f"--config.task.data_dir={folder}"] if folder else []
    if task == "text":  # kernels of all pairs of positions are measured
        made.append("--config.task.length=16")
    if not any(word.startswith("--workdir") for word in rest):
        named = pathlib.Path(model.partition(".py:")[0]).stem + "-" + model.rpartition(".py:")[2]
        made.append(f"--workdir=runs/card-{named.replace(':', '-')}-{task}-{preset}")
    return [*made, *rest]


def find_data(text: str) -> tuple[str, str]:
    """(name of the task, file or folder or "") of what --data says.

    Raises:
        ValueError: neither a task nor a file or folder of a known kind.
    """
    path = files.expanded(text)
    if text in task_list.NAMES:
        return text, ""
    if path.is_dir():
        return ("text" if any(path.glob("*.txt")) else "image_folder"), str(path.resolve())
    kinds = {".npz": "npz", ".txt": "text"}
    if path.is_file() and path.suffix in kinds:
        return kinds[path.suffix], str(path.resolve())
    raise ValueError(
        f"--data is {text!r}{settings.nearest(text, task_list.NAMES)}; it must be one of {', '.join(task_list.NAMES)}, "
        "an .npz file, a folder of images, a .txt file or a folder of them"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
