"""Run `twins-dense train` or `twins-dense eval` with the arguments of detectron2's own training script.

python tools/train_net.py --config-file CONFIG --num-gpus 8 [--resume] [KEY=VALUE]...
python tools/train_net.py --config-file CONFIG --eval-only train.init_checkpoint=model_final.pth
"""

import sys

from twins_dense.cli import run
from twins_dense.errors import TwinsError
from twins_dense.frameworks import console
from twins_dense.frameworks.shipped_configs import find_config


def main() -> None:
    from twins_dense.frameworks.detectron2 import engine  # first, because its error says how to install detectron2

    # isort: split
    from detectron2.engine import default_argument_parser

    args = default_argument_parser().parse_args()
    if not args.config_file:
        raise TwinsError("no --config-file: give a file, or a name from `twins-dense configs list 'detectron2/*'`")
    options = args.opts
    if options and not any("=" in option for option in options):  # KEY VALUE KEY VALUE, as in CfgNode's command lines
        options = [f"{key}={value}" for key, value in zip(options[::2], options[1::2], strict=False)]
    config = engine.load_config(find_config(args.config_file), options)
    launch = {key: getattr(args, key) for key in ("num_gpus", "num_machines", "machine_rank", "dist_url")}
    folder, checkpoint = engine.default_work_dir(config), config.train.init_checkpoint
    console.show_on(sys.stdout)
    if not args.eval_only:
        # As in detectron2, --resume starts a new run if there is none to resume.
        engine.train(config, folder, resume=args.resume and (folder / "last_checkpoint").exists(), launch=launch)
    elif checkpoint:
        metrics = engine.evaluate(config, checkpoint, folder / "inference", launch=launch)
        print(console.evaluation_table(metrics))
    else:
        raise TwinsError("--eval-only needs train.init_checkpoint=FILE (for a YAML file MODEL.WEIGHTS=FILE)")


if __name__ == "__main__":
    run(main)
