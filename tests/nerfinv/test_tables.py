"""Tables of radiance-field inversion: rows search what their labels say, and a table is made."""

import json

import pytest

from tests.nerfinv.test_encoder_scripts import PICTURES, generator
from tests.nerfinv.test_inversion_scripts import encoder
from tests.test_table import TABLES, composed, run, script

__all__ = ["encoder", "generator", "run", "script"]

MINE = [name for name in TABLES if name.startswith("nerfinv_")]
STEPS = {"0": 0, "10 (fast)": 10, "30 (slow)": 30, "adaptive": 30}
TERMS = {
    "warped LPIPS": {"perceptual"}, "LPIPS": {"perceptual"}, "L1": {"l1"}, "MSE": {"mse"},
    "warped LPIPS + L1": {"perceptual", "l1"},
}  # fmt: skip


@pytest.mark.parametrize("table", MINE)
def test_rows_search_by_what_their_labels_say(script, table):
    config = composed("table", f"table={table}")
    rows = {name: row for name, row in config["table"]["rows"].items() if row["overrides"] is not None}
    assert {"n0", "fast", "slow", "adaptive", "regressed_n0"} <= rows.keys()
    for row in rows.values():
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
        assert slow["FID"] < none["FID"]


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
