"""Parts of an inversion, each in a naive form and in ours: what they cost, and how much their results differ."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import measurement

OURS = "ours"


@dataclass(frozen=True)
class Result:
    """What both forms of a part have to agree on.

    Args:
        values: losses, or what else is found.
        gradients: of the losses, where they have any.
    """

    values: Tensor
    gradients: Tensor | None = None


Work = Callable[[], Result]


@dataclass(frozen=True)
class Part:
    """A part of the inversion.

    Args:
        naive: what its naive form does.
        forms: the naive form and ours.
        sized_in_images: whether its size is a number of images.
    """

    naive: str
    forms: Callable[[dict], tuple[Work, Work]]
    sized_in_images: bool = True


def rows(settings: dict, suite: str, parts: dict[str, Part]) -> Iterator[dict]:
    """The cases of a suite with their numbers, printed line by line; each part's naive form comes first.

    Args:
        suite: its settings and its module are named so.
        parts: the module's `PARTS`.

    Raises:
        ValueError: there is no such part.
    """
    chosen = dict(settings[suite])
    names, sizes = chosen.pop("parts"), chosen.pop("sizes")
    for part in names:
        if part not in parts:
            raise ValueError(f"{suite}.parts: {part} is not one of {', '.join(parts)}")
    shared = {key: settings[key] for key in ("device", "threads", "repeats", "seconds")} | chosen | {"suite": suite}
    print(
        "part       size form                  ms       cpu  cpu/image images/s  peak MB  faster  smaller"
        "   values  gradients"
    )
    for part in names:
        for size in sizes[part]:
            naive = None
            for form in (parts[part].naive, OURS):
                case = {"part": part, "size": size, "form": form}
                row = measurement.in_a_process_of_its_own(measured, case | shared)
                found = row.pop("found")
                if naive is None:
                    naive = row, found
                row |= compared(row, found, *naive)
                print(line(row), flush=True)
                yield row


def compared(row: dict, found: dict, naive: dict, expected: dict) -> dict:
    """By which factors a form is better than the naive one, and by how much its results differ.

    Values by the largest difference, gradients by the length of theirs, relative to that of the naive form's.
    """
    clock = "ms" if row["device"] == "cuda" else "cpu_ms"
    values, gradients = (
        None if found[name] is None else float64(found[name]) - float64(expected[name])
        for name in ("values", "gradients")
    )
    return {
        "faster": naive[clock] / row[clock],
        "smaller": naive["peak_mb"] / row["peak_mb"] if row["peak_mb"] > 0 else None,
        "value_difference": values.abs().max().item(),
        "gradient_difference": None
        if gradients is None
        else (gradients.norm() / float64(expected["gradients"]).norm()).item(),
    }


def float64(numbers: list) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def line(row: dict) -> str:
    smaller = "-" if row["smaller"] is None else f"{row['smaller']:.2f}"
    gradients = "-" if row["gradient_difference"] is None else f"{row['gradient_difference']:.0e}"
    return (
        f"{row['part']:9} {row['size']:5} {row['form']:18} {row['ms']:9.1f} {row['cpu_ms']:9.1f} "
        f"{row['cpu_ms_per_image']:10.2f} {row['images_per_second']:8.2f} {row['peak_mb']:8.1f} {row['faster']:7.2f} "
        f"{smaller:>8} {row['value_difference']:8.0e} {gradients:>10}"
    )


def measured(case: dict) -> dict:
    """The case with its times, its peak above the process that has all it needs, and what it found."""
    torch.manual_seed(0)
    part = importlib.import_module(f"benchmarks.{case['suite']}").PARTS[case["part"]]
    naive, ours = part.forms(case)
    work = ours if case["form"] == OURS else naive
    idle = measurement.peak_bytes(case["device"])
    result = work()
    cost = measurement.cost(case, work, idle=idle)
    (ms,) = cost.passes
    images = case["size"] if part.sized_in_images else 1
    return {
        **case,
        "images": images,
        "ms": ms,
        "cpu_ms": cost.working,
        "ms_per_image": ms / images,
        "cpu_ms_per_image": cost.working / images,
        "images_per_second": 1000 * images / (ms if case["device"] == "cuda" else cost.working),
        "repeats": cost.repeats,
        "peak_mb": cost.peak_mb,
        "found": {
            "values": result.values.detach().tolist(),
            "gradients": None if result.gradients is None else result.gradients.detach().tolist(),
        },
    }
