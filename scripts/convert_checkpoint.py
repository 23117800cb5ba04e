"""Make a checkpoint of this project from a released one, or the other way round.

    python scripts/convert_checkpoint.py checkpoint_latest.pth cub.pt
    python scripts/invert.py experiment=meshinv_invert_cub prior.generator.path=cub.pt
    python scripts/convert_checkpoint.py runs/meshinv_pretrain_cub ours.pth --to-released
    python scripts/convert_checkpoint.py g_p3d_car_pretrained/checkpoint_latest.pth car.pt --scene-range 1.4

The script recognizes from the content which method a file belongs to. Files of MeshInversion and ConvMesh: the GAN,
with or without its discriminators, or ConvMesh's first stage. The training arguments are printed, because they include
the adversarial loss, on which paper and released code differ. Files of bootstrapped radiance-field inversion: the GAN,
with or without its discriminator, which do not store the size of the generator's box (--scene-range), or the encoder.
No code in a file is run, and a file that requires it is refused. meshinv/compat.py, nerfinv/compat.py and
nerfinv/compat_encoder.py document the conversion of each entry.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from invkit.runtime import checkpoint
from invkit.runtime.files import written_aside
from meshinv import compat as mesh
from nerfinv import compat as field
from nerfinv import compat_encoder as encoder


def convert(source: Path, target: Path, **of_a_field: Any) -> dict[str, Any]:
    """Our checkpoint of the released file `source`, written to `target`.

    Args:
        of_a_field: what `nerfinv.compat.from_released` has to be told.
    """
    payload = checkpoint.load_foreign(source)
    try:
        if "model_coord" in payload:
            converted = encoder.from_released(payload)
        elif field.recognizes(payload):
            converted = field.from_released(payload, **of_a_field)
        else:
            converted = mesh.from_released(payload)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    checkpoint.save(target, converted)
    return converted


def convert_back(source: Path, target: Path) -> dict[str, Any]:
    """The released layout of our checkpoint `source` (or of a run's newest), written to `target`."""
    payload = ours(source)
    try:
        of_a_field = [target for target in targets(payload) if target.startswith("nerfinv.")]
        if any(target.startswith("nerfinv.encoder.") for target in of_a_field):
            converted = encoder.to_released(payload)
        elif of_a_field:
            converted = field.to_released(payload)
        else:
            converted = mesh.to_released(payload)
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


def targets(payload: Mapping[str, Any]) -> list[str]:
    """The classes of the networks that the checkpoint describes."""
    config = payload.get("config")
    task = config.get("task", {}) if isinstance(config, Mapping) else {}
    return [str(node.get("_target_")) for node in task.values() if isinstance(node, Mapping)]


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
    parser.add_argument("--scene-range", type=float, help="of a radiance field: half side of the generator's box")
    parser.add_argument(
        "--constant-noise",
        action="store_true",
        help="of a radiance field: a generator with noise repeats it; the released code draws it in every call",
    )
    options = parser.parse_args()
    try:
        if options.output.exists() and options.output.samefile(options.input):
            raise ValueError(f"{options.output} is the input; choose another name")
        if options.to_released:
            converted = convert_back(options.input, options.output)
            states = {name: state for name, state in converted.items() if name not in ("self.args", "args")}
            if len(states) < len(converted):
                print(arguments_in_words(mesh.released_arguments(converted)))
            print(states_in_words({name: state for name, state in states.items() if isinstance(state, dict)}))
        else:
            of_a_field = {
                "scene_range": options.scene_range,
                "random_noise_in_eval": not options.constant_noise,
            }
            converted = convert(options.input, options.output, **of_a_field)
            if "args" in converted["released"]:
                print(arguments_in_words(converted["released"]["args"]))
            for name, node in converted["config"]["task"].items():
                print(f"task.{name}: {', '.join(f'{key} = {value}' for key, value in node.items())}")
            print(states_in_words(converted["modules"]))
        print(options.output)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
