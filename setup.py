"""Midstream: Apache Beam pipelines that keep a TensorFlow model predicting on a stream while the model is replaced."""

from pathlib import Path

from setuptools import setup

here = Path(__file__).parent

setup(
    name="midstream",
    version="0.1.0",
    description="Swap TensorFlow models inside running Apache Beam streams, exactly once, and train them from the stream",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.12",
    packages=[
        "models",
        "models.anomaly",
        "models.gate",
        "models.learners",
        "models.learners.experts",
        "transforms",
        "transforms.continuous",
        "transforms.decoding",
        "transforms.kafka",
        "runners",
        "pipelines",
        "pipelines.commands",
        "pipelines.detection",
    ],
    package_data={"pipelines": ["templates/*.yaml", "data/*", "*.j2", "*.js"], "runners": ["jvm/jars.lock", "jvm/*/pom.xml"]},
    install_requires=[
        "apache-beam==2.77.0",
        "click==8.5.1",
        "confluent-kafka==2.16.1",
        "cryptography==50.0.2",
        "duckdb==2.0.0",
        "google-crc32c==1.9.0",
        "jinja2==3.1.6",
        "pandas==3.1.1",
        "plotly==7.1.0",
        "pyarrow==25.0.1",
        "pydantic==2.14.3",
        "pyyaml==6.0.3",
        "rich==15.0.0",
        "river==0.26.1",
        "scipy==1.17.1",
        "tensorflow==2.21.0",
        "tfx-bsl==1.21.0",
    ],
    entry_points={"console_scripts": ["midstream=pipelines.cli:main"]},
)
