"""The command `twins-dense`, also as `python -m twins_dense`, which is what torchrun can start."""

from .stopping import stoppable


def main() -> None:
    """Run the command line. Ctrl-C and SIGTERM end it with one line, also while modules are imported."""
    with stoppable():
        from .cli import main as run

        run()


if __name__ == "__main__":
    main()
