"""Records of searches on uncut photographs, measured at the view of the objects' boxes.

So does the released code of Bootstrapped Radiance Field Inversion with ImageNet: small objects would otherwise be
measured by their background.
"""

from dataclasses import replace

from invkit.data.dataset import ImageSet
from invkit.inversion.records import Record, RecordStore
from invkit.types import Guess


class BoxedRecords(RecordStore):
    """A store whose records, when they are read, have the cameras of the boxes.

    Args:
        store: what the search has left.
        boxed: the photographs that were searched, cut to their boxes.
    """

    def __init__(self, store: RecordStore, boxed: ImageSet) -> None:
        super().__init__(store.dir, refined=store.refined)
        self.boxed = boxed
        self._places = {name: index for index, name in enumerate(boxed.names)}

    def read(self, name: str) -> Record:
        """The record of one image as `RecordStore.read` gives it, each of its cameras cut to the box.

        Raises:
            FileNotFoundError, ValueError: as there.
        """
        record = super().read(name)
        if record.found is None:
            return record
        box = self.boxed.frame(self._places[name])

        def cut(guess: Guess) -> Guess:
            return replace(guess, camera=guess.camera.crop(box.to(guess.camera.scale)))

        trace = record.trace
        kept = {count: cut(guess) for count, guess in trace.snapshots.items()}
        return replace(record, found=cut(record.found), trace=replace(trace, start=cut(trace.start), snapshots=kept))
