"""Files written the way ConvMesh and MeshInversion write theirs, and files that try to run something."""

import functools
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from invkit.metrics.gaussian import Gaussian
from meshinv.mesh import UVMaps
from meshinv.pseudo_truth import CameraCorrections, write_metadata, write_pseudo_truth
from meshinv.pseudo_truth_set import PseudoTruthSet
from meshinv.published import class_of_folder, read_cameras, read_npz

PROTOCOLS = (2, 3, 4, 5)


def save_npz(path: Path, protocol: int = 4, **members: object) -> None:
    """What np.savez writes, with the pickle protocol of another version of numpy."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            array = np.asanyarray(value)
            file = io.BytesIO()
            if array.dtype.hasobject:
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                pickle.dump(array, file, protocol)
            else:
                np.lib.format.write_array(file, array)
            archive.writestr(f"{name}.npy", file.getvalue())


def pseudo_truth(rng: torch.Generator, size: int = 8) -> dict[str, torch.Tensor]:
    """An item as ConvMesh's reconstruction stage stores it."""
    return {
        "mesh": torch.randn(3, 4, 4, generator=rng),
        "texture": torch.rand(3, size, size, generator=rng).half(),
        "texture_alpha": (torch.rand(1, size, size, generator=rng) > 0.5).half(),
        "image": torch.rand(3, 12, 12, generator=rng).half(),
    }


def poses(paths: list[str]) -> dict[str, object]:
    count = len(paths)
    quat = torch.nn.functional.normalize(torch.arange(1.0, 1 + 4 * count).view(count, 4), dim=1)
    return {
        "scale": torch.linspace(0.5, 0.9, count)[:, None],
        "translation": torch.stack(
            [torch.linspace(-0.1, 0.1, count), torch.linspace(0.2, 0.3, count), torch.zeros(count)], dim=1
        ),
        "rotation": quat,
        "path": paths,
    }


# ---- What is data is read ------------------------------------------------------------------------------------------


