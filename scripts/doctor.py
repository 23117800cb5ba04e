"""Say what is installed, which backends work, which weights, data sets and runs are here, which experiments can start,
and how to close each gap. The networks that ship are read and compared with their cards.

    python scripts/doctor.py [--json]

It looks for datasets/ and runs/ in the current folder. The exit status is 1 if a required package is missing, too old
or does not import, and else 0. It needs nothing but Python itself, so it also works when everything else is missing.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMPORTED_AS = {
    "opencv-python": "cv2",
    "pillow": "PIL",
    "scikit-image": "skimage",
    "hydra-core": "hydra",
}
ABSENT_DATA = {
    "cub": "real birds, 11,788 photographs: docs/datasets.md says where to get them",
    "p3d": "PASCAL3D+ cars, 5,194 of them: docs/datasets.md says where to get them",
    "cub_subset": "a part of CUB, for a CPU: python scripts/prepare_data.py cub-subset datasets/cub",
    "synthetic_birds": "made in a minute: python scripts/prepare_data.py synthetic-birds",
}
ANNOTATIONS = {"cub": "data/*_cub_cleaned.mat", "p3d": "data/car_*.mat"}
LOADER = "invkit.runtime.run.load_module"
MARKS = {"ok": "ok", "gap": "--", "error": "!!"}
LEGEND = "ok: here    --: optional and not here    !!: needed"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        state: "ok"; "gap": something optional is not here; "error": something required is not.
        to_do: what would change that.
    """

    section: str
    name: str
    state: str
    detail: str
    to_do: str = ""


def packages() -> Iterator[Finding]:
    project = declared()
    python = platform.python_version()
    new_enough = satisfies(python, project["requires-python"])
    yield Finding("packages", "python", "ok" if new_enough else "error", python, "" if new_enough else "3.11 or newer")
    for requirement in project["dependencies"]:
        yield package(requirement, "packages", "error", "make setup")
    for extra, requirements in project["optional-dependencies"].items():
        for requirement in requirements:
            yield package(requirement, f"extra: {extra}", "gap", f'pip install -e ".[{extra}]"')


def declared() -> dict[str, Any]:
    """What the project says that it needs: its pyproject.toml, or, where it is installed, what was made of that."""
    if (ROOT / "pyproject.toml").is_file():
        return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = importlib.metadata.metadata("gan-inversion-3d")
    extras: dict[str | None, list[str]] = {None: [], **{extra: [] for extra in told.get_all("Provides-Extra") or ()}}
    for line in told.get_all("Requires-Dist") or ():
        requirement, _, condition = line.partition(";")
        extra = re.search(r"""extra == ['"]([\w-]+)""", condition)
        extras[extra[1] if extra else None].append(requirement.strip())
    needed = extras.pop(None)
    return {
        "requires-python": told["Requires-Python"],
        "dependencies": needed,
        "optional-dependencies": extras,
    }


def package(requirement: str, section: str, otherwise: str, install: str) -> Finding:
    """Whether a requirement is met, by its version and, where required, by importing it."""
    name, versions = re.fullmatch(r"([\w.-]+)(.*)", requirement).groups()
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(section, name, otherwise, "not installed", install)
    if not satisfies(version, versions):
        return Finding(section, name, otherwise, f"{version}, but {versions} is needed", f"pip install '{requirement}'")
    if otherwise == "error":
        try:
            importlib.import_module(IMPORTED_AS.get(name, name.replace("-", "_")))
        except Exception as error:  # a broken installation can fail in any way
            if "libGL" in str(error):  # a machine without a window system
                install = "apt-get install libgl1, or pip install --force-reinstall opencv-python-headless"
            return Finding(section, name, otherwise, f"{version} does not import: {error}", install)
    return Finding(section, name, "ok", version)


def satisfies(version: str, versions: str) -> bool:
    """Whether `version` lies in a range such as ">=1.3.2,<1.5"."""
    found = numbers(version)
    bounds = [re.fullmatch(r"(>=|<)(.+)", bound.strip()).groups() for bound in versions.split(",") if bound]
    return all(found >= numbers(bound) if sign == ">=" else found < numbers(bound) for sign, bound in bounds)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.match(r"\d+(\.\d+)*", version)[0].split("."))


