"""Profiles: named choices for where a model is to run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from zq2onnx.conversion.choices import Choices
from zq2onnx.errors import UserError
from zq2onnx.layout import PackedLayout
from zq2onnx.report import ProfileReport
from zq2onnx.scheme import Target

GENAI_CONFIG = "genai_config.json"


@dataclass(frozen=True)
class Profile:
    """What is chosen for a target, where neither the command line nor the recipe says otherwise.

    Attributes:
        name: as `--profile` has it.
        choices: what it chooses; None where the default is right.
        why: in a few words.
        no_session_options: whether sessions cannot be configured there: what a model needs must be in it.
        width: of what output widths stock kernels have their fast paths, a multiple of this.
        block: the greatest block that they take at one token; None where that is no matter.
    """

    name: str
    choices: Choices
    why: str
    no_session_options: bool = False
    width: int = 1
    block: int | None = None


ORT_CPU = Profile(
    "ort-cpu",
    Choices(dtype="fp32", target="portable"),
    "ONNX Runtime's CPU provider computes in float32, and half precision by way of it",
)
ORT_CUDA = Profile(
    "ort-cuda",
    Choices(dtype="fp16", target="portable", group_size=32, symmetric=True, bias="outside"),
    "what ONNX Runtime's own CUDA kernels are made for; not measured",
    width=64,
    block=128,
)
GENAI = Profile(
    "genai",
    Choices(dtype="keep", target="portable"),
    "onnxruntime-genai finds the cache by the names and types that the model has",
)
TRITON = Profile(
    "triton",
    Choices(dtype="keep", target="portable"),
    "config.pbtxt names the types of inputs and outputs, and cannot set session options",
    no_session_options=True,
)
PROFILES = (ORT_CPU, ORT_CUDA, GENAI, TRITON)


def find_profile(name: str) -> Profile:
    """The profile of a name.

    Raises:
        UserError: there is none; the message lists the known.
    """
    for profile in PROFILES:
        if profile.name == name.lower():
            return profile
    raise UserError(f"unknown profile {name!r}", f"one of {', '.join(each.name for each in PROFILES)}")


@dataclass(frozen=True)
class Applied:
    """A profile, and what it decides beside what was said.

    Attributes:
        profile: it.
        chosen: values of options by their names.
    """

    profile: Profile
    chosen: Mapping[str, object]

    @property
    def report(self) -> ProfileReport:
        """As the conversion's report has it."""
        return ProfileReport(self.profile.name, dict(self.chosen), self.profile.why)

    def check(self, target: Target) -> None:
        """Make sure that what was said does not undo the profile.

        Raises:
            UserError: the target needs a session option, and none can be set there.
        """
        if self.profile.no_session_options and target is Target.QDQ:
            raise UserError(
                f"target qdq with profile {self.profile.name}: its float activations need a session option,"
                " and none can be set there",
                "target portable",
            )

    def obstacles(self, layouts: Sequence[PackedLayout]) -> list[str]:
        """What keeps stock kernels there from being fast, one line each.

        Args:
            layouts: of the products' weights.
        """
        profile, count = self.profile, len(layouts)
        odd = [each for each in layouts if each.n % profile.width]
        long = [each for each in layouts if profile.block is not None and each.block_size > profile.block]
        found = []
        if odd:
            found.append(
                f"{len(odd)} of {count} nodes have an output width that is no multiple of {profile.width}"
                f" (the first has {odd[0].n}): the fastest stock kernels do not take them"
            )
        if long:
            found.append(
                f"{len(long)} of {count} nodes have blocks of more than {profile.block}: stock kernels for"
                " one token do not take them; choose a smaller --group-size"
            )
        return [f"profile {profile.name}: {line}" for line in found]


def apply_profile(name: str, said: Choices) -> Applied:
    """A profile behind what was said.

    Raises:
        UserError: there is none of that name; the message lists the known.
    """
    profile = find_profile(name)
    chosen = {
        key.replace("_", "-"): value
        for key, value in vars(profile.choices).items()
        if value is not None and getattr(said, key) is None
    }
    return Applied(profile, chosen)


def genai_obstacles(model: ir.Model, output: Path) -> list[str]:
    """What keeps onnxruntime-genai from running a written model, one line each.

    Args:
        model: its graph.
        output: its path, its companions beside it.
    """
    found = []
    if not any("past" in (value.name or "") for value in model.graph.inputs):
        found.append(
            "profile genai: the model has no KV cache among its inputs, which onnxruntime-genai needs"
        )
    config = output.with_name(GENAI_CONFIG)
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        named = content["model"]["decoder"]["filename"]
    except FileNotFoundError:
        found.append(f"profile genai: onnxruntime-genai needs a {GENAI_CONFIG} beside {output.name}")
    except (OSError, ValueError, KeyError, TypeError):
        found.append(f"profile genai: {config} names no model.decoder.filename")
    else:
        if named != output.name:
            found.append(
                f"profile genai: {config} names {named}, not {output.name}: set model.decoder.filename"
            )
    return found
