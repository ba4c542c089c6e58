"""Prints what the compiled `transformer_engine_torch` can be asked, as one JSON object.

Run in a process of its own: other tests hide Transformer Engine from theirs.
"""

import json

import transformer_engine.pytorch  # noqa: F401  (loads the library)
import transformer_engine_torch as compiled


def main() -> None:
    """Functions with the signatures that pybind wrote, and enumerations with their values."""
    names = {name: getattr(compiled, name) for name in dir(compiled)}
    functions = {
        name: (value.__doc__ or "").partition("\n")[0]
        for name, value in names.items()
        if type(value).__name__ in ("builtin_function_or_method", "nb_func")
    }
    enumerations = {
        name: {member: int(of) for member, of in value.__members__.items()}
        for name, value in names.items()
        if hasattr(value, "__members__")
    }
    facts = {
        "get_cublasLt_version": compiled.get_cublasLt_version(),
        "get_cudnn_version": compiled.get_cudnn_version(),
        "get_num_cublas_streams": compiled.get_num_cublas_streams(),
        "ubuf_built_with_mpi": compiled.ubuf_built_with_mpi(),
    }
    print(json.dumps({"functions": functions, "enumerations": enumerations, "facts": facts}))


if __name__ == "__main__":
    main()
