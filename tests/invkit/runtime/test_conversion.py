"""What converting checkpoints takes, on a small network."""

import pytest
import torch
from torch import Tensor, nn

from invkit.runtime import conversion
from invkit.runtime.conversion import bare, buildable, check_fits, modules_and_task, node_of, shape_of, speaking_of


class Net(nn.BatchNorm1d):
    def __init__(self, width: int = 3, depth: int = 1) -> None:
        super().__init__(width)
        self.depth = depth


KEYWORDS = {"width": 2, "depth": 1}


def entries(**changed) -> dict[str, Tensor]:
    return Net(2).state_dict() | changed


def test_a_node_names_the_class_and_gives_its_keywords_back():
    node = node_of(Net, KEYWORDS)
    assert node == {"_target_": f"{__name__}.Net", **KEYWORDS}
    assert conversion.keywords_of({**node, "_partial_": True}) == KEYWORDS


def test_what_a_released_code_can_be_asked_for():
    node = node_of(Net, {"width": 4})
    assert buildable({"net": node}, "net", Net, {"width": (2, 4)}) == {"width": 4, "depth": 1}
    with pytest.raises(ValueError, match=r"^task\.net\.width=4: the released code builds 2 or 3 only$"):
        buildable({"net": node}, "net", Net, {"width": (2, 3)})
    with pytest.raises(ValueError, match=r"^task\.net\.depth=1: the released code builds 2 only$"):
        buildable({"net": node}, "net", Net, {"depth": (2,)})
    for other, found in (({"_target_": "torch.nn.Linear"}, r"torch\.nn\.Linear"), (None, "None"), ("net", "net")):
        with pytest.raises(ValueError, match=rf"^task\.net .* is {found}; .* only {__name__}\.Net$"):
            buildable({"net": other}, "net", Net, {})


def test_the_parts_of_a_checkpoint_of_ours():
    state = {"net": entries()}
    assert modules_and_task({"modules": state, "config": {"task": {"a": 1}}}) == (state, {"a": 1})
    assert modules_and_task({"modules": state, "config": {}}) == (state, {})
    for payload in ({}, {"modules": state}, {"modules": 3, "config": {}}):
        with pytest.raises(ValueError, match=r"^this is not one of our checkpoints"):
            modules_and_task(payload)


def test_a_prefix_is_dropped_where_all_names_have_it():
    assert bare({"module.a": 1, "module.module.b": 2}) == {"a": 1, "module.b": 2}
    assert bare({"module.a": 1, "b": 2}) == {"module.a": 1, "b": 2}
    assert bare({}) == {}


@pytest.mark.parametrize("state", [None, [], {3: torch.zeros(1)}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ValueError, match=r"^is not a dictionary of named tensors$"):
        bare(state)
    with pytest.raises(ValueError, match=r"^net is not a dictionary of named tensors$"):
        bare(state, "net")


def test_the_shape_of_an_entry():
    state = {"a": torch.zeros(2, 5), "b": 1.5}
    assert shape_of(state, "a", 2) == (2, 5)
    for name, ndim, message in (
        ("c", 2, "lacks c"),
        ("a", 4, r"a is \[2, 5\] and not a tensor of 4 dimensions"),
        ("b", 1, "b is float and not a tensor of 1 dimensions"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            shape_of(state, name, ndim)


def test_entries_that_fit_are_those_of_the_network():
    with torch.device("meta"):
        layout = Net(2).state_dict()
    check_fits(entries(), layout, Net, KEYWORDS)
    check_fits(entries(weight=torch.zeros(2, dtype=torch.float16)), layout, Net, KEYWORDS)
    described = r"Net\(width=2, depth=1\)"
    for state, message in (
        ({}, f"lacks weight and 4 more; the other entries are those of {described}"),
        ({name: value for name, value in entries().items() if name != "bias"}, "lacks bias; .*"),
        (entries(more=torch.zeros(1)), f"has more, which {described} does not have"),
        (entries(weight=[1.0, 1.0]), "weight is a list and not a tensor"),
        (entries(bias=torch.zeros(3)), rf"bias is \[3\] and not \[2\], as in {described}"),
        (entries(bias=torch.zeros(2, dtype=torch.int64)), r"bias is torch\.int64 and not of floating point"),
        (entries(num_batches_tracked=torch.tensor(1.0)), r".*tracked is torch\.float32 and not a whole number"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            check_fits(state, layout, Net, KEYWORDS)


def test_the_entry_is_named_before_what_is_said_of_it():
    with pytest.raises(ValueError, match=r"^generator: lacks a$"), speaking_of("generator"):
        shape_of({}, "a", 1)
    with pytest.raises(KeyError), speaking_of("generator"):
        raise KeyError("a")
