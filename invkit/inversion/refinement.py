"""After the search the photographs themselves decide what they show: details beside the records, in neither paper.

A generator can make what it has learned; the one photograph that is looked at shows more. What a method's `Refinement`
makes of it is kept apart from the record, so that the search can be measured without it.
"""

from collections.abc import Iterator, Sequence

import torch

from invkit.data.dataset import ImageSet
from invkit.inversion.records import RecordStore
from invkit.protocols import Prior, Refinement, Renderer
from invkit.types import Guess, Views


def refine_all(
    refinement: Refinement,
    prior: Prior,
    renderer: Renderer,
    dataset: ImageSet,
    store: RecordStore,
    indices: Sequence[int],
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> Iterator[str]:
    """Refine these images' records, batch by batch, and write the details of each; gives their names as they come.

    Args:
        dataset: the images that were searched, in any size.
        indices: of images that were found; see `RecordStore.unrefined`.
    """
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        names = [dataset.names[index] for index in part]
        guess = Guess.cat([store.searched(name).found for name in names]).to(device)
        views = Views.cat([dataset[index] for index in part]).to(device)
        details = refinement(prior, renderer, guess, views)
        for place, name in enumerate(names):
            store.write_details(
                name, refinement.name, {key: value[place : place + 1] for key, value in details.items()}
            )
            yield name
