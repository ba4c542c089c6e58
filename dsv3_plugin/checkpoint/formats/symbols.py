"""What the pickles of a checkpoint may name: torch's, Megatron's and Python's, and nothing else.

Each is a kind of data, or what Python calls to make some; none can start a process, open a file or
import a module. `saved_object` makes the real ones; `.metadata` needs none of them.
"""

from dsv3_plugin.checkpoint.formats.hf_headers import ITEMSIZE
from dsv3_plugin.checkpoint.formats.pickles import Symbol


def _of(module: str, *names: str) -> frozenset[Symbol]:
    return frozenset(Symbol(module, name) for name in names)


STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
"""torch's classes of storages → the type of their values. What has no class is kept as bytes."""

DTYPES = _of("torch", *ITEMSIZE)
SIZE = Symbol("torch", "Size")
ORDERED_DICT = Symbol("collections", "OrderedDict")
REBUILD_V2, REBUILD_V3, REBUILD_PARAMETER = (
    Symbol("torch._utils", f"_rebuild_{what}") for what in ("tensor_v2", "tensor_v3", "parameter")
)
TENSORS = (
    DTYPES
    | {REBUILD_V2, REBUILD_V3, REBUILD_PARAMETER, SIZE, ORDERED_DICT}
    | _of("torch", *STORAGES)
    | _of("torch.storage", *STORAGES)
)
"""In what `torch.save` writes for a tensor."""

PATHS = _of("pathlib", "PosixPath", "PurePosixPath") | _of(
    "pathlib._local", "PosixPath", "PurePosixPath"
)
_DCP = "torch.distributed.checkpoint"
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata"
IN_METADATA = (
    DTYPES
    | {SIZE}
    | _of(f"{_DCP}.metadata", "Metadata", "TensorStorageMetadata", "BytesStorageMetadata")
    | _of(f"{_DCP}.metadata", "ChunkStorageMetadata", "TensorProperties", "MetadataIndex")
    | _of(f"{_DCP}.metadata", "StorageMeta", "_MEM_FORMAT_ENCODING")
    | _of(f"{_DCP}.filesystem", "_StorageInfo")
    | _of(f"{_DCP}.planner", "SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")
    | _of(f"{_DCP}.planner", "BytesIOWriteData")
    # Of older versions.
    | _of(_SHARDED, "TensorProperties", "MEM_FORMAT_ENCODING")
    | _of("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata", "MCoreSavePlan")
    | _of("torch.serialization", "_get_layout")
    | PATHS
)
"""In `.metadata`."""

NAMESPACES = (
    _of("argparse", "Namespace")
    | _of("types", "SimpleNamespace")
    | _of("megatron.core.optimizer.optimizer_config", "OptimizerConfig")
    | _of("megatron.core.transformer.pipeline_parallel_layer_layout", "PipelineParallelLayerLayout")
)
"""Attributes by name. Whoever reads a checkpoint gets them all as namespaces."""
ENUMS = (
    _of("megatron.core.enums", "ModelType", "Fp8Recipe", "Fp4Recipe")
    | _of("megatron.core.transformer.enums", "AttnBackend", "AttnMaskType", "AttnType")
    | _of("megatron.core.transformer.enums", "CudaGraphModule", "CudaGraphScope")
    | _of("megatron.core.transformer.enums", "InferenceCudaGraphScope", "LayerType", "ModelType")
    | _of("megatron.core.rerun_state_machine", "RerunMode", "RerunState", "RerunDiagnostic")
    | _of("megatron.core.inference.config", "PrefixCachingEvictionPolicy", "AsyncScheduleMode")
    | _of("megatron.core.inference.config", "PrefixCachingCoordinatorPolicy")
    | _of("megatron.core.inference.config", "KVCacheManagementMode", "CudaGraphSizingDistribution")
    | _of("signal", "Signals")
)
"""Called with a value; saved by Python 3.11, through `getattr` with a name."""
GETATTR = Symbol("builtins", "getattr")
NEW_ARRAY = _of("numpy._core.multiarray", "_reconstruct") | _of(
    "numpy.core.multiarray", "_reconstruct"
)
ARRAY_SCALAR = _of("numpy._core.multiarray", "scalar") | _of("numpy.core.multiarray", "scalar")
ARRAY, ARRAY_DTYPE = Symbol("numpy", "ndarray"), Symbol("numpy", "dtype")
ENCODE, EMPTY_BYTES = Symbol("_codecs", "encode"), Symbol("builtins", "bytes")
BUILTINS = _of("builtins", "set", "frozenset", "bytearray", "complex", "bytes")
DEVICE, GENERATOR = Symbol("torch", "device"), Symbol("torch._C", "Generator")
BYTES_IO = Symbol("_io", "BytesIO")
OBJECTS = (
    TENSORS
    | NAMESPACES
    | ENUMS
    | BUILTINS
    | NEW_ARRAY
    | ARRAY_SCALAR
    | {ARRAY, ARRAY_DTYPE, ENCODE, GETATTR, DEVICE, GENERATOR, BYTES_IO}
    | PATHS
)
"""In a checkpoint's objects: arguments, counters, states of random-number generators."""

_TE = "transformer_engine.common.recipe"
EXTRA_STATES = (
    TENSORS
    | {ENCODE}
    | _of("torch._tensor", "_rebuild_from_type_v2")
    | _of("torch.storage", "_load_from_bytes")
    | _of("megatron.core.safe_globals", "safe_load_from_bytes")  # upstream's in its place
    | _of(_TE, "DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "Format")
    | _of(_TE, "MXFP8BlockScaling", "NVFP4BlockScaling", "_FormatHelper", "MMParams", "QParams")
    | _of("megatron.core.extensions.transformer_engine", "TEDelayedScaling")
)
"""In the states of Transformer Engine's layers, which it unpickles itself."""
