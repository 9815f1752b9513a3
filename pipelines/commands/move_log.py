"""`midstream move-log`: the activation log of a model in a Kafka topic."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.common import MODEL, REGISTRY


@click.command("move-log", short_help="Keep the log of a model in a Kafka topic.")
@REGISTRY
@MODEL
@click.option("--bootstrap", required=True, metavar="HOST:PORT", help="Some of the brokers, with commas between them.")
@click.option("--topic", required=True, help="Made if it is not there: one partition, nothing is ever removed.")
@click.option(
    "--client-config",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Lines of name=value for the Kafka client: security.protocol, sasl.username and so on. At this path on all machines.",
)
def move_log(registry: str, model: str, bootstrap: str, topic: str, client_config: str | None) -> None:
    """Keep the activation log of a model in a Kafka topic from now on.

    Operators and jobs then need not share a disk for it, and any number of them may write, also where the registry is an object
    store. All commands and jobs work as before; those that run follow by themselves. What the log has is copied. There is no
    way back to files.

    With a registry of one's own on another machine (with copies of the versions), the same command joins it to the topic.
    """
    from models.activation_log import ActivationLog
    from models.log_store import TopicPlace
    from models.log_topic import make_topic

    config = None if client_config is None else str(Path(client_config).absolute())
    place = TopicPlace(bootstrap, topic, config)
    log = ActivationLog(registry, model)
    if log.topic is None:
        make_topic(place)
    entries = log.move(place)
    click.echo(f"the log of {model}, {entries} entries, is in topic {topic} at {bootstrap}; jobs that run follow it there")
