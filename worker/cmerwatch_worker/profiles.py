"""The checkers one may choose from, their licences, and whether their weights are on this machine. Imports no model."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from importlib import util
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Profile:
    """`megabytes`: what is downloaded, fp32. `repository`: where open_clip publishes the weights."""

    name: str
    spec: str
    megabytes: int
    licence: str
    role: str
    repository: str = ""


# Sizes: parameters x 4 bytes. The first one is the default of CMERWATCH_CHECKER.
PROFILES = (
    Profile("default", "openclip:ViT-B-32-256:datacomp_s34b_b86k", 605, "MIT", "CPU or GPU",
            "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K"),
    Profile("quality", "openclip:ViT-B-16-SigLIP2-256:webli", 1500, "Apache-2.0", "better, four times slower",
            "timm/ViT-B-16-SigLIP2-256"),
    Profile("gpu", "openclip:ViT-L-16-SigLIP2-384:webli", 3530, "Apache-2.0", "best, wants a GPU",
            "timm/ViT-L-16-SigLIP2-384"),
    Profile("demo", "demo", 7, "Apache-2.0", "drawn scenes only, refused in production"),
)  # fmt: skip

# By tag, since whoever trained the weights chose their licence; the first match counts. Weights that are not listed
# have to be looked up by the person who exports them.
_LICENCES = (
    ("nllb-clip-*", "*", "CC-BY-NC-4.0"),
    ("*", "metaclip*", "CC-BY-NC-4.0"),
    ("*", "dfn*", "apple-amlr"),
    ("MobileCLIP*", "*", "apple-amlr"),
    ("*", "openai", "MIT"),
    ("ViT-*SigLIP*", "webli", "Apache-2.0"),
    ("PE-Core-*", "meta", "Apache-2.0"),
    ("EVA02-*", "merged2b_*", "MIT"),
    ("*", "laion*", "MIT"),
    ("*", "datacomp_*", "MIT"),
    ("*", "commonpool_*", "MIT"),
)
_NON_COMMERCIAL = ("apple-amlr", "apple-ascl", "cc-by-nc*", "*non-commercial*", "*research*")


def licence_of(model: str, tag: str) -> str | None:
    """The licence of listed weights, None where it is not known here."""
    for of_model, of_tag, licence in _LICENCES:
        if fnmatch.fnmatchcase(model, of_model) and fnmatch.fnmatchcase(tag, of_tag):
            return licence
    return None


def is_non_commercial(licence: str) -> bool:
    """Whether a licence keeps weights from commercial use."""
    return any(fnmatch.fnmatchcase(licence.lower(), pattern) for pattern in _NON_COMMERCIAL)


def warning(what: str, licence: str) -> str | None:
    """What to say when such weights are chosen."""
    if not is_non_commercial(licence):
        return None
    return f"{what} is licensed {licence}: research or non-commercial use only. Read its terms before you rely on it."


def state(profile: Profile) -> str:
    """What is here of a profile, in a few words."""
    if not profile.repository:
        return "ships with cmerwatch"
    if util.find_spec("open_clip") is None:
        return "needs: pip install 'cmerwatch[torch]'"
    if "SigLIP" in profile.spec and util.find_spec("transformers") is None:
        return "needs: pip install transformers"
    return "downloaded" if downloaded(profile.repository) else "not downloaded"


def downloaded(repository: str) -> Path | None:
    """The safetensors file of a published model in the local cache, or None. Pickles are not looked for."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(repository, "open_clip_model.safetensors")
    return Path(found) if isinstance(found, str) else None
