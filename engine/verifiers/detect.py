"""Which format a checkpoint has: by its architecture, its configuration and its tensors, never by its name."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from engine.errors import UserError
from engine.model import named_architecture, read_config, read_raw_config, tensor_names
from engine.verifiers.spec import Rule, VerifierSpec, built_in_specs, load_spec

# Architectures that are a causal LM's trunk under another head.
_OTHER_HEADS = ("ForProcessRewardModel", "ForRewardModel", "ForPrmModel", "ForSequenceClassification")


def find_spec(folder: Path, name_or_file: str | Path | None = None, *, judges: str = "steps") -> VerifierSpec:
    """The spec that is named, else the one built-in spec that the checkpoint matches best.

    Raises UserError for a checkpoint that matches none, or several, and for a spec that judges
    the other kind ("steps" or "answers").
    """
    if name_or_file is not None:
        spec = load_spec(name_or_file)
        if spec.judges != judges:
            raise UserError(f"verifier spec {str(name_or_file)!r} judges {spec.judges}, here one of {judges} is meant")
        return spec
    specs = [spec for spec in built_in_specs() if spec.judges == judges]
    raw = read_raw_config(folder)
    names = tensor_names(folder)
    scores = {spec.name: max([_match(rule, raw, names) for rule in spec.detect], default=0) for spec in specs}
    best = max(scores.values(), default=0)
    found = [spec for spec in specs if scores[spec.name] == best]
    if best and len(found) == 1:
        return found[0]
    read_config(folder, trunk_architecture(folder))  # refuses a model that no spec could make readable
    option = "prm_spec" if judges == "steps" else "orm_spec"
    why = f"several formats have the architecture {named_architecture(raw)!r}"
    if not best:
        why, found = f"no known format has the architecture {named_architecture(raw)!r}", specs
    listed = ", ".join(spec.name for spec in found)
    kind = "a step verifier" if judges == "steps" else "a verifier of answers"
    raise UserError(f"{folder} is not {kind} by itself: {why}; name one with {option}: {listed}, or a file")


def trunk_architecture(folder: Path) -> str | None:
    """The architecture that a verifier's trunk is read as; None: the one in config.json."""
    name = named_architecture(read_raw_config(folder))
    if isinstance(name, str):
        for suffix in _OTHER_HEADS:
            if name.endswith(suffix):
                return name.removesuffix(suffix) + "ForCausalLM"
    return None


def _match(rule: Rule, raw: dict, names: set[str]) -> int:
    """The number of conditions of a rule; 0 where one of them does not hold."""
    architecture, labels = named_architecture(raw), raw.get("id2label")
    if not isinstance(architecture, str) or not fnmatchcase(architecture, rule.architecture):
        return 0
    named = tuple(labels.values()) if isinstance(labels, dict) else ()
    num_labels = len(named) or raw.get("num_labels", 2)
    if rule.num_labels is not None and num_labels != rule.num_labels:
        return 0
    if rule.labels is not None and named != rule.labels:
        return 0
    if rule.tensor is not None and rule.tensor not in names:
        return 0
    return rule.num_conditions
