"""A set of images as the Gaussian of its features: what the Frechet distance compares, and the files it is kept in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invkit.features.inception import SIZE
from invkit.runtime.files import written_aside


@dataclass(frozen=True)
class Gaussian:
    """Mean and unbiased covariance of the features of `count` images.

    Args:
        features: name of the network; None where a file does not say.
    """

    mean: Float[Tensor, "D"]
    covariance: Float[Tensor, "D D"]
    count: int
    features: str | None = None

    @classmethod
    def read(cls, path: str | Path) -> "Gaussian":
        """From a statistics file in ConvMesh's format: `stats_m`, the lower triangle `stats_s`, `num_images`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such file, lacks an entry, or holds values that are not finite.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no statistics file {path}")
        try:
            with np.load(path, allow_pickle=False) as stored:
                mean, lower = (torch.from_numpy(stored[key].astype(np.float64)) for key in ("stats_m", "stats_s"))
                count = int(stored["num_images"])
                features = str(stored["features"]) if "features" in stored else None
        except KeyError as error:
            raise ValueError(f"{path}: {error.args[0]}; a statistics file has stats_m, stats_s, num_images") from error
        except (OSError, EOFError, ValueError, TypeError, AttributeError, BadZipFile) as error:
            raise ValueError(f"{path} is no statistics file, or is damaged: {error}") from error
        if mean.ndim != 1 or lower.shape != (len(mean), len(mean)):
            raise ValueError(f"{path}: stats_m {tuple(mean.shape)} and stats_s {tuple(lower.shape)} do not fit")
        if not bool(mean.isfinite().all() & lower.isfinite().all()):
            raise ValueError(f"{path}: stats_m or stats_s is not finite")
        lower = lower.tril()
        return cls(mean, lower + lower.tril(-1).T, count, features)

    def write(self, path: str | Path) -> None:
        """To such a file, float32 as ConvMesh keeps it, with the name of the network beside it; atomic."""
        entries = {
            "stats_m": self.mean.cpu().numpy().astype(np.float32),
            "stats_s": self.covariance.tril().cpu().numpy().astype(np.float32),
            "num_images": np.int64(self.count),
            "resolution": np.int64(SIZE),
        }
        if self.features is not None:
            entries["features"] = np.str_(self.features)
        with written_aside(Path(path)) as aside, aside.open("wb") as file:
            np.savez(file, **entries)


class Moments:
    """Running sums of x and x x^T in float64 on the CPU, so that parts of a set merge to what one pass gives.

    Args:
        dim: of the features.
    """

    def __init__(self, dim: int) -> None:
        self._count = torch.zeros((), dtype=torch.int64)
        self._total = torch.zeros(dim, dtype=torch.float64)
        self._outer = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, features: Float[Tensor, "N D"]) -> None:
        x = features.detach().double().cpu()
        self._count += len(x)
        self._total += x.sum(dim=0)
        self._outer += x.T @ x

    def state(self) -> Mapping[str, Tensor]:
        return {"count": self._count, "total": self._total, "outer": self._outer}

    def merge(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Replace the own sums by those of all `states` together."""
        self._count, self._total, self._outer = (
            sum((state[key] for state in states[1:]), start=states[0][key].clone())
            for key in ("count", "total", "outer")
        )

    def gaussian(self, features: str | None = None) -> Gaussian:
        """Mean and covariance (divided by count - 1).

        Raises:
            ValueError: there are fewer than two images.
        """
        count = int(self._count)
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {count}")
        mean = self._total / count
        return Gaussian(mean, (self._outer - count * mean.outer(mean)) / (count - 1), count, features)
