"""The main job on data made on the spot: photographs of birds in, textured meshes out. No GPU, nothing to download.

    make demo
    python scripts/demo.py count=32

Held-out synthetic birds are painted, then inverted with the small prior in meshinv/checkpoints. In runs/demo:
images/reconstructions.png (photograph, reconstruction, novel views), meshes/*.glb, records/, result.json with the mask
IoU before and after the search, and evaluation/result.json with the numbers of the table that is printed.
"""

from evaluate import evaluate
from export import export
from hydra import compose
from invert import invert
from omegaconf import DictConfig, OmegaConf

from invkit.data.synthetic import write_birds
from invkit.run import main


@main(config_name="demo")
def demo(cfg: DictConfig) -> None:
    # The seed differs from that of the training birds, so these are birds the prior has never seen.
    write_birds(cfg.data.root, train=2, val=2, test=cfg.count, seed=cfg.birds_seed, novel_views=0)
    invert(cfg)
    folder = cfg.run.dir
    export(OmegaConf.merge(cfg, {"inversion": folder, "run": {"dir": f"{folder}/meshes"}}))
    same = [f"data.root={cfg.data.root}", f"prior.generator.path={cfg.prior.generator.path}"]
    same += [f"run.device={cfg.run.device}", f"protocols=[{','.join(cfg.measured)}]"]
    evaluate(compose("evaluate", ["experiment=meshinv_invert_synthetic", f"inversion={folder}", *same]))


if __name__ == "__main__":
    demo()
