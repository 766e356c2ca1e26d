"""The documentation: pages in Markdown, the reference from docstrings, the notebooks as they stand in notebooks/."""

import pathlib
import re
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import experiments  # noqa: E402

project = "widelimit"
author = "widelimit developers"
version = release = experiments.__version__
html_title = "widelimit"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
html_theme = "sphinx_book_theme"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True}
exclude_patterns = ["_build", ".jupyter_cache", "jupyter_execute", "**.ipynb_checkpoints"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
# `make docs` executes the notebooks; a page that was executed before is taken from the cache.
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"

# Sphinx reads what lies below this folder only.
TUTORIALS = ROOT / "docs" / "tutorials"
TUTORIALS.mkdir(exist_ok=True)
for notebook in (ROOT / "notebooks").glob("*.ipynb"):
    shutil.copy2(notebook, TUTORIALS / notebook.name)


def gallery():
    """A page of the first figure of every study, each with a link to what explains it."""
    lines = ["# Gallery", "The first figure of every study, as its last published run drew it."]
    for page in sorted((ROOT / "docs" / "studies").glob("*.md")):
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        if (ROOT / "figures" / f"{page.stem}.png").exists():
            lines.append(f"## [{title}](studies/{page.stem}.md)")
            lines.append(f"![{title}](../figures/{page.stem}.png)")
    return "\n\n".join(lines) + "\n"


(ROOT / "docs" / "gallery.md").write_text(gallery(), encoding="utf-8")


def escaped(lines):
    """Docstrings with their bars and stars as text, such as |y - f(x)| and **kwargs, but for code and examples."""
    out, literal, example = [], None, False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if example:
            out.append(line)
            continue
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is None:
            parts = re.split(r"(``.*?``|`[^`]*`)", line)
            plain = [
                re.sub(r"(?<!\\)([|*])", r"\\\1", p) if i % 2 == 0 else p
                for i, p in enumerate(parts)
            ]
            if line.rstrip().endswith("::"):
                literal = indent
            line = "".join(plain)
        out.append(line)
    return out


def setup(app):
    """Puts `escaped` before the parts that read sections."""
    app.connect(
        "autodoc-process-docstring",
        lambda app, what, name, obj, options, lines: lines.__setitem__(slice(None), escaped(lines)),
        priority=100,
    )
