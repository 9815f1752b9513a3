"""The template `serve-kafka` over a real broker: records from topics, predictions into topics, each once."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka.admin import NewTopic

from models.activation_log import Activation, ActivationLog
from models.kafka_client import KafkaClient, KafkaDataLost, KafkaUnavailable
from models.registry import Registry
from pipelines import template as templates
from pipelines.execute import Execution
from pipelines.replay import Comparison, compare, replay_of
from pipelines.resolve import JobError
from pipelines.template import TemplateError
from runners.local_kafka import kafka_broker
from runners.micro_batch import Stop
from runners.processes import free_ports
from tests.kafka import Cluster
from tests.pipelines import jobs
from tests.pipelines.test_live_swap import AfterCommit, at, check_every_prediction, midstream

COLUMNS = "time:string,id:int64,a:float64,b:float64"
PARTITIONS = 3


def send(kafka: Cluster, topic: str, table: pa.Table, *, seed: int = 7, disorder: int = 10) -> None:
    """Spreads records over the partitions, within each of them out of order by a few seconds."""
    draw = np.random.default_rng(seed)
    order = np.argsort(np.arange(table.num_rows) + draw.uniform(0, disorder, table.num_rows), kind="stable")
    partition = draw.integers(0, PARTITIONS, table.num_rows)
    rows = table.to_pylist()
    for number in range(PARTITIONS):
        kafka.send(topic, [rows[place] for place in order if partition[place] == number], number)


@pytest.fixture
def params(kafka: Cluster, tmp_path: Path) -> dict[str, Any]:
    """A model with one live version, a topic of 1,500 records a second apart, and topics for the output."""
    jobs.publish(tmp_path / "registry", jobs.save_module(tmp_path / "saved" / "1", 1.0))
    topic = kafka.topic(PARTITIONS)
    send(kafka, topic, jobs.records(1500).drop_columns(["label"]))
    return {
        "bootstrap": kafka.bootstrap,
        "topic": topic,
        "columns": COLUMNS,
        "time": "time",
        "out_of_orderness": "30s",
        "registry": tmp_path / "registry",
        "model": "line",
        "keep": "id,a,b",
        "predictions_topic": f"{topic}-predictions",
        "dead_letters_topic": f"{topic}-dead",
        "output": tmp_path / "out",
        "micro_batch_records": 200,
    }


def run(params: dict[str, Any], actions: dict[int, Any] | None = None, **more: Any) -> jobs.Ran:
    if actions is None:
        return jobs.run("serve-kafka", **params, **more)
    template, here = templates.load("serve-kafka")
    given = {name: str(value) for name, value in (params | more).items() if value is not None}
    outcome = Execution(template.fill(given, here), progress=AfterCommit(actions)).run()
    return jobs.Ran({}, Path(given["output"]), outcome.finished, outcome.notices)


def in_topic(kafka: Cluster, topic: str) -> list[dict[str, Any]]:
    return sorted(kafka.read(topic), key=lambda row: row["sequence"])


def check_topic(kafka: Cluster, params: dict[str, Any]) -> None:
    """The topic holds what the Parquet files hold."""
    table = jobs.read(params["output"])
    rows = in_topic(kafka, params["predictions_topic"])
    assert [row["sequence"] for row in rows] == table["sequence"].to_pylist()
    assert [np.float32(row["score"]) for row in rows] == [np.float32(score) for score in table["score"].to_pylist()]
    for name in ("id", "version", "digest", "prediction"):
        assert [row[name] for row in rows] == table[name].to_pylist()


def test_another_process_swaps_the_model_while_it_runs(kafka: Cluster, params: dict[str, Any], tmp_path: Path) -> None:
    better = jobs.save_module(tmp_path / "saved" / "2", 2.0)
    said = []

    def publish() -> None:
        where = ["--registry", str(params["registry"]), "--model", "line"]
        said.append(midstream("publish", *where, "--activate", "--from", at(1000), str(better)))

    run(params, {2: publish}, predictions_key="id")
    assert said[0].returncode == 0, said[0].stderr
    table = check_every_prediction(tmp_path, 1500)
    assert set(table["version"].to_pylist()) == {1, 2}
    assert {source[-1] for source in table["source"].to_pylist()} == {"0", "1", "2"}
    check_topic(kafka, params)
    values = kafka.read(params["predictions_topic"])
    assert [key for key, _ in kafka.messages(params["predictions_topic"])] == [str(row["id"]).encode() for row in values]


def test_bad_messages_go_to_a_topic_of_their_own(kafka: Cluster, params: dict[str, Any]) -> None:
    kafka.send(params["topic"], [b"rubbish", None, {"time": "2026-01-01T00:00:00", "id": 1, "a": "x", "b": 1}], 1)
    ran = run(params)
    assert ran.summary["predictions"] == 1500
    assert ran.reasons() == {"unparsable": 2, "tombstone": 1}
    letters = in_topic(kafka, params["dead_letters_topic"])
    assert [letter["reason"] for letter in letters] == ["unparsable", "tombstone", "unparsable"]
    assert letters[0] == ran.rows("dead_letters")[0]
    assert {letter["source"] for letter in letters} == {f"{params['topic']}/1"}


def test_a_job_goes_on_with_what_came_later(kafka: Cluster, params: dict[str, Any]) -> None:
    run(params)
    assert "no new input" in " ".join(run(params).notices)
    send(kafka, params["topic"], jobs.records(300, start=1500).drop_columns(["label"]))
    assert run(params).summary["records"] == 1800
    assert sorted(row["id"] for row in in_topic(kafka, params["predictions_topic"])) == list(range(1800))
    again = params["output"].with_name("replay")
    Execution(replay_of(str(params["output"]), str(again))).run()
    assert compare(str(params["output"]), str(again)) == Comparison(1800, 0, 0, 0)
    assert len(kafka.read(params["predictions_topic"])) == 1800, "a replay publishes nothing"
    # How it is reached may change; where an option stands in the way of going on, that is told.
    run(params, patience="2m")
    with pytest.raises(Exception, match=r"source\.kafka\.start: was \"earliest\", is \"latest\""):
        run(params, start="latest")


@pytest.mark.parametrize(
    "more",
    [
        {"windows": "sliding", "window_size": "1m", "window_every": "20s", "aggregates": "a=mean(a);b=sum(b)", "keep": None},
        {"label": "label", "labels_on": "id", "label_horizon": "10m"},
    ],
    ids=["windows", "labels"],
)
def test_the_cut_changes_nothing(kafka: Cluster, params: dict[str, Any], tmp_path: Path, more: dict[str, Any]) -> None:
    if "label" in more:
        labels = jobs.records(1500).select(["time", "id", "label"])
        known = np.datetime_as_string(jobs.START + (np.arange(1500) + 90).astype("timedelta64[s]"), unit="s")
        topic = kafka.topic(PARTITIONS)
        send(kafka, topic, labels.set_column(0, "time", pa.array(known)), seed=8, disorder=0)
        more = more | {"labels_topic": topic, "labels_time": "time", "labels_columns": "time:string,id:int64,label:int64"}
    given = params | more | {"predictions_topic": None, "dead_letters_topic": None, "drain": "true"}
    ways: dict[str, dict[str, Any]] = {
        "whole": {"mode": "batch"},
        "small": {"micro_batch_records": 97},
        "spans": {"micro_batch": "3m", "micro_batch_records": 100_000},
    }
    found = {}
    for name, way in ways.items():
        output = tmp_path / name
        jobs.run("serve-kafka", **given | way | {"output": output})
        found[name] = [jobs.read(output, kind).to_pylist() for kind in ("predictions", "evaluations", "dead_letters")]
    assert found["small"] == found["whole"]
    assert found["spans"] == found["whole"]
    assert found["whole"][0]
    assert len(found["whole"][1]) == (1500 if "label" in more else 0)


def test_prism_predicts_the_same(kafka: Cluster, params: dict[str, Any], tmp_path: Path) -> None:
    windows = {
        "windows": "fixed",
        "window_size": "1m",
        "aggregates": "a=mean(a);b=sum(b)",
        "keep": "window_end",
        "drain": "true",
    }
    here = jobs.run("serve-kafka", **params | windows)
    template, folder = templates.load("serve-kafka")
    given = params | windows | {"output": tmp_path / "prism", "predictions_topic": f"{params['topic']}-prism"}
    job = template.fill({name: str(value) for name, value in given.items()}, folder)
    Execution(job.model_copy(update={"run": job.run.model_copy(update={"runner": "prism"})})).run()
    assert jobs.read(tmp_path / "prism").equals(jobs.read(here.output))
    assert in_topic(kafka, given["predictions_topic"]) == in_topic(kafka, params["predictions_topic"])


def test_a_learner_learns_the_same_versions_however_topics_are_cut(
    kafka: Cluster, params: dict[str, Any], tmp_path: Path
) -> None:
    known = np.datetime_as_string(jobs.START + (np.arange(1500) + 90).astype("timedelta64[s]"), unit="s")
    labels = kafka.topic(PARTITIONS)
    send(kafka, labels, jobs.records(1500).select(["time", "id", "label"]).set_column(0, "time", pa.array(known)), disorder=0)
    names = ("bootstrap", "topic", "columns", "time", "out_of_orderness")
    own = {name: params[name] for name in names} | {
        **{"labels_topic": labels, "labels_time": "time", "labels_columns": "time:string,id:int64,label:int64"},
        **{
            "label": "label",
            "labels_on": "id",
            "label_horizon": "10m",
            "features": "a,b",
            "learn_every": "5m",
            "drain": "true",
        },
    }
    digests = []
    for number, records in enumerate((100_000, 130)):
        registry = tmp_path / f"learnt-{number}"
        given = own | {"registry": registry, "model": "m", "output": tmp_path / f"learn-{number}"}
        jobs.run("learn-kafka", **given, micro_batch_records=records)
        opened = Registry(str(registry))
        digests.append([opened.manifest("m", version).digests.version for version in opened.versions("m")])
        live = [entry.version for entry in ActivationLog(str(registry), "m").entries() if isinstance(entry, Activation)]
        assert live == opened.versions("m")[1:]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 1 + 6


def test_the_broker_is_killed_in_the_middle(kafka: Cluster, params: dict[str, Any], tmp_path: Path) -> None:
    undisturbed = params | {"output": tmp_path / "undisturbed", "predictions_topic": f"{params['topic']}-undisturbed"}
    run(undisturbed)
    back: list[threading.Thread] = []

    def kill() -> None:
        kafka.broker.kill()
        back.append(threading.Thread(target=kafka.broker.start))
        back[0].start()

    run(params, {3: kill})
    back[0].join()
    assert jobs.read(params["output"]).equals(jobs.read(undisturbed["output"]))
    assert in_topic(kafka, params["predictions_topic"]) == in_topic(kafka, undisturbed["predictions_topic"])
    check_topic(kafka, params)


def test_a_broker_that_does_not_come_back_stops_the_job_and_it_goes_on_later(kafka: Cluster, params: dict[str, Any]) -> None:
    with pytest.raises(KafkaUnavailable, match=f"{kafka.bootstrap} could not .* for 1 s"):
        run(params, {3: kafka.broker.kill}, patience="1s")
    kafka.broker.start()
    run(params)
    assert sorted(row["id"] for row in in_topic(kafka, params["predictions_topic"])) == list(range(1500))
    check_topic(kafka, params)


def test_what_retention_took_stops_the_job(kafka: Cluster, params: dict[str, Any]) -> None:
    with pytest.raises(KafkaDataLost, match="removed by the topic's retention"):
        run(params, {2: lambda: kafka.remove_before(params["topic"], 0, 400)})


def test_columns_are_proposed_and_topics_looked_up(kafka: Cluster, params: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="columns=time:timestamp,id:int64,a:float64,b:float64 "):
        run(params | {"columns": None})
    with pytest.raises(JobError, match=r"no column 'city' for the message's key; they have event_time, .*, id, a, b, "):
        run(params | {"predictions_key": "city"})
    with pytest.raises(TemplateError, match="is both read and written"):
        run(params | {"predictions_topic": params["topic"]})
    with pytest.raises(JobError, match="no topic 'nowhere'"):
        run(params | {"topic": "nowhere"})
    with pytest.raises(JobError, match="could not list the topics"):
        run(params | {"bootstrap": "127.0.0.1:1", "patience": "100ms"})


def test_it_runs_on_and_on_and_predicts_what_comes(kafka: Cluster, params: dict[str, Any]) -> None:
    stop = Stop()
    template, here = templates.load("serve-kafka")
    job = template.fill({name: str(value) for name, value in params.items()} | {"every": "100ms"}, here)
    thread = threading.Thread(target=lambda: Execution(job, stop=stop).run())
    thread.start()
    try:
        wait_for(lambda: len(kafka.read(params["predictions_topic"])) == 1500, kafka, params)
        sent = time.time()
        send(kafka, params["topic"], jobs.records(30, start=1500).drop_columns(["label"]))
        wait_for(lambda: len(kafka.read(params["predictions_topic"])) == 1530, kafka, params)
        print(f"30 records were sent, predicted and read {time.time() - sent:.1f} s later")
    finally:
        stop.set()
        thread.join()
    check_topic(kafka, params)


def wait_for(done: Callable[[], bool], kafka: Cluster, params: dict[str, Any], limit_s: float = 120) -> None:
    until = time.monotonic() + limit_s
    while not (kafka.exists(params["predictions_topic"]) and done()):
        assert time.monotonic() < until, "nothing came for too long"


def test_an_empty_partition_is_told_of_where_it_is_waited_for(kafka: Cluster, params: dict[str, Any]) -> None:
    topic = kafka.topic(2)
    kafka.send(topic, jobs.records(300).drop_columns(["label"]).to_pylist())
    own = params | {"topic": topic, "keep": "id", "windows": "fixed", "window_size": "1m", "aggregates": "a=mean(a);b=sum(b)"}
    windows = own | {"keep": None, "out_of_orderness": "0s"}
    held = run(windows)
    assert held.summary["predictions"] == 0
    assert "record in partition 1, too" in " ".join(held.notices)
    labelled = own | {"windows": None, "window_size": None, "aggregates": None}
    assert run(labelled | {"output": f"{params['output']}-2"}).summary["predictions"] == 300, "no order, no wait"
    idle = windows | {"idle": "1us", "output": f"{params['output']}-3"}
    assert [row["window_end"].minute for row in run(idle | {"keep": "window_end"}).rows()] == [1, 2, 3, 4]


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A broker that wants TLS and a password; its address and the certificate to trust."""
    store, certificate = tmp_path / "broker.p12", tmp_path / "ca.pem"
    keytool = ["keytool", "-keystore", str(store), "-storepass", "secret", "-alias", "broker"]
    named = ["-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1", "-keyalg", "RSA", "-storetype", "PKCS12"]
    subprocess.run([*keytool, "-genkeypair", *named], check=True, capture_output=True)
    shown = subprocess.run([*keytool, "-exportcert", "-rfc"], check=True, capture_output=True)
    certificate.write_bytes(shown.stdout)
    plain, controller, port = free_ports(3)
    login = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_serve="right";'
    settings = {
        "listeners": f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},SAFE://127.0.0.1:{port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},SAFE://127.0.0.1:{port}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SAFE:SASL_SSL",
        "listener.name.safe.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.safe.plain.sasl.jaas.config": login,
        "ssl.keystore.location": store,
        "ssl.keystore.password": "secret",
        "ssl.keystore.type": "PKCS12",
    }
    with kafka_broker(settings=settings):
        yield f"127.0.0.1:{port}", certificate


def test_tls_and_a_password_from_a_file(secure: tuple[str, Path], params: dict[str, Any], tmp_path: Path) -> None:
    address, certificate = secure
    config = tmp_path / "client.properties"
    lines = ["security.protocol=SASL_SSL", "sasl.mechanism=PLAIN", "sasl.username=serve", f"ssl.ca.location={certificate}"]
    config.write_text("\n".join([*lines, "sasl.password=right"]))
    client = KafkaClient(address, config_file=str(config))
    admin = client.admin()
    admin.create_topics([NewTopic("orders", num_partitions=1)])["orders"].result()
    producer = client.producer()
    for row in jobs.records(50).drop_columns(["label"]).to_pylist():
        producer.produce("orders", json.dumps(row))
    producer.flush()
    given = params | {"bootstrap": address, "topic": "orders", "client_config": config}
    assert run(given).summary["predictions"] == 50
    assert "right" not in (params["output"] / "job.json").read_text()
    config.write_text("\n".join([*lines, "sasl.password=wrong"]))
    with pytest.raises(JobError, match=r"could not list the topics: .*[Aa]uthentication"):
        run(given | {"output": tmp_path / "other"})
