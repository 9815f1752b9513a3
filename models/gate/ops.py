"""A model is a program: what its graph may do is read off `saved_model.pb`, before anything is loaded.

Allowed are TensorFlow's own ops without effects, and of those with effects the ones that a model needs: variables, tables,
random
numbers, control flow. So an op that reads or writes files, talks to the network, calls Python, sleeps, ends the process or runs
compiled foreign code is refused by not being on the list, an unknown op as well. The few ops without *declared* effects that do
touch files are named below. Saving and restoring variables touches files, too: it is allowed where TensorFlow puts it, in the
functions that only the saver reaches, and never runs in serving.

TensorFlow's own account of the risk: "Using TensorFlow Securely" (SECURITY.md), "TensorFlow models are programs".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from models.digest import read_saved_model
from models.gate.result import CheckResult, passed, refused

NAME = "graph"
MAX_NODES = 2_000_000
# Ops with effects that a model may have: they stay within its own variables, tables and tensors.
_ALLOWED_STATEFUL = re.compile(
    r"Assert|CheckNumerics(V2)?|Print(V2)?|DeviceIndex|DisableCopyOnRead|DestroyResourceOp|GuaranteeConst|DummyMemoryCache|"
    r"VarHandleOp|VarIsInitializedOp|ReadVariableOp|Assign(Add|Sub)?VariableOp|VariableShape|VariableV2|Variable|"
    r"Resource(Gather(Nd)?|Scatter\w+|StridedSliceAssign|CountUpTo)|Resource(Sparse)?Apply\w+|"
    r"(Anonymous)?(Mutable(Dense)?)?HashTable(OfTensors)?(V2)?|LookupTable\w+V2|InitializeTable(FromTextFile)?V2|"
    r"If|While|Case|StatefulPartitionedCall|_?Arg|_?Retval|Empty|Stack(Push|Pop|Close)?V2|TensorArray\w*|TensorList\w*|"
    r"Random(Gamma|Poisson(V2)?|Shuffle|StandardNormal|Uniform|UniformInt|Crop)|Multinomial|TruncatedNormal|"
    r"ParameterizedTruncatedNormal|Stateful(Uniform\w*|StandardNormal\w*|TruncatedNormal|RandomBinomial)|Rng(ReadAnd)?Skip|"
    r"StatelessRandomGetAlg|CudnnRNN\w*|BoostedTrees(EnsembleResourceHandleOp|Predict|CreateEnsemble|DeserializeEnsemble)|"
    r"IsBoostedTreesEnsembleInitialized"
)
# Ops that TensorFlow declares to be without effects, and that read files, call Python, write elsewhere or end the process.
_REFUSED_STATELESS = re.compile(
    r"ReadFile|MatchingFiles|\w*Restore\w*|Sharded\w+|PyFunc\w*|Abort|Debug\w+|\w*FromTextFile|GenerateVocabRemapping|"
    r"\w*Dataset\w*|\w*Reader\w*|Xla(CustomCall\w*|CallModule)|\w*Rpc\w*|TPU\w+|Collective\w+"
)
_SAVER = frozenset(["SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename", "ShardedFilespec"])
_WHY = (
    (re.compile(r"\w*PyFunc\w*"), "calls Python", "Write it with TensorFlow's own ops, without tf.py_function."),
    (re.compile(r"WriteFile|Save\w*|\w*Summary\w*|Debug\w+|PrintV2"), "writes files", "Leave it out of the served function."),
    (
        re.compile(r"ReadFile|Matching\w+|\w*Restore\w*|\w*Reader\w*|\w*Dataset\w*|\w*FromTextFile\w*|Load\w+|Generate\w+"),
        "reads files",
        "Feed what it reads as a column, or make it a tf.saved_model.Asset of a lookup table.",
    ),
    (re.compile(r"\w*(Rpc|Send|Recv|DataService|Collective|Remote)\w*"), "talks to other machines", "Leave it out."),
    (re.compile(r"Sleep\w*"), "waits", "Leave it out."),
    (re.compile(r"Abort"), "ends the process", "Leave it out."),
    (re.compile(r"Xla\w+|TPU\w+"), "runs compiled foreign code", "Save the model without it."),
)


def check_graph(path: str) -> CheckResult:
    """Reads the graph and every function in it; nothing is loaded or run.

    Args:
        path: the SavedModel's local folder.
    """
    try:
        saved_model = read_saved_model(path)
    except (OSError, ValueError) as error:
        return refused(NAME, str(error))
    nodes = 0
    for meta_graph in saved_model.meta_graphs:
        functions = {function.signature.name: function for function in meta_graph.graph_def.library.function}
        saver = _saver_only(meta_graph, functions)
        places = [("the graph", meta_graph.graph_def.node)]
        places += [(f"function {name}", function.node_def) for name, function in functions.items()]
        for place, body in places:
            nodes += len(body)
            for node in body:
                name = place.removeprefix("function ")
                said = _objection(node, functions, name in saver or (place == "the graph" and node.name in saver))
                said = said or _table_objection(node, name, functions, meta_graph)
                if said:
                    return refused(NAME, f"{place} has node {node.name} with op {node.op}: {said}", op=node.op)
        if nodes > MAX_NODES:
            return refused(NAME, f"more than {MAX_NODES:,} nodes. Save a smaller graph.")
    return passed(NAME, f"{nodes:,} nodes, none that reads or writes files, calls Python or talks to anybody", nodes=nodes)


def _objection(node: Any, functions: Mapping[str, Any], in_saver: bool) -> str | None:
    """Why a node is not allowed, and what to do; None where it is."""
    if node.op in functions:
        return None
    stateful = known_ops().get(node.op)
    if stateful is None:
        return "this TensorFlow has no such op. Save the model with TensorFlow's own ops, of the release that serves it."
    if in_saver and node.op in _SAVER:
        return None
    if node.op == "PrintV2" and not node.attr["output_stream"].s.startswith(b"file:"):
        return None
    if node.op == "PrintV2" or (
        not _ALLOWED_STATEFUL.fullmatch(node.op) if stateful else _REFUSED_STATELESS.fullmatch(node.op)
    ):
        for pattern, why, todo in _WHY:
            if pattern.fullmatch(node.op):
                return f"it {why}, which no model needs to predict. {todo}"
        return "it has effects beyond the model's own variables. Leave it out of the saved functions."
    return None


def _table_objection(node: Any, place: str, functions: Mapping[str, Any], meta_graph: Any) -> str | None:
    """A table may be read from an asset of the version, and from no other file."""
    if node.op != "InitializeTableFromTextFileV2":
        return None
    bound = meta_graph.object_graph_def.concrete_functions
    if place in functions and place in bound:
        function = functions[place]
        arguments = [argument.name for argument in function.signature.input_arg]
        captured = list(bound[place].bound_inputs)
        name = node.input[1].split(":", 1)[0]
        at = arguments.index(name) - (len(arguments) - len(captured)) if name in arguments else -1
        if at >= 0 and meta_graph.object_graph_def.nodes[captured[at]].HasField("asset"):
            return None
    return "it reads a file that is no asset of this version. Make the file a tf.saved_model.Asset of the module."


def _saver_only(meta_graph: Any, functions: Mapping[str, Any]) -> set[str]:
    """The nodes of the graph and the functions that only saving and restoring reaches."""
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    saver = meta_graph.saver_def
    ends = [name.split(":", 1)[0].lstrip("^") for name in (saver.save_tensor_name, saver.restore_op_name) if name]
    ours = _upstream(ends, nodes)
    theirs = _upstream([name for name in nodes if name not in ours], nodes)
    inner = _called((nodes[name] for name in ours), functions)
    outer = _called((nodes[name] for name in theirs), functions)
    outer |= _called((node for name, f in functions.items() if name not in inner for node in f.node_def), functions)
    outer |= set(meta_graph.object_graph_def.concrete_functions)
    outer |= _called((node for name in outer if name in functions for node in functions[name].node_def), functions)
    return {name for name in ours if name not in theirs} | (inner - outer)


def _upstream(ends: Iterable[str], nodes: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    waiting = [name for name in ends if name in nodes]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            inputs = (given.lstrip("^").split(":", 1)[0] for given in nodes[name].input)
            waiting += [given for given in inputs if given in nodes]
    return found


def _called(nodes: Iterable[Any], functions: Mapping[str, Any]) -> set[str]:
    """The functions that these nodes reach."""
    found: set[str] = set()
    waiting = [name for node in nodes for name in _names(node)]
    while waiting:
        name = waiting.pop()
        if name in functions and name not in found:
            found.add(name)
            waiting += [called for node in functions[name].node_def for called in _names(node)]
    return found


def _names(node: Any) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        for function in value.list.func:
            yield function.name


@lru_cache(maxsize=1)
def known_ops() -> Mapping[str, bool]:
    """TensorFlow's ops, and whether they are declared to have effects."""
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session

    ops = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    return {op.name: op.is_stateful for op in ops.op}
