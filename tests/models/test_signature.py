import json

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from models.digest import DigestError
from models.signature import DTYPES, Field, Signature, SignatureError
from tests.models import saved

fields = st.dictionaries(
    st.text(min_size=1),
    st.builds(Field, st.sampled_from(sorted(DTYPES)), st.lists(st.none() | st.integers(0, 9), max_size=3).map(tuple)),
)


@given(fields, fields)
def test_json_round_trip(inputs, outputs):
    signature = Signature(inputs, outputs)
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


def test_a_signature_is_read_without_its_batch_dimension(tmp_path):
    class Columns(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.string, "name"),
                tf.TensorSpec([None, 3, None], tf.float64, "grid"),
                tf.TensorSpec([None], tf.bool, "flag"),
            ]
        )
        def predict(self, name, grid, flag):
            return {"length": tf.strings.length(name), "sum": tf.reduce_sum(grid, 2), "not": ~flag}

    module = Columns()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.predict)
    came = Signature.from_saved_model(str(tmp_path / "m"))
    assert came.inputs == {"flag": Field("bool"), "grid": Field("float64", (3, None)), "name": Field("string")}
    assert came.outputs == {"length": Field("int32"), "not": Field("bool"), "sum": Field("float64", (3,))}
    assert list(came.inputs) == sorted(came.inputs)


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [
        (None, tf.float32, "input 'x'.*unknown rank"),
        ([], tf.float32, r"input 'x'.*shape \(\)"),
        ([1, 4], tf.float32, r"input 'x'.*shape \(1, 4\)"),
        ([None, 4], tf.complex64, "input 'x'.*complex64.*Cast it"),
        ([None, 4], tf.bfloat16, "input 'x'.*bfloat16.*Cast it"),
    ],
)
def test_what_rows_cannot_be_fed_to_is_refused(tmp_path, shape, dtype, says):
    class One(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(shape, dtype, "x")])
        def predict(self, x):
            return {"y": x}

    module = One()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.predict)
    with pytest.raises(SignatureError, match=says):
        Signature.from_saved_model(str(tmp_path / "m"))


def test_missing_signatures_are_listed(tmp_path):
    module = saved.Small()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"predict": module.predict, "learn": module.learn})
    with pytest.raises(SignatureError, match="no signature 'serving_default'; it has learn, predict"):
        Signature.from_saved_model(str(tmp_path / "m"))
    assert Signature.from_saved_model(str(tmp_path / "m"), "predict").outputs == {"p": Field("float32", (2,))}
    with pytest.raises(SignatureError, match=r"output 'loss'.*shape \(\)"):
        Signature.from_saved_model(str(tmp_path / "m"), "learn")
    tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
    with pytest.raises(SignatureError, match="it has none"):
        Signature.from_saved_model(str(tmp_path / "none"))
    with pytest.raises(DigestError, match="no such folder"):
        Signature.from_saved_model(str(tmp_path / "nowhere"))
