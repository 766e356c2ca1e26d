"""The command line refuses in one line whatever is wrong, before a folder is made; what it accepts it says so."""

import pathlib
import random

import hypothesis
import hypothesis.strategies as st
import pytest

from experiments import checks, contract, listing, run, settings

STUDIES = settings.studies()
SWEEP = "learning_rate_transfer:smoke"
WRONG = {
    bool: ("0.5", "x", "", "None", "2"),
    int: ("-1", "2.5", "True", "x", "", "nan", "1e3", "(1,)", "99999999999999999999"),
    float: ("nan", "inf", "-inf", "1e400", "True", "x", "", "(1.0,)", "1+2j"),
    tuple: (
        "()",
        "1",
        "x",
        "",
        "{}",
        "((),)",
        "(None,)",
        "(1, 2",
        "[[]]",
        "(1j,)",
        "(nan,)",
        "(" * 300,
    ),
}
"""Values that no key of a type accepts."""


def outcome(capsys, *arguments):
    """(status, standard output, standard error) of a command line, in this process."""
    status = run.main(["experiments", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def is_refusal(capsys, *arguments):
    """Checks that a command line is refused in one line, which it returns."""
    status, out, err = outcome(capsys, *arguments)
    assert (status, out) == (2, ""), (arguments, out, err)
    assert err.startswith("error: "), (arguments, err)
    assert err.count("\n") == 1, (arguments, err)
    assert 20 < len(err) < 1000, (arguments, err)
    return err


def keys(study):
    """[(key, value)] of a study's smoke preset that can be set."""
    config, _ = settings.load(f"{study}:smoke")
    return sorted(checks.flatten(config).items())


# Keys that may be empty, or whose values are free.
FREE = {
    ("learning_rate_transfer", "coordinates.widths", "()"),
    ("grokking_corrupted", "transformer.decays", "()"),
}


@pytest.mark.parametrize("study", STUDIES)
def test_every_key_refuses_what_is_not_of_its_type(study, capsys, tmp_path):
    """Three wrong values for each key, drawn by the key's name: some 900 command lines."""
    for key, value in keys(study):
        wrong = WRONG.get(type(value), ())
        for text in random.Random(key).sample(wrong, min(3, len(wrong))):
            if (study, key, text) in FREE or (key.endswith("drops") and text == "()"):
                continue
            arguments = (f"--config={study}:smoke", f"--config.{key}={text}")
            message = is_refusal(capsys, *arguments, "--check", f"--workdir={tmp_path / 'run'}")
            assert key.split(".")[0] in message, message
    assert not list(tmp_path.iterdir())


# Values of their key's type with which a claim or its control could mean nothing.
IDLE = {
    "grokking_corrupted": {
        "runs.control_noise": ("0.0", "0.2", "0.1"),
        "runs.noise": ("0.0", "1.0", "1e-12"),
        "runs.groups": ("1",),
        "runs.regularisers": ("(('decay', 0.0), ('batch_norm', 0.5))",),
        "phases.noises": ("(0.0,)", "(0.1, 1.0)"),
        "transformer.noise": ("0.0", "1.0"),
        "task.noise": ("0.5",),
        "task.seed": ("3",),
    },
    "wide_deep_optimality": {
        "digits.noise": ("(0.0,)", "(0.4, 1.0)"),
        "classes.num_relu": ("2",),
        "depth.num_train": ("2",),
        "noise.num_test": ("2",),
        "task.num_train": ("1", "22"),
        "task.num_test": ("3",),
    },
    "neural_collapse": {
        "mlp_1.drops": ("(0.85, 0.6)", "(0.0,)", "(1.0,)", "(0.6, 0.601)"),
        "mlp_3.drops": ("(0.85, 0.6)",),  # not asked for
        "mlp_3.chunk": ("7",),
        "mlp_3.model.name": ("MLQ",),
        "free.imbalanced": ("(20, 20, 20, 20)",),
        "free.init_std": ("0.0",),
        "free.decay": ("5.0",),
        "mlp_1.weight_decay": ("1000.0",),
        "map.simplex_std": ("0.0",),
        "map.decay": ("0.5",),
    },
    "learning_rate_transfer": {"sweep.widths": ("(64,)",)},
    "ntk_convergence": {"component.end": ("0.002", "2000.0")},
    "grokking_lazy_rich": {
        "digits.weight_decay": ("0.0",),
        "digits.task.num_test": ("1",),
        "records": ("2",),
        "task.seed": ("3",),
    },
}


@pytest.mark.parametrize("study", IDLE)
def test_what_no_claim_could_mean_anything_with_is_refused(study, capsys, tmp_path):
    for key, texts in IDLE[study].items():
        for text in texts:
            arguments = (f"--config={study}:smoke", f"--config.{key}={text}")
            message = is_refusal(capsys, *arguments, "--check", f"--workdir={tmp_path / 'run'}")
            assert key.split(".")[0] in message, (key, text, message)


# With the closed forms of all their depths, or with the spectra of all their training sets.
SLOW = {("neural_collapse", "cpu"), ("grokking_lazy_rich", "cpu")}


@pytest.mark.parametrize(
    ("study", "preset"),
    [
        pytest.param(study, preset, marks=[pytest.mark.slow] * ((study, preset) in SLOW))
        for study in STUDIES
        for preset in ("smoke", "cpu")
    ],
)
def test_the_presets_are_accepted_and_nothing_is_made(study, preset, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = outcome(capsys, f"--config={study}:{preset}", "--check")
    assert (status, err) == (0, ""), err
    assert "nothing is wrong" in out
    assert not list(tmp_path.iterdir())


PLANNED = [name for name in STUDIES if hasattr(settings.find_study(name), "work")]


@pytest.mark.parametrize("study", PLANNED)
def test_what_steps_cost_is_told_of_every_step(study):
    module, (config, _) = settings.find_study(study), settings.load(f"{study}:smoke")
    work = contract.work(module, config)
    assert sum(steps for steps, _ in work.values()) == contract.total_steps(module, config)
    assert all(cost > 0 for _, cost in work.values())
    for name in work:
        assert not any(other != name and other.startswith(f"{name}-") for other in work), name


TASKS = ("task.", "digits.task.", "mixture.")  # whose keys the task itself checks


@pytest.mark.parametrize("study", STUDIES)
def test_every_key_of_every_preset_has_a_rule(study):
    """A key that a study adds gets its own rule, not only that of its type."""
    module, config = settings.find_study(study), settings.load(f"{study}:smoke")[0]
    found = {key for key in checks.flatten(config) if not key.startswith(TASKS)}
    general = ("model.", "sweep.log2_rates.", "trajectory.learning_rates.", "coordinates.widths")
    networks = ("mlp_", "cnn_", "networks")
    closed = tuple(f"{part}.steps" for part in getattr(module, "CLOSED", ()))
    left = {
        key
        for key in found - set(module.RULES) - {"study", *closed}
        if not key.startswith((*general, *networks))
    }
    assert left <= {"words.data_dir", "words.analogies", "network.centered"}, left


# What they accept the others take seconds to accept, by compiling their networks' shapes.
HEAVY = ("card", "learning_rate_transfer", "neural_collapse")
LIGHT = [name for name in STUDIES if name not in HEAVY]
TYPES = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(max_size=20),
    st.lists(st.one_of(st.integers(-3, 2**40), st.floats(), st.text(max_size=3)), max_size=4).map(
        lambda values: str(tuple(values))
    ),
    st.sampled_from(
        ["", "None", "True", "()", "((1,),)", "{}", "1e999", "mup", "digits", "\0", "-"]
    ),
)


@hypothesis.settings(
    max_examples=120,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data())
def test_any_value_of_any_key_is_accepted_or_refused_in_a_line(data, capsys):
    study = data.draw(st.sampled_from(LIGHT))
    key, _ = data.draw(st.sampled_from(keys(study)))
    text = data.draw(TYPES)
    arguments = (f"--config={study}:smoke", f"--config.{key}={text}", "--check")
    status, out, err = outcome(capsys, *arguments)
    assert status in (0, 2)
    assert err.startswith("error: ") if status else "nothing is wrong" in out
    assert "Traceback" not in err


# --- what the words of a command line may be

LINES = {
    "nothing": ((), "give --config=STUDY:PRESET; studies: "),
    "an empty configuration": (("--config=",), "must not be empty"),
    "no value": (("--config",), "--config needs a value"),
    "no value, then an option": (("--config", "--check"), "--config needs a value"),
    "a misspelt study": (("--config=learning_rate_transfr",), "did you mean 'learning_rate_transfer'"),
    "a misspelt file": (("--config=learning_rate_transfr.py:smoke",), "did you mean"),
    "a misspelt preset": (("--config=learning_rate_transfer:smok",), "unknown preset 'smok'; there are: smoke"),
    "a folder": (("--config=.",), "there is no configuration '.'"),
    "a misspelt option": (("--confg=x",), "unknown option --confg (did you mean '--config'|unknown option --confg"),
    "a word": (("run",), "unexpected argument 'run'"),
    "a dash": (("-",), "unexpected argument '-'"),
    "a value for a switch": (("--check=1",), "--check takes no value"),
    "devices 0": ((f"--config={SWEEP}", "--devices=0"), "devices is 0"),
    "devices -1": ((f"--config={SWEEP}", "--devices=-1"), "devices is -1"),
    "devices 99": ((f"--config={SWEEP}", "--devices=99"), "devices is 99"),
    "devices 1.5": ((f"--config={SWEEP}", "--devices=1.5"), "--devices is '1.5'; it must be a whole number"),
    "devices two": ((f"--config={SWEEP}", "--devices=two"), "--devices is 'two'"),
    "checkpoints nan": ((f"--config={SWEEP}", "--checkpoint_seconds=nan"), "checkpoint_seconds is nan"),
    "checkpoints inf": ((f"--config={SWEEP}", "--checkpoint_seconds=inf"), "checkpoint_seconds is inf"),
    "checkpoints -1": ((f"--config={SWEEP}", "--checkpoint_seconds=-1"), "checkpoint_seconds is -1"),
    "checkpoints soon": ((f"--config={SWEEP}", "--checkpoint_seconds=soon"), "must be a number"),
    "an empty folder": ((f"--config={SWEEP}", "--workdir="), "--workdir is ''"),
    "a zero in the folder": ((f"--config={SWEEP}", "--workdir=a\0b"), "--workdir is"),
    "an unknown key": ((f"--config={SWEEP}", "--config.tsak.name=x"), "no key 'tsak' (did you mean 'task'?)"),
    "an unknown key within": ((f"--config={SWEEP}", "--config.sweep.stesp=3"), "did you mean 'steps'"),
    "a key elsewhere": ((f"--config={SWEEP}", "--config.lanczos_steps=3"), "did you mean 'lanczos_steps'|no key"),
    "a key of a number": ((f"--config={SWEEP}", "--config.sweep.steps.x=3"), "it has no keys"),
    "a group": ((f"--config={SWEEP}", "--config.sweep=3"), "config.sweep is a group of keys"),
    "no key": ((f"--config={SWEEP}", "--config.=3"), "config has no key ''"),
    "another study": ((f"--config={SWEEP}", "--config.study=ntk_convergence"), "lacks config."),
    "no study": ((f"--config={SWEEP}", "--config.study=x"), "unknown study 'x'"),
    "an unknown study's file": ((f"--config={SWEEP}", "--config.study=none.py"), "there is no study"),
    "an unknown task": ((f"--config={SWEEP}", "--config.task.name=digit"), "did you mean 'digits'"),
    "a task without files": ((f"--config={SWEEP}", "--config.task.name=mnist"), "task 'mnist'"),
    "regression": ((f"--config={SWEEP}", "--config.task.name=teacher"), "this study needs one with classes"),
    "tokens for an MLP": ((f"--config={SWEEP}", "--config.task.name=text"), "config."),
    "an unknown model": ((f"--config={SWEEP}", "--config.model.name=MLPP"), "unknown model 'MLPP'"),
    "images for a model of vectors": ((f"--config={SWEEP}", "--config.model.name=CNN"), "config."),
    "a misspelt rule": ((f"--config={SWEEP}", "--config.parametrizations=('mupp',)"), "'mupp'; it must be one of"),
    "a misspelt optimizer": ((f"--config={SWEEP}", "--config.sweep.optimizers=('adm',)"), "did you mean 'adam'"),
    "no optimizer": ((f"--config={SWEEP}", "--config.sweep.optimizers=()"), "a tuple of 1 or more"),
    "a misspelt loss": ((f"--config={SWEEP}", "--config.sweep.loss=squared"), "did you mean 'squared_error'"),
    "a misspelt schedule": ((f"--config={SWEEP}", "--config.sweep.schedule=linaer"), "did you mean 'linear'"),
    "no rates": ((f"--config={SWEEP}", "--config.sweep.log2_rates.sgd=(-3.0, 3.0, 0)"), "log2_rates.sgd[2] is 0"),
    "2.5 rates": ((f"--config={SWEEP}", "--config.sweep.log2_rates.sgd=(-3.0, 3.0, 2.5)"), "log2_rates.sgd[2] is 2.5"),
    "two numbers for rates": ((f"--config={SWEEP}", "--config.sweep.log2_rates.sgd=(-3.0, 3.0)"), "tuple of 3 values"),
    "rates downwards": ((f"--config={SWEEP}", "--config.sweep.log2_rates.sgd=(3.0, -3.0, 5)"), "a lower and a higher"),
    "other counts": ((f"--config={SWEEP}", "--config.sweep.log2_rates.sgd=(-3.0, 3.0, 4)"), "as many rates for each"),
    "seed -1": ((f"--config={SWEEP}", "--config.sweep.seeds=(-1,)"), "config.sweep.seeds[0] is -1"),
    "a large seed": ((f"--config={SWEEP}", "--config.sweep.seeds=(99999999999,)"), "seeds[0] is 99999999999"),
    "half a seed": ((f"--config={SWEEP}", "--config.sweep.seeds=(0.5,)"), "seeds[0] is 0.5"),
    "a seed twice": ((f"--config={SWEEP}", "--config.sweep.seeds=(1, 1)"), "without repetitions"),
    "no steps": ((f"--config={SWEEP}", "--config.sweep.steps=0"), "config.sweep.steps is 0"),
    "no chunk": ((f"--config={SWEEP}", "--config.sweep.chunk=0"), "config.sweep.chunk is 0"),
    "chunks that do not divide": ((f"--config={SWEEP}", "--config.sweep.chunk=7"), "a multiple of chunk"),
    "no batch": ((f"--config={SWEEP}", "--config.sweep.batch_size=0"), "config.sweep.batch_size is 0"),
    "no test": ((f"--config={SWEEP}", "--config.sweep.num_test=-5"), "config.sweep.num_test is -5"),
    "no widths": ((f"--config={SWEEP}", "--config.sweep.widths=()"), "config.sweep.widths is ()"),
    "widths downwards": ((f"--config={SWEEP}", "--config.sweep.widths=(64, 16)"), "in ascending order"),
    "a width beyond memory": ((f"--config={SWEEP}", "--config.sweep.widths=(64, 999999)"), "GiB"),
    "rate nan": ((f"--config={SWEEP}", "--config.trajectory.learning_rates.mup=nan"), "learning_rates.mup is nan"),
    "rate -1": ((f"--config={SWEEP}", "--config.trajectory.learning_rates.mup=-1"), "above 0"),
    "no Lanczos": ((f"--config={SWEEP}", "--config.trajectory.lanczos_steps=0"), "lanczos_steps is 0"),
    "more examples": ((f"--config={SWEEP}", "--config.trajectory.num_train=9999"), "between 1 and 256"),
    "without a control": ((f"--config={SWEEP}", "--config.trajectory.parametrizations=('mup',)"), "includes 'mup'"),
    "an empty preset": (("--config=learning_rate_transfer:",), "'learning_rate_transfer:', without a preset"),
    "nobody's home": (("--config=~nobody_of_that_name/x.py",), "not known here; write the whole path"),
    "a folder of nobody": ((f"--config={SWEEP}", "--workdir=~nobody_of_that_name/x"), "write the whole path"),
    "a model of nobody": ((f"--config={SWEEP}", "--config.model.name=~nobody_of_that_name/x.py:M"), "the whole path"),
    "a zero in a value": ((f"--config={SWEEP}", "--config.study=a\0.py"), "text has no zero bytes"),
    "a task as a value": ((f"--config={SWEEP}", "--config.task=digits"), "config.task is a group of keys"),
    "a folder of no letters": ((f"--config={SWEEP}", "--workdir=a\udcff"), "is no text in UTF-8"),
    "a file of no letters": ((f"--config={SWEEP}", "--config.task.data_dir", "\udcff"), "is no text in UTF-8"),
    "no cluster": ((f"--config={SWEEP}", "--cluster=nonsense", "--check"), "--cluster is 'nonsense'"),
    "no folder for TensorBoard": ((f"--config={SWEEP}", "--tensorboard=/dev/null/x", "--check"), "tensorboard"),
    "listing with a change": (("--list", f"--config={SWEEP}", "--config.x=1"), "leave --config.x out"),
    "a name of thousands": ((f"--config=learning_rate_transfer:{'x' * 5000}",), "xxx ... "),
    "listing nothing": (("--list", "--config=nothing"), "there is no configuration 'nothing'"),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_a_wrong_word_is_one_line(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = LINES[case]
    said = is_refusal(capsys, *arguments)
    assert any(part in said for part in message.split("|")), said
    assert not list(tmp_path.iterdir())


# --- configuration files and folders

NTK = """def get_config(preset):
    from experiments.configs import ntk_convergence
    c = ntk_convergence.get_config("smoke")
    """
FILES = {
    "not Python": ("def get_config(:", "line 1 is not Python"),
    "binary": ("\0\0\0", "is not Python|raised"),
    "raises": ("\n\n1 / 0", ", line 3: raised ZeroDivisionError: division by zero"),
    "ends": ("import sys\nsys.exit(3)", "raised SystemExit: 3"),
    "imports what is not there": ("import nothing_of_that_name", "raised ModuleNotFoundError"),
    "nothing within": ("x = 1", "has no function get_config(preset)"),
    "no function": ("get_config = 3", "has no function get_config(preset)"),
    "returns nothing": ("def get_config(preset=''): pass", "returned a NoneType"),
    "returns a list": ("def get_config(preset=''): return [1]", "returned a list"),
    "no study": ("def get_config(preset=''): return {'a': 1}", "no key 'study'"),
    "study is a number": ("def get_config(preset=''): return {'study': 1}", "no key 'study'"),
    "takes no preset": ("def get_config(): return {'study': 'x'}", "raised TypeError"),
    "raises in get_config": ("def get_config(preset=''):\n    return {}['task']", ", line 2: get_config"),
    "a function within": ("def get_config(p=''): return {'study': 'x', 'f': print}", "numbers, text and tuples"),
    "a misspelt key": (f"{NTK}c.start.widhts = (16, 64)\n    return c", "config.start.widhts is read by nothing (did"),
    "a key of its own": (f"{NTK}c.extra = 3\n    return c", "config.extra is read by nothing"),
    "a task's misspelt key": (f"{NTK}c.task.nosie = 0.1\n    return c", "did you mean 'noise'?"),
    "lacks what the study has": ("def get_config(p=''): return {'study': 'ntk_convergence'}", "lacks config.model"),
    "within itself": ("def get_config(p=''):\n    d = {'study': 'x'}\n    d['d'] = d\n    return d", "numbers, text"),
    "names of numbers": ("def get_config(p=''): return {'study': 'x', 1: 2}", "under names of text"),
    "no task": ("def get_config(p=''): return {'study': 'ntk_convergence', 'task': {}}", "without the name of a task"),
    "a task of nothing": ("def get_config(p=''): return {'study': 'card', 'task': None}", "config.task is None"),
    "its own words": ("def get_config(p=''): raise ValueError('there is no preset ' + p)", "no preset p"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_configuration_file_is_one_line(case, capsys, tmp_path):
    content, message = FILES[case]
    path = tmp_path / "mine.py"
    path.write_text(content)
    said = is_refusal(capsys, f"--config={path}:p", f"--workdir={tmp_path / 'run'}")
    assert any(part in said for part in message.split("|")), said
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_one_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for workdir in ("file", "file/run", "link"):
        said = is_refusal(capsys, f"--config={SWEEP}", f"--workdir={tmp_path / workdir}", "--check")
        assert "is not a folder" in said
    assert "name too long" in is_refusal(
        capsys, f"--config={SWEEP}", f"--workdir={tmp_path / ('a' * 300)}", "--check"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


STUDY = """
import xarray as xr
from experiments import checks
from experiments.claims import at_least

TITLE, PAPER = "Mine", "Me 2026"


def get_config(preset="small"):
    import ml_collections
    return ml_collections.ConfigDict({"study": "mine.py", "steps": 3})


def check(config, task):
    checks.values(config, {"steps": checks.whole(1, 10)})


def total_steps(config):
    return config.steps


def run(config, session):
    for _ in range(config.steps):
        session.progress(1, "mine", 0.0)
    return xr.Dataset({"steps": config.steps})


def claims(data):
    return [at_least("steps", "Me 2026", "steps made", float(data.steps), 2)]


def figures(data):
    return {}
"""


def test_a_study_of_ones_own_outside_the_package_runs_and_is_reported(
    capsys, tmp_path, monkeypatch
):
    """From another directory; after a refusal the corrected command simply works."""
    (tmp_path / "mine.py").write_text(STUDY)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    said = is_refusal(capsys, "--config=../mine.py", "--config.steps=11")
    assert "config.steps is 11; it must be a whole number between 1 and 10" in said
    assert not list(pathlib.Path.cwd().iterdir())
    status, out, err = outcome(capsys, "--config=../mine.py", "--config.steps=4")
    assert status == 0, err
    assert "1 of 1" in out
    assert [p.name for p in (tmp_path / "elsewhere" / "runs").iterdir()] == ["mine-small"]
    file = tmp_path / "mine.py"
    file.write_text(STUDY.replace("config.steps})", "2 * config.steps})"))
    said = is_refusal(capsys, "--config=../mine.py", "--config.steps=4")
    assert f"{file} has changed since the points in runs/mine-small were made; give another" in said
    assert outcome(capsys, "--config=../mine.py", "--config.steps=4", "--workdir=again")[0] == 0
    file.write_text(STUDY)
    assert "is finished" in outcome(capsys, "--config=../mine.py", "--config.steps=4")[2]
    (tmp_path / "half.py").write_text(
        STUDY.replace("mine.py", "half.py").replace("def check", "def chek")
    )
    assert "is not a study: it lacks check" in is_refusal(capsys, "--config=../half.py")


RETURNS = {
    "title": ("TITLE, PAPER = \"Mine\"", "TITLE, PAPER = 3", "TITLE is a value of type int, 3; it must be text"),
    "check": ("def claims(", "check = 3\n\n\ndef claims(", "check is a value of type int, 3; it must be a function"),
    "steps": ("return config.steps", "return 'many'", "total_steps returned a value of type str, 'many'; expected"),
    "run": ("return xr.Dataset(", "xr.Dataset(", "run returned None; expected an xarray.Dataset"),
    "complex": ("{\"steps\": config.steps}", "{'steps': 1j}", "variable 'steps' is of type complex128"),
    "object": ("{\"steps\": config.steps}", "{'steps': ('a', [None])}", "variable 'steps' is of type object"),
    "claims": ("return [at_least", "[at_least", "claims returned None; expected a list of claims"),
    "a claim": ("return [at_least", "return [3, at_least", "claims returned a list that holds a value of type int, 3"),
    "figures": ("return {}", "return None", "figures returned None; expected a dict"),
    "a name": ("return {}", "return {'a/b': 1}", "figures returned a figure of the name 'a/b'; expected names"),
    "above": ("return {}", "return {'..': 1}", "figures returned a figure of the name '..'"),
    "a figure": ("return {}", "return {'a': 1}", "figures returned 'a': a value of type int, 1; expected"),
}  # fmt: skip


@pytest.mark.parametrize("case", RETURNS)
def test_a_study_that_returns_the_wrong_thing_is_one_line(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    right, wrong, message = RETURNS[case]
    assert STUDY.count(right) == 1
    (tmp_path / "mine.py").write_text(STUDY.replace(right, wrong))
    status, _, err = outcome(capsys, "--config=mine.py", "--workdir=run")
    assert status == 2
    (line,) = err.strip().splitlines()[-1:]
    assert f"{tmp_path / 'mine.py'}: " in line
    assert message in line
    before = case in ("title", "check", "steps")
    assert (tmp_path / "run").exists() != before
    assert not (tmp_path / "run" / "figures").exists()


RAISES = {
    "check": ("checks.values(config", "raise KeyError('a')\n    checks.values(config", "check raised KeyError: 'a'"),
    "an exit": ("checks.values(config", "raise SystemExit\n    checks.values(config", "check raised SystemExit"),
    "steps": ("return config.steps\n", "return 1 / 0\n", "total_steps raised ZeroDivisionError: division by zero"),
    "run": ("return xr.Dataset(", "raise LookupError('a\\nb')\n    return xr.Dataset(", "run raised LookupError: a b"),
    "no words": ("return xr.Dataset(", "raise ValueError\n    return xr.Dataset(", "run raised ValueError"),
    "an attribute": ("config.steps})", "config.steps}, attrs={'a': None})", "run returned a Dataset that NetCDF 3"),
    "a large number": ("{\"steps\": config.steps}", "{'steps': 2**60}", "run returned a Dataset that NetCDF 3"),
    "claims": ("return [at_least", "return [data.nothing, at_least", "claims raised AttributeError"),
    "a number as a name": ("at_least(\"steps\"", "at_least(3", "name of claim 3 is 3; it must be text"),
    "a name twice": ("float(data.steps), 2)]", "float(data.steps), 2)] * 2", "several claims of the name 'steps'"),
}  # fmt: skip


@pytest.mark.parametrize("case", RAISES)
def test_a_study_that_raises_is_one_line_with_its_line(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    right, wrong, message = RAISES[case]
    assert STUDY.count(right) == 1
    (tmp_path / "mine.py").write_text(STUDY.replace(right, wrong))
    status, _, err = outcome(capsys, "--config=mine.py", "--workdir=run")
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: {tmp_path / 'mine.py'}")
    assert message in err
    (tmp_path / "mine.py").write_text(STUDY)
    again = outcome(capsys, "--config=mine.py", "--workdir=run")
    assert again[0] == (2 if case in ("claims", "a number as a name", "a name twice") else 0), again


def test_studies_are_found_by_name_and_by_file_from_anywhere(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "wide_deep_optimality"
    for config in (
        name,
        f"experiments/configs/{name}.py",
        str(settings.ROOT / "configs" / f"{name}.py"),
    ):
        status, _, err = outcome(capsys, f"--config={config}:smoke", "--check")
        assert status == 0, err


def test_a_task_brings_its_own_keys():
    changes = [("task.image_size", "8"), ("task.name", "image_folder"), ("task.seed", "3")]
    config, _ = settings.load(SWEEP, changes)
    assert (config.task.name, config.task.image_size, config.task.seed) == ("image_folder", 8, 3)
    assert config.task.num_train == 256  # of the preset: what both tasks have stays


# --- help


def test_help_and_list(capsys):
    status, out, _ = outcome(capsys, "--help")
    assert status == 0
    for option in settings.Options._fields[:-1]:
        assert f"--{option}" in out
    status, out, _ = outcome(capsys, "--list")
    assert status == 0
    for word in (*STUDIES, "paper_resnet", "modular", "image_folder", "Transformer", "mean_field"):
        assert word in out
    assert "--config.sweep.steps=60    # Two passes over the digits." in out
    for study in STUDIES:
        for key, _ in keys(study):
            assert f"--config.{key}=" in out or f"'--config.{key}=" in out, key


def test_a_list_is_narrowed_by_a_word(capsys):
    status, out, _ = outcome(capsys, "--list", "Hopfield")
    assert status == 0
    assert out.startswith("hopfield_retrieval: Modern Hopfield networks")
    assert "  presets: smoke, cpu, paper" in out
    for key, _ in keys("hopfield_retrieval"):
        assert f"--config.{key}=" in out or f"'--config.{key}=" in out, key
    assert "learning_rate_transfer" not in out
    assert "tasks" not in out
    # A key: the studies that have it, with these keys alone.
    status, out, _ = outcome(capsys, "--list=weight_decay")
    assert status == 0
    found = [line for line in out.splitlines() if "--config." in line]
    assert found
    assert all("weight_decay" in line.partition("=")[0] for line in found)
    # A title, a task, a rule.
    for word, line in {
        "doshi": "grokking_corrupted: ",
        "image_folder": "  image_folder: ",
        "mean_field": "  mean_field",
    }.items():
        status, out, _ = outcome(capsys, "--list", word)
        assert status == 0
        assert any(row.startswith(line) for row in out.splitlines()), out
    status, out, _ = outcome(capsys, "--list", "batch_size", "--config=grokking_corrupted:smoke")
    assert status == 0
    assert "as in smoke" in out
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        line for line in out.splitlines() if line.startswith("grokking_corrupted")
    ]


@pytest.mark.parametrize(
    ("word", "near"),
    {
        "grooking": "the nearest are grokking_",
        "learning_rate_transfr": "the nearest are learning_rate_transfer",
        "Transfomer": "the nearest are Transformer",
        "qqqqqqq": "--list alone says what there is",
    }.items(),
)
def test_a_word_that_is_nowhere_is_answered_with_the_nearest(word, near, capsys):
    status, _, said = outcome(capsys, "--list", word)
    assert status == 2
    assert f"error: nothing has {word.lower()!r} in it; {near}" in said


def test_comments_of_keys_are_those_of_their_lines(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        'def get_config(preset=""):\n'
        "    # above a\n    # and more\n    config.a = 1\n"
        "    config.b = 2  # beside b\n    config.c = 3\n"
        '    # of the group\n    config.d = {\n        "e": 1,  # beside e\n'
        '        # above f\n        "f": (\n            1,\n        ),\n        "g": 2,\n    }\n'
    )
    found = listing.comments(path)
    assert found == {
        "a": "above a and more",
        "b": "beside b",
        "d": "of the group",
        "d.e": "beside e",
        "d.f": "above f",
    }


def test_a_run_of_weights_and_biases_has_a_name_and_every_key(monkeypatch):
    import contextlib
    import types

    given = {}

    def init(**options):
        given.update(options)
        return contextlib.nullcontext()

    wandb = types.SimpleNamespace(init=init, log=print)
    monkeypatch.setattr(settings, "optional", lambda name, extra: wandb)
    config, _ = settings.load("hopfield_retrieval:smoke", [("single.dim", "16")])
    options = settings.parse(["run", "--config=hopfield_retrieval:smoke", "--wandb=mine"][1:])
    with run._sinks(options, config, pathlib.Path("runs/one")) as sinks:
        assert sinks == (print,)
    assert (given["project"], given["name"]) == ("mine", "one")
    assert given["config"]["single.dim"] == 16
    assert given["config"]["study"] == "hopfield_retrieval"
