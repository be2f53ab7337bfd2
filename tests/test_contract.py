"""The rules of the house, checked on every file that is there, and on trees that break them."""

import ast
import glob
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

ROOT = Path(__file__).parent.parent

FLOORS = {
    "lmnoise": 0,
    "lmnoise.axes": 0,
    "lmnoise.errors": 0,
    "lmnoise.storage": 0,
    "lmnoise.keys": 0,
    "lmnoise.tree": 0,
    "lmnoise.cli": 0,
    "lmnoise.models": 1,
    "lmnoise.data": 1,
    "lmnoise.training": 2,
    "lmnoise.theory": 3,
    "lmnoise.evaluation": 3,
    "lmnoise.report": 3,
    "lmnoise.config": 3,  # read at the top: the lower floors take typed arguments
    "lmnoise.points": 3,
    "lmnoise.assemble": 4,
    "lmnoise.sklearn": 4,
    "lmnoise.train": 5,
    "lmnoise.checkpoints": 6,  # a run of ours is opened with the parts of lmnoise.assemble
    "lmnoise.convert": 7,
    "lmnoise.synthesize": 7,
    "lmnoise.analyze": 8,
    "experiments": 9,
}
# These write reports; nothing else imports lmnoise.report.
REPORTING = ("experiments", "lmnoise.analyze")
# All of lmnoise that these may import.
ONLY = {
    "lmnoise.theory": {
        "lmnoise.cli",  # for its __main__
        "lmnoise.errors",
        "lmnoise.keys",
        "lmnoise.models.regression",
    },
    "lmnoise.report": {"lmnoise.errors"},
}
FOREIGN = {"torch", "transformers", "tensorflow"}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LINES_A_FILE, LINES_A_FUNCTION = 400, 70


