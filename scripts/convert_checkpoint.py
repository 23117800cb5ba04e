"""Make a checkpoint of this project from a released one of MeshInversion or ConvMesh, or the other way round.

    python scripts/convert_checkpoint.py checkpoint_latest.pth cub.pt
    python scripts/invert.py experiment=meshinv_invert_cub prior.generator.path=cub.pt
    python scripts/convert_checkpoint.py runs/meshinv_pretrain_cub ours.pth --to-released

The released file may be of the GAN, with or without its discriminators, or of ConvMesh's first stage. Its training
arguments are printed: among them is the adversarial loss, on which paper and released code differ. Nothing in a file
is run; one that would need it is refused. meshinv/compat.py says what becomes of what.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from invkit import checkpoint
from invkit.files import written_aside
from meshinv.compat import from_released, read_released, released_arguments, to_released


def convert(source: Path, target: Path) -> dict[str, Any]:
    """Our checkpoint of the released file `source`, written to `target`."""
    payload = read_released(source)
    try:
        converted = from_released(payload)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    checkpoint.save(target, converted)
    return converted


def convert_back(source: Path, target: Path) -> dict[str, Any]:
    """The released layout of our checkpoint `source` (or of a run's newest), written to `target`."""
    try:
        converted = to_released(ours(source))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    with written_aside(target) as aside:
        # The released code is of a time when torch did not read archives yet.
        torch.save(converted, aside, _use_new_zipfile_serialization=False)
    return converted


def ours(source: Path) -> dict[str, Any]:
    """The content of a checkpoint, or of a run's newest."""
    if not source.is_dir():
        return checkpoint.load(source)
    newest = checkpoint.Checkpoints(source / "checkpoints").latest()
    if newest is None:
        raise FileNotFoundError(f"{source / 'checkpoints'} holds no checkpoint; is the training still to be run?")
    return newest[1]


def arguments_in_words(arguments: Mapping[str, Any]) -> str:
    """The training's arguments line by line, the adversarial loss first."""
    if not arguments:
        return "no training arguments are stored, so it does not say which adversarial loss was used"
    first = f"training arguments, loss = {arguments.get('loss', 'not stored')}"
    return "\n".join([first, *(f"  {name} = {value}" for name, value in sorted(arguments.items()) if name != "loss")])


def states_in_words(states: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, state in states.items():
        numbers = sum(value.numel() for value in state.values())
        lines.append(f"  {name}: {len(state)} entries, {numbers:,} numbers")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="released file; with --to-released a checkpoint or run of ours")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--to-released", action="store_true", help="from our layout to the released one")
    options = parser.parse_args()
    try:
        if options.output.exists() and options.output.samefile(options.input):
            raise ValueError(f"{options.output} is the input; choose another name")
        if options.to_released:
            converted = convert_back(options.input, options.output)
            print(arguments_in_words(released_arguments(converted)))
            states = {name: state for name, state in converted.items() if name not in ("self.args", "args")}
            print(states_in_words({name: state for name, state in states.items() if isinstance(state, dict)}))
        else:
            converted = convert(options.input, options.output)
            print(arguments_in_words(converted["released"]["args"]))
            for name, node in converted["config"]["task"].items():
                print(f"task.{name}: {', '.join(f'{key} = {value}' for key, value in node.items())}")
            print(states_in_words(converted["modules"]))
        print(options.output)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
