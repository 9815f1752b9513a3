"""The `midstream` command; its parts are in `pipelines.commands`."""

from __future__ import annotations

import os
from typing import Any

# TensorFlow and Beam say much at start that a user can do nothing about; their errors still come through.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import click

from pipelines.commands import clusters, detect, guard, jobs, move_log, operate, run


class _Errors(click.Group):
    """Expected errors end the command with one clear message instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
        except Exception as error:
            if type(error).__module__.split(".")[0] in ("models", "transforms", "runners", "pipelines"):
                raise click.ClickException(str(error)) from error
            raise


@click.group(cls=_Errors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="midstream")
def main() -> None:
    """Keep a TensorFlow model predicting on a stream while the model is replaced.

    \b
    See it work:              midstream run electricity
    What a template takes:    midstream run serve --help
    Serve a model of yours:   midstream publish --registry models --model price --activate SAVED_MODEL
                              midstream run serve --param registry=models --param model=price --param input=data.csv
    Replace it, live:         midstream publish --registry models --model price --activate BETTER_MODEL
    """


for command in (
    *(run.run, run.replay, run.list_templates, clusters.submit, clusters.cluster, jobs.jobs),
    *(operate.publish, operate.activate, operate.canary, operate.shadow, operate.promote, operate.rollback, operate.pause),
    *(operate.status, operate.log, operate.versions, guard.guard, move_log.move_log),
    detect.save_detector,
):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="midstream")
