"""What is typed and what Hydra makes of it: names of files as they are, and what was meant by misspelt words."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from invkit.runtime.commandline import nearest_key, overrides_of
from invkit.runtime.run import composed, instantiate_trusted

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
NAMES = [
    "robin.jpg", "my bird (1).png", "a,b.png", "a=b.png", "it's.png", 'say "hi".png', "both ' and \".png", "[a].png",
    "a(1).png", "ünï.png", "日本.png", "🐦.png", "100", "1e3", "true", "a#b.png", "a&b.png", "a:b.png", "{a}.png",
    "a\\b.png", "back\\", "back\\'quote", "\\\\", "a;b!?.png", "~/x.png", "a  b.png", " leading.png", "trailing ",
    "glob(*)", "range(1,3)", "$5.png", "50%.png", "a@b+c.png", "-dash.png", "new\nline.png", "x" * 300,
]  # fmt: skip


def read(argument: str) -> object:
    """The value of an argument as Hydra reads it in the end."""
    (override,) = OverridesParser.create().parse_overrides(overrides_of([argument], CONFIGS))
    return override.value()


@pytest.mark.parametrize("key", ["image", "+data.root", "++prior.generator.path", "run.dir"])
@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_is_taken_as_it_stands(name, key):
    assert read(f"{key}={name}") == name


@pytest.mark.parametrize("name", [name for name in NAMES if "," not in name and name == name.strip()])
def test_names_in_lists_are_too(name):
    if name[0] not in "'\"":
        assert read(f"image=[{name},b.jpg]") == [name, "b.jpg"]
        assert read(f"mask=[null, {name}]") == [None, name]


@pytest.mark.parametrize(
    "argument, value",
    [
        ("mask=null", None),
        ("image=", ""),
        ("image=[]", []),
        ("image=[ ]", []),
        ("image=[a.jpg]", ["a.jpg"]),
        ("image=[a.jpg, b c.jpg]", ["a.jpg", "b c.jpg"]),
        ("image=['a,b.png',c.png]", ["a,b.png", "c.png"]),
        ("image='quoted already.png'", "quoted already.png"),
        ('image="quoted (1).png"', "quoted (1).png"),
        ("run.dir=${inversion}/x", "${inversion}/x"),
        ("box=[1,2,3,4]", [1, 2, 3, 4]),
        ("limit=3", 3),
    ],
)
def test_what_is_no_plain_name_keeps_its_meaning(argument, value):
    assert read(argument) == value


def test_a_file_that_is_there_is_never_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[1]").touch()
    (tmp_path / "'x'").touch()
    assert read("image=[1]") == "[1]"
    assert read("image='x'") == "'x'"


def test_no_choice_of_a_group_is_said_with_null():
    assert overrides_of(["refine=null", "limit=null", "data.split=null"], CONFIGS) == [
        "~refine", "limit=null", "data.split=null",
    ]  # fmt: skip
    shared = ["image=a.png", "method=nerfinv"]
    assert composed("reconstruct", [*shared, "refine=null"]).get("refine") is None
    assert composed("reconstruct", shared)["refine"]["_target_"]


CUB = "experiment=meshinv_invert_cub"


@pytest.mark.parametrize(
    "script, arguments, said",
    [
        ("invert", ["experiment=meshinv_invert_cbu"], "cbu: there is none; did you mean meshinv_invert_cub?"),
        ("invert", [CUB, "data=cbu"], "data=cbu: there is none; did you mean cub?"),
        ("train", ["experiment=meshinv_pretrain_cub", "preset=meshinv_gan/smal"], "did you mean meshinv_gan/small?"),
        ("reconstruct", ["imge=a.png"], "imge=...: there is no such setting; did you mean image?"),
        ("reconstruct", ["metod=nerfinv"], "did you mean method?"),
        ("reconstruct", ["method=zzzz"], "there are meshinv, nerfinv"),
        ("invert", [CUB, "batchsize=3"], "did you mean batch_size?"),
        ("invert", [CUB, "inverter.renderer.siz=3"], "did you mean inverter.renderer.size?"),
        ("invert", [CUB, "generator.path=x"], "did you mean prior.generator.path?"),
        ("invert", [CUB, "inverter.init.count=3"], "++inverter.init.count=... sets what the files leave out"),
        ("invert", [CUB, "objective=meshinv"], "did you mean objective@inverter.objective?"),
        ("invert", [CUB, "~batch_sizze"], "did you mean batch_size?"),
        ("invert", [CUB, "batch_size"], "batch_size: a setting is given as name=value"),
        ("invert", [CUB, "batch_size=1,2"], "batch_size=[1,2] is a list, and -m"),
        ("invert", [CUB, "run.name=a(b"], "quote it twice: \"run.name='a(b'\""),
        ("invert", [], "experiment=... is missing"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line_with_what_was_meant(script, arguments, said):
    with pytest.raises(ValueError) as refusal:
        composed(script, arguments)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_keys_beside_are_nearer_than_keys_elsewhere():
    known = ["run", "run.name", "data", "data.root", "task.data.root", "a.b.count", "a.b._target_"]
    assert nearest_key("data.rot", known) == "data.root"
    assert nearest_key("cont", known) == "a.b.count"
    assert nearest_key("a.b.target", known) is None
    assert nearest_key("qqqqq", known) is None


def test_a_misspelt_argument_of_a_constructor_is_told_with_its_place():
    node = {"_target_": "torch.optim.SGD", "_partial_": True, "learning_rat": 1.0}
    nested = {"_target_": "invkit.inversion.schedule.Stage", "steps": 1, "latent_rate": 1.0, "camera_rat": 0.1}
    with pytest.raises(ValueError, match=r"parts\[0\].camera_rat: .*did you mean camera_rate"):
        instantiate_trusted({"parts": [nested], "other": node})
