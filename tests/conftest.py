"""Settings of the whole suite."""

from __future__ import annotations

import os

# Before TensorFlow is imported: what it says of devices that are not there would bury what a failing test says.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