def devices() -> Iterator[Finding]:
    yield Finding("devices", "cpu", "ok", f"{os.cpu_count()} cores")
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        to_do = ""
        if shutil.which("nvidia-smi"):
            built = torch.version.cuda
            to_do = f"the driver is older than CUDA {built}" if built else "this torch is built without CUDA"
            to_do = f"there is an NVIDIA driver, but {to_do}: environment.yml says how to get another torch"
        yield Finding("devices", "cuda", "gap", "no CUDA device; everything runs on the CPU, slowly", to_do)
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        yield Finding("devices", f"cuda:{index}", "ok", f"{gpu.name}, {memory}, CUDA {torch.version.cuda}")


def renderers() -> Iterator[Finding]:
    try:
        importlib.import_module("meshinv.renderers.reference")
        yield Finding("mesh renderer", "reference", "ok", "plain torch, on the CPU and on CUDA")
        auto, torch = (importlib.import_module(name) for name in ("meshinv.renderers.auto", "torch"))
        fastest = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        yield Finding("mesh renderer", "auto", "ok", f"draws with {auto.backend(fastest)} on {fastest}")
    except ImportError as error:
        yield Finding("mesh renderer", "reference", "error", str(error), "make setup")
    try:
        kaolin = importlib.import_module("kaolin")
        from torch import cuda

        works = cuda.is_available()
        detail = kaolin.__version__ if works else f"{kaolin.__version__}, but no CUDA device to run on"
        yield Finding("mesh renderer", "kaolin", "ok" if works else "gap", detail)
    except Exception as error:  # a wheel for another torch fails with whatever its loader meets first
        to_do = "optional, faster on a GPU; environment.yml says how to get the wheel for this torch and CUDA"
        yield Finding("mesh renderer", "kaolin", "gap", str(error), to_do)


def weights() -> Iterator[Finding]:
    try:
        table = importlib.import_module("invkit.features.weights")
    except ImportError:
        return  # torch is missing, and was reported
    for name, entry in table.WEIGHTS.items():
        try:
            yield Finding("weights", name, "ok", str(table.find(name)))
        except FileNotFoundError:
            to_do = f"{entry.url} into a folder named in ${table.FOLDERS}"
            yield Finding("weights", name, "gap", f"{entry.file} not found ({entry.purpose})", to_do)
        except ValueError as error:
            yield Finding("weights", name, "gap", "damaged", str(error))


def shipped() -> Iterator[Finding]:
    """The networks that ship with the package, each read and compared with the digest in the card beside it."""
    for path in sorted(ROOT.glob("*/checkpoints/*.pt")):
        name, size = path.relative_to(ROOT).as_posix(), f"{path.stat().st_size / 1e6:.1f} MB"
        card = path.with_suffix(".md")
        whole = card.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in card.read_text()
        try:
            steps = importlib.import_module("invkit.runtime.checkpoint").load(path).get("step")
        except ImportError:
            return  # torch is missing, and was reported
        except ValueError:
            whole, steps = False, None
        detail = f"{size}, reads and matches its card" if whole else f"{size}, but it is damaged or was replaced"
        detail += f"; {steps} steps" if steps else ""
        yield Finding(
            "shipped networks", name, "ok" if whole else "error", detail, "" if whole else f"get {name} again"
        )


def data_sets() -> Iterator[Finding]:
    root = Path("datasets")
    found = sorted(path for path in root.glob("*") if path.is_dir() and not path.name.startswith("."))
    for path in found:
        splits = {kind: sorted(path.glob(files)) for kind, files in ANNOTATIONS.items()}
        kind = next((kind for kind, files in splits.items() if files), "folder")
        names = [re.sub("car_|_cub_cleaned", "", file.stem) for file in splits.get(kind, [])]
        detail = f"splits {', '.join(names)}" if names else "present"
        check = f"is it whole? python scripts/prepare_data.py check {kind} {path}"
        yield Finding("data sets", path.name, "ok", detail, check)
    for name in sorted(ABSENT_DATA.keys() - {path.name for path in found}):
        yield Finding("data sets", name, "gap", f"no {root / name}", ABSENT_DATA[name])


