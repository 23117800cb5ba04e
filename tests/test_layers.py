"""The import rules and a few bans of the design, held by reading the source.

A package that imports downwards only can be understood from the bottom up, and a part can be replaced alone.
"""

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("invkit", "meshinv", "nerfinv")

# From the bottom up: the rooms of the kit, and the files at its top. A module imports from rows below its own; a room
# also from itself. What stands in one row does not see each other.
KIT = (
    {"runtime"},
    {"batch", "precision", "images"},
    {"geometry"},
    {"types"},
    {"protocols"},
    {"data", "features"},
    {"losses", "metrics"},
    {"train", "inversion"},
    {"evaluation"},
    {"export"},
    {"photographs"},
    {"reconstruction"},
    {"__main__"},
)
# The same inside rooms, where there is an order worth keeping.
ROOMS = {
    "runtime": (
        {"files", "pace", "usage", "settings", "version", "arithmetic", "pickle_limits"},
        {"commandline"},
        {"dist", "log", "checkpoint", "conversion", "pickles", "arrays", "matlab", "shipped"},
        {"networks"},
        {"run"},
    ),
    "geometry": ({"rotation"}, {"camera"}, {"augment"}),
    "train": ({"schedule", "state", "ema", "ada"}, {"loop"}),
    "inversion": ({"schedule"}, {"search_state", "records", "objective"}, {"inverter", "refinement", "doubt"}),
    "photographs": ({"silhouette"}, {"panel"}, {"reconstruction"}),
    "evaluation": (
        {"viewpoints", "report", "plot"},
        {"protocol", "page", "boxes"},
        {"instruments", "viewer"},
        {"measurement"},
        {"evaluator"},
        {"gallery"},
    ),
}
AT_THE_TOP = {"batch", "types", "protocols", "images", "precision", "export", "reconstruction", "__main__"}
# The same inside a method: renderers, losses and generators know nothing of each other, and nobody imports a task.
METHOD = (
    {"template", "planes", "published", "membrane"},
    {"field"},
    {"mesh"},
    {"layers"},
    {"generator", "discriminators", "discriminator", "reconstruction", "encoder", "losses", "renderers", "pnp"},
    {"prior", "architecture", "evidence", "changes"},
    {"init", "pseudo_truth", "refinement"},
    {"pseudo_truth_set"},
    {"manipulation"},
    {"task", "tasks", "export", "solid", "compat", "compat_encoder"},
)
MET_IN = {"kaolin": None, "cv2": {"nerfinv/pnp.py", "invkit/data/cutout.py"}, "wandb": None, "matplotlib": None}
"""Heavy libraries, and the files that meet them; None is any one file."""
MOST_LINES = 380
SAY_NOTHING = {"utils", "helpers", "common", "misc", "base", "core", "manager", "wrapper"}
PLACES_DEVICES = {"invkit/runtime/run.py", "invkit/runtime/dist.py"}
"""Where a process is bound to its device; everything else is told."""

Imports = Iterator[tuple[str, int]]


