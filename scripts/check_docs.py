"""Run the commands of the README, in the order given, in a fresh copy of the repository.

    python scripts/check_docs.py
    python scripts/check_docs.py /tmp/fresh --match reconstruct

Photographs that the README takes for granted (robin.jpg, my_photographs) are painted first. Commands that would take
hours run with fewer steps and images; those that need data or weights of others, a GPU or a network are left out. The
report says what was done with each command. The exit status is 1 if a command failed. tests/test_docs_commands.py finds
commands with the same functions and composes them all.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 1800.0
"""After which a command is given up."""

PROGRAM = re.compile(
    r"(?:python3? (?P<options>(?:-\S+ )*)scripts/|python3? -m invkit |inv3d |torchrun .*?scripts/|srun .*?scripts/)"
    r"(?P<script>\w+)(?:\.py)?(?P<arguments>[^`#\n]*)"
)
OTHER = re.compile(r"(?P<program>make|pytest|pip install)(?P<arguments>(?: [^`#\n;]*)?)$")

LEFT_OUT = {
    r"^make (setup|test)|activate": "sets up an environment from the network; `make test` is the test suite",
    r"_cub\b|checkpoint_latest\.pth|datasets/cub\b": "needs CUB-200-2011 or a released network",
    r"^torchrun": "needs several GPUs",
}
"""Pattern of a command -> why it is not run."""

SMALL_TASK = "steps=4 save_every=2 report_every=2"
CUT_DOWN = {
    r"synthetic-birds .*--train": "--train 24 --val 4 --test 4",
    r"train\.py experiment=meshinv_pseudo_truth_folder": f"{SMALL_TASK} ++task.schedule.every=2",
    r"train\.py experiment=meshinv_pretrain_folder": f"{SMALL_TASK} task.data.min_iou=0 ++task.quality.count=2",
    r"train\.py experiment=nerfinv_generator": f"{SMALL_TASK} ++task.quality.count=2",
    r"train\.py experiment=nerfinv_encoder": SMALL_TASK,
    r"invert\.py experiment=meshinv": "limit=2 inverter.init.count=4",
    r"invert\.py experiment=nerfinv": "limit=2",
    r"samples\.py": "count=2 frames=4 meshes=1 resolution=32",
}
"""Pattern of a command -> what is added to it so that it takes minutes at most."""


@dataclass(frozen=True)
class Command:
    """A command line in a text.

    Args:
        program: name of a script, or make, pytest, pip.
        line: as it is typed, on one line.
    """

    program: str
    arguments: str
    line: str


def commands(text: str, *, is_code: bool = False) -> Iterator[Command]:
    """The command lines in Markdown: those of its blocks of code, and those in backticks.

    Args:
        is_code: the text is no Markdown but the docstring of a script; words after three spaces are a remark.
    """
    text = re.sub(r" *\\\n\s*#?\s*", " ", text)
    text = re.sub(r"(?<!`)`([^`\n]*)\n([^`\n]*)`(?!`)", r"`\1 \2`", text)  # what backticks hold may go over two lines
    for line in text.splitlines():
        for part in re.split(r"`", line.strip()):
            part = re.split(r"\s{2,}#|\s#\s", part)[0]
            part = re.split(r"\s{3,}", part)[0] if is_code else part
            for piece in re.split(r"\s&&\s|;\s", part.strip()):
                found, other = PROGRAM.search(piece), OTHER.match(piece.strip())
                if found:
                    yield Command(found["script"], found["arguments"].strip(), piece.strip())
                elif other:
                    yield Command(other["program"].split()[0], (other["arguments"] or "").strip(), piece.strip())


def blocks(text: str) -> str:
    """What a Markdown text has in fenced blocks of shell commands."""
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def planned(command: Command) -> tuple[str | None, str]:
    """(what is run, why not or how it differs). None: it is left out."""
    if command.line == "make demo":
        return "python scripts/demo.py count=2", "without setting up an environment, with two birds"
    for pattern, reason in LEFT_OUT.items():
        if re.search(pattern, command.line):
            return None, reason
    more = next((added for pattern, added in CUT_DOWN.items() if re.search(pattern, command.line)), "")
    return f"{command.line} {more}".strip(), f"with {more}" if more else "as it is"


def paint_photographs(folder: Path) -> None:
    """robin.jpg and its mask, robin.png with alpha, and my_photographs with a manifest: procedural birds."""
    import numpy as np
    from PIL import Image

    from invkit.data.cub import Cub
    from invkit.data.synthetic import write_birds

    with tempfile.TemporaryDirectory() as painted:
        write_birds(Path(painted) / "birds", train=24, val=2, test=2, novel_views=0)
        birds, rows = Cub(Path(painted) / "birds", "train"), []
        (folder / "my_photographs").mkdir()
        for index, record in enumerate(birds.records):
            with Image.open(record.path) as image:
                photo = np.asarray(image.convert("RGB"))
            mask = record.silhouette().astype(np.uint8) * 255
            rgba = Image.fromarray(np.dstack([photo, mask]))
            rgba.save(folder / f"my_photographs/bird_{index}.png")
            if index == 0:
                Image.fromarray(photo).save(folder / "robin.jpg", quality=95)
                Image.fromarray(mask).save(folder / "robin_mask.png")
                rgba.save(folder / "robin.png")
            camera = [float(x) for x in (record.camera.scale[0], *record.camera.shift[0], *record.camera.quat[0])]
            split = "train" if index < 20 else "test"
            rows.append({"image": f"bird_{index}.png", "split": split, "camera": camera})
    (folder / "my_photographs/manifest.json").write_text(json.dumps({"images": rows}))


def fresh_copy(folder: Path) -> None:
    """The files that git tracks, or would track, in a new folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def walk(folder: Path, match: str) -> bool:
    """Run the README's commands that contain `match`; whether none failed."""
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    failed = False
    for command in commands(blocks((folder / "README.md").read_text())):
        if match not in command.line:
            continue
        line, said = planned(command)
        if line is None:
            print(f"left out   {command.line}\n           {said}", flush=True)
            continue
        began = time.monotonic()
        try:
            ended = subprocess.run(
                shlex.split(line), cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
            status, output = ended.returncode, ended.stdout + ended.stderr
        except subprocess.TimeoutExpired:
            status, output = -1, f"not done after {SECONDS:.0f} s"
        failed |= status != 0
        mark = "ok" if status == 0 else f"FAILED {status}"
        print(f"{mark:<10} {command.line}\n           {said}, {time.monotonic() - began:.0f} s", flush=True)
        if status != 0:
            print("\n".join(f"           {row}" for row in output.splitlines()[-15:]), flush=True)
    return not failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Walk through the README; 1 where a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, nargs="?", help="where to copy the repository; by default a temporary folder"
    )
    parser.add_argument("--match", default="", help="only commands that contain this")
    options = parser.parse_args(arguments)
    if options.folder and options.folder.exists():
        parser.exit(2, f"error: {options.folder} exists; name a new folder\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary) / "fresh").resolve()
        folder.mkdir(parents=True)
        fresh_copy(folder)
        paint_photographs(folder)
        return 0 if walk(folder, options.match) else 1


if __name__ == "__main__":
    sys.exit(main())
