"""Measure the records of an inversion: render them again and compare with the data set at the input view.

    python scripts/evaluate.py experiment=meshinv_invert_synthetic
    python scripts/evaluate.py experiment=meshinv_invert_synthetic inversion=/scratch/my_run

Prints a table and writes result.json to <inversion>/evaluation.
"""

from pathlib import Path

from omegaconf import DictConfig

from invkit.evaluate import evaluate as measure
from invkit.records import RecordStore
from invkit.run import Run, instantiate_trusted, main


@main(config_name="evaluate")
def evaluate(cfg: DictConfig) -> None:
    with Run(cfg) as run:
        prior = instantiate_trusted(cfg.prior).to(run.device)
        renderer = instantiate_trusted(cfg.inverter.renderer)
        dataset = instantiate_trusted(cfg.data)
        store = RecordStore(Path(cfg.inversion) / "records")
        metrics = instantiate_trusted(cfg.metrics)
        result = measure(store, prior, renderer, dataset, metrics, batch_size=cfg.batch_size, device=run.device)
        run.result({"protocol": cfg.protocol, **result})
        if run.rank == 0:
            for line in table(result):
                run.log.message(line)


def table(result: dict) -> list[str]:
    """One line for each image and one for all of them."""
    lines = [f"{'IoU before':>10} {'after':>7}  image"]
    for name, image in result["images"].items():
        if "iou_after" in image:
            lines.append(f"{image['iou_before']:10.3f} {image['iou_after']:7.3f}  {name}")
        else:
            lines.append(f"{'-':>10} {'-':>7}  {name}: {image['status']}")
    if result["count"]:
        lines.append(f"{result['iou_before']:10.3f} {result['iou_after']:7.3f}  mean of {result['count']}")
    lines += [f"{value:10.4g}          {name}" for name, value in result["metrics"].items()]
    if result["missing"]:
        lines.append(f"{len(result['missing'])} images have no record yet")
    return lines


if __name__ == "__main__":
    evaluate()
