r"""`python -m baselines study | report | shift | deform | rotmnist | vit | finetune`: the command lines."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool


def main(arguments: Sequence[str] | None = None) -> int:
    r"""Run one command; a fault of the user's is one line on standard error and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m baselines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    try:
        import baselines.finetune.command as finetune
        import baselines.rotmnist.command as rotmnist
        import baselines.shift.command as shift
        import baselines.study.command as study
        import baselines.vit.command as vit
        from baselines.study import report
        from baselines.study.parts import deform
    except ImportError as error:
        return _say(f"study: expected its extra to be installed, got: {error}. pip install 'equilayers[study]'", 2)
    modules = {"study": study, "report": report, "shift": shift, "deform": deform, "rotmnist": rotmnist, "vit": vit}
    modules["finetune"] = finetune
    for name, module in modules.items():
        module.add_arguments(commands.add_parser(name, help=module.__doc__, description=module.__doc__))
    args = parser.parse_args(arguments)
    try:
        modules[args.command].main(args)
    except KeyboardInterrupt:
        return _say("interrupted; --resume goes on with the finished runs", 130)
    except BrokenProcessPool:
        return _say("study: a worker was killed, perhaps for memory; --resume goes on, --workers 1 needs less", 1)
    except (ValueError, OSError, ImportError) as error:
        return _say(error, 2)
    return 0


def _say(message: object, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