def runs() -> Iterator[Finding]:
    for config in sorted(Path("runs").glob("**/config.yaml")):
        steps = [int(path.stem.split("-")[1]) for path in config.parent.glob("checkpoints/checkpoint-*.pt")]
        known = [f"{max(steps)} steps"] if steps else []
        known += ["result.json"] if (config.parent / "result.json").is_file() else []
        yield Finding("runs", str(config.parent), "ok", ", ".join(known) or "no checkpoint and no result yet")


def experiments() -> Iterator[Finding]:
    """Each experiment, as its own comment says to start it, and what of its data, priors and weights is not here."""
    try:
        hydra, omegaconf = importlib.import_module("hydra"), importlib.import_module("omegaconf")
        importlib.import_module("invkit.features.weights")
    except ImportError:
        return  # reported among the packages
    configs = {}
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for path in sorted(ROOT.glob("configs/experiment/*.yaml")):
            text = re.sub(r"\\\n#\s*", " ", path.read_text())
            said = re.search(rf"^#.*scripts/(\w+)\.py (.*\bexperiment={path.stem}\b.*)$", text, re.MULTILINE)
            if said is None:
                continue
            try:
                config = hydra.compose(said[1], shlex.split(said[2]))
                configs[path.stem] = omegaconf.OmegaConf.to_container(config, resolve=True)
                if said[1] == "reconstruct":  # its photographs come from the command line
                    configs[path.stem].pop("data", None)
            except Exception as error:  # a file that is being written can be wrong in any way
                yield Finding("experiments", path.stem, "gap", f"does not compose: {error}")
    made_by = {config["run"]["dir"]: name for name, config in configs.items()}
    for name, config in configs.items():
        absent = dict(missing(config, made_by))
        detail = f"without {', '.join(absent)}" if absent else "can start"
        cures = "; ".join(dict.fromkeys(cure for cure in absent.values() if cure))
        yield Finding("experiments", name, "gap" if absent else "ok", detail, cures)


def missing(node: Any, made_by: Mapping[str, str], where: str = "") -> Iterator[tuple[str, str]]:
    """(what, what to do) of everything that a configuration reads and that is not here.

    Args:
        made_by: the experiment that fills a run's folder.
    """
    target = node.get("_target_", "") if isinstance(node, dict) else ""
    read = node.get("path") if target == LOADER else node.get("root") if target else None
    if read and not (has_weights(read) if target == LOADER else Path(read).exists()):
        maker = made_by.get("/".join(Path(read).parts[:2]))
        yield read, f"python scripts/train.py experiment={maker} makes {read}" if maker else ""
    if target.startswith("invkit.features."):
        table = importlib.import_module("invkit.features.weights")
        module, _, name = target.rpartition(".")
        features = importlib.import_module(module)
        parameters = inspect.signature(getattr(features, name)).parameters
        name = node.get("weights", parameters["weights"].default if "weights" in parameters else table.RANDOM)
        if name is None:
            name = features.default_weights(node.get("net", parameters["net"].default))
        try:
            if name != table.RANDOM:
                table.find(name)
        except (FileNotFoundError, ValueError):
            yield f"weights {name}", "task.quality=null goes without" if where.startswith("task.quality") else ""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from missing(child, made_by, f"{where}.{key}".removeprefix("."))


def has_weights(read: str) -> bool:
    """Whether there is a checkpoint: a file, one that ships, or a run's folder with at least one in it."""
    try:
        found = importlib.import_module("invkit.runtime.shipped").located(read)
    except (FileNotFoundError, ValueError):
        return False
    return found.is_file() or any(found.glob("checkpoints/*.pt"))


def report(findings: Sequence[Finding]) -> str:
    """The findings as text, one section after another; what to do stands below its line."""
    lines, section = [LEGEND], None
    width = max(len(finding.name) for finding in findings if finding.section != "runs")
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        lines.append(f"  {MARKS[finding.state]}  {finding.name:{width}}  {' '.join(finding.detail.split())}")
        if finding.to_do:
            lines.append(f"      {'':{width}}  -> {finding.to_do}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; 1 where something required is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of text")
    options = parser.parse_args(arguments)
    sections = (packages, devices, renderers, weights, shipped, data_sets, runs, experiments)
    findings = [finding for section in sections for finding in section()]
    print(json.dumps([asdict(finding) for finding in findings], indent=2) if options.json else report(findings))
    return int(any(finding.state == "error" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
