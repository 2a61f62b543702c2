"""Dockerfiles, parsed: pinned, bounded by constraints, without root, and offline at run time."""

import re
import tomllib
from pathlib import Path

import pytest

from cong.cluster.images import image_trouble
from cong.engine.vllm_backend.versions import TESTED_VERSIONS
from cong.train.deepspeed_backend import is_compiled_in

ROOT = Path(__file__).parent.parent.parent
FILES = [ROOT / "deploy" / "Dockerfile.cpu", ROOT / "deploy" / "Dockerfile.cuda"]
VLLM = ROOT / "deploy" / "Dockerfile.vllm"
"""Stands on vLLM's own image, so that what is installed is bounded by what is there."""
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
every_image = pytest.mark.parametrize("path", [*FILES, VLLM], ids=lambda path: path.name)

Instruction = tuple[str, str]


def instructions(path: Path) -> list[Instruction]:
    """Instructions with their arguments, continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def arguments(path: Path) -> dict[str, str]:
    pairs = (rest.partition("=") for word, rest in instructions(path) if word == "ARG")
    return {name: value for name, _, value in pairs}


def last_stage(path: Path) -> list[Instruction]:
    found = instructions(path)
    start = max(number for number, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def environment(stage: list[Instruction]) -> dict[str, str]:
    return dict(part.split("=", 1) for word, rest in stage if word == "ENV" for part in rest.split())


@every_image
def test_base_images_are_pinned_and_given_once(path: Path) -> None:
    given = arguments(path)
    used = [rest.split()[0] for word, rest in instructions(path) if word == "FROM"]
    for image in used:
        name = re.fullmatch(r"\$\{(\w+)\}", image)
        assert name, f"{image} is not an argument, so it cannot be given by digest"
        assert image_trouble(given[name[1]]) is None


@every_file
def test_every_install_is_bounded_by_the_constraints(path: Path) -> None:
    installs = [
        command
        for word, rest in instructions(path)
        if word == "RUN"
        for command in re.split(r"&&|;", rest)
        if re.search(r"\bpip (install|wheel)\b", command)
    ]
    assert len(installs) >= 5
    for command in installs:
        assert "$BOUNDS" in command, command
    bounds = "--constraint constraints.txt --constraint constraints-images.txt"
    assert f'BOUNDS="{bounds}"' in path.read_text()
    copied = " ".join(rest for word, rest in instructions(path) if word == "COPY")
    assert "constraints.txt deploy/constraints-images.txt" in copied


@every_file
def test_the_compiled_extension_is_made_ahead_and_for_other_machines(path: Path) -> None:
    (build,) = [rest for word, rest in instructions(path) if word == "RUN" and "DS_BUILD_CPU_ADAM=1" in rest]
    assert "--no-binary deepspeed" in build
    assert "--no-build-isolation" in build
    assert "CXX=/src/portable-cxx" in build
    assert ("DS_BUILD_SHM_COMM=1" in build) == (path.suffix == ".cpu")
    assert f"DS_ACCELERATOR={path.suffix.removeprefix('.')}" in build


@every_file
def test_the_last_stage_runs_as_a_user_and_brings_no_compiler_caches(path: Path) -> None:
    stage = last_stage(path)
    words = [word for word, _ in stage]
    users = [rest for word, rest in stage if word == "USER"]
    assert users == ["ray"]
    after = words[words.index("USER") :]
    assert not {"RUN", "COPY", "ADD"} & set(after)
    assert "ADD" not in {word for word, _ in instructions(path)}
    assert "ENTRYPOINT" not in words, "`ray up` starts containers with a shell"
    assert "HEALTHCHECK" in words
    assert ("EXPOSE", "8000") in stage
    assert all("sudo" not in rest for _, rest in stage)


@every_image
def test_a_container_reaches_no_hub_and_asks_for_a_token(path: Path) -> None:
    given = environment(last_stage(path))
    assert given["HF_HUB_OFFLINE"] == given["TRANSFORMERS_OFFLINE"] == "1"
    assert given["RAY_AUTH_MODE"] == "token"
    assert given["HOME"] == "/home/ray", "`ray up` reads it from the image"
    assert int(given["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    assert "--uid 1000" in " ".join(rest for word, rest in last_stage(path) if word == "RUN")


@every_image
def test_all_nodes_serve_through_haproxy_as_we_start_it(path: Path) -> None:
    given = environment(last_stage(path))
    assert given["RAY_SERVE_ENABLE_HA_PROXY"] == "1", "of all images or of none"
    program = Path(given["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert program.name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    # Where pip puts it: into the environment that is copied, or into the image's own Python.
    assert program.parent in (Path("/opt/cong/bin"), Path("/usr/local/bin"))


@every_image
def test_no_secret_is_built_in(path: Path) -> None:
    text = " ".join(rest for word, rest in instructions(path) if word in ("ENV", "ARG"))
    assert not re.search(r"(TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)=", text)


@every_image
def test_what_is_copied_exists(path: Path) -> None:
    for word, rest in instructions(path):
        parts = [part for part in rest.split() if not part.startswith("--")]
        if word == "COPY" and "--from=" not in rest:
            for source in parts[:-1]:
                assert (ROOT / source).exists(), source


def test_the_image_of_vllm_is_of_the_tested_version_and_keeps_what_it_brings() -> None:
    assert arguments(VLLM)["VLLM_IMAGE"].endswith(f":v{TESTED_VERSIONS[0]}")
    (installing,) = [rest for word, rest in instructions(VLLM) if word == "RUN"]
    assert installing.index("pip freeze") < installing.index("--constraint /tmp/vllm-image.txt")
    stage = last_stage(VLLM)
    assert [rest for word, rest in stage if word == "USER"] == ["ray"]
    assert environment(stage)["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert ("ENTRYPOINT", "[]") in stage, "`ray up` starts containers with a shell"


def test_both_images_differ_only_in_what_they_compute_on() -> None:
    """Whatever is installed for serving and training is the same."""
    installs = [
        [command.strip() for word, rest in instructions(path) if word == "RUN" for command in rest.split("&&")]
        for path in FILES
    ]
    for wanted in ('"$(ls /wheels/cong-*.whl)[serve,train,s3]"', "boto3 gcsfs google-api-python-client", "pip check"):
        assert [sum(wanted in command for command in commands) for commands in installs] == [1, 1]


def test_the_images_own_packages_are_pinned_and_contradict_nothing() -> None:
    def pins(path: Path) -> dict[str, str]:
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert all(line.count("==") == 1 for line in lines)
        return {name.lower(): version for name, version in (line.split("==") for line in lines)}

    more, base = pins(ROOT / "deploy" / "constraints-images.txt"), pins(ROOT / "constraints.txt")
    assert {"gcsfs", "google-api-python-client", "setuptools"} <= set(more)
    assert "boto3" in base
    assert not set(more) & set(base)


def test_training_sees_what_an_image_has_compiled_ahead(tmp_path: Path) -> None:
    library = tmp_path / "ops" / "adam" / "cpu_adam_op.cpython-311-x86_64-linux-gnu.so"
    assert not is_compiled_in(tmp_path, "cpu_adam")
    library.parent.mkdir(parents=True)
    library.touch()
    assert is_compiled_in(tmp_path, "cpu_adam")
    assert not is_compiled_in(tmp_path, "cpu_adagrad")
    assert not is_compiled_in(tmp_path, "adam")
