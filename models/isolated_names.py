"""Names that a parent and its isolated child agree on; here, so that the parent need not import TensorFlow for them."""

HOLDOUT_FILE = "holdout.npy"