def sources(root, *folders):
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def module_name(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, root):
    """(module, name) of every import in a file: `from a.b import c` is ("a.b", "c")."""
    package = module_name(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            yield from ((base, alias.name) for alias in node.names)


def targets(path, root, modules):
    """The modules of the tree that a file imports, without itself."""
    found = set()
    for module, name in imports(path, root):
        found |= {f"{module}.{name}" if f"{module}.{name}" in modules else module} & modules
    return sorted(found - {module_name(path, root)})


def unit(module):
    """What of a module's name has a floor: the package under lmnoise, or its first part."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "lmnoise" else parts[0]


def import_faults(path, root, modules):
    importer = module_name(path, root)
    own = unit(importer)
    if own not in FLOORS:
        yield f"{importer}: {own} has no floor in tests/test_contract.py"
        return
    for target in targets(path, root, modules):
        other = unit(target)
        if other == own or other not in FLOORS:
            continue
        up = FLOORS[other] >= max(FLOORS[own], 1)
        narrow = own in ONLY and target not in ONLY[own]
        reserved = other == "lmnoise.report" and own not in REPORTING
        if up or narrow or reserved:
            yield f"{importer} imports {target}"


def circle(root, modules):
    """A list of modules that import each other in a circle, or None."""
    paths = {module_name(path, root): path for path in sources(root, "lmnoise", "experiments")}
    graph = {module: targets(path, root, modules) for module, path in paths.items()}
    done = set()

    def visit(module, trail):
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return None
        for target in graph[module]:
            if found := visit(target, [*trail, module]):
                return found
        done.add(module)
        return None

    return next(filter(None, (visit(module, []) for module in graph)), None)


def library_faults(path, root):
    tree, name = ast.parse(path.read_text()), module_name(path, root)
    libraries = {module.split(".")[0] for module, _ in imports(path, root)}
    if "flax" in libraries and not name.startswith("lmnoise.models"):
        yield f"{name} imports flax, which stays inside lmnoise/models"
    if name.startswith("lmnoise"):
        yield from (f"{name} imports {library}" for library in sorted(libraries & FOREIGN))
    yield from (f"{name} unpickles with {library}" for library in sorted(libraries & PICKLES))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and ast.unparse(node.value) != "False"
        ):
            yield f"{name}:{node.value.lineno} allows pickle"


def size_faults(path, root):
    text, name = path.read_text(), path.relative_to(root)
    if (lines := len(text.splitlines())) > LINES_A_FILE:
        yield f"{name} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        lines = node.end_lineno - node.lineno + 1 if isinstance(node, FUNCTIONS) else 0
        if lines > LINES_A_FUNCTION:
            yield f"{name}: {node.name} has {lines} lines"


def source_faults(root):
    paths = sources(root, "lmnoise", "experiments")
    modules = {module_name(path, root) for path in paths}
    for path in paths:
        yield from import_faults(path, root, modules)
        yield from library_faults(path, root)
    for path in sources(root, "lmnoise", "experiments", "configs"):
        yield from size_faults(path, root)
    if found := circle(root, modules):
        yield "circle: " + " -> ".join(found)


def load(path):
    spec = importlib.util.spec_from_file_location(f"contract_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_faults(path, root):
    name, module = path.name, load(path)
    text = module.__doc__ or ""
    for word in ("python ", "Cost", "Expect"):
        if word not in text:
            yield f"{name}: the docstring lacks {word.strip()!r}"
    presets = getattr(module, "PRESETS", ())
    if not presets:
        yield f"{name} lists no PRESETS"
        return
    for preset in presets:
        if not isinstance(module.get_config(preset), ConfigDict):
            yield f"{name}: {preset} is no ConfigDict"
    try:
        module.get_config("no-such-preset")
    except Exception as error:
        if missing := [preset for preset in presets if preset not in str(error)]:
            yield f"{name}: the error for an unknown preset does not list {', '.join(missing)}"
    else:
        yield f"{name} accepts an unknown preset"
    for command in indented_commands(text):
        yield from (f"{name}: {fault}" for fault in command_faults(command, root))


def indented_commands(text):
    """Lines of a docstring that begin with an interpreter, with their continuations joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return re.findall(r"^\s*(?:\$ )?((?:\S*/)?python3? .*)$", joined, re.MULTILINE)


def readme_commands(text):
    """Every line of the ```bash blocks, with continued lines joined."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip()


def command_faults(line, root):
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split, command = True, []
    try:
        words = [*lexer, ";"]
    except ValueError as error:
        yield f"{line}: {error}"
        return
    for word in words:
        if set(word) <= set("();<>|&"):
            yield from (f"{line}: {fault}" for fault in simple_command_faults(command, root))
            command = []
        else:
            command.append(word)


def simple_command_faults(words, root):
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if not words:
        return
    program, arguments = words[0], words[1:]
    if re.fullmatch(r"(.*/)?python3?", program) and arguments:
        if arguments[0] == "-m":
            yield from module_faults(arguments[1], root)
        elif arguments[0].endswith(".py") and not (root / arguments[0]).is_file():
            yield f"there is no file {arguments[0]}"
        yield from flag_faults([word for word in arguments if word.startswith("--config")], root)
    if program == "make":
        targets = re.findall(r"^([\w.][^:=\s]*):", (root / "Makefile").read_text(), re.MULTILINE)
        wanted = [word for word in arguments if "=" not in word and not word.startswith("-")]
        yield from (f"make has no target {word}" for word in wanted if word not in targets)
    for word in words:
        path = word.split("=")[-1].split(":")[0]
        ours = re.match("(configs|experiments|lmnoise|scripts|tests|tpu)/", path)
        if ours and not glob.glob(path, root_dir=root):
            yield f"there is no file {path}"


def module_faults(module, root):
    if module.split(".")[0] in ("lmnoise", "experiments"):
        path = root / module.replace(".", "/")
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
            yield f"there is no module {module} to run"
    elif importlib.util.find_spec(module) is None:
        yield f"there is no module {module}"


def flag_faults(arguments, root):
    """Lets the parser that the programs use judge `--config=FILE:PRESET` and every override."""
    found = [re.sub(r"^(--config=)(?!/)", rf"\g<1>{root}/", word) for word in arguments]
    if not found:
        return
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *found])
    try:
        values(["", *found])
    except Exception as error:
        yield f"{' '.join(arguments)}: {type(error).__name__}: {error}"


def test_files_keep_to_their_floors_and_sizes():
    assert not (faults := list(source_faults(ROOT))), "\n".join(faults)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("[!_]*.py")), ids=lambda path: path.name
)
def test_config(path):
    assert not (faults := list(config_faults(path, ROOT))), "\n".join(faults)


def test_commands_of_the_readme():
    readme = ROOT / "README.md"
    text = readme.read_text() if readme.exists() else ""
    faults = [fault for line in readme_commands(text) for fault in command_faults(line, ROOT)]
    assert faults == [], "\n".join(faults)


GOOD_CONFIG = """'''Words.

    python -m lmnoise.train --config=configs/a.py:small \\\\
        --config.a.b=2
Cost: none. Expected: nothing.
'''
import ml_collections

PRESETS = ("small", "large")


def get_config(preset):
    if preset not in PRESETS:
        raise ValueError(f"{preset} is not one of {PRESETS}")
    return ml_collections.ConfigDict({"a": {"b": 1}})
"""


def tree_of(root, files):
    for name, text in ({"configs/a.py": GOOD_CONFIG, "lmnoise/train.py": ""} | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


SOUND = {
    "lmnoise/__init__.py": "",
    "lmnoise/errors.py": "",
    "lmnoise/tree.py": "from lmnoise.errors import UserError",
    "lmnoise/report.py": "import jax\nfrom lmnoise.errors import UserError",
    "lmnoise/data/__init__.py": "",
    "lmnoise/data/stream.py": "from lmnoise import tree\nfrom .packing import pack",
    "lmnoise/data/packing.py": "import numpy as np\nnp.load('a', allow_pickle=False)",
    "lmnoise/models/__init__.py": "",
    "lmnoise/models/regression.py": "from flax import nnx",
    "lmnoise/training/loop.py": "import lmnoise.data.stream",
    "lmnoise/theory/noise.py": "from lmnoise.models import regression",
    "lmnoise/evaluation/language.py": "from lmnoise.training import loop",
    "experiments/noise.py": "from lmnoise import report, train\nfrom lmnoise.theory import noise",
}


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("lmnoise/tree.py", "import lmnoise.data.stream", "tree imports lmnoise.data.stream"),
        ("lmnoise/data/packing.py", "from lmnoise import models", "packing imports lmnoise.models"),
        ("lmnoise/data/packing.py", "from ..models import regression", "imports lmnoise.models.re"),
        ("lmnoise/data/packing.py", "def f():\n  from .stream import b", "circle: "),
        ("lmnoise/models/regression.py", "from lmnoise.training.loop import run", "imports lm"),
        ("lmnoise/training/loop.py", "from lmnoise.evaluation import language", "imports lmnoise"),
        ("lmnoise/training/loop.py", "from flax import nnx", "imports flax"),
        ("lmnoise/theory/noise.py", "from lmnoise.data import stream", "noise imports lmnoise.da"),
        ("lmnoise/theory/noise.py", "from lmnoise import report", "noise imports lmnoise.report"),
        ("lmnoise/report.py", "from lmnoise.tree import names", "report imports lmnoise.tree"),
        ("lmnoise/train.py", "from lmnoise.report import Table", "train imports lmnoise.report"),
        ("lmnoise/train.py", "from experiments import noise", "train imports experiments.noise"),
        ("lmnoise/extra.py", "", "lmnoise.extra has no floor"),
        ("lmnoise/models/torch.py", "import torch.nn", "imports torch"),
        ("lmnoise/data/tf.py", "from tensorflow.io import gfile", "imports tensorflow"),
        ("lmnoise/data/load.py", "import pickle", "unpickles with pickle"),
        ("experiments/noise.py", "load('a', allow_pickle=True)", "allows pickle"),
        ("experiments/noise.py", "load('a', allow_pickle=flag)", "allows pickle"),
        ("configs/long.py", "\n" * 401, "has 401 lines"),
        ("experiments/noise.py", "def f():\n" + "    pass\n" * 70, "f has 71 lines"),
    ],
)
def test_a_tree_that_breaks_a_rule_is_seen(tmp_path, name, text, fault):
    assert list(source_faults(tree_of(tmp_path, SOUND))) == []
    faults = list(source_faults(tree_of(tmp_path, SOUND | {name: text})))
    assert any(fault in found for found in faults), faults


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("python -m", "run", "lacks 'python'"),
        ("Cost", "", "lacks 'Cost'"),
        ("Expected", "", "lacks 'Expect'"),
        ("PRESETS = (", "NAMES = (", "lists no PRESETS"),
        ("of {PRESETS}", "of those", "does not list small, large"),
        ("    if", "    if False and", "accepts an unknown preset"),
        ("ml_collections.ConfigDict(", "dict(", "small is no ConfigDict"),
        ("lmnoise.train", "lmnoise.tune", "no module lmnoise.tune"),
        ("--config.a.b=2", "--config.a.c=2", "--config.a.c=2"),
    ],
)
def test_a_config_that_breaks_a_rule_is_seen(tmp_path, old, new, fault):
    tree_of(tmp_path, {})
    path = tmp_path / "configs" / "a.py"
    assert list(config_faults(path, tmp_path)) == []
    assert old in GOOD_CONFIG
    path.write_text(GOOD_CONFIG.replace(old, new))
    faults = list(config_faults(path, tmp_path))
    assert any(fault in found for found in faults), faults


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("# only a comment", None),
        ("git clone https://example.org/lmnoise && cd lmnoise && make help", None),
        ("JAX_PLATFORMS=cpu python -m lmnoise.train --config=configs/a.py:large  # fast", None),
        ("python -m lmnoise.train --config=configs/a.py:small \\\n  --config.a.b=3 | cat", None),
        (".venv/bin/python experiments/noise.py --workdir=runs/new; python -m pytest", None),
        ("echo 'open", "No closing quotation"),
        ("make nothing", "make has no target nothing"),
        ("cd x; python experiments/other.py", "no file experiments/other.py"),
        ("python -m lmnoise.tune", "no module lmnoise.tune"),
        ("python -m no_such_module_at_all", "no module no_such_module_at_all"),
        ("python -m lmnoise.train --config=configs/a.py:huge", "huge is not one of"),
        ("python -m lmnoise.train --config=configs/b.py:small", "b.py"),
        ("python -m lmnoise.train --config=configs/a.py:small --config.a.c=1", "--config.a.c"),
        ("python -m lmnoise.train --config=configs/a.py:small --config.a.b=x", "--config.a.b=x"),
    ],
)
def test_a_command_that_cannot_work_is_seen(tmp_path, command, fault):
    tree_of(tmp_path, {"Makefile": "help:\n\techo\n", "experiments/noise.py": ""})
    text = f"Words.\n```bash\n{command}\n```\n```\nmake nothing\n```\n"
    faults = [found for line in readme_commands(text) for found in command_faults(line, tmp_path)]
    assert (faults == []) if fault is None else any(fault in found for found in faults), faults