def test_a_published_file_is_read(tmp_path, rng):
    item = pseudo_truth(rng)
    np.savez(tmp_path / "0.npz", data=item)
    np.savez_compressed(tmp_path / "1.npz", data=item)
    for name in ("0.npz", "1.npz"):
        found = read_npz(tmp_path / name)
        assert list(found) == ["mesh", "texture", "texture_alpha", "image"]
        for key, tensor in item.items():
            assert found[key].dtype == tensor.numpy().dtype
            np.testing.assert_array_equal(found[key], tensor.numpy())
            found[key][0] = 0  # its own memory, as torch.from_numpy wants it


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_everything_that_data_are_made_of_in_every_protocol(tmp_path, protocol, rng):
    base = torch.arange(24.0).view(4, 6)
    data = {
        "half": torch.rand(3, 5, generator=rng).half(),
        "strided": base.T[1:5, ::2],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "integers": torch.tensor([[1, -2]]),
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "other_bytes": np.array([1, 256], dtype=">i4"),
        "texts": np.array(["a", "bcd"]),
        "objects": np.array(["a/b.jpg", "c/d.jpg"], dtype=object),
        "number": np.float32(0.25),
        "path": ["001.A/x.jpg", "002.B/y.jpg"],
        "count": 3,
        "big": 2**70,
        "sigma": 0.5,
        "none": None,
        "bytes": [b"", b"\x00\xff"],
        "nested": OrderedDict(a=(1, [torch.ones(1)])),
    }
    save_npz(tmp_path / "x.npz", protocol, data=data)
    found = read_npz(tmp_path / "x.npz")
    assert list(found) == list(data)
    for name in ("half", "strided", "expanded", "scalar", "empty", "flags", "parameter", "integers"):
        expected = data[name].detach().numpy()
        assert isinstance(found[name], np.ndarray), name
        assert found[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    for name in ("array", "fortran", "other_bytes", "texts"):
        assert found[name].dtype.isnative
        assert found[name].flags.writeable
        np.testing.assert_array_equal(found[name], data[name])
    assert found["objects"] == ["a/b.jpg", "c/d.jpg"]
    assert found["nested"]["a"][1][0].tolist() == [1.0]
    for name in ("number", "path", "count", "big", "sigma", "none", "bytes"):
        assert found[name] == data[name], name


def test_tensors_of_a_gpu_are_read_without_one(tmp_path):
    content = storage_of(torch.arange(3.0).__reduce_ex__(2)[1][0])
    moved = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert moved != content
    storage = Call(torch.storage._load_from_bytes, moved)
    tensor = Call(torch._utils._rebuild_tensor_v2, storage, 1, (2,), (1,), False, OrderedDict())
    np.savez(tmp_path / "x.npz", data={"mesh": tensor})
    assert read_npz(tmp_path / "x.npz")["mesh"].tolist() == [1.0, 2.0]


def test_names_of_older_versions_of_numpy_are_known(tmp_path):
    """numpy 2 calls numpy.core numpy._core."""
    entry = {"scale": np.full((1, 1), 0.5), "translation": np.zeros((1, 3)), "rotation": np.eye(4)[:1]}
    content = pickle.dumps([entry], 2)
    assert b"cnumpy._core.multiarray\n" in content or b"cnumpy.core.multiarray\n" in content
    for core in (b"core", b"_core"):
        renamed = content.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", b"numpy." + core + b".")
        (tmp_path / "cam.pickle").write_bytes(renamed)
        assert read_cameras(tmp_path / "cam.pickle").scale.tolist() == [0.5]


def test_plain_arrays_are_read_the_same_way(tmp_path):
    np.savez_compressed(tmp_path / "own.npz", mesh=np.ones((3, 2, 2), np.float32), path=np.array(["a", "b"]))
    found = read_npz(tmp_path / "own.npz")
    assert (found["mesh"] == 1).all()
    assert found["path"].tolist() == ["a", "b"]
    np.savez(tmp_path / "data.npz", data=np.arange(3))
    assert read_npz(tmp_path / "data.npz")["data"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("convert", [torch.Tensor.clone, torch.Tensor.numpy])
def test_cameras_are_read(tmp_path, protocol, keyed, convert):
    known = poses(["a", "b", "c"])
    fields = ("scale", "translation", "rotation")
    entries = [{name: convert(known[name][i : i + 1]) for name in fields} for i in range(3)]
    stored = {i: entries[i] for i in (2, 0, 1)} if keyed else entries
    with (tmp_path / "cam_pose_train.pickle").open("wb") as file:
        pickle.dump(stored, file, protocol)
    camera = read_cameras(tmp_path / "cam_pose_train.pickle")
    torch.testing.assert_close(camera.scale, known["scale"][:, 0])
    torch.testing.assert_close(camera.shift, known["translation"][:, :2])
    torch.testing.assert_close(camera.quat, known["rotation"])
    assert (camera.inv_focal == 0).all()


def test_statistics_files_hold_plain_arrays_and_have_their_reader(tmp_path, rng):
    features = torch.randn(50, 6, generator=rng, dtype=torch.float64).numpy()
    covariance = np.cov(features, rowvar=False)
    np.savez(
        tmp_path / "precomputed_fid_299x299_testval.npz",
        stats_m=features.mean(0).astype(np.float32),
        stats_s=np.tril(covariance.astype(np.float32)),
        num_images=50,
        resolution=299,
    )
    read = Gaussian.read(tmp_path / "precomputed_fid_299x299_testval.npz")
    np.testing.assert_allclose(read.covariance.numpy(), covariance, atol=1e-6)
    assert read.count == 50


@pytest.mark.parametrize(
    "image, label",
    [
        ("001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg", 0),
        ("200.Common_Yellowthroat\\x.jpg", 199),
        ("images/014.Indigo_Bunting/x.jpg", 13),
        ("car_imagenet/n02814533_10.JPEG", -1),
        ("001.jpg", -1),
    ],
)
def test_birds_have_their_class_in_their_path(image, label):
    assert class_of_folder(image) == label


# ---- What is not is refused ----------------------------------------------------------------------------------------


class Call:
    """Pickles as a call."""

    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple:
        return self.function, self.args


class Stated(Call):
    """Pickles as a call whose result then gets a state."""

    def __init__(self, state: object, function: object, *args: object) -> None:
        super().__init__(function, *args)
        self.state = state

    def __reduce__(self) -> tuple:
        return self.function, self.args, self.state


def storage_of(value: object) -> bytes:
    """The bytes torch would store for a storage, with something else in its place."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def storage() -> object:
    """Of four numbers, as a tensor pickles it."""
    return torch.ones(4).__reduce_ex__(2)[1][0]


def tensor_of(content: bytes) -> Call:
    return Call(
        torch._utils._rebuild_tensor_v2,
        Call(torch.storage._load_from_bytes, content),
        0,
        (1,),
        (1,),
        False,
        OrderedDict(),
    )


def attacks(canary: Path) -> dict[str, tuple[object, str]]:
    """Pickles that would leave the file `canary` behind if they were believed, and what they name."""
    command = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    system = Call(os.system, command)
    return {
        "system": (system, "posix.system"),
        "eval": (Call(eval, code), "builtin.*eval"),
        "exec": (Call(exec, code), "builtin.*exec"),
        "open": (Call(open, str(canary), "w"), "io.open"),
        "getattr": (Call(getattr, "", "join"), "getattr"),
        "hub": (Call(torch.hub.load, str(canary.parent), "model", "local"), "torch.hub.load"),
        "torch.load": (Call(torch.load, str(canary)), "torch.*load"),
        "partial": (Call(functools.partial(os.system, command)), "functools.partial"),
        "numpy": (Call(np.save, str(canary), 1), "numpy.*save"),
        "in a list": ([1, {"x": (system,)}], "posix.system"),
        "in an array": (np.array([1, system], dtype=object), "posix.system"),
        "in an array in an array": (np.array([np.array([system], dtype=object), 1], dtype=object), "posix.system"),
        "in a storage": (tensor_of(storage_of(system)), "posix.system"),
        "in a storage's storage": (tensor_of(storage_of(tensor_of(storage_of(system)))), "posix.system"),
        "as a tensor's hooks": (
            Call(torch._utils._rebuild_tensor_v2, storage(), 0, (1,), (1,), False, system),
            "posix.system",
        ),
        "as a state": (Stated({"x": system}, OrderedDict), "posix.system"),
        "as a key": ({system: 1}, "posix.system"),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", list(attacks(Path("canary"))))
def test_a_file_that_would_run_something_is_refused_and_nothing_runs(tmp_path, name, protocol):
    canary = tmp_path / "canary"
    (tmp_path / "hubconf.py").write_text(f"def model():\n    open({str(canary)!r}, 'w')\n")
    payload, named = attacks(canary)[name]
    save_npz(tmp_path / "bad.npz", protocol, data={"texture": payload})
    (tmp_path / "bad.pickle").write_bytes(pickle.dumps([{"scale": payload}], protocol))
    for read, file in ((read_npz, "bad.npz"), (read_cameras, "bad.pickle")):
        with pytest.raises(ValueError, match=f"(?s){file} names .*({named})"):
            read(tmp_path / file)
    assert not canary.exists()


def test_the_attacks_work_on_a_reader_that_believes_them(tmp_path):
    """Else their being refused would show nothing."""
    canary = tmp_path / "canary"
    for name in ("system", "eval", "open", "in a list", "in an array"):
        content = pickle.dumps(attacks(canary)[name][0])
        pickle.Unpickler(io.BytesIO(content)).load()
        assert canary.exists(), name
        canary.unlink()


@pytest.mark.parametrize(
    "payload, message",
    [
        (np.zeros(2, dtype=[("a", "f4"), ("b", "O")]), "array of"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "array of"),
        (Stated((3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 8, 0), np.dtype, "V8"), "array of"),
        (Stated((3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 8, 0), np.dtype, "f8"), "records"),
        (Stated({"_call": 1}, getattr), "getattr"),
        (torch.Size([1]), "torch.Size"),
        (torch.float16, "torch.float16"),
        (Path("x"), "pathlib"),
        (range(3), "range"),
    ],
)
def test_other_things_than_data_are_refused(tmp_path, payload, message):
    np.savez(tmp_path / "x.npz", data={"field": payload})
    with pytest.raises(ValueError, match=message):
        read_npz(tmp_path / "x.npz")


def test_a_pickle_cannot_alter_its_reader(tmp_path):
    """A state given to a function itself, which pickle would set as its attributes."""
    for module, name in (("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict")):
        for state in (b"}U\x05_callK\x01s", b"N}U\x05_callK\x01s\x86"):
            content = b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n" + state + b"b."
            (tmp_path / "x.pickle").write_bytes(content)
            with pytest.raises(ValueError, match="state of a function"):
                read_cameras(tmp_path / "x.pickle")
    known = poses(["a"])
    np.savez(tmp_path / "sound.npz", data=known)
    np.testing.assert_array_equal(read_npz(tmp_path / "sound.npz")["scale"], known["scale"].numpy())


@pytest.mark.parametrize(
    "offset, size, stride",
    [(0, (5,), (1,)), (4, (1,), (1,)), (-1, (2,), (1,)), (0, (2, 2), (3, 1)), (3, (2,), (-1,)), (0, (-1,), (1,))],
)
def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path, offset, size, stride):
    tensor = Call(torch._utils._rebuild_tensor_v2, storage(), offset, size, stride, False, OrderedDict())
    np.savez(tmp_path / "x.npz", data={"mesh": tensor})
    with pytest.raises(ValueError, match=r"x\.npz is damaged"):
        read_npz(tmp_path / "x.npz")
    # Rows without numbers have a length too.
    empty = Call(torch._utils._rebuild_tensor_v2, np.zeros((9, 0)), 4, (4,), (1,), False, OrderedDict())
    np.savez(tmp_path / "x.npz", data={"mesh": empty})
    with pytest.raises(ValueError, match=r"x\.npz is damaged"):
        read_npz(tmp_path / "x.npz")


def test_a_list_that_holds_itself_ends(tmp_path):
    endless = []
    endless.append(endless)
    np.savez(tmp_path / "x.npz", data={"path": endless})
    with pytest.raises(ValueError, match="nested deeper"):
        read_npz(tmp_path / "x.npz")


# ---- What is damaged is named --------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_named(tmp_path):
    for read in (read_npz, read_cameras):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read(tmp_path / "nowhere")


def test_a_truncated_file_is_named(tmp_path, rng):
    np.savez(tmp_path / "x.npz", data=pseudo_truth(rng))
    (tmp_path / "x.pickle").write_bytes(pickle.dumps([pseudo_truth(rng)]))
    for name, read in (("x.npz", read_npz), ("x.pickle", read_cameras)):
        whole = (tmp_path / name).read_bytes()
        for length in (0, 1, 40, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(ValueError, match=f"{name} is damaged"):
                read(tmp_path / name)


def test_a_changed_byte_is_noticed(tmp_path, rng):
    np.savez(tmp_path / "x.npz", data=pseudo_truth(rng))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz is damaged.*CRC"):
        read_npz(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x96" + (2**45).to_bytes(8, "little") + b"abc.",  # a bytearray
        b"\x80\x04\x8e" + (2**45).to_bytes(8, "little") + b"abc.",  # bytes
        b"\x80\x02]r" + (2**32 - 1).to_bytes(4, "little") + b".",  # the place of an object among all
    ],
)
def test_a_wrong_length_takes_no_memory(tmp_path, content):
    (tmp_path / "cam.pickle").write_bytes(content)
    with pytest.raises(ValueError, match=r"cam\.pickle is damaged.*(remain|more than)"):
        read_cameras(tmp_path / "cam.pickle")


def test_objects_beside_data_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", mesh=np.ones(3), path=np.array(["a", None], dtype=object))
    with pytest.raises(ValueError, match=r"x\.npz.*it holds object"):
        read_npz(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", data=np.array(["a", "b"], dtype=object))
    with pytest.raises(ValueError, match="data is a list, not a dict"):
        read_npz(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scale": torch.ones(2)}, "camera 1: field scale is float32 .2,., not 1 numbers"),
        ({"rotation": torch.ones(1, 3)}, "camera 1: field rotation .* not 4 numbers"),
        ({"translation": ["a", "b", "c"]}, "camera 1: field translation .* not 3 numbers"),
        ({"scale": torch.tensor([[-0.5]])}, "camera 1 is .* has to be positive"),
        ({"scale": torch.tensor([[torch.nan]])}, "camera 1 is .* has to be positive"),
        ({"translation": np.array([[1e300, 0, 0]])}, "camera 1 is .*"),
        ({"rotation": torch.ones(1, 4)}, "camera 1 is .* a unit quaternion"),
    ],
)
def test_cameras_that_are_none_are_named(tmp_path, change, message):
    entry = {"scale": torch.ones(1, 1), "translation": torch.zeros(1, 3), "rotation": torch.eye(4)[:1]}
    (tmp_path / "cam.pickle").write_bytes(pickle.dumps([entry, {**entry, **change}]))
    with pytest.raises(ValueError, match=f"cam.pickle: {message}"):
        read_cameras(tmp_path / "cam.pickle")


def test_incomplete_cameras_are_named(tmp_path):
    entry = {"scale": torch.ones(1, 1), "translation": torch.zeros(1, 3), "rotation": torch.eye(4)[:1]}
    for content, message in (
        ([{"scale": torch.ones(1, 1)}], "camera 0 has no field translation"),
        ({0: entry, 2: entry}, "keys are not 0 to 1"),
        ({"scale": torch.ones(1, 1)}, "keys are not 0 to 0"),
        ([], "not a list or dict of cameras"),
        (7, "not a list or dict of cameras"),
    ):
        (tmp_path / "cam.pickle").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_cameras(tmp_path / "cam.pickle")


# ---- As training data ----------------------------------------------------------------------------------------------

BIRDS = ["001.Black_footed_Albatross/a.jpg", "003.Sooty_Albatross/b.jpg", "002.Laysan_Albatross/c.jpg"]
CARS = ["car_pascal/2008_000001.jpg", "car_imagenet/n1_1.JPEG", "car_imagenet/n1_2.JPEG", "car_pascal/2008_000002.jpg"]
SHAPES = "file,c1,c2,shape,x\nn1_2.JPEG,red,red,sedan,0\nn1_1.JPEG,blue,red,suv,0\nn1_3.JPEG,red,red,pickup,1\n"


def make_tree(root: Path, paths: list[str], rng: torch.Generator, *, metadata: str) -> list[dict[str, torch.Tensor]]:
    """Files as published; `metadata` is where the released code looks for the poses."""
    items = [pseudo_truth(rng) for _ in paths]
    (root / "pseudogt_512x512").mkdir(parents=True)
    (root / metadata).parent.mkdir(exist_ok=True)
    for i, item in enumerate(items):
        np.savez_compressed(root / f"pseudogt_512x512/{i}", data=item)
    np.savez_compressed(root / metadata, data=poses(paths))
    return items


@pytest.mark.parametrize("metadata", ["poses_metadata.npz", "cache/poses_metadata.npz"])
def test_a_published_folder_is_a_training_set(tmp_path, metadata, rng):
    items = make_tree(tmp_path, BIRDS, rng, metadata=metadata)
    data = PseudoTruthSet(tmp_path / "pseudogt_512x512", num_classes=200, image_size=12)
    assert data.names == BIRDS
    both = data.batch([2, 1])
    assert both.label.tolist() == [1, 2]
    for row, i in enumerate((2, 1)):
        torch.testing.assert_close(both.maps.texture[row], items[i]["texture"].float())
        torch.testing.assert_close(both.maps.displacement[row], items[i]["mesh"])
        torch.testing.assert_close(both.alpha[row], items[i]["texture_alpha"].float())
        torch.testing.assert_close(both.image[row], items[i]["image"].float())
        known = poses(BIRDS)
        torch.testing.assert_close(both.camera.scale[row], known["scale"][i, 0])
        torch.testing.assert_close(both.camera.shift[row], known["translation"][i, :2])
        torch.testing.assert_close(both.camera.quat[row], known["rotation"][i])
    assert PseudoTruthSet(tmp_path / "pseudogt_512x512", min_iou=0.9)[0].label is None


def test_the_metadata_may_be_anywhere(tmp_path, rng):
    make_tree(tmp_path / "cub", BIRDS, rng, metadata="../elsewhere/poses_metadata_x.npz")
    folder = tmp_path / "cub/pseudogt_512x512"
    assert len(PseudoTruthSet(folder, metadata=tmp_path / "elsewhere/poses_metadata_x.npz")) == 3
    with pytest.raises(FileNotFoundError, match="none beside it"):
        PseudoTruthSet(folder)
    with pytest.raises(FileNotFoundError, match=r"poses\.npz"):
        PseudoTruthSet(folder, metadata=tmp_path / "poses.npz")


def test_the_photograph_of_256_pixels_comes_first(tmp_path, rng):
    item = make_tree(tmp_path, BIRDS[:1], rng, metadata="poses_metadata.npz")[0]
    larger = torch.rand(4, 16, 16, generator=rng).half()  # with its mask
    np.savez(tmp_path / "pseudogt_512x512/0.npz", data={**item, "image_256": larger})
    image = PseudoTruthSet(tmp_path / "pseudogt_512x512", image_size=16)[0].image
    torch.testing.assert_close(image[0], larger[:3].float())


def test_cameras_of_their_own_file(tmp_path, rng):
    make_tree(tmp_path, BIRDS, rng, metadata="cache/poses_metadata.npz")
    cameras = [
        {
            "scale": torch.full((1, 1), 0.3 + i / 10),
            "translation": torch.zeros(1, 3),
            "rotation": torch.eye(4)[i : i + 1],
        }
        for i in range(3)
    ]
    path = tmp_path / "cache/cam_pose_train.pickle"
    path.write_bytes(pickle.dumps(cameras))
    data = PseudoTruthSet(tmp_path / "pseudogt_512x512", cameras=path)
    assert data[1].camera.scale.item() == pytest.approx(0.4)
    torch.testing.assert_close(data[2].camera.quat, torch.eye(4)[2:3])
    path.write_bytes(pickle.dumps(cameras[:2]))
    with pytest.raises(ValueError, match=r"cam_pose_train.pickle: 2 cameras for 3 images"):
        PseudoTruthSet(tmp_path / "pseudogt_512x512", cameras=path)


def test_cars_from_imagenet_keep_the_numbers_of_their_files(tmp_path, rng):
    items = make_tree(tmp_path, CARS, rng, metadata="poses_metadata.npz")
    (tmp_path / "p3d_labels.csv").write_text(SHAPES)
    data = PseudoTruthSet(
        tmp_path / "pseudogt_512x512",
        num_classes=3,
        path_prefix="car_imagenet",
        labels_file=tmp_path / "p3d_labels.csv",
    )
    assert data.names == CARS[1:3]
    assert data.labels.tolist() == [2, 1]  # pickup, sedan, suv
    both = data.batch([0, 1])
    assert (both.label.tolist(), both.index.tolist()) == ([2, 1], [0, 1])
    for row, i in enumerate((1, 2)):
        torch.testing.assert_close(both.maps.displacement[row], items[i]["mesh"])
        torch.testing.assert_close(both.camera.quat[row], poses(CARS)["rotation"][i])


def test_images_without_a_label_are_named(tmp_path, rng):
    make_tree(tmp_path, CARS, rng, metadata="poses_metadata.npz")
    folder, labels = tmp_path / "pseudogt_512x512", tmp_path / "p3d_labels.csv"
    labels.write_text(SHAPES)
    with pytest.raises(ValueError, match=r"p3d_labels.csv: .* from -1 .* car_pascal/2008_000001.jpg has -1"):
        PseudoTruthSet(folder, num_classes=3, labels_file=labels)
    with pytest.raises(ValueError, match=r"poses_metadata.npz: .* from -1 to -1"):
        PseudoTruthSet(folder, num_classes=3)
    with pytest.raises(ValueError, match=r"num_classes=2"):
        PseudoTruthSet(folder, num_classes=2, labels_file=labels, path_prefix="car_imagenet")
    with pytest.raises(ValueError, match="no path starts with path_prefix='aeroplane'"):
        PseudoTruthSet(folder, path_prefix="aeroplane")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rotation": None}, "no field rotation"),
        ({"scale": torch.ones(3)}, "field scale is .3,., not .3, 1."),
        ({"rotation": torch.ones(3, 4)}, "a unit quaternion"),
        ({"z0": torch.ones(3, 1)}, "field z0"),
        ({"path": BIRDS[:2]}, "not .2, 1."),
    ],
)
def test_poses_that_are_none_are_named(tmp_path, change, message, rng):
    make_tree(tmp_path, BIRDS, rng, metadata="poses_metadata.npz")
    changed = {name: value for name, value in {**poses(BIRDS), **change}.items() if value is not None}
    np.savez(tmp_path / "poses_metadata.npz", data=changed)
    with pytest.raises(ValueError, match=f"poses_metadata.npz.*{message}"):
        PseudoTruthSet(tmp_path / "pseudogt_512x512")


@pytest.mark.parametrize(
    "change, message",
    [({"mesh": None}, "no field mesh"), ({"texture": torch.ones(8, 8)}, "field texture is .8, 8.")],
)
def test_items_that_are_none_are_named(tmp_path, change, message, rng):
    item = make_tree(tmp_path, BIRDS, rng, metadata="poses_metadata.npz")[1]
    data = PseudoTruthSet(tmp_path / "pseudogt_512x512")
    changed = {name: value for name, value in {**item, **change}.items() if value is not None}
    np.savez(tmp_path / "pseudogt_512x512/1.npz", data=changed)
    with pytest.raises(ValueError, match=rf"1\.npz: {message}"):
        data[1]


def test_a_file_too_few_is_noticed(tmp_path, rng):
    make_tree(tmp_path, BIRDS, rng, metadata="cache/poses_metadata.npz")
    (tmp_path / "pseudogt_512x512/1.npz").unlink()
    with pytest.raises(ValueError, match="2 pseudo-truth files for 3 poses"):
        PseudoTruthSet(tmp_path / "pseudogt_512x512")


def test_own_and_published_files_of_the_same_thing_are_the_same(tmp_path, rng):
    items = make_tree(tmp_path, BIRDS, rng, metadata="poses_metadata.npz")
    published = PseudoTruthSet(tmp_path / "pseudogt_512x512", num_classes=3, image_size=12)
    for i, item in enumerate(items):
        maps = UVMaps(item["texture"][None].float(), item["mesh"][None])
        write_pseudo_truth(tmp_path / "own", i, maps, item["texture_alpha"][None].float(), item["image"][None].float())
    write_metadata(
        tmp_path / "own",
        paths=BIRDS,
        labels=torch.tensor([0, 2, 1]),
        camera=published.batch([0, 1, 2]).camera,
        corrections=CameraCorrections(3),
        iou=torch.ones(3),
    )
    own = PseudoTruthSet(tmp_path / "own", num_classes=3, image_size=12)
    for i in range(3):
        for name in ("alpha", "label", "image"):
            assert torch.equal(getattr(own[i], name), getattr(published[i], name))
        assert torch.equal(own[i].maps.texture, published[i].maps.texture)
        assert torch.equal(own[i].maps.displacement, published[i].maps.displacement)
        assert torch.equal(own[i].camera.shift, published[i].camera.shift)
