"""detectron2's usual script: `twins-dense train` and `eval` with the arguments that its users know.

python tools/train_net.py --config-file CONFIG --num-gpus 8 [--resume] [KEY=VALUE]...
python tools/train_net.py --config-file CONFIG --eval-only train.init_checkpoint=model_final.pth
"""

from twins_dense.cli import run
from twins_dense.errors import TwinsError
from twins_dense.frameworks.shipped_configs import find_config


def main() -> None:
    from twins_dense.frameworks.detectron2 import engine  # first: it says how to install detectron2

    # isort: split
    from detectron2.engine import default_argument_parser

    args = default_argument_parser().parse_args()
    if not args.config_file:
        raise TwinsError("no --config-file: give a file of configs/detectron2")
    options = args.opts
    if options and not any("=" in option for option in options):  # KEY VALUE KEY VALUE, as CfgNode's users write
        options = [f"{key}={value}" for key, value in zip(options[::2], options[1::2], strict=False)]
    config = engine.load_config(find_config(args.config_file), options)
    launch = {key: getattr(args, key) for key in ("num_gpus", "num_machines", "machine_rank", "dist_url")}
    folder, checkpoint = engine.default_work_dir(config), config.train.init_checkpoint
    if not args.eval_only:
        # As in detectron2, where there is nothing to resume a run starts.
        engine.train(config, folder, resume=args.resume and (folder / "last_checkpoint").exists(), launch=launch)
    elif checkpoint:
        engine.evaluate(config, checkpoint, folder / "inference", launch=launch)
    else:
        raise TwinsError("--eval-only needs train.init_checkpoint=FILE (of a YAML file MODEL.WEIGHTS=FILE)")


if __name__ == "__main__":
    run(main)
