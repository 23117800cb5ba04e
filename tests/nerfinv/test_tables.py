"""Tables of radiance-field inversion: rows search what their labels say, and a table is made."""

import json

import pytest

from tests.nerfinv.test_encoder_scripts import PICTURES, generator
from tests.nerfinv.test_inversion_scripts import encoder
from tests.test_table import TABLES, composed, run, script

__all__ = ["encoder", "generator", "run", "script"]

MINE = [name for name in TABLES if name.startswith("nerfinv_") and "figure" not in name]
STEPS = {"0": 0, "10 (fast)": 10, "30 (slow)": 30, "adaptive": 30}
TERMS = {
    "warped LPIPS": {"perceptual"}, "LPIPS": {"perceptual"}, "L1": {"l1"}, "MSE": {"mse"},
    "warped LPIPS + L1": {"perceptual", "l1"},
}  # fmt: skip


@pytest.mark.parametrize("table", MINE)
def test_rows_search_by_what_their_labels_say(script, table):
    config = composed("table", f"table={table}")
    rows = {name: row for name, row in config["table"]["rows"].items() if row["overrides"] is not None}
    assert {"n0", "fast", "slow", "adaptive"} <= rows.keys()
    for row in rows.values():
        if "experiment" in row:
            continue  # of another method
        steps, loss, camera, styles = map(str, row["labels"])
        inverter = composed("invert", *script.overrides(config, row))["inverter"]
        assert inverter["stages"]["steps"] == STEPS[steps]
        assert ("stall" in inverter) is (steps == "adaptive")
        poses = inverter["init"]["poses"]["_target_"]
        assert poses.endswith("PoseSolver" if camera.startswith("PnP") else "load_module")
        if steps == "0":
            continue
        assert inverter.get("optimize_camera", True) is camera.endswith("tuned")
        terms = inverter["objective"]["terms"]
        assert terms.keys() == TERMS[loss]
        assert inverter["init"]["split"] is (styles == "W+")
        if "perceptual" in terms:
            assert (terms["perceptual"]["function"]["warps"] > 0) is loss.startswith("warped")


def test_the_papers_order_is_in_its_numbers():
    for name in MINE:
        rows = composed("table", f"table={name}")["table"]["rows"]
        none, fast, slow = (rows[row]["paper"] for row in ("n0", "fast", "slow"))
        for column in {"IoU", "PSNR", "SSIM"} & none.keys():
            assert none[column] < fast[column] < slow[column]
        # The paper's FID of airplanes and zebras becomes worse with every step.
        worse = name.endswith(("airplane", "zebra"))
        assert (slow["FID"] < none["FID"]) is not worse


def test_the_pose_table_is_in_the_tables_of_synthetic_data():
    def errors(table: str) -> list[float | None]:
        rows = composed("table", f"table={table}")["table"]["rows"]
        return [rows.get(row, {}).get("paper", {}).get("rotation_error") for row in ("pix2nerf", "regressed_n0", "n0")]

    assert errors("nerfinv_shapenet") == [None, 17.08, 10.84]
    assert errors("nerfinv_shapenet_chairs") == [15.55, 19.51, 7.29]
    assert errors("nerfinv_carla") == [4.23, 3.21, 1.08]


def test_meshinv_is_measured_as_fields_are(script):
    config = composed("table", "table=nerfinv_table1_cub")
    row = config["table"]["rows"]["meshinv"]
    line = script.overrides(config, row)
    assert line == ["experiment=meshinv_invert_cub", "prior.generator.path=runs/meshinv_pretrain_cub"]
    said = composed("evaluate", *line, *script.of_evaluation(config, row))
    assert (said["data"]["size"], said["inverter"]["renderer"]["size"]) == (128, 128)
    assert {said["protocol"][name]["background"] for name in ("nerfinv_input", "nerfinv_random_released")} == {0.0}


def test_the_other_test_set_of_cars_is_looked_at_from_the_places_of_training():
    said = composed("evaluate", "experiment=nerfinv_invert_p3d_car_imagenet")
    assert said["data"]["without"] == "datasets/p3d/p3d_car/detections.npy"
    assert said["training_data"]["_target_"].endswith("Pascal3D.for_nerfinv")
    assert said["inverter"]["init"]["poses"]["focals"]["data"]["root"] == "datasets/p3d"


@pytest.mark.filterwarnings("ignore:fid@")
def test_a_table_is_made(run, script, data, generator, encoder, tmp_path):
    rows = ("n0", "l1", "regressed")
    wanted = composed("table", "table=nerfinv_synthetic_cars")["table"]["rows"]
    small = [*PICTURES, "data.size=32", f"data.root={data['synthetic_cars']}"]
    settings = [f"table.prior={generator}", f"table.encoder={encoder}", "table.images=1", "table.network=random"]
    out = [f"~table.rows.{row}" for row in wanted if row not in rows]
    run(
        "table=nerfinv_synthetic_cars", *settings, *out, f"overrides={json.dumps(small)}", f"run.dir={tmp_path}",
        "run.device=cpu",
    )  # fmt: skip
    found = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert 0 <= found["n0"]["ours"]["rotation_error"] <= 180
    assert found["l1"]["ours"]["input_PSNR"] > found["n0"]["ours"]["input_PSNR"]
    assert "regressor" in found["regressed"]["missing"]["IoU"]
    assert found["n0"]["paper"]["rotation_error"] == 10.84
    assert found["n0"]["difference"] == {}
