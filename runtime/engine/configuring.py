"""Options as TensorRT's builder takes them; what this version lacks is refused with a way out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.cuda import gpu
from runtime.engine.flavour import Flavour
from runtime.engine.options import BuildOptions
from runtime.engine.profiles import Ranges
from runtime.errors import BadRequest


def configure(flavour: Flavour, builder: Any, options: BuildOptions, profiles: Sequence[Ranges]) -> tuple[Any, Any]:
    """Make the builder's configuration.

    Args:
        flavour: what builds.
        builder: its builder.
        options: what is asked for.
        profiles: sizes of dynamic inputs, for each profile.

    Returns:
        The configuration, and the timing cache in it or None.

    Raises:
        BadRequest: this version lacks what an option asks for, or sizes are refused.
    """
    config = builder.create_builder_config()
    verbosity = flavour.find("ProfilingVerbosity.DETAILED")
    if verbosity is not None:
        config.profiling_verbosity = verbosity
    for option, flag in (
        ("--sparse", "SPARSE_WEIGHTS" if options.sparse else ""),
        ("--version-compatible", "VERSION_COMPATIBLE" if options.version_compatible else ""),
        ("--refit", "REFIT" if options.refit else ""),
        ("--strip", "STRIP_PLAN" if options.strip else ""),
    ):
        if flag:
            config.set_flag(flavour.need(f"BuilderFlag.{flag}", option))
    if options.strip and not options.refit:  # weights that are left out are given back from the file they came from
        refit = flavour.find("BuilderFlag.REFIT_IDENTICAL") or flavour.need("BuilderFlag.REFIT", "--strip")
        config.set_flag(refit)
    tf32 = flavour.find("BuilderFlag.TF32")
    if tf32 is not None:
        (config.set_flag if options.tf32 else config.clear_flag)(tf32)
    if options.workspace is not None:
        pool = flavour.need("MemoryPoolType.WORKSPACE", "--workspace")
        config.set_memory_pool_limit(pool, options.workspace)
    if options.level is not None:
        _set_level(flavour, config, options.level)
    _set_hardware(flavour, config, options.hardware)
    _set_capabilities(flavour, config, options.capabilities)
    for ranges in profiles:
        _add_profile(builder, config, ranges)
    return config, _load_timings(flavour, config, options.timing_cache)


def _set_level(flavour: Flavour, config: Any, level: int) -> None:
    if not hasattr(config, "builder_optimization_level"):
        raise BadRequest(f"--level: {flavour.title} has no optimisation levels; leave the option out.")
    config.builder_optimization_level = level


def _set_hardware(flavour: Flavour, config: Any, hardware: str) -> None:
    if hardware == "none":
        return
    name = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}[hardware]
    if flavour.name == "tensorrt-rtx":  # it has the setting, and ignores it
        raise BadRequest(f"--hardware {hardware}: {flavour.title} builds for compute capabilities; see --capability.")
    level = flavour.need(f"HardwareCompatibilityLevel.{name}", f"--hardware {hardware}")
    config.hardware_compatibility_level = level


def _set_capabilities(flavour: Flavour, config: Any, capabilities: Sequence[str]) -> None:
    if not capabilities:
        return
    known = flavour.need("ComputeCapability", "--capability", "it builds for the GPU it runs on; see --hardware")
    names = {n.removeprefix("SM"): n for n in dir(known) if n.startswith("SM") and n[2:].isdigit()}
    chosen = []
    for text in capabilities:
        name = "CURRENT" if text == "current" else names.get(text.replace(".", "").lower().removeprefix("sm"))
        if name is None or not hasattr(known, name):
            able = ", ".join(sorted(names, key=int))
            raise BadRequest(
                f"--capability {text}: {flavour.title} builds for {able}, or 'current', this machine's GPU."
            )
        chosen.append(getattr(known, name))
    if flavour.name != "tensorrt-rtx":  # it has the setting, and ignores it
        raise BadRequest(f"--capability: {flavour.title} builds for the GPU it runs on; see --hardware.")
    if "current" in capabilities and gpu() is None:
        raise BadRequest(
            "--capability current: there is no GPU here, or no driver for it; name the capability, such as 86."
        )
    config.num_compute_capabilities = len(chosen)
    for k, capability in enumerate(chosen):
        if config.set_compute_capability(capability, k) is False:
            raise BadRequest(f"--capability {capabilities[k]}: {flavour.title} refuses it; is there a GPU here?")


def _add_profile(builder: Any, config: Any, ranges: Ranges) -> None:
    profile = builder.create_optimization_profile()
    for name, sizes in ranges.items():
        try:
            profile.set_shape(name, sizes.least, sizes.best, sizes.most)
        except (ValueError, RuntimeError) as error:
            raise BadRequest(f"--shape {name}:{sizes}: TensorRT refuses it: {error}") from error
    if config.add_optimization_profile(profile) < 0:
        asked = "; ".join(f"{n}:{r}" for n, r in ranges.items())
        raise BadRequest(f"--shape: TensorRT refuses the profile {asked}.")


def _load_timings(flavour: Flavour, config: Any, file: Path | None) -> Any:
    if file is None:
        return None
    if not hasattr(config, "create_timing_cache"):
        raise BadRequest(f"--timing-cache: {flavour.title} times no kernels when it builds; leave the option out.")
    try:
        known = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise BadRequest(f"--timing-cache {file} cannot be read: {error.strerror}.") from error
    cache = config.create_timing_cache(known)
    if not config.set_timing_cache(cache, False):  # it is another GPU's, or another version's
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def keep_timings(options: BuildOptions, config: Any, cache: Any) -> bool:
    """Write the timing cache back; False where there is none.

    Raises:
        BadRequest: the file cannot be written.
    """
    if cache is None or options.timing_cache is None:
        return False
    data = bytes((config.get_timing_cache() or cache).serialize())
    target = options.timing_cache
    try:
        write_bytes(target, data)
    except OSError as error:
        raise BadRequest(f"--timing-cache {target} cannot be written: {error.strerror}.") from error
    return True


def write_bytes(target: Path, data: bytes) -> None:
    """Write a file so that a reader never sees half of it.

    Raises:
        OSError: it cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.absolute().parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
