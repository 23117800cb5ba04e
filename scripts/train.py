"""Train the weights of one experiment.

    python scripts/train.py experiment=meshinv_pretrain_cub
    torchrun --nproc_per_node=4 scripts/train.py experiment=meshinv_pretrain_cub

Run the same command again to resume. Exit status 75 means that a signal stopped the run after it saved its state: run
the same command again.
"""

from omegaconf import DictConfig

from invkit.runtime.run import Run, instantiate_trusted, main
from invkit.train.loop import fit


@main(config_name="train")
def train(cfg: DictConfig) -> None:
    with Run(cfg) as run:
        task = instantiate_trusted(cfg.task)
        fit(task, run, cfg.steps, save_every=cfg.save_every, report_every=cfg.report_every)


if __name__ == "__main__":
    train()