def sources(*folders: str) -> list[Path]:
    return sorted(chain.from_iterable((ROOT / folder).rglob("*.py") for folder in folders))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that can run: what only a type checker reads is left out."""
    for child in ast.iter_child_nodes(tree):
        if not for_types_only(child):
            yield child
            yield from running(child)


def imports(tree: ast.AST) -> Imports:
    """(dotted name, line) of every import, wherever it stands; `from a import b` counts as a.b."""
    for node in running(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides where it leads"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def imports_at_module_level(tree: ast.Module) -> Imports:
    in_functions = {
        found
        for node in running(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for found in imports(node)
    }
    return (found for found in imports(tree) if found not in in_functions)


def offences_against(order: tuple[set[str], ...], package: str, module: str, tree: ast.AST) -> list[str]:
    """Imports of `module` (the first name under `package`, which may be a room) that do not lead to a lower row."""
    height = {name: row for row, names in enumerate(order) for name in names}
    if module not in height:
        return [f"{package}.{module} has no place in the order of tests/test_layers.py; give it one"]
    found = []
    for name, line in imports(tree):
        if not name.startswith(f"{package}."):
            continue
        imported = name.removeprefix(f"{package}.").split(".")[0]
        if imported != module and height.get(imported, len(order)) >= height[module]:
            found.append(f"line {line}: {package}.{module} imports {name}")
    return found


def first_name(path: Path, package: str) -> str:
    return path.relative_to(ROOT / package).with_suffix("").parts[0]


@pytest.mark.parametrize("package, order", [("invkit", KIT), ("meshinv", METHOD), ("nerfinv", METHOD)])
def test_imports_inside_a_package_lead_downwards(package, order):
    offences = [
        f"{name_of(path)}: {offence}"
        for path in sources(package)
        if path != ROOT / package / "__init__.py"
        for offence in offences_against(order, package, first_name(path, package), parsed(path))
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_inside_a_room_lead_downwards(room):
    offences = [
        f"{name_of(path)}: {offence}"
        for path in sources(f"invkit/{room}")
        if path.name != "__init__.py"
        for offence in offences_against(ROOMS[room], f"invkit.{room}", path.stem, parsed(path))
    ]
    assert not offences, "\n".join(offences)


def test_the_kit_keeps_at_its_top_what_everything_speaks():
    assert {path.stem for path in (ROOT / "invkit").glob("*.py")} - {"__init__"} == AT_THE_TOP


def test_a_room_says_what_it_is_for_in_one_sentence_and_nothing_else():
    for path in sorted((ROOT / "invkit").glob("*/__init__.py")):
        tree = parsed(path)
        assert len(tree.body) == 1, f"{name_of(path)} holds more than a sentence"
        assert ast.get_docstring(tree), f"{name_of(path)} does not say what the room is for"


def test_the_tests_mirror_the_rooms():
    rooms = {path.parent.name for path in (ROOT / "invkit").glob("*/__init__.py")}
    assert rooms == {path.parent.name for path in (ROOT / "tests/invkit").glob("*/__init__.py")}


def test_no_file_of_the_packages_wants_to_be_two():
    longest = {name_of(path): len(path.read_text().splitlines()) for path in sources(*PACKAGES)}
    assert not {name: lines for name, lines in longest.items() if lines > MOST_LINES}


@pytest.mark.parametrize(
    "package, blind_to",
    [
        ("invkit", {"meshinv", "nerfinv", "scripts", "tests"}),
        ("meshinv", {"nerfinv", "scripts", "tests"}),
        ("nerfinv", {"meshinv", "scripts", "tests"}),
    ],
)
def test_packages_do_not_see(package, blind_to):
    offences = [
        f"{name_of(path)}:{line} imports {name}"
        for path in sources(package)
        for name, line in imports(parsed(path))
        if name.split(".")[0] in blind_to
    ]
    assert not offences, "\n".join(offences)


def test_only_run_knows_hydra():
    offences = [
        f"{name_of(path)}:{line} imports {name}"
        for path in sources(*PACKAGES)
        if name_of(path) != "invkit/runtime/run.py"
        for name, line in imports(parsed(path))
        if name.split(".")[0] in ("hydra", "omegaconf")
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("library", MET_IN)
def test_a_heavy_library_is_met_in_its_files_alone_and_inside_functions(library):
    met = {
        name_of(path)
        for path in sources(*PACKAGES, "scripts")
        for name, _ in imports(parsed(path))
        if name.split(".")[0] == library
    }
    allowed = MET_IN[library]
    assert len(met) <= 1 if allowed is None else met <= allowed, f"{library} is imported in {sorted(met)}"
    at_import = [
        f"{name_of(path)}:{line}"
        for path in sources(*PACKAGES, "scripts")
        for name, line in imports_at_module_level(parsed(path))
        if name.split(".")[0] == library
    ]
    assert not at_import, f"{library} is imported before it is needed: {at_import}"


def test_module_names_say_something():
    names = {
        part: name_of(path) for path in sources(*PACKAGES) for part in path.relative_to(ROOT).with_suffix("").parts
    }
    assert not {names[part] for part in SAY_NOTHING & set(names)}


def chooses_a_gpu(node: ast.AST) -> bool:
    """x.cuda(), or "cuda" handed to something. The CPU may be named: files and index tables live there."""
    if not isinstance(node, ast.Call):
        return False
    handed = [*node.args, *(keyword.value for keyword in node.keywords)]
    texts = [value.value for value in handed if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return ast.unparse(node.func).endswith(".cuda") or any(text.split(":")[0] == "cuda" for text in texts)


def test_packages_are_told_their_device():
    offences = [
        f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}"
        for path in sources(*PACKAGES)
        if name_of(path) not in PLACES_DEVICES
        for node in running(parsed(path))
        if chooses_a_gpu(node)
    ]
    assert not offences, "\n".join(offences)


def reads_code(node: ast.AST) -> bool:
    """A call that could run what a file holds: torch.load without weights_only=True, allow_pickle=True, pickle.load."""
    if not isinstance(node, ast.Call):
        return False
    function = ast.unparse(node.func)
    said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    return (
        (function == "torch.load" and said.get("weights_only") != "True")
        or said.get("allow_pickle", "False") != "False"
        or function in ("pickle.load", "pickle.loads", "eval", "exec")
    )


def test_reading_a_file_runs_nothing():
    offences = [
        f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}"
        for path in sources(*PACKAGES, "scripts", "tests")
        for node in ast.walk(parsed(path))
        if reads_code(node)
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    "source, caught",
    [
        ("from invkit.train.loop import fit", True),
        ("import invkit.losses.pixel", True),
        ("from invkit.inversion import records", True),
        ("def f():\n    from invkit.evaluation.page import Table", True),
        ("from invkit.geometry.camera import Camera", False),
        ("from invkit.data.cub import Cub", False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from invkit.runtime.run import Run", False),
    ],
)
def test_the_order_catches_an_import_upwards(source, caught):
    assert bool(offences_against(KIT, "invkit", "data", ast.parse(source))) is caught


def test_a_module_without_a_place_is_noticed():
    assert offences_against(KIT, "invkit", "newcomer", ast.parse(""))


@pytest.mark.parametrize(
    "source, caught",
    [
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("np.load(path, allow_pickle=True)", True),
        ("torch.load(path, weights_only=True)", False),
        ("np.load(path, allow_pickle=False)", False),
    ],
)
def test_an_unsafe_read_is_caught(source, caught):
    assert any(reads_code(node) for node in ast.walk(ast.parse(source))) is caught


@pytest.mark.parametrize(
    "source, caught",
    [
        ("x.cuda()", True),
        ("x.to('cuda:1')", True),
        ("torch.zeros(3, device='cuda')", True),
        ("torch.device('cuda', 1)", True),
        ("x.cpu()", False),
        ("torch.load(path, map_location='cpu')", False),
        ("torch.cuda.is_available()", False),
        ("x.device.type == 'cuda'", False),
        ("x.to(device)", False),
    ],
)
def test_a_gpu_written_down_is_caught(source, caught):
    assert any(chooses_a_gpu(node) for node in ast.walk(ast.parse(source))) is caught


def test_lazy_and_eager_imports_are_told_apart():
    tree = ast.parse("import a\ndef f():\n    import b\nclass C:\n    import c\n    def g(self):\n        import d\n")
    assert [name for name, _ in imports_at_module_level(tree)] == ["a", "c"]
