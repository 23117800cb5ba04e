"""The one command of the installed package: `inv3d reconstruct image=robin.png`, `python -m invkit train ...`.

It runs what scripts/ has, so whatever holds for `python scripts/train.py` holds for `inv3d train`, wherever it is
called; `torchrun --nproc_per_node=4 -m invkit train ...` too.
"""

import io
import os
import runpy
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from invkit.runtime.commandline import suggestion
from invkit.runtime.files import project_folder
from invkit.runtime.usage import NAME, docstring, speak_of_commands, spoken


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, or list those that there are.

    Raises:
        SystemExit: with the status of the command; 2 where there is no such command.
    """
    speak_of_commands()
    # Threads of torch that wait sleep instead of spinning; where cores are shared, that makes small operations faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    known = commands()
    if name in ("-h", "--help"):
        print(overview(known))
    elif name not in known:
        print(f"error: {NAME} {name}: there is no such command{suggestion(name, known)}", file=sys.stderr)
        raise SystemExit(2)
    elif {"-h", "--help"} & set(rest):
        console = sys.stdout
        with redirect_stdout(io.StringIO()) as said:
            try:
                run(known[name], rest)
            finally:
                print(spoken(said.getvalue()), end="", file=console)
    else:
        run(known[name], rest)


def commands() -> dict[str, Path]:
    """Name -> script, of all that can be run here."""
    return {path.stem: path for path in sorted(project_folder("scripts").glob("*.py")) if path.stem != "__init__"}


def overview(known: dict[str, Path]) -> str:
    """Each command with the first sentence about it."""
    about = {name: docstring(path).partition("\n\n")[0] for name, path in known.items()}
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {' '.join(text.split())}" for name, text in about.items()]
    usage = f"{NAME} COMMAND [setting=value ...]; {NAME} COMMAND --help tells of its settings\n"
    return "\n".join([usage, *lines])


def run(script: Path, arguments: Sequence[str]) -> None:
    """The script in this process, as the interpreter would start it."""
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))  # scripts use one another
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
