"""detectron2's usual script: `twins-dense train` and `eval` with the arguments that its users know.

python tools/train_net.py --config-file CONFIG --num-gpus 8 [--resume] [KEY=VALUE]...
python tools/train_net.py --config-file CONFIG --eval-only train.init_checkpoint=model_final.pth
"""

from pathlib import Path

from twins_dense.cli import run


def main() -> None:
    from twins_dense.engines import detectron2 as engine  # first: it says how to install detectron2

    # isort: split
    from detectron2.engine import default_argument_parser

    args = default_argument_parser().parse_args()
    config = engine.load_config(args.config_file, args.opts)
    launch = {key: getattr(args, key) for key in ("num_gpus", "num_machines", "machine_rank", "dist_url")}
    folder, checkpoint = config.train.output_dir, config.train.init_checkpoint
    if args.eval_only:
        engine.evaluate(config, checkpoint, Path(folder) / "inference", launch=launch)
    else:
        engine.train(config, folder, resume=args.resume, launch=launch)


if __name__ == "__main__":
    run(main)
